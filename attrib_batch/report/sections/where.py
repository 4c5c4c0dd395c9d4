"""Where scores are: maps of layers by role and by position, and the heads at every role."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from attrib_batch.report.drawing.maps import Axis, Detail, Figure, MapAxes, Target, draw_map, largest, picked
from attrib_batch.report.sections.ranking import END, at_best
from attrib_batch.tables import Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attrib_batch.report.drawing.figures import Quantity
    from attrib_batch.report.tokens import TokenAxis

MOST_POSITIONS = 160
"""Columns of a map by position; more are too narrow to see."""


@dataclass(frozen=True)
class CellView:
    """What the maps of one component in one cell have in common."""

    index: int
    """Of the cell."""
    component: str
    quantity: Quantity
    gap: float | None
    """What turns a drawn value into metric units; None where it is in them."""
    detail: Detail
    has_heads: bool
    everywhere: bool
    """Whether there are scores at all positions; otherwise a sum over positions is one over those asked for."""

    def draw(self, rows: pl.DataFrame, axes: MapAxes, name: str, title: str, caption: str, **more: Any) -> Figure:
        """Specify a map of picked rows."""
        return draw_map(
            rows,
            axes,
            div_id=f"cell-{self.index}-{self.component}-{name}",
            title=title,
            caption=caption,
            label=self.quantity.label,
            unit=self.quantity.unit,
            factor=self.gap,
            detail=self.detail,
            target=Target(self.index, self.component) if self.has_heads else None,
            **more,
        )


@dataclass(frozen=True)
class Where:
    """The maps of one component, and what is said in place of those that are not drawn."""

    by_role: list[Figure] = field(default_factory=list)
    by_position: list[Figure] = field(default_factory=list)
    heads_by_role: list[Figure] = field(default_factory=list)
    zero_roles: list[str] = field(default_factory=list)
    """Roles at which every score is 0."""
    remarks: list[str] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        """All maps."""
        return [*self.by_role, *self.by_position, *self.heads_by_role]


def draw_answer(view: CellView, heads: pl.DataFrame, limit: float) -> list[Figure]:
    """Draw the map of what is ranked: of the heads, or of the layers by role for a component without heads."""
    if not view.has_heads:
        return _by_role(view, heads, _nonzero_roles(heads)[0])
    rows, at = at_best(heads)
    at_all = len(rows) > 0 and rows.get_column("scope")[0] == Scope.ALL
    caption = f"Mean over {count_pairs(rows)} of each head's score" + (
        ", summed over those positions." if at_all else "."
    )
    return [_heads(view, rows, "answer", f"All heads, at {at}", caption, limit=limit, tall=True)]


def draw_where(
    view: CellView, heads: pl.DataFrame, positions: pl.DataFrame, lengths: tuple[int, int], tokens: TokenAxis | None
) -> Where:
    """Draw the maps of one component, the role axis first.

    Args:
        view: what is drawn.
        heads: its rows of the summary, with intervals.
        positions: likewise.
        lengths: the least and the most tokens of a prompt.
        tokens: the token at each position, where all prompts have the same wording.
    """
    roles, zero = _nonzero_roles(heads)
    by_position, remarks = _by_position(view, positions, lengths, tokens)
    return Where(
        by_role=_by_role(view, heads, roles) if view.has_heads else [],
        by_position=by_position,
        heads_by_role=[] if view.detail is Detail.CORE else _heads_by_role(view, heads, roles),
        zero_roles=zero,
        remarks=remarks,
    )


def limit_of_heads(view: CellView, heads: pl.DataFrame) -> float:
    """Return the largest absolute value of a component's maps of heads: they share one scale."""
    rows = heads if view.everywhere else heads.filter(pl.col("scope") != Scope.ALL)
    return largest(picked(rows if len(rows) else heads, view.quantity))


def role_order(rows: pl.DataFrame) -> list[str]:
    """Return the names of the roles, alphabetical, with ``end`` last as it is in the prompt."""
    names = rows.get_column("role").drop_nulls().unique().to_list()
    return sorted(names, key=lambda name: (name == END, name))


def count_pairs(rows: pl.DataFrame) -> str:
    """Say how many pairs the rows are over, such as ``1,000 pairs``."""
    counts = rows.get_column("n_pairs").unique().sort()
    if not len(counts):
        return "0 pairs"
    first = f"{counts[0]:,} to {counts[-1]:,}" if len(counts) > 1 else f"{counts[0]:,}"
    return f"{first} pair" if first == "1" else f"{first} pairs"


def _nonzero_roles(heads: pl.DataFrame) -> tuple[list[str], list[str]]:
    """Return the roles with a score other than 0, and those without."""
    of_roles = heads.filter(pl.col("scope") == Scope.ROLE)
    moves = of_roles.filter((pl.col("min") != 0) | (pl.col("max") != 0)).get_column("role").unique().to_list()
    order = role_order(of_roles)
    return [name for name in order if name in moves], [name for name in order if name not in moves]


def _by_role(view: CellView, heads: pl.DataFrame, roles: Sequence[str]) -> list[Figure]:
    """Draw layers by role; heads are added up, as they are by position."""
    extra = [] if END in roles else [(Scope.LAST, "last position")]
    # The sum over positions would outshine every single role, so only a component without other maps has it.
    extra += [(Scope.ALL, "all positions")] if view.everywhere and not view.has_heads else []
    pieces: list[pl.DataFrame] = []
    labels: list[str] = []
    for label, chosen in [
        *((role, (pl.col("scope") == Scope.ROLE) & (pl.col("role") == role)) for role in roles),
        *((label, pl.col("scope") == scope) for scope, label in extra),
    ]:
        rows = heads.filter(chosen)
        if len(rows):
            pieces.append(_summed(view, rows).with_columns(x=pl.lit(len(labels))))
            labels.append(label)
    if not roles or not pieces:
        return []
    rows = pl.concat(pieces)
    summed = "Scores summed over a role's tokens" + (" and over heads, so without intervals" if view.has_heads else "")
    axes = MapAxes(labels, _layers(rows.get_column("y")), Axis.ROLE)
    return [view.draw(rows, axes, "roles", "Layers, by role", f"{summed}; mean over {count_pairs(rows)}.")]


