"""The record that every execution of a run leaves beside the tables."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attrib_batch.execution.workers.task import peak_memory

if TYPE_CHECKING:
    from attrib_batch.execution.planning.prepare import PreparedRun
    from attrib_batch.execution.tally import Tally
    from attrib_batch.storage.store import Store

EXECUTIONS = "executions"


def last_record(store: Store) -> dict[str, Any] | None:
    """What the last execution that came to its end left; None where there is none that can be read."""
    for file in reversed(store.list(EXECUTIONS)):
        try:
            record: dict[str, Any] = json.loads(store.read_bytes(file.relative))
        except (FileNotFoundError, ValueError):
            continue
        return record
    return None


def record_execution(prepared: PreparedRun, tally: Tally) -> None:
    """Leave what this execution did: one small file, never rewritten.

    Raises:
        OutputError: the store cannot be written.
    """
    now = datetime.now(UTC)
    record = {
        "execution": prepared.lease.execution,
        "finished_at": now.isoformat(timespec="seconds"),
        "seconds": round(tally.seconds, 3),
        "pairs_scored": tally.scored,
        "pairs_failed": tally.failed,
        "pairs_committed_before": tally.earlier,
        "pairs_per_second": round(tally.pairs_per_second, 3),
        "tokens": tally.tokens,
        "score_rows": tally.score_rows,
        "score_bytes": tally.score_bytes,
        "model_share": tally.model_share,
        "driver_peak_bytes": peak_memory(),
        "worker_peak_bytes": tally.worker_peak_bytes,
        "worker_parameters": tally.worker_parameters,
        "worker_load_seconds": round(tally.worker_load_seconds, 3),
        "downloaded_bytes": tally.downloaded_bytes,
        "warnings": tally.warnings,
    }
    name = f"{EXECUTIONS}/{now:%Y%m%dT%H%M%S.%fZ}.json"
    prepared.store.write_bytes(name, (json.dumps(record, indent=2) + "\n").encode())
