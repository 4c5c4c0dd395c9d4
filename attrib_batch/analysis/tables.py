"""Reading a run's tables: which files count as committed, and lazy frames over them.

A chunk is committed when its scores file is there. Temporary files and what an interrupted chunk left behind
are never read. The partition names (model, dataset, method) become columns; they are taken from the manifest
and not from the folder names, so that a model called ``2024`` stays a string.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import polars as pl
from polars.io.plugins import register_io_source

from attrib_batch import tables
from attrib_batch.errors import OutputError
from attrib_batch.storage.ahead import LARGE_READS_AT_ONCE, READS_AT_ONCE, read_ahead
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk, Table, parse_part_name
from attrib_batch.tables.strata import strata_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from attrib_batch.spec import Cell
    from attrib_batch.storage.store import StoredFile
    from attrib_batch.tables import Manifest

CELL = ("model", "dataset", "method")
"""The partition columns, in the order in which tables carry them."""


@dataclass(frozen=True)
class Part:
    """One committed chunk; where no pair was scored it may be left out."""

    scores: StoredFile
    baselines: StoredFile
    moments: StoredFile | None = None
    """None where an earlier release committed the chunk; likewise the strata."""
    strata: StoredFile | None = None
    """Several chunks that follow each other may have one file of strata, see `attrib_batch.tables.strata`."""


def read_manifest(out: str | Path | Store) -> Manifest:
    """Read the manifest of the run in ``out``.

    Raises:
        OutputError: ``out`` is not a run's directory, or was written under another table layout.
    """
    return tables.read_manifest(Store.parse(out))


def committed_parts(out: str | Path | Store, cell: Cell) -> list[Part]:
    """List the committed chunks of a cell that have scores, in the order of their pairs.

    Raises:
        OutputError: a scores file has rows and no baselines file beside it, so its pairs cannot be
        interpreted.
    """
    store = Store.parse(out)
    there = {table: store.parts(table, cell.partition) for table in (Table.SCORES, Table.BASELINES, Table.MOMENTS)}
    listed = store.list(f"{Table.STRATA}/{cell.partition}")
    written = {part: file for file in listed if (part := parse_part_name(file.name)) is not None}
    files = strata_files(
        there[Table.SCORES] & there[Table.MOMENTS], {part: file.modified_ns for part, file in written.items()}
    )
    parts = []
    for start, stop in sorted(there[Table.SCORES]):
        chunk = Chunk(cell, start, stop)
        scores, baselines, moments = (
            store.file(chunk.path(table)) for table in (Table.SCORES, Table.BASELINES, Table.MOMENTS)
        )
        complete = (start, stop) in there[Table.BASELINES]
        if complete and (start, stop) in files:
            parts.append(Part(scores, baselines, moments, written[files[start, stop]]))
        elif store.count_rows(scores.relative):
            if not complete:
                raise OutputError(f"{scores} has no baselines file: remove it and run the job again to restore both.")
            parts.append(Part(scores, baselines))
    return parts


def failure_files(out: str | Path | Store, cell: Cell) -> list[StoredFile]:
    """List the failures files of a cell: those of committed chunks, and any that belong to no chunk."""
    store = Store.parse(out)
    committed = store.parts(Table.SCORES, cell.partition)
    found = [file for file in store.list(f"{Table.FAILURES}/{cell.partition}") if file.name.endswith(".parquet")]
    ranges = [(file, parse_part_name(file.name)) for file in found]
    return [file for file, part in ranges if part is None or part in committed]


def scan(files: Iterable[StoredFile], table: Table) -> pl.LazyFrame:
    """Open a lazy frame over files of one table, with the table's columns alone."""
    found = list(files)
    if any(file.store.is_remote for file in found):
        return _scan_objects(found, table)
    if not found:
        return _empty(table).lazy()
    # Folder names are not parsed: a directory above OUT may contain "=" as well.
    paths = [str(file) for file in found]
    return pl.scan_parquet(paths, glob=False, hive_partitioning=False).select(table.schema.names)


