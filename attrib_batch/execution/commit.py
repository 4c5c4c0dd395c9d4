"""Commit a chunk: the scores file last, all other tables before it. The scores file is the commit."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa

from attrib_batch.tables import (
    BASELINES,
    FAILURES,
    MOMENTS,
    PROMPTS,
    SCORES,
    STRATA,
    Chunk,
    FailureReason,
    Stage,
    Table,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from attrib_batch.execution.scheduling.assignment import LeftOut
    from attrib_batch.pairs.reading.reader import Pair
    from attrib_batch.storage.store import Store


Content: TypeAlias = pa.Table | pa.Buffer
"""A table, or the bytes of its file."""


def commit_chunk(
    store: Store,
    chunk: Chunk,
    *,
    scores: Content,
    baselines: Content,
    failures: pa.Table,
    moments: Content,
    strata: Content,
    prompts: Content,
    measured: Content | None = None,
) -> int:
    """Write a chunk's tables, and return the bytes of the scores file.

    Each is a table, or the bytes of its file where it is encoded already. Methods that measure no score or all of them
    have no table ``measured``.

    An attempt that died may have left tables without their commit; they are replaced or removed, so that committed
    tables always come from one attempt. Where a chunk is committed already and other pairs fail now than did before,
    it is taken back first: at no moment is a pair in neither or both of a committed chunk's tables.

    Raises:
        OutputError: the store cannot be written.
    """
    if store.exists(chunk.path(Table.SCORES)) and _failed(store, chunk) != set(failures["pair_id"].to_pylist()):
        store.remove(chunk.path(Table.SCORES))
    _write(store, chunk.path(Table.BASELINES), baselines)
    if failures.num_rows:
        store.write_table(chunk.path(Table.FAILURES), failures)
    else:
        store.remove(chunk.path(Table.FAILURES))
    _write(store, chunk.path(Table.MOMENTS), moments)
    _write(store, chunk.path(Table.STRATA), strata)
    _write(store, chunk.path(Table.PROMPTS), prompts)
    if measured is not None:
        _write(store, chunk.path(Table.MEASURED), measured)
    elif store.exists(chunk.path(Table.MEASURED)):  # of an attempt that died
        store.remove(chunk.path(Table.MEASURED))
    return _write(store, chunk.path(Table.SCORES), scores)


def _write(store: Store, path: str, content: Content) -> int:
    """Commit a file, and return its size in bytes."""
    return store.write_table(path, content) if isinstance(content, pa.Table) else store.write_bytes(path, content)


def _failed(store: Store, chunk: Chunk) -> set[int]:
    """Return the ids of the pairs in a chunk's failures."""
    try:
        return set(store.read_table(chunk.path(Table.FAILURES), ["pair_id"])["pair_id"].to_pylist())
    except FileNotFoundError:
        return set()


def commit_given_up(store: Store, chunk: Chunk, pairs: Sequence[Pair], left_out: Sequence[LeftOut]) -> None:
    """Commit a chunk of which no pair is tried any more.

    Args:
        store: the run's directory.
        chunk: the chunk.
        pairs: its pairs.
        left_out: why, for each of them.

    Raises:
        OutputError: the store cannot be written.
    """
    _commit_without_scores(store, chunk, failure_rows(worker_failures(pairs, chunk.start, left_out)))


def commit_means(store: Store, chunk: Chunk, means: pa.Table, failures: pa.Table) -> int:
    """Commit a chunk of mean activations, which has no scores, and return their bytes.

    Raises:
        OutputError: the store cannot be written.
    """
    size = _write(store, chunk.path(Table.MEANS), means)
    _commit_without_scores(store, chunk, failures)
    return size


def _commit_without_scores(store: Store, chunk: Chunk, failures: pa.Table) -> None:
    commit_chunk(
        store,
        chunk,
        scores=SCORES.empty_table(),
        baselines=BASELINES.empty_table(),
        failures=failures,
        moments=MOMENTS.empty_table(),
        strata=STRATA.empty_table(),
        prompts=PROMPTS.empty_table(),
    )


def worker_failures(pairs: Sequence[Pair], start: int, left_out: Iterable[LeftOut]) -> list[dict[str, Any]]:
    """Build rows of the failures table for those of ``pairs`` that are left out.

    Args:
        pairs: pairs that follow each other in the dataset.
        start: the row of the first one.
        left_out: what is left out, by row.
    """
    return [
        failure_row(
            pairs[item.row - start].pair_id,
            Stage.WORKER,
            FailureReason.WORKER_LOST,
            item.message,
            attempts=item.attempts,
        )
        for item in left_out
        if start <= item.row < start + len(pairs)
    ]


def failure_row(pair_id: int, stage: Stage, reason: str, message: str, *, attempts: int) -> dict[str, Any]:
    """Build one row of the failures table."""
    return {"pair_id": pair_id, "stage": stage, "error": reason, "message": message, "attempts": attempts}


def failure_rows(failures: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Build the failures table of a chunk, in the order of the pairs' ids."""
    return pa.Table.from_pylist(sorted(failures, key=itemgetter("pair_id")), schema=FAILURES)
