"""``python -m benchmarks.analysis``: summaries from moments, from score rows, and by DuckDB from the same rows.

The run is made up, of the shape of SmolLM2's: 30 layers of 9 heads, IOI-like prompts of 18 to 22 tokens in pairs with
their mirrors, 34 templates. DuckDB computes the means, spreads and cluster-robust standard
errors of the same keys by SQL; nothing is timed before its means agree.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from attrib_batch.attribution.engine import ScoredBatch
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.execution.commit import commit_chunk, failure_rows
from attrib_batch.execution.strata import join_strata
from attrib_batch.execution.workers.rows import baseline_rows, moment_rows
from attrib_batch.execution.workers.score_rows import score_rows
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Cell, Component
from attrib_batch.storage.store import Store
from attrib_batch.tables import PROMPTS, Chunk, Table
from benchmarks import machine
from benchmarks.page import RESULTS, replace_part
from benchmarks.summaries import by_duckdb

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYERS, HEADS = 30, 9
CELL = Cell("smollm2-shape", "ioi", "atp")
TEMPLATES = 34
MANY_CHUNKS, MANY_CHUNK_PAIRS = 3000, 620
LENGTHS = (18, 19, 20, 21, 22)
NO_SECRET = "any"  # noqa: S105 - the benchmark's server asks for none
FAR_SECONDS = 0.03
"""How long an object store waits before every answer: what one in the same region takes for a small object."""
AGREE = 1e-6
"""Relative to the largest mean; sums in another order differ in the last digits."""


@dataclass(frozen=True)
class Found:
    """Seconds of whole computations, in each round, on two processors."""

    rows: int
    moment_bytes: int
    score_bytes: int
    from_moments: list[float]
    from_rows: list[float]
    duckdb: list[float]
    compared: float
    """Of a comparison with a run of the same pairs, pair by pair, once."""
    afar: tuple[float, int]
    """Of the summary from an object store, once, and its requests."""
    many: float
    """Of the moments of a run of many chunks, once."""
    many_afar: tuple[float, int]
    peak: dict[str, float]
    """The largest resident memory of a process, in GB, by variant."""


def write_run(out: Path, n_pairs: int, chunk_pairs: int, seed: int = 0) -> int:
    """Write a run's directory without a model; return the rows of its scores."""
    from tests.support.synthetic_run import write_manifest

    write_manifest(out, {CELL: n_pairs})
    store, rng, rows = Store(out), np.random.default_rng(seed), 0
    for start in range(0, n_pairs, chunk_pairs):
        stop = min(start + chunk_pairs, n_pairs)
        batches = [_batch(rng, length, range(start, stop)) for length in LENGTHS]
        scores = score_rows(batches)
        moments, strata = moment_rows(batches)
        chunk = Chunk(CELL, start, stop)
        commit_chunk(
            store, chunk, scores=scores, baselines=baseline_rows(batches), failures=failure_rows([]),
            moments=moments, strata=strata, prompts=PROMPTS.empty_table(),
        )  # fmt: skip
        rows += scores.num_rows
    join_strata(store, [CELL])
    return rows


def write_many(out: Path, n_chunks: int, chunk_pairs: int) -> None:
    """Write the moments of a run of many chunks, and no scores: the same chunk again and again, of other pairs."""
    from tests.support.synthetic_run import write_manifest

    write_manifest(out, {CELL: n_chunks * chunk_pairs})
    store, rng = Store(out), np.random.default_rng(0)
    batches = [_batch(rng, length, range(chunk_pairs)) for length in LENGTHS]
    moments, strata = moment_rows(batches)
    tables = {Table.MOMENTS: moments, Table.STRATA: strata, Table.SCORES: score_rows([])}
    pairs = baseline_rows(batches)
    for number in range(n_chunks):
        chunk = Chunk(CELL, number * chunk_pairs, (number + 1) * chunk_pairs)
        moved = pairs
        for name in ("pair_id", "group"):
            place = moved.schema.get_field_index(name)
            ids = pa.array(moved[name].to_numpy() + number * chunk_pairs)
            moved = moved.set_column(place, moved.schema.field(place), ids)
        store.write_table(chunk.path(Table.BASELINES), moved)
        for table, rows in tables.items():
            if number == 0:
                store.write_table(chunk.path(table), rows)
            else:
                (out / chunk.path(table)).hardlink_to(out / Chunk(CELL, 0, chunk_pairs).path(table))
    join_strata(store, [CELL])


