"""Estimates beside the exact effects of a sample."""
