"""Read the newest log of a run: what was in hand when it was last written, the speed, what went wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from attrib_batch.observe.log import LOGS, SUFFIX, EventKind, Level
from attrib_batch.observe.records import last_record
from attrib_batch.observe.speed import Speeds
from attrib_batch.tables import Table, parse_part_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from attrib_batch.spec import Cell
    from attrib_batch.storage.store import Store

SPEED_SECONDS = 300.0
"""A model's speed is that of so many seconds before its last commit, or before now while it is at work."""
SPEED_COMMITS = 8
"""Or of so many commits, where these take longer: one commit in a window says little."""
SHOWN_MESSAGES = 5

_GIVES = {EventKind.TASK_GIVEN, EventKind.PROBE_GIVEN}
_COMMITS = {EventKind.TASK_COMMITTED, EventKind.TASK_GIVEN_UP}
_ENDS = {EventKind.TASK_COMMITTED, EventKind.TASK_UNREADABLE, EventKind.PROBE_SURVIVED}
_ENDS_ALL_OF_WORKER = {EventKind.WORKER_LOST, EventKind.WORKER_ENDED, EventKind.TASK_FAILED}


@dataclass(frozen=True)
class InHand:
    """What a worker was given and has not ended."""

    model: str
    worker: int
    dataset: str
    methods: tuple[str, ...]
    start: int
    stop: int
    """The rows [start, stop) of the dataset; those that are probed, if it is a probe."""

    @property
    def n_pairs(self) -> int:
        """How many pairs, each counted once for each method."""
        return (self.stop - self.start) * len(self.methods)


@dataclass(frozen=True)
class Message:
    """Something that went wrong."""

    at: datetime
    event: str
    text: str


@dataclass(frozen=True)
class History:
    """One execution, as its log tells it."""

    execution: str
    in_hand: list[InHand]
    models_ended: frozenset[str]
    """Models whose tasks are at their end, even if some of their pairs could not be read."""
    speeds: Speeds
    """Lately; where the execution has ended, the models at work are those that were when it last committed."""
    messages: list[Message]
    """The last ones, the newest last."""
    exit_code: int | None
    """None while it goes on, and where it ended without a word."""
    last_line_at: datetime


def read_history(store: Store, *, heard_of_at: float = 0.0) -> History | None:
    """Read the newest log; return None where there is none.

    Args:
        store: the run's directory.
        heard_of_at: when the driver last renewed its lease, by its own clock, in seconds since 1970; the time between
            its last commit and that counts too.
    """
    logs = [file for file in store.list(LOGS) if file.name.endswith(SUFFIX)]
    if not logs:
        return None
    newest = max(logs, key=lambda file: file.modified_ns)
    return parse_log(store.read_bytes(newest.relative).splitlines(), heard_of_at=heard_of_at)


def parse_log(lines: Iterable[bytes], *, heard_of_at: float = 0.0) -> History | None:
    """Parse the lines of a log; return None where no line can be read."""
    events = [event for line in lines if (event := _parse(line)) is not None]
    if not events:
        return None
    ended = [event["exit_code"] for event in events if event["event"] == EventKind.EXECUTION_ENDED]
    messages = [
        Message(event["time"], event["event"], event["message"])
        for event in events
        if event["level"] != Level.INFO and "message" in event
    ]
    return History(
        execution=events[-1]["execution"],
        in_hand=[] if ended else _in_hand(events),
        models_ended=_models_ended(events),
        # A driver that is at work no more may be about to write its last line.
        speeds=_speeds(events, heard_of_at, over=bool(ended) or not heard_of_at),
        messages=messages[-SHOWN_MESSAGES:],
        exit_code=ended[-1] if ended else None,
        last_line_at=events[-1]["time"],
    )


def last_speed_without_log(store: Store) -> float | None:
    """Return the speed of the last execution from its record, for runs without a log; None without a record."""
    return (last_record(store) or {}).get("pairs_per_second") or None


