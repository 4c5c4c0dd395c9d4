"""Processes that try for one lease at the same moment, again and again."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import Any

from attrib_batch.errors import OutputError
from attrib_batch.storage.lease import Lease
from attrib_batch.storage.store import Store

PROCESSES = 4
ROUND_SECONDS = 60


@dataclass(frozen=True)
class Round:
    """How one round ended."""

    winners: list[str]
    """The executions that have the lease."""
    refusals: list[str]
    """What the others were told."""


def race(stores: list[Store]) -> list[Round]:
    """Let processes try for the leases of some directories, one after the other, all for the same one together."""
    context = multiprocessing.get_context("spawn")  # clients of object stores do not outlive a fork
    start, end, told = context.Barrier(PROCESSES + 1), context.Barrier(PROCESSES + 1), context.Queue()
    processes = [context.Process(target=_try, args=(stores, start, end, told)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    try:
        ended = []
        for _ in stores:
            start.wait(ROUND_SECONDS)
            outcomes = [told.get(timeout=ROUND_SECONDS) for _ in processes]
            winners = [text for won, text in outcomes if won]
            ended.append(Round(winners, [text for won, text in outcomes if not won]))
            end.wait(ROUND_SECONDS)
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()
    return ended


def _try(stores: list[Store], start: Any, end: Any, told: Any) -> None:
    for store in stores:
        start.wait(ROUND_SECONDS)
        lease = None
        try:
            lease = Lease.take(store)
            told.put((True, lease.execution))
        except OutputError as error:
            told.put((False, str(error)))
        # Until all have tried: a lease that is given back may be taken again.
        end.wait(ROUND_SECONDS)
        if lease is not None:
            lease.release()
