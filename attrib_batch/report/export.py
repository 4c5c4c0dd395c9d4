"""What other programs take from a run: the strongest heads as a table, heatmaps as images, node scores for MIB."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis.places import first_place, select_cells
from attrib_batch.analysis.summarize import summarize
from attrib_batch.analysis.summary import read_summary, summary_is_current
from attrib_batch.analysis.tables import CELL, read_manifest
from attrib_batch.analysis.top import rows_at, strongest
from attrib_batch.report.drawing.images import ImageError, drawing
from attrib_batch.report.drawing.single_map import draw_map
from attrib_batch.report.mib import NODE_ORDERS, importances, importances_path
from attrib_batch.spec import Component
from attrib_batch.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import plotly.graph_objects as go

    from attrib_batch.report.mib import NodeOrder
    from attrib_batch.spec import Cell
    from attrib_batch.tables import Manifest

FORMATS = ("csv", "json", "png", "svg", "mib")
"""``csv`` and ``json``: the strongest heads; ``png`` and ``svg``: heatmaps; ``mib``: node scores for that benchmark."""
_IMAGES = ("png", "svg")
_FOLDER = "export"


@dataclass(frozen=True)
class Exported:
    """What was written, and what was not."""

    files: list[Path | str] = field(default_factory=list)
    """Paths, or URLs in an object store."""
    left_out: list[str] = field(default_factory=list)
    """What could not be written, each with the reason."""


def export(
    out: str | Path | Store,
    to: str | Path | Store | None = None,
    *,
    formats: Sequence[str] = FORMATS,
    n: int = 20,
    at: str | None = None,
    component: str | None = None,
    by: str = "magnitude",
    node_order: NodeOrder = "value",
    parallel: bool = False,
    normalized: bool = True,
    **cell: str,
) -> Exported:
    """Write a run's results for other programs; summarise it first where its summary is not current.

    Args:
        out: the run's directory.
        to: where files go; ``export`` in that directory where absent.
        formats: some of `FORMATS`.
        n: how many heads of each cell and component.
        at: ``last``, ``all`` or a role; where absent the role ``end``, without it the last position, or else all.
        component: one component; all that were scored where absent.
        by: heads are ranked by ``magnitude``, or the largest ``positive`` or ``negative`` means come first.
        node_order: nodes for MIB come by ``value`` or by ``magnitude``.
        parallel: see `attrib_batch.report.mib.importances`.
        normalized: heatmaps show shares of the gap, where there is one; otherwise metric units.
        **cell: only this ``model``, ``dataset`` or ``method``.

    Returns:
        What was written. Images that cannot be drawn here are left out, and all else is written.

    Raises:
        ValueError: there is no such format, cell, component or role, or of what was asked for nothing can be written.
        OutputError: ``out`` is not a run's directory, nothing is scored in it, or files cannot be written.
    """
    _check(formats, n, node_order)
    store = Store.parse(out)
    manifest = read_manifest(store)
    cells = select_cells(manifest, cell)
    if not summary_is_current(store):
        summarize(store)
    heads = read_summary(store).heads
    heads = pl.concat([heads.filter(*_of(one)) for one in cells])
    if heads.is_empty():
        raise ValueError(f"nothing is scored yet of {'; '.join(map(str, cells))}")
    present = heads.get_column("component").unique().to_list()
    components = [str(name) for name in Component if name in present] if component is None else [component]
    rows = {name: rows_at(heads, manifest, name, at) for name in components}
    writer = _Writer(store.below(_FOLDER) if to is None else Store.parse(to), Exported())
    writer.tables(formats, pl.concat([_ranked(some, n, by) for some in rows.values()]), n, by)
    if "mib" in formats:
        writer.nodes(heads, cells, manifest, order=node_order, parallel=parallel)
    writer.images([kind for kind in _IMAGES if kind in formats], _maps(cells, rows, at, normalized=normalized))
    done = writer.done
    if not done.files:
        raise ValueError("nothing was written. " + ". ".join(done.left_out))
    return done


def _check(formats: Sequence[str], n: int, node_order: str) -> None:
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"format {', '.join(unknown)}: choose from {', '.join(FORMATS)}")
    if node_order not in NODE_ORDERS:
        raise ValueError(f"node order {node_order!r}: choose one of {', '.join(NODE_ORDERS)}")
    if n < 1:
        raise ValueError(f"n={n}: ask for at least one head")


@dataclass(frozen=True)
class _Writer:
    """Writes files below one folder and remembers which."""

    target: Store
    done: Exported

    def write(self, relative: str, data: bytes) -> None:
        self.target.write_bytes(relative, data)
        self.done.files.append(self.target.path(relative))

    def tables(self, formats: Sequence[str], top: pl.DataFrame, n: int, by: str) -> None:
        if "csv" in formats:
            self.write("top.csv", top.write_csv().encode())
        if "json" in formats:
            self.write("top.json", _as_json(top, n, by))

    def nodes(
        self, heads: pl.DataFrame, cells: Sequence[Cell], manifest: Manifest, *, order: NodeOrder, parallel: bool
    ) -> None:
        for cell in cells:
            try:
                method = manifest.method(cell.method)
                data = importances(heads.filter(*_of(cell)), cell, method, order, parallel=parallel)
            except ValueError as error:
                self.done.left_out.append(f"mib: {error}")
            else:
                self.write(f"mib/{importances_path(cell)}", data)

    def images(self, kinds: Sequence[str], maps: Iterator[tuple[str, go.Figure]]) -> None:
        if not kinds:
            return
        try:
            with drawing() as draw:
                for name, figure in maps:
                    for kind in kinds:
                        self.write(f"heatmaps/{name}.{kind}", draw(figure, kind))
        except ImageError as error:
            self.done.left_out.append(f"{' and '.join(kinds)}: {error}")


def _of(cell: Cell) -> Iterator[pl.Expr]:
    return (pl.col(name) == getattr(cell, name) for name in CELL)


def _ranked(rows: pl.DataFrame, n: int, by: str) -> pl.DataFrame:
    """Return the strongest rows of each cell with their rank and name in front of the summary's columns."""
    head = pl.col("head")
    name = pl.format("L{}", "layer") + pl.when(head.is_null()).then(pl.lit("")).otherwise(pl.format("H{}", head))
    ranked = strongest(rows, n, by).with_columns(rank=pl.int_range(1, pl.len() + 1).over(CELL), name=name)
    front = [*CELL, "component", "scope", "role", "rank", "name"]
    return ranked.select(*front, pl.exclude(front))


def _as_json(top: pl.DataFrame, n: int, by: str) -> bytes:
    content = {
        "ranked_by": {"magnitude": "absolute mean", "positive": "mean", "negative": "minus the mean"}[by],
        "most_per_cell_and_component": n,
        "units": "metric units; columns that end in _normalized are shares of the gap between clean and corrupted",
        "heads": top.to_dicts(),
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def _maps(
    cells: Sequence[Cell], rows: dict[str, pl.DataFrame], at: str | None, *, normalized: bool
) -> Iterator[tuple[str, go.Figure]]:
    """Yield a name and a figure for each cell and component."""
    for cell in cells:
        for component, some in rows.items():
            here = some.filter(*_of(cell))
            if len(here):
                place = first_place(here) if at is None else at
                figure = draw_map(here, component, place, normalized=normalized)
                names = (*(getattr(cell, name) for name in CELL), component, place)
                figure.update_layout(title=f"{figure.layout.title.text}; {cell}", paper_bgcolor="white")
                yield "__".join(names), figure
