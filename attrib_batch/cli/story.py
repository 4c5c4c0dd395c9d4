"""What the demo says while it works, and what it found: in sentences, for someone who sees it for the first time."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis import has_agreement, read_agreement
from attrib_batch.report.drawing.scatter import head_name
from attrib_batch.report.formats import signed
from attrib_batch.report.sections.verdict import Value, judge
from attrib_batch.spec import Component

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.api import Run
    from attrib_batch.spec import SweepSpec

PROGRAM = "attrib-batch"
N_HEADS = 3
MORE_PAIRS = 32
"""How many pairs the next command verifies: more than the demo does."""
_AT = "the last position"


def before(job: SweepSpec, *, local: bool) -> Iterator[str]:
    """Yield what the demo's job is about to do."""
    tables = [pl.scan_parquet(dataset.path).slice(0, dataset.limit).collect() for dataset in job.datasets]
    first = tables[0].row(0, named=True)
    [model] = job.models
    workers = "in this process" if local else f"on {model.workers.count} Ray workers, each with a model of its own"
    yield f"Which attention heads make {model.name} go on with {first['answers'][0]!r} after"
    yield f"  {first['clean']!r}"
    yield "and not after the same words with one name exchanged?"
    yield f"  {first['corrupted']!r}"
    yield f"1. Attribution patching estimates it for {sum(map(len, tables))} such pairs, {workers}."
    if job.verify is not None:
        measured = job.verify.pairs * len(tables)
        yield f"2. Activation patching measures {measured} of them, to see how good the estimates are."
    yield "3. A report shows what came out, on one page that opens offline."
    yield ""


def after(run: Run, job: SweepSpec, out: str, *, local: bool) -> Iterator[str]:
    """Yield what the largest dataset says: the strongest heads, how far to trust them, and what to do next."""
    [model], [method], dataset = job.models, job.methods, job.datasets[-1]
    cell = {"model": model.name, "dataset": dataset.id, "method": method.id}
    heads = run.heads(**cell).filter(component=str(Component.Z), scope="last")
    n_pairs = heads.select(pl.col("n_pairs").max()).item()
    yield ""
    yield f"The strongest heads at {_AT}, of {n_pairs} pairs, as shares of the gap between the prompts (95% interval):"
    for row in heads.sort(pl.col("mean").abs(), descending=True).head(N_HEADS).iter_rows(named=True):
        mean, low, high = (signed(row[f"{name}_normalized"], 2) for name in ("mean", "low", "high"))
        yield f"  {head_name(row):7} {mean}  ({low} to {high})"
    if has_agreement(out):
        rows = read_agreement(out).filter(**cell, component=str(Component.Z))
        agreement = {
            row["statistic"]: Value(row["value"], row["low"], row["high"]) for row in rows.iter_rows(named=True)
        }
        verdict = judge(agreement, method.model_dump(), _AT)
        yield f"How far to trust them: {verdict.headline} {verdict.detail}"
    here = " --local" if local else ""
    yield "Next:"
    yield f"  {program()} verify {out} --pairs {MORE_PAIRS} --at last{here}  # measure more pairs"
    yield f"  {program()} pairs make greater_than --out years.parquet  # another task; pairs import takes your own file"


def program() -> str:
    """Return the command by which this program can be called again from where it was called."""
    called = Path(sys.argv[0])
    if shutil.which(PROGRAM):
        return PROGRAM
    return "python -m attrib_batch" if called.name == "__main__.py" else str(called)
