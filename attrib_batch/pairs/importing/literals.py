"""Read a cell that holds a Python list as text: literals alone, nothing of it is ever executed."""

from __future__ import annotations

import ast
import re
from typing import Any

_LONGEST_CELL = 1 << 20
"""Characters. The parser's own stack and memory grow with a text, so what no list of answers needs is not given it."""
_DEEPEST = 8
_BRACKETS = re.compile(r"[\[\](){}]")


def list_from_cell(text: str) -> list[Any] | None:
    """Return the list that a text is the literal of; None where it is no literal of a list or tuple."""
    if len(text) > _LONGEST_CELL or _depth(text) > _DEEPEST:
        return None
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    return list(value) if isinstance(value, list | tuple) else None


def _depth(text: str) -> int:
    """Return how deeply brackets are nested; those inside of strings count too, since none is worth telling apart."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    return deepest
