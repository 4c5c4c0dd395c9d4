"""Where the scores of a pair are added up, as users name it: the last position, all of them, or a role."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis.tables import CELL
from attrib_batch.tables import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.spec import Cell
    from attrib_batch.tables import Manifest

END = "end"
"""The role that is looked at first: where a prompt is continued."""


def scope_of(at: str) -> tuple[Scope, str | None]:
    """Return the scope and the role that ``last``, ``all`` or the name of a role stand for."""
    return (Scope(at), None) if at in {Scope.LAST, Scope.ALL} else (Scope.ROLE, at)


def is_at(at: str) -> pl.Expr:
    """Return which rows of a table with ``scope`` and ``role`` are of a place."""
    scope, role = scope_of(at)
    here = pl.col("scope") == str(scope)
    return here if role is None else here & (pl.col("role") == role)


def first_place(heads: pl.DataFrame) -> str:
    """Return the place by which heads are ranked: the role `END`, without it the last position, or else all there are.

    Args:
        heads: rows of the ``heads`` summary of one cell and component.
    """
    places = (END, Scope.LAST, Scope.ALL)
    return next((str(place) for place in places if not heads.filter(is_at(place)).is_empty()), str(Scope.ALL))


def select_cells(manifest: Manifest, wanted: Mapping[str, str]) -> list[Cell]:
    """Return the cells of a plan that have all the names asked for, in its order.

    Args:
        manifest: of the run.
        wanted: values of ``model``, ``dataset`` and ``method``; what is left out may have any.

    Raises:
        TypeError: another key is asked for.
        ValueError: no cell is called so; the message says which there are.
    """
    _check_names(wanted)
    cells = [plan.cell for plan in manifest.plan]
    chosen = [cell for cell in cells if all(getattr(cell, key) == value for key, value in wanted.items())]
    if not chosen:
        asked = ", ".join(f"{key}={value!r}" for key, value in wanted.items()) or "any name"
        raise ValueError(f"no cell has {asked}; there are: {'; '.join(map(str, cells)) or 'none'}")
    return chosen


def rows_of(frame: pl.DataFrame, wanted: Mapping[str, str]) -> pl.DataFrame:
    """Return the rows of the cells that have all the names asked for.

    Raises:
        TypeError: another key than ``model``, ``dataset`` or ``method`` is asked for.
    """
    _check_names(wanted)
    return frame.filter(*(pl.col(name) == value for name, value in wanted.items()))


def _check_names(wanted: Mapping[str, str]) -> None:
    if unknown := set(wanted) - set(CELL):
        raise TypeError(f"unknown keyword {', '.join(sorted(unknown))}; known: {', '.join(CELL)}")
