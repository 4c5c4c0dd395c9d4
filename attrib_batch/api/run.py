"""A run as an object: its tables, summaries, figures and checks, from the files of its directory alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrib_batch import analysis
from attrib_batch.analysis import write_agreement
from attrib_batch.analysis.comparison.compare import compare_runs
from attrib_batch.analysis.places import rows_of
from attrib_batch.analysis.tables import CELL, read_manifest
from attrib_batch.analysis.top import components_of, rows_at, strongest
from attrib_batch.analysis.verification.calibrated import CALIBRATED
from attrib_batch.api.display import run_html
from attrib_batch.execution.local import LastModel
from attrib_batch.observe.status import read_status
from attrib_batch.report import export, write_report
from attrib_batch.report.drawing.single_map import draw_map
from attrib_batch.spec import DEFAULT_VERIFIED_PAIRS, Component
from attrib_batch.spec.positions import ALL
from attrib_batch.storage.store import Store
from attrib_batch.tables import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import plotly.graph_objects as go
    import polars as pl

    from attrib_batch.analysis.top import Order
    from attrib_batch.execution.driver import RunResult
    from attrib_batch.execution.executor import Executor
    from attrib_batch.execution.planning.inputs import InputLocations
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.observe.progress import ProgressView
    from attrib_batch.observe.status import RunStatus
    from attrib_batch.report.export import Exported
    from attrib_batch.tables import Manifest

_TOP_COLUMNS = (
    "component", "layer", "head", "mean", "sem", "low", "high", "mean_normalized", "survives", "n_pairs", *CALIBRATED
)  # fmt: skip


class Run:
    """A run's directory. Frames are Polars; the large ones are lazy."""

    def __init__(
        self,
        out: str | Path | Store,
        *,
        models: Mapping[str, LoadedModel] | None = None,
        last: LastModel | None = None,
        result: RunResult | None = None,
    ) -> None:
        """Open a directory.

        Args:
            out: the run's directory, or s3:// or gs://bucket/folder.
            models: models in memory that the run was made with, by name; `verify` needs them.
            last: the model that was loaded last to make it, which `verify` need not load again.
            result: how the execution ended that made it, if one in this process did.

        Raises:
            OutputError: it is not the directory of a run.
        """
        self._store = Store.parse(out)
        self._models = dict(models or {})
        self._last = last or LastModel()
        self.result = result
        """How the execution in this process ended; None for a run that was only opened."""
        self.manifest  # noqa: B018 - it raises for what is no run

    @property
    def path(self) -> Path | str:
        """The directory, or its URL."""
        return self._store.path("").rstrip("/") if self._store.is_remote else self._store.path("")  # type: ignore[union-attr]  # a URL is text

    @property
    def manifest(self) -> Manifest:
        """What the run holds and where its numbers come from."""
        return read_manifest(self._store)

    @property
    def is_summarized(self) -> bool:
        """Whether the summary tables are there and newer than every part."""
        return analysis.summary_is_current(self._store)

    def status(self) -> RunStatus:
        """Return how far the run is, from its files."""
        return read_status(self._store)

    def scores(self, **cell: str) -> pl.LazyFrame:
        """Return the committed scores: one row per (pair, component, layer, head, position), raw, in metric units.

        Args:
            **cell: only this ``model``, ``dataset`` or ``method``.
        """
        return analysis.scan_scores(self._store, **cell)

    def baselines(self, **cell: str) -> pl.LazyFrame:
        """Return the clean and corrupted metric of every scored pair; arguments as for `scores`."""
        return analysis.scan_baselines(self._store, **cell)

    def failures(self, **cell: str) -> pl.LazyFrame:
        """Return the pairs that could not be scored, and why; arguments as for `scores`."""
        return analysis.scan_failures(self._store, **cell)

    def measured(self, **cell: str) -> pl.LazyFrame:
        """Return the scores that ``refined`` measured, each with the ``estimate`` that it stands in place of.

        The columns are those of `scores` and ``estimate``; both in metric units. Arguments as for `scores`.
        """
        keys = [*CELL, "pair_id", "component", "layer", "head", "position"]
        scores = analysis.scan_scores(self._store, **cell).select(*keys, "score")
        found = analysis.scan_measured(self._store, **cell)
        return found.join(scores, on=keys, how="left", nulls_equal=True, maintain_order="left")

    def reliability(self, **cell: str) -> pl.LazyFrame:
        """Return how unreliable each score of ``atp`` is, where the run has ``atp_hvp`` of the same metric as well.

        The columns are those of `attrib_batch.analysis.reliability`: the ``unreliability`` of a score is what the
        second order adds to it, over itself. Arguments as for `scores`; ``method`` is that of kind ``atp``.

        Raises:
            OutputError: the run does not have both.
        """
        return analysis.reliability(self._store, **cell)

    def heads(self, **cell: str) -> pl.DataFrame:
        """Return means, intervals and p-values of every head: at each role, at the last position, and overall.

        The columns are those of `attrib_batch.analysis.summary.HEADS`; arguments as for `scores`.
        """
        return rows_of(self._summary().heads, cell)

    def positions(self, **cell: str) -> pl.DataFrame:
        """Return the same of every layer and position, summed over heads; arguments as for `scores`.

        Positions are counted from the first token, 0, where ``scope`` is ``position``, and back from the last one, -1,
        where it is ``from_end``.
        """
        return rows_of(self._summary().positions, cell)

    def stability(self, **cell: str) -> pl.DataFrame:
        """Return how far the strongest heads of two disjoint random sets of pairs agree, against the number of pairs.

        The columns are those of `attrib_batch.analysis.summary.STABILITY`; a cell of one chunk has no row. Arguments as
        for `scores`.
        """
        return rows_of(self._summary().stability, cell)

    def top(
        self,
        n: int = 10,
        *,
        at: str = "last",
        component: str = Component.Z,
        by: Order = "magnitude",
        **cell: str,
    ) -> pl.DataFrame:
        """Return the strongest heads.

        Args:
            n: how many of each cell.
            at: ``last`` for the last position, ``all`` for the sum over positions, or a role, such as ``end``.
            component: the component, one with or without heads.
            by: ``magnitude`` for the largest absolute mean, ``positive`` or ``negative`` for the largest of one sign.
            **cell: as for `scores`.

        Returns:
            ``model, dataset, method, component, layer, head``; ``mean, sem, low, high``, the mean score over pairs, its
            standard error and its 95 % interval, in metric units; ``mean_normalized``, the mean as a share of the gap
            between the prompts; ``survives``, whether it differs from 0 at a false discovery rate of 5 % among the
            heads of its map (null for magnitudes and for one unit), as in `heads`; ``n_pairs``; and, after `verify`,
            ``calibrated_mean, calibrated_low, calibrated_high``, the mean exact effect with a 95 % interval that holds
            whatever the estimates are worth, from the ``measured_pairs``; it is as narrow as that of
            ``effective_pairs`` exact effects alone.

        Raises:
            ValueError: no row is there or of that role; the message says what there is.
        """
        rows = rows_at(self.heads(**cell), self.manifest, component, at)
        return strongest(rows, n, by).select(*CELL, *_TOP_COLUMNS)

    def heatmap(
        self, component: str = Component.Z, at: str = "last", *, normalized: bool = True, **cell: str
    ) -> go.Figure:
        """Draw the mean scores of one cell as a map.

        Args:
            component: the component.
            at: ``last``, ``all`` or a role for a map of (layer, head); ``position`` for one of (layer, position).
            normalized: draw shares of the gap between clean and corrupted metric, where there is a gap; raw otherwise.
            **cell: as for `scores`; needed where the run has several cells.

        Raises:
            ValueError: nothing is there, or several cells are.
        """
        if at == "position":
            rows = self.positions(**cell).filter(component=str(component), scope=Scope.POSITION)
        else:
            rows = rows_at(self.heads(**cell), self.manifest, component, at)
        if rows.is_empty():
            raise ValueError(f"no score of {component} is there; components: {components_of(self.manifest)}")
        if rows.select(CELL).n_unique() > 1:
            raise ValueError(f"several cells: choose one with model=, dataset=, method=; {self._cells()}")
        return draw_map(rows, component, at, normalized=normalized)

    def examples(
        self,
        layer: int,
        head: int | None = None,
        *,
        component: str = Component.Z,
        at: str = "all",
        n: int = 5,
        **cell: str,
    ) -> pl.DataFrame:
        """Return the pairs with the largest and with the smallest values of a head, with tokens and their scores.

        Args:
            layer: the layer, from 0.
            head: the head, from 0; None for a component without heads.
            component: the component.
            at: ``all`` for the sum over positions, ``last`` for the last position, or a role.
            n: how many from each end, for each cell.
            **cell: as for `scores`.

        Returns:
            The columns of `attrib_batch.analysis.examples.EXAMPLES`; tokens are null where the run has no prompts.

        Raises:
            ValueError: there is no such component, layer, head or role; the message says what there is.
        """
        return analysis.examples(self._store, component=component, layer=layer, head=head, at=at, n=n, **cell)

    def compare(
        self,
        other: Run | str | Path | None = None,
        a: Mapping[str, str] | None = None,
        b: Mapping[str, str] | None = None,
        *,
        normalized: bool = True,
        relative_depth: bool = False,
    ) -> pl.DataFrame:
        """Return the difference between the means of two cells, head by head, with a 95 % interval.

        ``run.compare(a={"method": "atp"}, b={"method": "exact"})`` compares two cells of this run, and
        ``run.compare(other)`` this run's cells with those of the same names in another one. Differences are taken pair
        by pair where both scored the same pairs.

        Args:
            other: another run, or its directory, that ``b`` is of.
            a: a cell of this run: ``model``, ``dataset``, ``method``, as far as needed to tell it from others.
            b: the other cell, likewise; what it leaves out is as in ``a`` where several would do.
            normalized: compare shares of the gap; otherwise means in metric units.
            relative_depth: compare models of different depth, by relative depth; else they are refused.

        Returns:
            The columns of `attrib_batch.analysis.comparison.compare.COMPARISON`: ``difference`` is a minus b.

        Raises:
            ValueError: the cells cannot be told apart, or cannot be compared.
        """
        theirs = other if isinstance(other, Run) or other is None else Run(other)
        for run in (self, theirs):
            if run is not None:
                run._summary()
        return compare_runs(
            self._store,
            None if theirs is None else theirs._store,
            a,
            b,
            normalized=normalized,
            relative_depth=relative_depth,
        )

    def export(self, to: str | Path | None = None, **options: Any) -> Exported:
        """Write top heads (CSV, JSON), heatmaps (PNG, SVG) and node scores for MIB; return what was written.

        Args:
            to: where files go; ``export`` in the run's directory where absent.
            **options: as for `attrib_batch.report.export`: ``formats``, ``n``, ``at``, ``component``, ``by``,
                ``node_order``, ``model``, ``dataset``, ``method`` and more.

        Raises:
            ValueError: there is no such format, cell, component or role.
        """
        return export(self._store, to, **options)

    def verify(
        self,
        pairs: int = DEFAULT_VERIFIED_PAIRS,
        *,
        seed: int = 0,
        at: str | Sequence[str] = ALL,
        executor: Executor | None = None,
        progress: bool | ProgressView = True,
        locations: InputLocations | None = None,
        ndif_host: str | None = None,
    ) -> pl.DataFrame:
        """Measure a sample of pairs with activation patching, and compare the estimates with it.

        Args:
            pairs: pairs to measure from each dataset; those that are measured already count.
            seed: the same seed samples the same pairs.
            at: the positions that are measured: ``all``, ``last``, a role, or several; at the last position a
                measurement costs one token.
            executor: as for `Job.run`.
            progress: as for `Job.run`.
            locations: where datasets and models lie now, if not where the run read them.
            ndif_host: as for `Job.run`.

        Returns:
            One row per (cell, component, statistic), see `attrib_batch.analysis.verification.agreement`.

        Raises:
            RequestError: there is nothing to verify, or what is measured already is another sample.
            RunInterruptedError: it could not finish; the same call goes on.
        """
        from attrib_batch.api.launch import measure

        self.result = measure(
            self._store,
            self._models,
            self._last,
            pairs=pairs,
            seed=seed,
            at=at,
            executor=executor,
            progress=progress,
            locations=locations,
            ndif_host=ndif_host,
        )
        write_agreement(self._store, seed=seed)
        return analysis.read_agreement(self._store)

    @property
    def agreement_path(self) -> Path | str:
        """Where the figures of `verify` lie once there are any."""
        return analysis.agreement_path(self._store)

    def report(self) -> Path | str:
        """Write ``report.html``, one page that opens without a network; return its path."""
        return write_report(self._store)

    def _summary(self) -> analysis.Summary:
        if not self.is_summarized:
            analysis.summarize(self._store)
        return analysis.read_summary(self._store)

    def _cells(self) -> str:
        return "; ".join(str(plan.cell) for plan in self.manifest.plan)

    def __repr__(self) -> str:
        counts = self.status().cells
        scored, expected = sum(cell.scored for cell in counts), sum(cell.expected for cell in counts)
        return f"Run({str(self.path)!r}): {scored:,} of {expected:,} pairs scored; {self._cells()}"

    def _repr_html_(self) -> str:
        """Show the run in a notebook."""
        return run_html(self)


def open_run(out: str | Path) -> Run:
    """Open a run's directory, of whatever process or machine; its files alone are read.

    Raises:
        OutputError: it is not the directory of a run.
    """
    return Run(out)
