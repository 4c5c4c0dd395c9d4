"""Markdown that several generated pages have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; what is in a cell stays in one line."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)


def cell(text: str) -> str:
    """Return a text as it may stand in a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Return a text as code; what is empty stays so."""
    return f"`{text}`" if text else ""


def plain(docstring: str) -> str:
    """Return a docstring's text with the names in it as Markdown writes them."""
    return docstring.strip().replace("``", "`")