def pairs_of_parts(parts: Sequence[Part]) -> pl.LazyFrame:
    """Open the baselines of parts, without templates, with the index of its part beside every pair in ``part``.

    From an object store they are read once, and held: a few tens of bytes a pair.
    """
    columns = [name for name in Table.BASELINES.schema.names if name != "template"]
    if any(part.baselines.store.is_remote for part in parts):
        tables = read_ahead(lambda part: part.baselines.store.read_table(part.baselines.relative, columns), parts)
        frames = [from_arrow(table).with_columns(part=pl.lit(index, pl.Int64)) for index, table in enumerate(tables)]
        return pl.concat(frames).lazy()
    return pl.concat(
        [
            scan([part.baselines], Table.BASELINES).select(*columns, part=pl.lit(index, pl.Int64))
            for index, part in enumerate(parts)
        ]
    )


def _scan_objects(files: list[StoredFile], table: Table) -> pl.LazyFrame:
    """Open a lazy frame over objects, a few in memory at a time.

    They are read through pyarrow and not by Polars, which would look for credentials and endpoints in places of its
    own: a run that could be written could then not be read.
    """

    def read(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        del batch_size  # a part is small enough
        wanted, columns = n_rows, with_columns or table.schema.names
        at_once = LARGE_READS_AT_ONCE if table is Table.SCORES or wanted is not None else READS_AT_ONCE
        for part in read_ahead(lambda file: file.store.read_table(file.relative, columns), files, at_once):
            if wanted is not None and wanted <= 0:
                return
            frame = from_arrow(part)
            if wanted is not None:
                frame = frame.head(wanted)
                wanted -= len(frame)
            yield frame if predicate is None else frame.filter(predicate)

    return register_io_source(read, schema=_empty(table).schema)


def _empty(table: Table) -> pl.DataFrame:
    return from_arrow(table.schema.empty_table())


def from_arrow(table: pa.Table) -> pl.DataFrame:
    """Convert an Arrow table to a frame."""
    return pl.from_arrow(table)  # type: ignore[return-value]  # a table gives a frame, never a series


def scan_scores(
    out: str | Path | Store, *, model: str | None = None, dataset: str | None = None, method: str | None = None
) -> pl.LazyFrame:
    """Open the committed scores of a run.

    Args:
        out: the run's directory.
        model: only this model; likewise ``dataset`` and ``method``. Files of other cells are not opened.
        dataset: only this dataset.
        method: only this method.

    Returns:
        One row per (pair, component, layer, head, position), the columns of ``schema.SCORES`` after
        ``model``, ``dataset``, ``method``. ``score`` is raw, float32, in the metric's units (logits for
        ``logit_diff``). Polars sums float32 in float32: cast it to ``pl.Float64`` before adding many.

    Raises:
        OutputError: ``out`` is not a run's directory, or no cell of the run is called so.
    """
    cells = _select_cells(out, model, dataset, method)
    return _concat((cell, scan((part.scores for part in committed_parts(out, cell)), Table.SCORES)) for cell in cells)


def scan_baselines(
    out: str | Path | Store, *, model: str | None = None, dataset: str | None = None, method: str | None = None
) -> pl.LazyFrame:
    """Open the clean and corrupted metrics of every scored pair.

    Takes the arguments of `scan_scores` and raises what it raises.

    Returns:
        One row per (model, dataset, method, pair), the columns of ``schema.BASELINES`` after the names of the
        cell. Metrics are float64 in the metric's units.
    """
    cells = _select_cells(out, model, dataset, method)
    return _concat(
        (cell, scan((part.baselines for part in committed_parts(out, cell)), Table.BASELINES)) for cell in cells
    )


def scan_failures(
    out: str | Path | Store, *, model: str | None = None, dataset: str | None = None, method: str | None = None
) -> pl.LazyFrame:
    """Open the table of pairs that could not be scored, and why.

    Takes the arguments of `scan_scores` and raises what it raises.

    Returns:
        One row per (model, dataset, method, pair), the columns of ``schema.FAILURES`` after the names of the
        cell.
    """
    cells = _select_cells(out, model, dataset, method)
    return _concat((cell, scan(failure_files(out, cell), Table.FAILURES)) for cell in cells)


def scan_measured(
    out: str | Path | Store, *, model: str | None = None, dataset: str | None = None, method: str | None = None
) -> pl.LazyFrame:
    """Open the table of scores that were measured in place of estimates, by methods that choose which (``refined``).

    Takes the arguments of `scan_scores` and raises what it raises.

    Returns:
        One row per measured score, the columns of ``schema.MEASURED`` after the names of the cell: ``estimate`` is what
        the measured score stands in place of. No rows for methods that measure no score or all of them.
    """
    cells = _select_cells(out, model, dataset, method)
    store = Store.parse(out)

    def files(cell: Cell) -> list[StoredFile]:
        there = store.parts(Table.MEASURED, cell.partition) & store.parts(Table.SCORES, cell.partition)
        return [store.file(Chunk(cell, *part).path(Table.MEASURED)) for part in sorted(there)]

    return _concat((cell, scan(files(cell), Table.MEASURED)) for cell in cells)


def normalized(scores: pl.LazyFrame, baselines: pl.LazyFrame) -> pl.LazyFrame:
    """Add the normalised score, the share of the gap between the two prompts that a score accounts for.

    ``normalized = score / (mean clean metric - mean corrupted metric)``, the means over the scored pairs of
    the same (model, dataset, method). Under denoising 0 is the corrupted prompt and 1 the clean one. Under
    noising the same denominator is used: 0 is the clean prompt and -1 the corrupted one.

    Args:
        scores: rows with ``model, dataset, method, score``, as from `scan_scores`.
        baselines: rows with ``model, dataset, method, clean_metric, corrupted_metric``, as from
            `scan_baselines`; all of them, also where ``scores`` is filtered.

    Returns:
        ``scores`` with one more column ``normalized``: float64, no unit, null where the gap is about 0.
    """
    gaps = baselines.group_by(CELL).agg(gap=gap_or_null())
    return (
        scores.join(gaps, on=list(CELL), how="left")
        .with_columns(normalized=pl.col("score").cast(pl.Float64) / pl.col("gap"))
        .drop("gap")
    )


def gap_or_null() -> pl.Expr:
    """Mean clean minus mean corrupted metric, in metric units; null where it is 0 up to rounding.

    The mean of a model's metrics carries float32 rounding of their size; a gap below a millionth of that size
    is noise, and a quotient by it would be too.
    """
    clean, corrupted = pl.col("clean_metric"), pl.col("corrupted_metric")
    gap = clean.mean() - corrupted.mean()
    size = clean.abs().mean() + corrupted.abs().mean()
    return pl.when(gap.abs() > 1e-6 * size).then(gap)


def _select_cells(out: str | Path | Store, model: str | None, dataset: str | None, method: str | None) -> list[Cell]:
    cells = [entry.cell for entry in read_manifest(out).plan]
    wanted = {"model": model, "dataset": dataset, "method": method}
    chosen = [cell for cell in cells if all(name is None or getattr(cell, key) == name for key, name in wanted.items())]
    if not chosen:
        asked = ", ".join(f"{key}={name!r}" for key, name in wanted.items() if name is not None)
        raise OutputError(
            f"{out} has no cell with {asked or 'any name'}; it has: {'; '.join(map(str, cells)) or 'none'}"
        )
    return chosen


def _concat(frames: Iterable[tuple[Cell, pl.LazyFrame]]) -> pl.LazyFrame:
    named = [frame.select(*(pl.lit(getattr(cell, key)).alias(key) for key in CELL), pl.all()) for cell, frame in frames]
    return reduce(lambda left, right: pl.concat([left, right]), named)
