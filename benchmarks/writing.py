"""``python -m benchmarks.writing``: score rows that a worker writes a second, with one thread and with two."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from attrib_batch.attribution.engine import ScoredBatch
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.strata import JOINED_PAIRS, join_strata
from attrib_batch.execution.workers.task import TaskResults
from attrib_batch.models.load import load_tokenizer
from attrib_batch.models.sources import find_model
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.encoding.texts import TokenTexts
from attrib_batch.pairs.making.ioi import Counterfactual, generate_ioi
from attrib_batch.spec import Cell, Component, ModelSpec, parse_spec
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk, Table
from benchmarks import machine
from benchmarks.models import MODEL_ID
from benchmarks.page import RESULTS, replace_part
from benchmarks.rounds import Timings, alternate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attrib_batch.spec import SweepSpec

N_LAYERS, N_HEADS = 30, 9
"""Those of SmolLM2-135M."""
SHARES_OF = (256, 512, 1024)
"""Pairs of a chunk for which the bytes of sums are compared with those of scores."""
ONE, TWO = "one thread", "two threads"
THREADS = {ONE: 1, TWO: 2}


@dataclass(frozen=True)
class Writing:
    """A chunk that is written again and again."""

    n_pairs: int
    n_rows: int
    bytes_of: Mapping[Table, int]
    """Bytes of each of the chunk's files."""
    timings: Timings
    cpu_seconds: Mapping[str, list[float]]
    """Processor time of every round, of all threads together."""
    path_seconds: Mapping[str, list[float]]
    """Processor time of every round, of the thread that commits and of the writers, the latter divided by their number:
    how long the round takes where every thread has a processor of its own and none waits for another. The parts of
    a chunk are small, and whoever is free takes the next."""

    def rows_per_second(self, variant: str) -> float:
        """Rows a second in the median round, building columns, sums, encoding and writing together."""
        return self.n_rows / median(self.timings.seconds[variant])

    @property
    def undisturbed_ratios(self) -> list[float]:
        """How many times as fast two threads are as one with a processor for each thread, round by round."""
        return [one / two for one, two in zip(self.path_seconds[ONE], self.path_seconds[TWO], strict=True)]

    def rows_per_cpu_second(self, variant: str) -> float:
        """Rows for each second of a processor, in the median round."""
        return self.n_rows / median(self.cpu_seconds[variant])


def measure(folder: Path, *, n_pairs: int, n_rounds: int) -> Writing:
    """Commit one chunk of generated IOI pairs with normal random numbers as scores, in alternating rounds."""
    pairs, texts = _encoded(n_pairs)
    batches = _scored(pairs)
    spec = _spec()
    chunk = Chunk(Cell("m", "d", "atp"), 0, n_pairs)
    cpu_seconds: dict[str, list[float]] = {name: [] for name in THREADS}
    path_seconds: dict[str, list[float]] = {name: [] for name in THREADS}

    def write(variant: str) -> int:
        results = TaskResults(spec, Assignment((chunk,)), [], texts, n_threads=THREADS[variant])
        for batch in batches:
            results.add(results.methods[0], batch)
        began, began_here = time.process_time(), time.thread_time()
        rows = results.commit(Store(folder), seconds=0.0, model_seconds=0.0).score_rows
        all_threads, here = time.process_time() - began, time.thread_time() - began_here
        cpu_seconds[variant].append(all_threads)
        path_seconds[variant].append(here + (all_threads - here) / THREADS[variant])
        return rows

    n_rows, _ = (write(variant) for variant in THREADS)
    for seconds in (*cpu_seconds.values(), *path_seconds.values()):
        seconds.clear()
    timings = alternate({variant: partial(write, variant) for variant in THREADS}, n_rounds)
    sizes = {
        table: (folder / chunk.path(table)).stat().st_size
        for table in Table
        if (folder / chunk.path(table)).exists()
    }  # fmt: skip
    return Writing(n_pairs, n_rows, sizes, timings, cpu_seconds, path_seconds)