def _summed(view: CellView, rows: pl.DataFrame) -> pl.DataFrame:
    """Add heads up: the mean of a sum is the sum of the means; its interval does not follow from theirs."""
    values = picked(rows, view.quantity).with_columns(y=pl.col("layer").cast(pl.Int64))
    if not view.has_heads:
        return values.select("y", "value", "low", "high", "n_pairs", "n_groups")
    nothing = pl.lit(None, pl.Float64)
    return values.group_by("y", maintain_order=True).agg(
        value=pl.col("value").sum(),
        low=nothing,
        high=nothing,
        n_pairs=pl.col("n_pairs").first(),
        n_groups=pl.col("n_groups").first(),
    )


def _heads_by_role(view: CellView, heads: pl.DataFrame, roles: Sequence[str]) -> list[Figure]:
    if not view.has_heads:
        return []
    limit = limit_of_heads(view, heads)
    panels = [
        (heads.filter((pl.col("scope") == Scope.ROLE) & (pl.col("role") == role)), f"role-{index}", role)
        for index, role in enumerate(roles)
    ]
    if END not in roles and roles:
        panels.append((heads.filter(pl.col("scope") == Scope.LAST), "last", "last position"))
    if view.everywhere:
        panels.append((heads.filter(pl.col("scope") == Scope.ALL), "all", "all positions, summed"))
    return [
        _heads(view, rows, name, title, f"{count_pairs(rows)}", limit=limit, compact=True)
        for rows, name, title in panels
        if len(rows)
    ]


def _heads(view: CellView, rows: pl.DataFrame, name: str, title: str, caption: str, **more: Any) -> Figure:
    placed = picked(rows, view.quantity).with_columns(y=pl.col("layer").cast(pl.Int64), x=pl.col("head").cast(pl.Int64))
    axes = MapAxes(_layers(placed.get_column("x")), _layers(placed.get_column("y")), Axis.HEAD)
    return view.draw(placed, axes, name, title, caption, **more)


def _by_position(
    view: CellView, positions: pl.DataFrame, lengths: tuple[int, int], tokens: TokenAxis | None
) -> tuple[list[Figure], list[str]]:
    """Draw layers by position: from the first token where all prompts are equally long, from the last otherwise."""
    from_start = lengths[0] == lengths[1]
    rows = positions.filter(pl.col("scope") == (Scope.POSITION if from_start else Scope.FROM_END))
    if rows.is_empty():
        return [], []
    moves = rows.filter((pl.col("min") != 0) | (pl.col("max") != 0)).get_column("position")
    if moves.is_empty():
        return [], ["By position there is nothing to draw: every score is exactly 0."]
    places = rows.get_column("position")
    first, last = int(moves.min()), int(moves.max())  # type: ignore[arg-type]  # integers here
    lowest, highest = int(places.min()), int(places.max())  # type: ignore[arg-type]  # integers here
    before = ", as it must be before the first token in which clean and corrupted prompt differ"
    remarks = _left_out(lowest, first - 1, before) + _left_out(last + 1, highest)
    if last - first >= MOST_POSITIONS:
        first = last - MOST_POSITIONS + 1
        remarks.append(f"Only the last {MOST_POSITIONS} positions are drawn; all are in summary/positions.parquet.")
    kept = rows.filter(pl.col("position").is_between(first, last))
    placed = picked(kept, view.quantity).with_columns(
        y=pl.col("layer").cast(pl.Int64), x=pl.col("position").cast(pl.Int64) - first
    )
    shown = range(first, last + 1)
    texts = [tokens.texts[place] for place in shown] if tokens and from_start and last < len(tokens.texts) else None
    axes = MapAxes(
        list(shown), _layers(placed.get_column("y")), Axis.POSITION if from_start else Axis.FROM_END, tokens=texts
    )
    summed = "Scores summed over heads" if view.has_heads else "Scores"
    counted = (
        "Positions count from 0." if from_start
        else f"Prompts have {lengths[0]:,} to {lengths[1]:,} tokens, so positions count back from the last one, "
        "\N{MINUS SIGN}1; each is over the prompts that reach it."
    )  # fmt: skip
    caption = f"{summed}; mean over {count_pairs(placed)}. {counted}"
    if texts and tokens and tokens.varies:
        caption += " A token with * differs between pairs."
    return [view.draw(placed, axes, "position", "Layers, by token position", caption)], remarks


def _left_out(first: int, last: int, why: str = "") -> list[str]:
    """Say that the positions from first to last are not drawn; nothing where there are none."""
    if last < first:
        return []
    if first == last:
        return [f"Position {_number(first)} is not drawn: every score there is exactly 0{why}."]
    return [f"Positions {_number(first)} to {_number(last)} are not drawn: every score there is exactly 0{why}."]


def _number(position: int) -> str:
    return str(position).replace("-", "\N{MINUS SIGN}")


def _layers(indices: pl.Series) -> list[int]:
    return list(range(int(indices.max()) + 1)) if len(indices) else []  # type: ignore[arg-type]  # integers here
