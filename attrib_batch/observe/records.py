"""The record that every execution of a run leaves beside the tables."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.storage.store import Store

EXECUTIONS = "executions"


def last_record(store: Store) -> dict[str, Any] | None:
    """Return what the last execution that came to its end left; None where there is none that can be read."""
    for file in reversed(store.list(EXECUTIONS)):
        try:
            record: dict[str, Any] = json.loads(store.read_bytes(file.relative))
        except (FileNotFoundError, ValueError):
            continue
        return record
    return None


def write_record(store: Store, execution: str, facts: Mapping[str, Any]) -> None:
    """Leave what an execution did: one small file, never rewritten.

    Raises:
        OutputError: the store cannot be written.
    """
    now = datetime.now(UTC)
    record = {"execution": execution, "finished_at": now.isoformat(timespec="seconds"), **facts}
    store.write_bytes(f"{EXECUTIONS}/{now:%Y%m%dT%H%M%S.%fZ}.json", (json.dumps(record, indent=2) + "\n").encode())
