"""The numbers that a page's script reads: figures, what is known of each head, examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from attrib_batch.report.sections.examples import short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attrib_batch.analysis import Summary
    from attrib_batch.report.sections.cell import CellSection, ComponentSection
    from attrib_batch.report.sections.sweep import Sweep

_MOST_HEADS = 2_000
"""Of a component, that carry their extremes in the page."""


def page_data(sections: Sequence[CellSection], sweep: Sweep, summary: Summary) -> dict[str, Any]:
    """Return plain data, to be written as JSON."""
    figures = [figure for section in sections for figure in section.figures]
    figures += [figure for component in sweep.components for figure in component.figures]
    return {
        "figures": {figure.div_id: {**figure.spec, "title": figure.title} for figure in figures},
        "cells": [_cell(section, summary) for section in sections],
    }


def _cell(section: CellSection, summary: Summary) -> dict[str, Any]:
    cell = section.cell
    heads = summary.heads.filter(model=cell.model, dataset=cell.dataset, method=cell.method)
    return {
        "name": str(cell),
        "names": [cell.model, cell.dataset, cell.method],
        "unit": section.unit,
        "components": {
            component.name: {
                "at": component.ranking.at,
                "place": section.examples.at.get(component.name),
                "extremes": _extremes(heads, component),
                "examples": {
                    f"{layer}/{head}": [example.to_json() for example in found]
                    for (_, layer, head), found in section.examples.of(component.name).items()
                },
            }
            for component in section.components
        },
    }


def _extremes(heads: pl.DataFrame, component: ComponentSection) -> dict[str, list[float]]:
    """Return of each head its smallest and largest value, whose they are, and the share of positive ones."""
    ranking = component.ranking
    rows = heads.filter(
        pl.col("component") == component.name,
        pl.col("scope") == ranking.scope,
        pl.col("role").eq_missing(pl.lit(ranking.role, pl.String)),
    )
    if len(rows) > _MOST_HEADS:
        chosen = [(row.layer, row.head) for row in ranking.rows]
        strongest = pl.DataFrame(chosen, schema={"layer": pl.Int16, "head": pl.Int16}, orient="row")
        rows = rows.join(strongest, on=["layer", "head"], how="semi", nulls_equal=True)
    return {
        f"{row['layer']}/{-1 if row['head'] is None else row['head']}": [
            short(row["min"]), row["min_pair"], short(row["max"]), row["max_pair"], short(row["share_positive"]),
        ]
        for row in rows.iter_rows(named=True)
    }  # fmt: skip