def shares(folder: Path, n_pairs: int) -> tuple[float, float, float]:
    """Write a chunk, and the same again and again as other pairs, until their strata are joined.

    Returns:
        As shares of the bytes of the scores: moments, strata beside a single chunk, and strata joined.
    """
    pairs, texts = _encoded(n_pairs)
    store, cell = Store(folder), Cell("m", "d", "atp")
    first = Chunk(cell, 0, n_pairs)
    results = TaskResults(_spec(), Assignment((first,)), [], texts)
    for batch in _scored(pairs):
        results.add(results.methods[0], batch)
    results.commit(store, seconds=0.0, model_seconds=0.0)
    scores, moments, strata = (
        (folder / first.path(table)).stat().st_size for table in (Table.SCORES, Table.MOMENTS, Table.STRATA)
    )
    n_chunks = -(-JOINED_PAIRS // n_pairs)
    for number in range(1, n_chunks):
        for table in (Table.SCORES, Table.MOMENTS, Table.STRATA):
            chunk = Chunk(cell, number * n_pairs, (number + 1) * n_pairs)
            (folder / chunk.path(table)).hardlink_to(folder / first.path(table))
    join_strata(store, [cell])
    [joined] = (folder / Table.STRATA).rglob("*.parquet")
    return moments / scores, strata / scores, joined.stat().st_size / (n_chunks * scores)


def _spec() -> SweepSpec:
    return parse_spec(
        {
            "name": "writing",
            "models": [{"id": "m", "prepend_bos": False}],
            "datasets": [{"id": "d", "path": "p"}],
            "methods": [{"id": "atp"}],
        },
        source="benchmark",
    )


def _encoded(n_pairs: int) -> tuple[list[EncodedPair], Mapping[int, str]]:
    spec = ModelSpec.model_validate({"id": MODEL_ID, "prepend_bos": False})
    tokenizer = load_tokenizer(spec, find_model(spec))
    made = list(generate_ioi(n_pairs, 0, next(iter(Counterfactual))))
    pairs = [pair for pair in encode_pairs(made, tokenizer, prepend_bos=False) if isinstance(pair, EncodedPair)]
    return pairs, TokenTexts(tokenizer).of(token for pair in pairs for token in (*pair.clean, *pair.corrupted))


def _scored(pairs: Sequence[EncodedPair]) -> list[ScoredBatch]:
    source = np.random.default_rng(0)
    shapes: dict[tuple[int, int], list[EncodedPair]] = defaultdict(list)
    for pair in pairs:
        shapes[pair.n_tokens, pair.first_difference].append(pair)
    batches = []
    for (n_tokens, first), members in shapes.items():
        shape = (len(members), N_LAYERS, N_HEADS, n_tokens - first)
        scores = {Component.Z: source.normal(size=shape).astype(np.float32)}
        batches.append(ScoredBatch(members, BatchScores(scores, *source.normal(size=(2, len(members))))))
    return batches


def render(where: str, found: Writing, load: float, stored: Mapping[int, tuple[float, float, float]]) -> str:
    """The part of the page about writing."""
    rows = "\n".join(
        f"| {n_pairs:,} | {moments:.1%} | {strata:.1%} | {joined:.2%} | **{moments + joined:.1%}** |"
        for n_pairs, (moments, strata, joined) in stored.items()
    )
    ratio = found.timings.ratio(ONE, TWO)
    scores = found.bytes_of[Table.SCORES]
    lines = []
    for name in THREADS:
        fastest = found.n_rows / min(found.timings.seconds[name])
        speeds = (found.rows_per_second(name), fastest, found.rows_per_cpu_second(name))
        lines.append(f"| {name} | {' | '.join(f'{speed / 1e6:.1f}' for speed in speeds)} |")
    table = "\n".join(lines)
    others = ", ".join(
        f"{table} {size / scores:.1%}" for table, size in found.bytes_of.items() if table is not Table.SCORES
    )
    ratios = found.undisturbed_ratios
    return (
        f"## (i) Writing\n\nWritten by `python -m benchmarks.writing`. {where}\n\nOne chunk of {found.n_pairs:,} "
        f"generated IOI pairs, {N_LAYERS} layers and {N_HEADS} heads, {found.n_rows:,} score rows, normal random "
        "numbers: columns built, sums, encoding and writing of all its tables together; "
        f"{len(ratios)} alternating rounds. The machine's load was {load:.1f} when they began.\n\n"
        "| writer | million rows a second, median | fastest round | for each second of a processor |\n"
        f"| --- | --- | --- | --- |\n{table}\n\n"
        f"Two threads write **{median(ratios):.2f}** times as fast as one where each has a processor to itself (range "
        f"{min(ratios):.2f} to {max(ratios):.2f}; target 1.8): by the processor time of the thread that "
        "commits and of the writers, whose work is divided evenly. By the clock, on a machine of this load, "
        f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}).\n\n"
        f"{scores / found.n_rows:.2f} bytes a row of scores. The other tables of the chunk: {others}.\n\n"
        "Sums beside the scores, as shares of their bytes, with the 34 templates of the generated pairs. Once a run is "
        f"at its end, the strata of {JOINED_PAIRS:,} pairs are one file. Target: together at most 5 %.\n\n"
        "| pairs a chunk | moments | strata of a chunk | strata, joined | moments and strata |\n"
        f"| --- | --- | --- | --- | --- |\n{rows}\n"
    )


def main() -> int:
    """Measure, print, and write this part of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.writing", description=__doc__)
    parser.add_argument("--pairs", type=int, default=1024, help="pairs of the chunk")
    parser.add_argument("--rounds", type=int, default=15, help="rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "writing", n_pairs=options.pairs, n_rounds=options.rounds)
        stored = {n_pairs: shares(Path(folder) / str(n_pairs), n_pairs) for n_pairs in SHARES_OF}
    text = render(machine.describe(), found, load, stored)
    replace_part(options.out, "writing", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
