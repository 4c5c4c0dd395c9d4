"""The page of results: parts that are measured at different times, each replaced by whoever measures it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = "# Benchmarks"
PARTS = (
    "engine",
    "scale",
    "workers",
    "models",
    "writing",
    "analysis",
    "coverage",
    "shapes",
    "gpu",
    "calibration",
    "methods",
    "families",
)
"""In the order of the page."""


def replace_part(page: Path, name: str, text: str) -> None:
    """Write a part of the page, and leave the others as they are."""
    parts = _read(page) | {name: text.strip()}
    blocks = [f"<!-- part: {part} -->\n\n{parts[part]}" for part in PARTS if part in parts]
    page.write_text("\n\n".join([TITLE, *blocks]) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _read(page: Path) -> dict[str, str]:
    if not page.exists():
        return {}
    _, *found = re.split(r"<!-- part: (\w+) -->", page.read_text(encoding="utf-8"))
    return {name: text.strip() for name, text in zip(found[::2], found[1::2], strict=True)}
