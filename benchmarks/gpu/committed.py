"""What is left of the engine's speed when tables are read, tokenised, written and committed beside it."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from attrib_batch.execution.planning.stages import StageWork
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.replica import ReplicaWorker
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.reader import Pair, PairTable
from attrib_batch.spec import Cell, SweepSpec
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk
from benchmarks.gpu import engine
from benchmarks.gpu.models import make_pairs, word
from benchmarks.page import table

if TYPE_CHECKING:
    from attrib_batch.execution.planning.plan import Task
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.pairs.encoding.encode import EncodedPair
    from benchmarks.gpu.bench import Bench, Clock

TASKS_IN_HAND = 2
"""As a worker on Ray has: it reads and writes one while it computes the other."""


def measure(bench: Bench, clock: Clock) -> str:
    """One worker that owns GPT-2 small, with writer threads, from its first task to its last commit."""
    model, sizes = bench.gpt2, bench.sizes
    tokens = sizes.budgets[-1]
    pairs = make_pairs(model, sizes.committed_pairs, sizes.prompts, seed=1)
    chunks = [pairs[start : start + sizes.committed_chunk] for start in range(0, len(pairs), sizes.committed_chunk)]
    engine.n_micro_batches(model, chunks[0], tokens)  # to warm up
    # The same chunks, scored and thrown away: half of the time at most.
    n_scored, started = 0, time.perf_counter()
    for chunk in chunks:
        if n_scored and clock.left < clock.seconds / 2:
            break
        engine.n_micro_batches(model, chunk, tokens)
        n_scored += len(chunk)
    bench.synchronize()
    scored = n_scored / (time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        n_committed, seconds, n_bytes, model_seconds = _commit(Path(folder), model, pairs, bench, clock)
    committed = n_committed / seconds
    rows = [
        ["scored, nothing written", f"{scored:,.0f}", ""],
        [f"committed, {sizes.writers} writer threads", f"{committed:,.0f}", f"{n_bytes / n_committed:,.0f}"],
    ]
    return (
        f"GPT-2 small, float32, {n_committed:,} pairs in chunks of {sizes.committed_chunk:,}, micro-batches of "
        f"{tokens:,} suffix tokens, {TASKS_IN_HAND} tasks in hand; texts are tokenised, tables encoded and committed "
        f"to a local disk.\n\n{table(['', 'pairs/s', 'bytes of tables a pair'], rows)}\n\nTime outside the model: "
        f"**{max(0.0, 1 - committed / scored):.1%}** (by the worker's own account {1 - model_seconds / seconds:.1%})."
    )


def _commit(
    folder: Path, model: LoadedModel, pairs: list[EncodedPair], bench: Bench, clock: Clock
) -> tuple[int, float, int, float]:
    """Commit as many chunks as there is time for; return pairs, seconds, bytes, and seconds inside scoring."""
    sizes = bench.sizes
    path = folder / "pairs.parquet"
    write_pairs(path, map(_texts, pairs))
    spec = _job(path, sizes.budgets[-1], sizes.writers)
    store = Store(folder / "out")
    work = StageWork(spec, store, {"random": PairTable.open(path).fingerprint()})
    worker = ReplicaWorker(spec.models[0], spec.methods, given=model, shares_process=True)
    worker.load()
    cell = Cell("model", "random", "atp")
    todo: list[Task] = [
        (Chunk(cell, start, min(start + sizes.committed_chunk, len(pairs))),)
        for start in range(0, len(pairs), sizes.committed_chunk)
    ]
    started = time.perf_counter()

    def one(task: Task) -> tuple[int, float]:
        if task is not todo[0] and clock.left <= 0:
            return 0, 0.0
        report = worker.score(Assignment(task), work)
        return report.n_scored, report.model_seconds

    with ThreadPoolExecutor(TASKS_IN_HAND, thread_name_prefix="task") as threads:
        done = list(threads.map(one, todo))
    seconds = time.perf_counter() - started
    n_bytes = sum(file.stat().st_size for file in (folder / "out").rglob("*.parquet"))
    return sum(n for n, _ in done), seconds, n_bytes, sum(inside for _, inside in done)


def _texts(pair: EncodedPair) -> Pair:
    clean, corrupted = (" ".join(map(word, tokens)) for tokens in (pair.clean, pair.corrupted))
    return Pair(
        pair_id=pair.pair_id,
        clean=clean,
        corrupted=corrupted,
        answers=tuple(f" {word(token)}" for token in pair.answers),
        wrong_answers=tuple(f" {word(token)}" for token in pair.wrong_answers),
        roles=(),
        task=None,
        template=None,
        group=None,
    )


def _job(path: Path, tokens: int, writers: int) -> SweepSpec:
    return SweepSpec.model_validate(
        {
            "name": "gpu",
            "models": [
                {
                    "id": "made here",
                    "name": "model",
                    "prepend_bos": False,
                    "batch_tokens": tokens,
                    "workers": {"cpus": writers},
                }
            ],
            "datasets": [{"id": "random", "path": str(path)}],
            "methods": [{"id": "atp"}],
        }
    )
