"""The prompts of scored pairs as tokens, where a run has a table of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis.tables import from_arrow
from attrib_batch.tables import Table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from attrib_batch.analysis.tables import Part
    from attrib_batch.spec import Cell

TOKENS = pl.Schema(
    {
        "pair_id": pl.Int64(),
        "tokens": pl.List(pl.String()),  # of the clean prompt, each as the tokenizer decodes it alone
        "corrupted_tokens": pl.List(pl.String()),
        "task": pl.String(),
    }
)
"""The columns of `read_prompts`."""


def read_prompts(cell: Cell, parts: Iterable[Part], ids: Collection[int]) -> pl.DataFrame:
    """Read the tokens and tasks of pairs; no row for pairs of chunks that have no prompts.

    Args:
        cell: whose pairs they are.
        parts: the chunks that hold them.
        ids: their ``pair_id``.
    """
    frames, listed = [TOKENS.to_frame()], None
    for part in parts:
        if listed is None:
            listed = {file.name: file for file in part.scores.store.list(f"{Table.PROMPTS}/{cell.partition}")}
        if part.scores.name in listed:
            rows = from_arrow(listed[part.scores.name].read()).filter(pl.col("pair_id").is_in(list(ids)))
            frames.append(rows.rename({"clean_tokens": "tokens"}).select(TOKENS.names()).cast(TOKENS))
    return pl.concat(frames)
