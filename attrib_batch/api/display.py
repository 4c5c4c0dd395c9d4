"""A run as a small piece of HTML, for notebooks: counts, the strongest heads, one heatmap; nothing is loaded for it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from attrib_batch.analysis import heatmap
from attrib_batch.errors import OutputError
from attrib_batch.report.formats import signed
from attrib_batch.spec import Component

if TYPE_CHECKING:
    import polars as pl

    from attrib_batch.api.run import Run

MOST_SUMMARIZED_PAIRS = 20_000
"""Pairs that are summarised for being shown: more would hold up a notebook."""
TILE = 12
"""Pixels of a head in the map."""


def run_html(run: Run) -> str:
    """Return pairs scored, the strongest heads at the last position and a map of the first cell."""
    status = run.status()
    lines = [
        f"<b>{escape(str(cell.cell))}</b>{'' if cell.stage == 'scoring' else f' ({cell.stage})'}: "
        f"{cell.scored:,} of {cell.expected:,} pairs scored" + (f", {cell.failed:,} failed" if cell.failed else "")
        for cell in status.cells
    ]
    body = "<br>".join(lines)
    first = next((cell.cell for cell in status.cells if cell.scored and cell.stage == "scoring"), None)
    if first is not None and not run.is_summarized and status.scored > MOST_SUMMARIZED_PAIRS:
        body += "<br>run.heads() summarises the scores, which takes a while for so many pairs"
    elif first is not None:
        try:
            heads = run.heads(model=first.model, dataset=first.dataset, method=first.method)
        except OutputError as error:
            body += f"<br>{escape(str(error))}"
        else:
            body += _heads_html(heads)
    return f"<div>{body}<br><small>{escape(str(run.path))}</small></div>"


def _heads_html(heads: pl.DataFrame) -> str:
    """Return the strongest heads and the map of z, or of the first component with heads; nothing where none has."""
    by_head = heads.filter((heads["scope"] == "last") & heads["head"].is_not_null())
    present = set(by_head.get_column("component"))
    component = next((name for name in (Component.Z, *Component) if name in present), None)
    if component is None:
        return ""
    rows = by_head.filter(by_head["component"] == str(component))
    ranked = rows.sort(rows["mean"].abs(), descending=True).head(5)
    table = "".join(
        f"<tr><td>L{row['layer']}H{row['head']}</td><td style='text-align:right'>{signed(row['mean'])}</td></tr>"
        for row in ranked.iter_rows(named=True)
    )
    matrix = heatmap(rows, value="mean")
    return (
        f"<div style='display:flex;gap:2em;align-items:flex-start;margin:.5em 0'><table><tr><th>{component}, last "
        f"position</th><th>mean score</th></tr>{table}</table>{_svg(matrix)}</div>"
    )


def _svg(matrix: np.ndarray) -> str:
    """Return a map of layers (upwards) by heads, blue for positive and red for negative means."""
    n_layers, n_heads = matrix.shape
    limit = float(np.nanmax(np.abs(matrix))) or 1.0
    tiles = []
    for layer, head in np.ndindex(n_layers, n_heads):
        share = float(np.nan_to_num(matrix[layer, head])) / limit
        rest = round(247 * (1 - abs(share)))
        colour = f"rgb({rest},{round(rest + 100 * abs(share))},247)" if share > 0 else f"rgb(247,{rest},{rest})"
        name = f"L{layer}H{head} {matrix[layer, head]:+.3g}"
        tiles.append(
            f"<rect x='{head * TILE}' y='{(n_layers - 1 - layer) * TILE}' width='{TILE - 1}' height='{TILE - 1}' "
            f"fill='{colour}'><title>{name}</title></rect>"
        )
    size = f"width='{n_heads * TILE}' height='{n_layers * TILE}'"
    return f"<svg {size} role='img' aria-label='mean score of each head, layers upwards'>{''.join(tiles)}</svg>"
