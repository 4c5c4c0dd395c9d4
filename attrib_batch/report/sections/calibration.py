"""What the verified sample makes of a component's means: calibrated intervals, and what they are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis.statistics.studentised import FEWEST_UNITS
from attrib_batch.report.drawing.calibrated import draw_calibrated
from attrib_batch.report.formats import count, plain

if TYPE_CHECKING:
    from attrib_batch.report.drawing.maps import Figure, Target
    from attrib_batch.report.drawing.scatter import Axes

STRONGEST = 20
"""Heads that are drawn, and over which medians are taken."""

_HEAD = ["layer", "head"]
_EMPTY = pl.Schema({"layer": pl.Int16, "head": pl.Int16, "low": pl.Float64, "high": pl.Float64})


@dataclass(frozen=True)
class Calibration:
    """The calibrated means of one component at one place."""

    sentences: str
    """What the sample bought, and what would halve the intervals; or why there are no calibrated means."""
    rows: pl.DataFrame
    """``layer, head, mean, low, high`` of every head that has one, in metric units."""
    figure: Figure | None = None


def calibrate_component(
    heads: pl.DataFrame,
    effects: pl.DataFrame,
    axes: Axes,
    *,
    refined: pl.DataFrame,
    n_units: int,
    div_id: str,
    at: str,
    target: Target,
) -> Calibration:
    """Put a component's calibrated means into words, and draw the strongest.

    Args:
        heads: its rows of the ``heads`` summary at one place.
        effects: its mean effects in the sample at that place, see `attrib_batch.analysis.mean_effects`.
        axes: what values stand for.
        refined: its means by the method ``refined``, where the run has them: ``layer, head, refined``.
        n_units: sampling units that were verified.
        div_id: the figure's id.
        at: the place, as a phrase.
        target: whose heads they are.
    """
    known = heads.filter(pl.col("calibrated_mean").is_not_null())
    if known.is_empty():
        return Calibration(_why_not(n_units), pl.DataFrame(schema={**_EMPTY, "mean": pl.Float64}))
    named = {"mean": "calibrated_mean", "low": "calibrated_low", "high": "calibrated_high", "estimate": "mean"}
    columns = [pl.col(old).alias(new) for new, old in named.items()]
    kept = known.select(*_HEAD, *columns, "measured_pairs", "effective_pairs", "n_pairs")
    joined = kept.join(effects.select(*_HEAD, "exact", "exact_half_width"), on=_HEAD, how="left", nulls_equal=True)
    joined = joined.join(refined, on=_HEAD, how="left", nulls_equal=True)
    strongest = joined.sort(pl.col("mean").abs(), *_HEAD, descending=[True, False, False]).head(STRONGEST)
    kind = "head" if heads.get_column("head").null_count() == 0 else "layer"
    figure = draw_calibrated(
        strongest,
        axes,
        div_id=div_id,
        title=f"Calibrated means, at {at}",
        caption=(
            f"The {len(strongest)} strongest {kind}s of {len(joined):,}. Blue: the mean exact effect over all "
            f"{int(strongest['n_pairs'].max() or 0):,} pairs, calibrated, with 95% intervals; grey: of the measured "  # type: ignore[arg-type]
            "pairs alone; red: the mean estimate."
            + (" Green: the mean by refined." if strongest["refined"].null_count() < len(strongest) else "")
        ),
        target=target,
    )
    return Calibration(_bought(strongest, kind), kept.select(*_HEAD, "mean", "low", "high"), figure)


def _why_not(n_units: int) -> str:
    if n_units < FEWEST_UNITS:
        return (
            f"There are no calibrated means: they take {FEWEST_UNITS} measured sampling units or more, and these are "
            f"{n_units}."
        )
    return (
        "There are no calibrated means: the measured pairs are no random sample of all that are scored now, or not all "
        "positions were measured here. attrib-batch verify, once more, draws from all pairs."
    )


def _bought(strongest: pl.DataFrame, kind: str) -> str:
    """Say what the sample bought over the strongest heads, and what would halve their intervals."""
    varying = strongest.filter(pl.col("effective_pairs").is_not_null(), pl.col("exact_half_width") > 0)
    if varying.is_empty():
        return "The exact effects do not vary, so there is nothing to calibrate."
    measured, n_all = (int(varying[name].max()) for name in ("measured_pairs", "n_pairs"))  # type: ignore[arg-type]
    worth = float(varying["effective_pairs"].median())  # type: ignore[arg-type]
    ratio = (varying["high"] - varying["low"]) / (2 * varying["exact_half_width"])
    share = float(ratio.median())  # type: ignore[arg-type]
    over = f"median over the {len(varying)} strongest {kind}s" if len(varying) > 1 else f"the {kind}"
    if measured == n_all:
        return f"All {count(n_all)} pairs were measured, so that calibrated means are those of the exact effects."
    return (
        f"Calibrated by the estimates of all {count(n_all)} pairs, {count(measured)} measured pairs are worth "
        f"{count(round(worth))} ({over}): the interval of a mean exact effect is {plain(share, 2)} times as wide as "
        f"that of the measured pairs alone. {_to_halve(measured, worth, n_all)}"
    )


def pairs_to_halve(measured: int, worth: float, n_all: int) -> int | None:
    """Compute how many measured pairs in all would halve the intervals; None where no number of them would.

    With estimates that explain a share r of the variance over pairs, n of N pairs measured are worth m pairs, and
    1 / m = (1 - r) / n + r / N. Half the width takes 4 m.
    """
    explained = (1 / measured - 1 / worth) / (1 / measured - 1 / n_all)
    left = 1 / (4 * worth) - explained / n_all
    needed = (1 - explained) / left if left > 0 else float("inf")
    return max(round(needed), measured + 1) if needed <= n_all else None


def _to_halve(measured: int, worth: float, n_all: int) -> str:
    needed = pairs_to_halve(measured, worth, n_all)
    if needed is None:
        return (
            "Measuring more of these pairs cannot halve the intervals, which cannot be narrower than with all "
            f"{count(n_all)} measured: that takes more pairs to be scored."
        )
    return f"Measuring {count(needed - measured)} more would halve the intervals."
