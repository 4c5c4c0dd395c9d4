"""Commit a chunk: baselines and failures first, the scores file last. The scores file is the commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.schema import BASELINES, FAILURES, SCORES, Chunk, FailureReason, Stage, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from attrib_batch.pairs.reader import Pair
    from attrib_batch.store import Store


def commit_chunk(store: Store, chunk: Chunk, *, scores: pa.Table, baselines: pa.Table, failures: pa.Table) -> int:
    """Write a chunk's tables; returns the bytes of the scores file.

    An attempt that died may have left tables without their commit; they are replaced or removed, so that committed
    tables always come from one attempt.

    Raises:
        OutputError: the store cannot be written.
    """
    store.write_table(chunk.path(Table.BASELINES), baselines)
    if failures.num_rows:
        store.write_table(chunk.path(Table.FAILURES), failures)
    else:
        store.remove(chunk.path(Table.FAILURES))
    return store.write_table(chunk.path(Table.SCORES), scores)


def commit_lost_chunk(store: Store, chunk: Chunk, pairs: Sequence[Pair], *, message: str, attempts: int) -> None:
    """Record every pair of a chunk that no worker could finish as failed."""
    import pyarrow as pa

    rows = [
        {
            "pair_id": pair.pair_id,
            "stage": Stage.WORKER,
            "error": FailureReason.WORKER_LOST,
            "message": message,
            "attempts": attempts,
        }
        for pair in pairs
    ]
    commit_chunk(
        store,
        chunk,
        scores=SCORES.empty_table(),
        baselines=BASELINES.empty_table(),
        failures=pa.Table.from_pylist(rows, schema=FAILURES),
    )
