"""Generate, import and write tables of prompt pairs."""