def _batch(rng: np.random.Generator, length: int, ids: range) -> ScoredBatch:
    pairs = [_pair(pair, length) for pair in ids if LENGTHS[pair // 2 % len(LENGTHS)] == length]
    scores = rng.normal(0, 0.05, (len(pairs), LAYERS, HEADS, length - 9)).astype(np.float32)
    metrics = rng.normal(3, 1, len(pairs)), rng.normal(-3, 1, len(pairs))
    return ScoredBatch(pairs, BatchScores({Component.Z: scores}, *metrics))


def _pair(pair: int, length: int) -> EncodedPair:
    roles: list[str | None] = [None] * length
    for position, role in ((2, "IO"), (4, "S1"), (9, "S2"), (length - 1, "end")):
        roles[position] = role
    tokens = tuple(range(length))
    return EncodedPair(
        pair, tokens, tokens, (0,), (1,), 9, tuple(roles), f"template-{pair // 2 % TEMPLATES}", pair // 2, task="ioi"
    )


def _command(what: str, *runs: Path | str, **environment: str) -> tuple[float, float]:
    """Compute in a process of its own; return its seconds without imports, and its peak memory in GB."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.summaries", what, *map(str, runs)],
        check=True, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    seconds, peak = ended.stdout.split()
    return float(seconds), float(peak)


def _from_afar(run: Path) -> tuple[float, int]:
    """Summarise a run in an object store whose every answer takes a while; return seconds and requests."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.distant_store", str(run.parent), str(FAR_SECONDS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        url = server.stdout.readline().strip() if server.stdout else ""
        seconds, _ = _command(
            "moments", f"s3://bucket/{run.name}", AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="any",
            AWS_SECRET_ACCESS_KEY=NO_SECRET, AWS_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true",
        )  # fmt: skip
        with urllib.request.urlopen(f"{url}/-requests") as answer:  # noqa: S310 - a server of ours
            return seconds, int(answer.read())


def check_agreement(out: Path) -> None:
    """Compare means and standard errors of this package with DuckDB's."""
    from attrib_batch.analysis import read_summary, summarize

    summarize(out)
    heads = read_summary(out).heads.fill_null("").sort("scope", "role", "layer", "head")
    theirs = (
        by_duckdb(out)
        .execute("select mean, std, sem from statistics where scope <> 'position' order by scope, role, layer, head")
        .fetchnumpy()
    )
    for name, values in theirs.items():
        ours = heads.get_column(name).to_numpy()
        error = np.abs(ours - values).max() / np.abs(values).max()
        if not error < AGREE:
            raise SystemExit(f"{name}: DuckDB and this package differ by {error:.1e} of the largest")


def measure(folder: Path, *, n_pairs: int, chunk_pairs: int, n_rounds: int) -> Found:
    """Measure in alternating rounds."""
    out = folder / "moments"
    rows = write_run(out, n_pairs, chunk_pairs)
    without = folder / "rows"
    shutil.copytree(out, without, copy_function=os.link)
    for table in (Table.MOMENTS, Table.STRATA):
        shutil.rmtree(without / table)
    check_agreement(out)
    check_agreement(without)
    variants = {"moments": out, "rows": without, "duckdb": without}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    peak = dict.fromkeys(variants, 0.0)
    for _ in range(n_rounds):
        for name, where in variants.items():
            taken, memory = _command(name, where)
            seconds[name].append(taken)
            peak[name] = max(peak[name], memory)
    write_run(folder / "other", n_pairs, chunk_pairs, seed=1)
    compared, peak["compare"] = _command("compare", out, folder / "other")
    write_many(folder / "many", MANY_CHUNKS, MANY_CHUNK_PAIRS)
    many, peak["many"] = _command("moments", folder / "many")
    afar, many_afar = _from_afar(out), _from_afar(folder / "many")
    sizes = [sum(file.stat().st_size for table in tables for file in (out / table).glob("**/*.parquet"))
             for tables in ((Table.MOMENTS, Table.STRATA), (Table.SCORES,))]  # fmt: skip
    return Found(rows, *sizes, seconds["moments"], seconds["rows"], seconds["duckdb"], compared, afar, many,
                 many_afar, peak)  # fmt: skip


def render(where: str, found: Found, n_pairs: int, chunk_pairs: int, load: float) -> str:
    """The part of the page about summaries."""
    moments, rows, duckdb = map(median, (found.from_moments, found.from_rows, found.duckdb))
    ratios = [one / other for one, other in zip(found.duckdb, found.from_moments, strict=True)]
    of_rows = [one / other for one, other in zip(found.duckdb, found.from_rows, strict=True)]
    return (
        f"## (j) Summaries\n\nWritten by `python -m benchmarks.analysis`. {where}\n\n{found.rows / 1e6:,.1f} million "
        f"score rows of {n_pairs:,} pairs ({LAYERS} layers of {HEADS} heads), chunks of {chunk_pairs}; "
        f"{len(found.duckdb)} alternating rounds, each in a process of its own, imports not counted. The machine's "
        f"load was {load:.1f} when they began.\n\n"
        "| computed | seconds | times as fast as DuckDB | peak memory, GB |\n| --- | --- | --- | --- |\n"
        f"| from moments | {moments:.2f} | {_range(ratios)} | {found.peak['moments']:.2f} |\n"
        f"| from score rows | {rows:.2f} | {_range(of_rows)} | {found.peak['rows']:.2f} |\n"
        f"| by DuckDB, from score rows | {duckdb:.2f} | 1 | {found.peak['duckdb']:.2f} |\n\n"
        f"The moments of {MANY_CHUNKS:,} chunks of {MANY_CHUNK_PAIRS} pairs, as 10 billion score rows have them: "
        f"**{found.many:.0f} s**, {found.peak['many']:.2f} GB (targets: 60 s, 1 GB).\n\n"
        f"From an object store that waits {1e3 * FAR_SECONDS:.0f} ms before every answer, a server of this machine: "
        f"{found.afar[0]:.1f} s for the {n_pairs:,} pairs ({found.afar[1]:,} requests), {found.many_afar[0]:.0f} s for "
        f"the {MANY_CHUNKS:,} chunks ({found.many_afar[1]:,} requests).\n\n"
        f"`compare` with a run of the same pairs, pair by pair, {2 * found.rows / 1e6:,.0f} million rows: "
        f"**{found.compared:.1f} s**, {found.peak['compare']:.2f} GB (target: 10 s).\n\n"
        f"Moments and strata are {found.moment_bytes / found.score_bytes:.1%} of the bytes of the scores "
        f"(target: at most 5%), with {TEMPLATES} templates. Targets: from moments at least 5 times as fast as DuckDB, "
        "from rows no slower.\n"
    )


def _range(ratios: Sequence[float]) -> str:
    return f"**{median(ratios):.1f}** ({min(ratios):.1f} to {max(ratios):.1f})"


def main() -> int:
    """Measure, print, and write this part of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis", description=__doc__)
    parser.add_argument("--pairs", type=int, default=8064, help="pairs of the run")
    parser.add_argument("--chunk-pairs", type=int, default=512, help="pairs of a chunk")
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), n_pairs=options.pairs, chunk_pairs=options.chunk_pairs, n_rounds=options.rounds)
    text = render(machine.describe(), found, options.pairs, options.chunk_pairs, load)
    replace_part(options.out, "analysis", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
