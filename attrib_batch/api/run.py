"""A run as an object: its tables, summaries, figures and checks, from the files of its directory alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from attrib_batch import analysis
from attrib_batch.analysis import write_agreement
from attrib_batch.analysis.tables import read_manifest
from attrib_batch.api.display import run_html
from attrib_batch.errors import RequestError
from attrib_batch.observe.status import read_status
from attrib_batch.report import write_report
from attrib_batch.report.figures import Panel, Quantity, build_heatmap
from attrib_batch.spec import DEFAULT_VERIFIED_PAIRS, Component
from attrib_batch.spec.positions import ALL, check_at
from attrib_batch.storage.store import Store
from attrib_batch.tables import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import plotly.graph_objects as go

    from attrib_batch.execution.driver import RunResult
    from attrib_batch.execution.executor import Executor
    from attrib_batch.execution.planning.inputs import InputLocations
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.observe.progress import ProgressView
    from attrib_batch.observe.status import RunStatus
    from attrib_batch.tables import Manifest

Order = Literal["magnitude", "positive", "negative"]
SHOWN_HEADS = 5

_CELL = ("model", "dataset", "method")
_TOP_COLUMNS = ("component", "layer", "head", "mean", "sem", "mean_normalized", "n_pairs")


class Run:
    """A run's directory. Frames are Polars; the large ones are lazy."""

    def __init__(
        self,
        out: str | Path | Store,
        *,
        models: Mapping[str, LoadedModel] | None = None,
        result: RunResult | None = None,
    ) -> None:
        """Open a directory.

        Args:
            out: the run's directory, or s3:// or gs://bucket/folder.
            models: models in memory that the run was made with, by name; `verify` needs them.
            result: how the execution ended that made it, if one in this process did.

        Raises:
            OutputError: it is not the directory of a run.
        """
        self._store = Store.parse(out)
        self._models = dict(models or {})
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

    def heads(self, **cell: str) -> pl.DataFrame:
        """Return means, intervals and p-values of every head: at each role, at the last position, and overall.

        The columns are those of `attrib_batch.analysis.summary.HEADS`; arguments as for `scores`.
        """
        return _only(self._summary().heads, cell)

    def positions(self, **cell: str) -> pl.DataFrame:
        """Return the same of every layer and position, summed over heads; arguments as for `scores`.

        Positions are counted from the first token, 0, where ``scope`` is ``position``, and back from the last one, -1,
        where it is ``from_end``.
        """
        return _only(self._summary().positions, cell)

    def stability(self, **cell: str) -> pl.DataFrame:
        """Return how far the strongest heads of two disjoint random sets of pairs agree, against the number of pairs.

        The columns are those of `attrib_batch.analysis.summary.STABILITY`; a cell of one chunk has no row. Arguments as
        for `scores`.
        """
        return _only(self._summary().stability, cell)

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
            ``model, dataset, method, component, layer, head, mean, sem, mean_normalized, n_pairs``: the mean score over
            pairs and its standard error, in metric units; the mean as a share of the gap between the prompts.

        Raises:
            ValueError: no row is there or of that role; the message says what there is.
        """
        rows = self._at(self.heads(**cell), at, component)
        order = {"magnitude": pl.col("mean").abs(), "positive": pl.col("mean"), "negative": -pl.col("mean")}
        if by not in order:
            raise ValueError(f"by={by!r}: choose one of {', '.join(order)}")
        ranked = rows.sort(order[by], "layer", "head", descending=[True, False, False])
        return ranked.group_by(_CELL, maintain_order=True).head(n).select(*_CELL, *_TOP_COLUMNS)

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
            column = "position"
        else:
            rows = self._at(self.heads(**cell), at, component)
            column = "head" if rows.get_column("head").null_count() < len(rows) else "role"
        if rows.is_empty():
            raise ValueError(f"no score of {component} is there; components: {self._components()}")
        if rows.select(_CELL).n_unique() > 1:
            raise ValueError(f"several cells: choose one with model=, dataset=, method=; {self._cells()}")
        normalized = normalized and rows.get_column("mean_normalized").null_count() < len(rows)
        if column == "role":
            rows = rows.with_columns(role=pl.lit(at))
        where = {"last": "at the last position", "all": "summed over positions", "position": "by position"}.get(
            at, f"at “{at}”"
        )
        panel = Panel(rows, column, f"{component}, {where}", "")
        figure = build_heatmap(panel, Quantity(normalized=normalized, unit="metric units"))
        figure.update_layout(title=panel.title, margin={"t": 48})
        return figure

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
            One row per (cell, component, statistic), see `attrib_batch.analysis.agreement`.

        Raises:
            RequestError: there is nothing to verify, or what is measured already is another sample.
            RunInterruptedError: it could not finish; the same call goes on.
        """
        from attrib_batch.api.launch import run_to_end
        from attrib_batch.execution.local import LocalExecutor
        from attrib_batch.execution.planning.verification import Verification, open_verification

        try:
            positions = check_at(at if isinstance(at, str) else list(at))
        except ValueError as error:
            raise RequestError(f"at: {error}") from error
        executor = executor or LocalExecutor(self._models)
        opened = open_verification(
            self._store,
            Verification(pairs, seed, positions),
            ndif_host=ndif_host,
            locations=locations,
            workers_here=executor.workers_here,
            given=self._models,
        )
        self.result = run_to_end(opened, executor, progress)
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

    def _at(self, heads: pl.DataFrame, at: str, component: str) -> pl.DataFrame:
        """Return the rows of one component at one scope or role."""
        rows = heads.filter(pl.col("component") == str(component))
        if rows.is_empty():
            raise ValueError(f"no score of {component!s} is there; components: {self._components()}")
        found = rows.filter(pl.col("scope") == at) if at in {"last", "all"} else rows.filter(pl.col("role") == at)
        if found.is_empty():
            roles = rows.get_column("role").drop_nulls().unique().sort().to_list()
            raise ValueError(f"at={at!r}: choose last, all" + (f", or a role: {', '.join(roles)}" if roles else ""))
        return found

    def _components(self) -> str:
        methods = self.manifest.job.get("methods", ())
        return ", ".join(dict.fromkeys(name for method in methods for name in method.get("components", ())))

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


def _only(frame: pl.DataFrame, cell: Mapping[str, Any]) -> pl.DataFrame:
    unknown = set(cell) - set(_CELL)
    if unknown:
        raise TypeError(f"unknown keyword {', '.join(sorted(unknown))}; known: {', '.join(_CELL)}")
    return frame.filter(*(pl.col(name) == value for name, value in cell.items()))
