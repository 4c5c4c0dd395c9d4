"""Prompt pairs: make, import, validate, describe, tokenise and align them. Needs neither torch nor ray."""
