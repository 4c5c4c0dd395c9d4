"""From score rows to moments, one committed part at a time.

Memory stays bounded by one part: a part is reduced to moments before the next is opened. Groups whose pairs
lie in several parts cannot be reduced part by part; their rows are read again, a bounded number of groups at
a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis.moments import merge_moments, merge_units, moments_of_units, units_of_pairs
from attrib_batch.analysis.tables import Part, scan
from attrib_batch.errors import OutputError
from attrib_batch.spec.positions import ALL, LAST
from attrib_batch.tables import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from attrib_batch.spec import Cell

HEAD_KEYS = ("component", "scope", "role", "layer", "head")
POSITION_KEYS = ("component", "layer", "position")

# Merging as parts arrive, not all at the end, is what bounds memory; merging every one of them would be slow.
_PENDING_PARTS = 16


@dataclass(frozen=True)
class Reduced:
    """A pair of frames of one shape for both summaries: moments, or partial units."""

    heads: pl.DataFrame
    positions: pl.DataFrame


def reduce_cell(cell: Cell, parts: list[Part], at: str | Sequence[str] = ALL) -> Reduced:
    """Return the moments of all scores of a cell.

    Args:
        cell: the cell, for messages.
        parts: its committed parts.
        at: the positions that its method was asked for.

    Returns:
        Moments (see `moments.merge_moments`) by ``HEAD_KEYS`` and by ``POSITION_KEYS``.

    Raises:
        OutputError: scores that are not finite, or that do not belong to the baselines beside them.
    """
    straddling = straddling_pairs(parts)
    total: Reduced | None = None
    pending: list[Reduced] = []
    for piece in _pieces(cell, parts, straddling, at):
        pending.append(piece)
        if len(pending) == _PENDING_PARTS:
            total, pending = _merged([total, *pending] if total else pending), []
    return _merged([total, *pending] if total else pending)


def straddling_pairs(parts: list[Part]) -> pl.DataFrame:
    """Find the pairs of groups that lie in more than one part.

    Returns:
        ``pair_id``, ``n_tokens``, ``unit`` (the smallest pair_id of the group), ``part`` (index into
        ``parts``), the groups that begin first coming first.
    """
    pairs = pl.concat(
        [
            scan([part.baselines], Table.BASELINES).select("pair_id", "n_tokens", "group", part=pl.lit(index, pl.Int64))
            for index, part in enumerate(parts)
        ]
    ).filter(pl.col("group").is_not_null())
    groups = (
        pairs.group_by("group")
        .agg(unit=pl.col("pair_id").min(), first=pl.col("part").min(), last=pl.col("part").max())
        .filter(pl.col("first") < pl.col("last"))
    )
    return (
        pairs.join(groups, on="group")
        .sort("first", "unit", "part", "pair_id")
        .select("pair_id", "n_tokens", "unit", "part")
        .collect(engine="streaming")
    )


def _pieces(cell: Cell, parts: list[Part], straddling: pl.DataFrame, at: str | Sequence[str]) -> Iterator[Reduced]:
    most_pairs = 1
    for index, part in enumerate(parts):
        pairs = _pairs_of_part(part, straddling.filter(pl.col("part") == index))
        most_pairs = max(most_pairs, len(pairs))
        yield _moments(_read_part(cell, part, pairs, at))
    units = straddling.get_column("unit").unique(maintain_order=True)
    for offset in range(0, len(units), most_pairs):
        batch = straddling.filter(pl.col("unit").is_in(units.slice(offset, most_pairs).implode()))
        yield _moments(_read_groups(parts, batch))


def _pairs_of_part(part: Part, straddling: pl.DataFrame) -> pl.DataFrame:
    """Read a part's pairs as ``pair_id, n_tokens, unit``; unit is null where its group lies in other parts too."""
    pair_id = pl.col("pair_id")
    pairs = scan([part.baselines], Table.BASELINES).select("pair_id", "n_tokens", "group").collect()
    unit = pl.when(pl.col("group").is_null()).then(pair_id).otherwise(pair_id.min().over("group"))
    away = pair_id.is_in(straddling.get_column("pair_id").implode())
    return pairs.select("pair_id", "n_tokens", unit=pl.when(~away).then(unit))


def _read_part(cell: Cell, part: Part, pairs: pl.DataFrame, at: str | Sequence[str]) -> Reduced:
    """Gather complete units of one part, all of its rows checked; straddling groups are left out."""
    rows = scan([part.scores], Table.SCORES).join(pairs.lazy(), on="pair_id", how="left")
    by_role, by_position = pl.collect_all([_by_role(rows), _by_position(rows)], engine="streaming")
    _check(cell, part, pairs, by_role, at)
    kept = pl.col("unit").is_not_null()
    return _units(by_role.lazy().filter(kept), by_position.lazy().filter(kept))


def _read_groups(parts: list[Part], pairs: pl.DataFrame) -> Reduced:
    """Gather complete units of straddling groups, merged over the parts they lie in."""
    pieces = []
    for (index,), here in pairs.partition_by("part", as_dict=True, include_key=False).items():
        rows = scan([parts[index].scores], Table.SCORES).join(here.lazy(), on="pair_id")
        by_role, by_position = pl.collect_all([_by_role(rows), _by_position(rows)], engine="streaming")
        pieces.append(_units(by_role.lazy(), by_position.lazy()))
        if len(pieces) == _PENDING_PARTS:
            pieces = [_merged_units(pieces)]
    return _merged_units(pieces)


