"""Calibrated means: mean exact effects of every head, from its estimates and the verified sample.

The statistics are in `attrib_batch.analysis.statistics.calibration`. They hold for a random sample. The verified pairs
that are one are those of the first units of the random order in which `verify` draws, up to the first unit that could
have been drawn and was not: all of them, unless the run has grown since, or an earlier release drew the sample. Nothing
is calibrated while the measurement is unfinished. Pairs that could not be measured, or that another method did not
score, are left out.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis.statistics.calibration import Everything, Sampled, calibrate
from attrib_batch.analysis.statistics.moments import KEYS
from attrib_batch.analysis.tables import committed_parts, scan
from attrib_batch.analysis.verification.verified import exact_cells, read_both
from attrib_batch.tables import VERIFICATION, Scope, Table
from attrib_batch.tables.sampling import SEED, in_random_order, pairs_by_unit, sample_path

if TYPE_CHECKING:
    from attrib_batch.spec import Cell
    from attrib_batch.storage.store import Store
    from attrib_batch.tables import Manifest, StageEntry

CALIBRATED = pl.Schema(
    {
        "calibrated_mean": pl.Float64(),  # mean exact effect, metric units; of magnitudes, mean absolute exact effect
        "calibrated_low": pl.Float64(),  # its 95 % interval
        "calibrated_high": pl.Float64(),
        "measured_pairs": pl.Int64(),  # pairs of the random sample that have exact effects here
        "effective_pairs": pl.Float64(),  # how many exact effects the interval is worth; null where nothing varies
    }
)
"""The columns that `calibrated_means` gives beside `KEYS`."""

_PLACE = ("component", "scope", "role")
_HEAD = ("layer", "head")


class RandomSamples:
    """The verified pairs of a run that are a random sample."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        """Read those of ``store``."""
        self.store, self.manifest = store, manifest
        self._scored: dict[Cell, dict[int, int | None]] = {}
        self._by_all: dict[str, set[int]] = {}

    def of(self, cell: Cell) -> set[int]:
        """Return the ids of the drawn pairs that are a random sample of a cell's; none where none are."""
        stage = self.manifest.stage(VERIFICATION)
        if stage is None or not self._is_measured(cell, stage):
            return set()
        seed, path = stage.identities.datasets.get(cell.dataset, {}).get(SEED), sample_path(cell.dataset)
        if not isinstance(seed, int) or not self.store.exists(path):
            return set()
        drawn = set(self.store.read_table(path, ["pair_id"])["pair_id"].to_pylist())
        units, by_all = pairs_by_unit(self._pairs_of(cell)), self._scored_by_all(cell.dataset)
        first = takewhile(lambda unit: units[unit] & by_all <= drawn, in_random_order(units, seed))
        return {pair_id for unit in first for pair_id in units[unit]} & drawn

    def _is_measured(self, cell: Cell, stage: StageEntry) -> bool:
        """Return whether all that the verification planned for a cell is committed."""
        store, plans = self.store.below(VERIFICATION), [stage.plan(one) for one in exact_cells(cell, self.manifest)]
        return bool(plans) and all(
            plan is not None
            and sum(stop - start for start, stop in store.parts(Table.SCORES, plan.cell.partition)) >= plan.n_pairs
            for plan in plans
        )

    def _pairs_of(self, cell: Cell) -> dict[int, int | None]:
        """Return the groups of the pairs that a cell scored, by pair id."""
        if cell not in self._scored:
            parts = committed_parts(self.store, cell)
            pairs = scan([part.baselines for part in parts], Table.BASELINES)
            self._scored[cell] = dict(pairs.select("pair_id", "group").collect().iter_rows())
        return self._scored[cell]

    def _scored_by_all(self, dataset: str) -> set[int]:
        """Return the pairs that could be drawn: those that every cell of a dataset scored that scored any."""
        if dataset not in self._by_all:
            scored = [self._pairs_of(plan.cell) for plan in self.manifest.plan if plan.dataset == dataset]
            self._by_all[dataset] = set.intersection(*(set(pairs) for pairs in scored if pairs))
        return self._by_all[dataset]


