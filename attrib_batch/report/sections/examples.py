"""The pairs behind a head: prompts with their tokens and what each token's score is, cut to what a page can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attrib_batch import analysis
from attrib_batch.report.tokens import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from attrib_batch.spec import Cell
    from attrib_batch.storage.store import Store

MOST_TOKENS = 160
"""Of a prompt; longer ones are shown around their strongest tokens."""
_FIRST, _LAST, _AROUND = 8, 24, 6
PER_HEAD = 4
"""Examples at each end."""

Piece = list[Any]
"""A token: its text, what the corrupted prompt has instead or None, its score, its position; or a gap: its length."""


@dataclass(frozen=True)
class Example:
    """One pair of one head."""

    which: str
    """``strongest`` or ``weakest``."""
    rank: int
    pair_id: int
    value: float
    """The pair's value of the head; metric units, as are the following."""
    clean_metric: float | None
    corrupted_metric: float | None
    template: str | None
    task: str | None
    pieces: list[Piece] | None
    """None where the run holds no prompts."""
    tokens: Sequence[str] | None
    """All of the clean prompt."""

    def to_json(self) -> dict[str, Any]:
        """Return what the page's script shows."""
        found = {
            "which": self.which,
            "rank": self.rank,
            "pair": self.pair_id,
            "value": short(self.value),
            "clean": self.clean_metric and short(self.clean_metric),
            "corrupted": self.corrupted_metric and short(self.corrupted_metric),
            "template": self.template and shown(self.template),
            "task": self.task and shown(self.task),
            "pieces": self.pieces,
        }
        return {key: value for key, value in found.items() if value is not None}


HeadKey = tuple[str, int, int]
"""Component, layer and head; -1 for a component without heads."""
Examples = dict[HeadKey, list[Example]]


@dataclass(frozen=True)
class CellExamples:
    """The examples of a cell's strongest heads."""

    heads: Examples
    at: dict[str, str]
    """Where the values of each component's heads are taken: ``last``, ``all`` or a role."""

    @property
    def has_prompts(self) -> bool:
        """Whether any example has its tokens."""
        return any(example.pieces is not None for found in self.heads.values() for example in found)

    def of(self, component: str) -> Examples:
        """Return the examples of one component."""
        return {key: found for key, found in self.heads.items() if key[0] == component}

    def prompts(self) -> list[Sequence[str]]:
        """Return the tokens of the clean prompts, each pair once."""
        by_pair = {example.pair_id: example.tokens for found in self.heads.values() for example in found}
        return [tokens for tokens in by_pair.values() if tokens is not None]


def read_examples(store: Store, n_heads: int) -> pl.DataFrame | None:
    """Read the examples of the strongest heads of every cell of a summarised run; None where this release cannot."""
    read = getattr(analysis, "examples_of_top", None)
    return read(store, n_heads=n_heads, n=PER_HEAD) if read is not None else None


def examples_of(frame: pl.DataFrame | None, cell: Cell) -> CellExamples:
    """Return the examples of one cell.

    Args:
        frame: rows of many heads of many cells: ``model, dataset, method, component, layer, head``, perhaps ``at``, and
            the columns that `parse_examples` reads.
        cell: whose examples are wanted.
    """
    heads: Examples = {}
    at: dict[str, str] = {}
    if frame is not None and len(frame):
        own = frame.filter(model=cell.model, dataset=cell.dataset, method=cell.method)
        for (component, layer, head), rows in own.partition_by(
            "component", "layer", "head", as_dict=True, maintain_order=True
        ).items():
            heads[str(component), int(layer), -1 if head is None else int(head)] = parse_examples(rows)
            if "at" in rows.columns:
                at[str(component)] = rows.get_column("at")[0]
    return CellExamples(heads, at)


def parse_examples(frame: pl.DataFrame) -> list[Example]:
    """Read the rows of a frame of examples, the strongest first.

    Args:
        frame: one row per example of one head: ``which, rank, pair_id, value`` and, as far as they are known,
            ``clean_metric, corrupted_metric, template, task, tokens, corrupted_tokens, scores``.
    """
    rows = sorted(frame.iter_rows(named=True), key=lambda row: (row["which"] != "strongest", row["rank"]))
    return [_example(row) for row in rows]


def _example(row: Mapping[str, Any]) -> Example:
    tokens, scores = row.get("tokens"), row.get("scores")
    pieces = None
    if tokens is not None and scores is not None and len(tokens) == len(scores):
        pieces = cut(tokens, row.get("corrupted_tokens") or tokens, scores)
    return Example(
        which=row["which"],
        rank=int(row["rank"]),
        pair_id=int(row["pair_id"]),
        value=float(row["value"]),
        clean_metric=row.get("clean_metric"),
        corrupted_metric=row.get("corrupted_metric"),
        template=row.get("template"),
        task=row.get("task"),
        pieces=pieces,
        tokens=tokens,
    )


def cut(tokens: Sequence[str], corrupted: Sequence[str], scores: Sequence[float | None]) -> list[Piece]:
    """Return a prompt's tokens, of a long one its two ends and what surrounds its strongest tokens.

    A gap says how many tokens are left out.
    """
    keep = _kept(np.array([abs(score or 0.0) for score in scores]))
    pieces: list[Piece] = []
    gap = 0
    for position, token in enumerate(tokens):
        if not keep[position]:
            gap += 1
            continue
        if gap:
            pieces.append([gap])
            gap = 0
        other = corrupted[position] if position < len(corrupted) else token
        pieces.append([shown(token), None if other == token else shown(other), _score(scores[position]), position])
    return [*pieces, [gap]] if gap else pieces


def _kept(sizes: np.ndarray) -> np.ndarray:
    """Choose the tokens that are shown, at most `MOST_TOKENS`."""
    keep = np.ones(len(sizes), dtype=bool)
    if len(sizes) <= MOST_TOKENS:
        return keep
    keep[_FIRST : len(sizes) - _LAST] = False
    for position in np.argsort(-sizes, kind="stable"):
        around = slice(max(position - _AROUND, 0), position + _AROUND + 1)
        wanted = keep.copy()
        wanted[around] = True
        if not sizes[position] or wanted.sum() > MOST_TOKENS:
            break
        keep = wanted
    return keep


def _score(value: float | None) -> float | None:
    return None if value is None else short(value)


def short(value: float) -> float:
    """Round to four digits: more are not shown."""
    return float(f"{value:.4g}")
