"""The strongest heads of each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import polars as pl

from attrib_batch.analysis.places import first_place, is_at
from attrib_batch.analysis.tables import CELL

if TYPE_CHECKING:
    from attrib_batch.tables import Manifest

Order = Literal["magnitude", "positive", "negative"]
ORDERS: tuple[str, ...] = get_args(Order)


def rows_at(heads: pl.DataFrame, manifest: Manifest, component: str, at: str | None) -> pl.DataFrame:
    """Return the rows of one component at one place.

    Args:
        heads: rows of the ``heads`` summary.
        manifest: of the run; messages name its components.
        component: the component.
        at: ``last``, ``all`` or a role; None for the first of the role ``end``, the last position and all positions
            that a cell has.

    Raises:
        ValueError: there are none; the message says what there is.
    """
    rows = heads.filter(pl.col("component") == str(component))
    if rows.is_empty():
        raise ValueError(f"no score of {component!s} is there; components: {components_of(manifest)}")
    if at is None:
        cells = rows.partition_by(CELL, maintain_order=True)
        return pl.concat([cell.filter(is_at(first_place(cell))) for cell in cells])
    found = rows.filter(is_at(at))
    if found.is_empty():
        roles = rows.get_column("role").drop_nulls().unique().sort().to_list()
        raise ValueError(f"at={at!r}: choose last, all" + (f", or a role: {', '.join(roles)}" if roles else ""))
    return found


def strongest(rows: pl.DataFrame, n: int, by: str) -> pl.DataFrame:
    """Return the n strongest rows of each cell, the strongest first.

    Raises:
        ValueError: ``by`` is none of `ORDERS`.
    """
    order = {"magnitude": pl.col("mean").abs(), "positive": pl.col("mean"), "negative": -pl.col("mean")}
    if by not in order:
        raise ValueError(f"by={by!r}: choose one of {', '.join(ORDERS)}")
    ranked = rows.sort(order[by], "layer", "head", descending=[True, False, False])
    return ranked.group_by(CELL, maintain_order=True).head(n)


def components_of(manifest: Manifest) -> str:
    """Return the components that a run was asked for, as a phrase."""
    methods = manifest.job.get("methods", ())
    return ", ".join(dict.fromkeys(name for method in methods for name in method.get("components", ())))