def calibrated_means(samples: RandomSamples, cell: Cell, heads: pl.DataFrame) -> pl.DataFrame:
    """Compute the calibrated means of a cell.

    Args:
        samples: of the run.
        cell: one of the job.
        heads: `KEYS`, ``n_pairs``, ``n_groups``, ``mean`` and ``sem`` of its estimates.

    Returns:
        `KEYS` and the columns of `CALIBRATED`, for the rows at places where the exact effects of a random sample of
        enough units are known: all positions of a role, say, must have been measured.

    Raises:
        OutputError: exact scores and estimates do not match.
    """
    empty = pl.DataFrame(schema={**{key: heads.schema[key] for key in KEYS}, **CALIBRATED})
    chosen = samples.of(cell)
    if not chosen:
        return empty
    frames = [empty]
    values = _values(samples, cell, chosen)
    for (component, scope, role), of_place in values.partition_by(_PLACE, as_dict=True, maintain_order=True).items():
        here = (pl.col("component") == component) & (pl.col("scope") == scope) & pl.col("role").eq_missing(role)
        rows = heads.filter(here).sort(_HEAD)
        if len(rows) and not of_place.get_column("unmeasured").any():
            frames.append(_of_place(rows, of_place).select(empty.columns).cast(empty.schema))
    return pl.concat(frames)


def _of_place(rows: pl.DataFrame, values: pl.DataFrame) -> pl.DataFrame:
    """Calibrate the heads of one component at one place; both frames have the same heads in the same order."""
    n_pairs, n_groups = rows.row(0, named=True)["n_pairs"], rows.row(0, named=True)["n_groups"]
    shape = (-1, len(rows))
    exact, estimate = (values.get_column(name).to_numpy().reshape(shape) for name in ("exact", "estimate"))
    pairs = values.get_column("pairs").to_numpy().reshape(shape)[:, 0]
    mean, sem = (rows.get_column(name).fill_null(0.0).to_numpy() for name in ("mean", "sem"))
    found = calibrate(Sampled(pairs, exact, estimate), Everything(n_pairs, n_groups, mean, sem))
    if found is None:
        return rows.clear().with_columns(pl.lit(None, dtype).alias(name) for name, dtype in CALIBRATED.items())
    return rows.with_columns(
        calibrated_mean=pl.Series(found.mean),
        calibrated_low=pl.Series(found.low),
        calibrated_high=pl.Series(found.high),
        measured_pairs=pl.lit(int(pairs.sum()), pl.Int64),
        effective_pairs=pl.Series(found.effective_pairs, nan_to_null=True),
    )


def _values(samples: RandomSamples, cell: Cell, chosen: set[int]) -> pl.DataFrame:
    """Add up the scores of a sample's units at every place.

    Returns:
        ``component, scope, role, unit, layer, head, pairs, exact, estimate``, and ``unmeasured``, whether anything that
        should have been added was not measured; sorted by these keys.
    """
    both = read_both(samples.store, cell, samples.manifest, chosen)
    # Sums in another order differ in the last digit.
    rows = both.rows.sort("pair_id", "component", *_HEAD, "position")
    # A pair may have failed in the measurement of some components; it is missing in the sample of those.
    rows = rows.filter(pl.col("exact").is_not_null().any().over("pair_id", "component"))
    shared = pl.col("position") < pl.col("first_difference")
    rows = rows.with_columns(
        component=pl.col("component").cast(pl.String),
        exact=pl.when(shared).then(0.0).otherwise(pl.col("exact")),
    )
    places = {
        Scope.ROLE: rows.filter(pl.col("role").is_not_null()),
        Scope.LAST: rows.filter("is_last"),
        Scope.ALL: rows,
    }
    keys = [*_PLACE, "unit", *_HEAD]
    frames = [
        found.with_columns(scope=pl.lit(str(scope)), role="role" if scope is Scope.ROLE else pl.lit(None, pl.String))
        .group_by(keys)
        .agg(
            pairs=pl.col("pair_id").n_unique(),
            exact=pl.col("exact").sum(),
            estimate=pl.col("estimate").sum(),
            unmeasured=pl.col("exact").is_null().any(),
        )
        for scope, found in places.items()
    ]
    return pl.concat(frames).sort(keys)
