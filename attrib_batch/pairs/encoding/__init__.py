"""Turn prompt pairs into tokens, and tell which pairs cannot be scored."""
