"""The example at the end of each command's help."""

from __future__ import annotations

PREFIX = "Example: "


def example(arguments: str) -> str:
    """Return the end of a command's help: the command with these arguments, as a person types it."""
    return f"{PREFIX}attrib-batch {arguments}"