def _by_role(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Sum over positions per pair, head and role, and at the last position alone beside it."""
    # Polars adds float32 in float32, where 1e8 + 1 is 1e8.
    score = pl.col("score").cast(pl.Float64)
    is_last = pl.col("position") == pl.col("n_tokens") - 1
    return rows.group_by("pair_id", "unit", "component", "layer", "head", "role").agg(
        score=score.sum(),
        last=pl.when(is_last).then(score).sum(),
        n_last=is_last.sum(),
        rows=pl.len(),
        non_finite=(~score.is_finite()).sum(),
    )


def _by_position(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Sum over heads per pair and position."""
    return rows.group_by("pair_id", "unit", "component", "layer", "position").agg(
        value=pl.col("score").cast(pl.Float64).sum()
    )


def _units(by_role: pl.LazyFrame, by_position: pl.LazyFrame) -> Reduced:
    """Gather values per pair, in every scope, into partial units."""
    at = ("pair_id", "unit", "component", "layer", "head")
    scope = pl.Enum(["role", "last", "all"])
    whole = by_role.group_by(at).agg(pl.col("score", "last", "n_last").sum())
    # A method that was not asked for the last position has no row there, which is not a score of 0.
    at_last = whole.filter(pl.col("n_last") > 0)
    no_role = pl.lit(None, pl.Categorical)
    columns = (*at, "scope", "role", "value")
    values = pl.concat(
        [
            by_role.filter(pl.col("role").is_not_null())
            .with_columns(scope=pl.lit("role", scope), value="score")
            .select(columns),
            at_last.with_columns(scope=pl.lit("last", scope), role=no_role, value="last").select(columns),
            whole.with_columns(scope=pl.lit("all", scope), role=no_role, value="score").select(columns),
        ]
    )
    heads, positions = pl.collect_all(
        [units_of_pairs(values, HEAD_KEYS), units_of_pairs(by_position, POSITION_KEYS)], engine="streaming"
    )
    return Reduced(heads, positions)


def _moments(units: Reduced) -> Reduced:
    heads, positions = pl.collect_all(
        [
            moments_of_units(units.heads.lazy(), HEAD_KEYS),
            moments_of_units(units.positions.lazy(), POSITION_KEYS),
        ]
    )
    return Reduced(heads, positions)


def _merged(pieces: list[Reduced]) -> Reduced:
    return Reduced(
        merge_moments([piece.heads for piece in pieces], HEAD_KEYS),
        merge_moments([piece.positions for piece in pieces], POSITION_KEYS),
    )


def _merged_units(pieces: list[Reduced]) -> Reduced:
    return Reduced(
        merge_units([piece.heads for piece in pieces], HEAD_KEYS),
        merge_units([piece.positions for piece in pieces], POSITION_KEYS),
    )


def _check(cell: Cell, part: Part, pairs: pl.DataFrame, by_role: pl.DataFrame, at: str | Sequence[str]) -> None:
    """Refuse a part in which a mean would be wrong without showing it."""
    bad = by_role.filter(pl.col("non_finite") > 0)
    if len(bad):
        count, affected = bad.get_column("non_finite").sum(), bad.get_column("pair_id").unique().sort()
        raise OutputError(
            f"{part.scores}: {count} scores of {len(affected)} pairs are NaN or infinite (first pair_id "
            f"{affected[0]}). A run lists such pairs as failures and never stores them: the file is damaged, "
            "remove it and run the job again."
        )
    twice = pairs.get_column("pair_id").n_unique() != len(pairs)
    if at in (ALL, LAST):
        rows = int(pairs.get_column("n_tokens").sum()) if at == ALL else len(pairs)
        wrong = not _has_rows(by_role, rows=rows, n_last=len(pairs))
        expected = f"one row per token position of each of its {len(pairs)} pairs, {rows} rows"
        if at == LAST:
            expected = f"one row for each of its {len(pairs)} pairs, at the last position"
    else:
        wrong = not _has_roles_alone(by_role, pairs, at)
        expected = f"the same rows of a pair, at positions of {' and '.join(at)} alone"
    if wrong or twice:
        raise OutputError(
            f"{part.scores} does not match its baselines file ({cell}): every component, layer and head must "
            f"have {expected}. Remove both files and run the job again."
        )


def _has_rows(by_role: pl.DataFrame, *, rows: int, n_last: int) -> bool:
    """Return whether every component, layer and head has so many rows, and so many of them at the last position."""
    complete = by_role.group_by("component", "layer", "head").agg(pl.col("rows", "n_last").sum())
    return complete.filter((pl.col("rows") != rows) | (pl.col("n_last") != n_last)).is_empty()


def _has_roles_alone(by_role: pl.DataFrame, pairs: pl.DataFrame, at: Sequence[str]) -> bool:
    """Return whether rows are at positions of these roles alone, as many of a pair for all components and heads."""
    known = pl.col("pair_id").is_in(pairs.get_column("pair_id").implode())
    asked = pl.col("role").cast(pl.String).is_in(list(at)).fill_null(value=False)
    if not by_role.filter(~(known & asked)).is_empty():
        return False
    n_elements = by_role.select("component", "layer", "head").n_unique()
    alike = by_role.group_by("pair_id", "role").agg(n=pl.len(), least=pl.col("rows").min(), most=pl.col("rows").max())
    return alike.filter((pl.col("n") != n_elements) | (pl.col("least") != pl.col("most"))).is_empty()