def speeds_without_log(store: Store, waiting: Mapping[Cell, int], *, heard_of_at: float = 0.0) -> Speeds:
    """Return the speeds while a driver is at work from the times of the parts, for runs without a log.

    They are those of the parts committed lately. Those of an execution that was killed cannot be told from its own; the
    speed is too low, then, until enough have been added.

    Args:
        store: the run's directory.
        waiting: pairs of each cell that are not committed; a model of which none are is not at work any more.
        heard_of_at: as for `read_history`.
    """
    record = last_record(store) or {}
    begun = datetime.fromisoformat(record["finished_at"]).timestamp() if "finished_at" in record else 0.0
    commits: dict[str, list[tuple[float, int]]] = {}
    for cell in waiting:
        of_model = commits.setdefault(cell.model, [])
        for file in store.list(f"{Table.SCORES}/{cell.partition}"):
            part, at = parse_part_name(file.name), file.modified_ns / 1e9
            if part is not None and at > begun:
                of_model.append((at, part[1] - part[0]))
    at_work = {cell.model for cell, n_pairs in waiting.items() if n_pairs and commits[cell.model]}
    return _recent_speeds({model: sorted(found) for model, found in commits.items()}, {}, at_work, heard_of_at)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Parse a line; return None for one that is cut off: the disk was full, or it is being written now."""
    try:
        event: dict[str, Any] = json.loads(line)
        return event | {"time": datetime.fromisoformat(event["time"])}
    except (ValueError, TypeError, KeyError):
        return None


def _models_ended(events: Iterable[dict[str, Any]]) -> frozenset[str]:
    """Return the models whose tasks of the stage at work are at their end."""
    ended: set[str] = set()
    for event in events:
        if event["event"] == EventKind.STAGE_STARTED:
            ended.clear()
        elif event["event"] == EventKind.MODEL_ENDED:
            ended.add(event["model"])
    return frozenset(ended)


def _in_hand(events: Iterable[dict[str, Any]]) -> list[InHand]:
    """Return what was given and has not ended, in the order in which it was given."""
    found: dict[InHand, None] = {}
    for event in events:
        kind = event["event"]
        if kind in _GIVES:
            found[_task(event)] = None
        elif kind in _ENDS and "worker" in event:
            found.pop(_task(event), None)
        elif kind in _ENDS_ALL_OF_WORKER:
            gone = (event["model"], event["worker"])
            found = {task: None for task in found if (task.model, task.worker) != gone}
    return list(found)


def _task(event: dict[str, Any]) -> InHand:
    start, stop = event.get("probe", (event["start"], event["stop"]))
    return InHand(event["model"], event["worker"], event["dataset"], tuple(event["methods"]), start, stop)


def _speeds(events: Sequence[dict[str, Any]], heard_of_at: float, *, over: bool) -> Speeds:
    commits: dict[str, list[tuple[float, int]]] = {}
    ready: dict[str, float] = {}
    at_work: set[str] = set()
    at_last_commit: frozenset[str] = frozenset()
    for event in events:
        kind, at = event["event"], event["time"].timestamp()
        if kind == EventKind.STAGE_STARTED:
            # A pair of one stage may cost hundreds of times one of another; workers go on from stage to stage.
            ready, commits = dict.fromkeys(ready, at), {}
            at_work = set(ready)
        elif kind == EventKind.WORKER_READY:
            ready.setdefault(event["model"], at)
            at_work.add(event["model"])
        elif kind in _COMMITS:
            commits.setdefault(event["model"], []).append((at, event["pairs"] + event["failed"]))
            at_work.add(event["model"])
            at_last_commit = frozenset(at_work)
        elif kind == EventKind.MODEL_ENDED:
            at_work.discard(event["model"])
    if over:
        return _recent_speeds(commits, ready, at_last_commit, 0.0)
    return _recent_speeds(commits, ready, at_work, heard_of_at)


def _recent_speeds(
    commits: Mapping[str, Sequence[tuple[float, int]]],
    ready: Mapping[str, float],
    at_work: Collection[str],
    heard_of_at: float,
) -> Speeds:
    """Return the recent speed of each model; the time of one that is not at work ends at its last commit."""
    speeds = {
        model: _recent_speed(found, ready.get(model), heard_of_at if model in at_work else 0.0)
        for model, found in commits.items()
    }
    return Speeds({model: speed for model, speed in speeds.items() if speed}, frozenset(at_work))


def _recent_speed(commits: Sequence[tuple[float, int]], ready: float | None, heard_of_at: float) -> float | None:
    """Return recent pairs per second, from the times and pairs of commits in order.

    Where it is not known when a worker was ready, the time counts from the first commit on.
    """
    if not commits:
        return None
    if ready is None:
        ready = commits[0][0]
    # Of an execution that has ended, what came after its last commit is no work.
    end = max(commits[-1][0], heard_of_at)
    few = commits[-SPEED_COMMITS - 1][0] if len(commits) > SPEED_COMMITS else ready
    start = max(ready, min(end - SPEED_SECONDS, few))
    n_pairs = sum(pairs for at, pairs in commits if at > start)
    return n_pairs / (end - start) if n_pairs else None
