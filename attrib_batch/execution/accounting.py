"""Count what an execution has done, for each model as its tasks are committed."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attrib_batch.observe.progress import Snapshot
from attrib_batch.observe.speed import Speeds
from attrib_batch.tables import SCORING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from attrib_batch.execution.workers.task import LoadReport, TaskReport
    from attrib_batch.spec import Cell


@dataclass
class _ModelTally:
    """The pairs of one model, and the times at which its workers did something."""

    waiting: int
    """Pairs that were not committed when the execution began."""
    done: int = 0
    """Pairs that it has committed since."""
    workers: dict[int, tuple[float, float]] = field(default_factory=dict)
    """When each worker was ready, and when it last finished a task or a probe."""
    ended: bool = False

    @property
    def at_work(self) -> bool:
        """Whether a worker has been ready and the model's tasks are not at their end."""
        return bool(self.workers) and not self.ended

    @property
    def left(self) -> int:
        """Pairs that are still to be committed; of a model that has ended none are, even if some cannot be read."""
        return 0 if self.ended else self.waiting - self.done

    def interval(self, now: float) -> tuple[float, float]:
        """Return from when until when the model was worked on; an empty interval where it had no worker."""
        if not self.workers:
            return now, now
        begun = min(ready for ready, _ in self.workers.values())
        return begun, max(last for _, last in self.workers.values()) if self.ended else now

    def speed(self, now: float) -> float | None:
        """Return pairs per second; None before the first is committed."""
        begun, until = self.interval(now)
        return self.done / (until - begun) if self.done and until > begun else None


@dataclass
class Tally:
    """Pairs of a run, counted as chunks are committed.

    A model is at work from its first worker's being ready until its tasks are at their end, and the time counts up to
    the last commit. Workers are numbered from 0 for each model, so they are told apart by model and number.
    """

    earlier: int = 0
    """Pairs of the stages so far that earlier executions of the run committed."""
    waiting: Mapping[str, int] = field(default_factory=dict)
    """Pairs of each model that were not committed when the stage at work began."""
    clock: Callable[[], float] = time.perf_counter
    """Tells the time in seconds."""
    scored: int = 0
    failed: int = 0
    tokens: int = 0
    score_rows: int = 0
    score_bytes: int = 0
    model_seconds: float = 0
    worker_peak_bytes: int = 0
    worker_parameters: int = 0
    """Most parameters that one actor holds."""
    worker_load_seconds: float = 0
    """Longest time from a worker's start to its being ready, loading alone."""
    downloaded_bytes: int = 0
    arithmetic: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """On what devices each model was computed, and how; each once."""
    in_hand: int = 0
    """Pairs that are scored and not committed."""
    elsewhere: str = ""
    """What is under way on a server, in words."""
    started: float = field(init=False)
    _warned: dict[Cell, Counter[str]] = field(default_factory=dict, init=False)
    """Pairs with something doubtful, by the first cell of the tasks that they were in."""
    stage: str = field(default=SCORING, init=False)
    """The stage at work."""
    _models: dict[str, _ModelTally] = field(init=False)
    """Of the stage at work: a pair of one may cost hundreds of times one of another."""
    _past: list[_ModelTally] = field(default_factory=list, init=False)
    """Those of earlier stages."""
    _total: int = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()
        self._models = {model: _ModelTally(n_pairs) for model, n_pairs in self.waiting.items()}
        self._total = self.earlier + sum(self.waiting.values())

    def stage_began(self, name: str, earlier: int, waiting: Mapping[str, int]) -> None:
        """Count the pairs of another stage; workers that are ready go on with it.

        Args:
            name: the stage.
            earlier: pairs of it that are committed already.
            waiting: pairs of each model that are not.
        """
        now = self.clock()
        before = self._models
        for tally in before.values():
            tally.ended = True
        self._past += before.values()
        self.stage, self.waiting = name, waiting
        self.earlier += earlier
        self._total += earlier + sum(waiting.values())
        self._models = {model: _ModelTally(n_pairs) for model, n_pairs in waiting.items()}
        for model, ahead in self._models.items():
            if model in before:
                ahead.workers = dict.fromkeys(before[model].workers, (now, now))

    def worker_ready(self, model: str, worker: int, ready: LoadReport) -> None:
        """Count a worker that has loaded its model."""
        now = self.clock()
        self._models[model].workers[worker] = now, now
        self.worker_peak_bytes = max(self.worker_peak_bytes, ready.peak_bytes)
        self.worker_parameters = max(self.worker_parameters, ready.parameters)
        self.worker_load_seconds = max(self.worker_load_seconds, ready.seconds)
        if ready.arithmetic and ready.arithmetic not in (known := self.arithmetic.setdefault(model, [])):
            known.append(ready.arithmetic)

    def add(self, model: str, worker: int, report: TaskReport) -> None:
        """Count a task that a worker committed, or a probe that it survived."""
        of_model = self._models[model]
        of_model.done += report.n_scored + report.n_failed
        of_model.workers[worker] = of_model.workers[worker][0], self.clock()
        self.scored += report.n_scored
        self.failed += report.n_failed
        self.tokens += report.tokens
        self.score_rows += report.score_rows
        self.score_bytes += report.score_bytes
        self.model_seconds += report.model_seconds
        self.downloaded_bytes += report.downloaded_bytes
        self.worker_peak_bytes = max(self.worker_peak_bytes, report.peak_bytes)
        if report.warnings:
            self._warned.setdefault(report.assignment.task[0].cell, Counter()).update(report.warnings)

    def given_up(self, model: str, n_pairs: int) -> None:
        """Count pairs that the driver committed to failures itself."""
        self._models[model].done += n_pairs
        self.failed += n_pairs

    def model_ended(self, model: str) -> None:
        """Stop the clock of a model whose tasks have ended, or are given up."""
        self._models[model].ended = True

    @property
    def warnings(self) -> dict[str, dict[str, int]]:
        """Count pairs with something doubtful, by dataset and kind, each once, however many methods scored it.

        Models may tokenise differently: the count is that of the model with the most.
        """
        most: dict[str, Counter[str]] = {}
        for cell, counts in self._warned.items():
            most[cell.dataset] = most.get(cell.dataset, Counter()) | counts
        return {dataset: dict(counts) for dataset, counts in most.items()}

    @property
    def total(self) -> int:
        """Pairs of the stages so far."""
        return self._total

    @property
    def done(self) -> int:
        """Pairs that are in scores or failures now."""
        return self.earlier + self.scored + self.failed

    @property
    def seconds(self) -> float:
        """Seconds since the run started."""
        return self.clock() - self.started

    @property
    def pairs_per_second(self) -> float:
        """Speed of the whole execution: its pairs over the time in which any model was at work; 0 before.

        Models at work side by side share their time; the time in which workers start and load, and none is ready, is
        left out.
        """
        now = self.clock()
        seconds = _covered(model.interval(now) for model in (*self._past, *self._models.values()))
        return (self.scored + self.failed) / seconds if seconds else 0.0

    @property
    def speeds(self) -> Speeds:
        """The speed of each model since its first worker was ready, and which models are at work now."""
        now = self.clock()
        speeds = {name: model.speed(now) for name, model in self._models.items()}
        return Speeds(
            {name: speed for name, speed in speeds.items() if speed is not None},
            frozenset(name for name, model in self._models.items() if model.at_work),
        )

    @property
    def model_share(self) -> float | None:
        """Share of the workers' time spent inside the model, each worker's from ready to its last commit; None before.

        It is 1 at most: a worker scores one task at a time, after it is ready and before it commits.
        """
        spans = [span for model in (*self._past, *self._models.values()) for span in model.workers.values()]
        at_work = sum(last - ready for ready, last in spans)
        return round(self.model_seconds / at_work, 4) if at_work else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the end; None while no speed is known."""
        return self.speeds.seconds_left({name: model.left for name, model in self._models.items()})

    def snapshot(self, *, at_end: bool = False) -> Snapshot:
        """Return how far the execution is.

        While it goes on the speed is that of the models at work now, at its end that of the whole execution.
        """
        return Snapshot(
            stage=self.stage,
            done=min(self.done + self.in_hand, self.total),
            total=self.total,
            failed=self.failed,
            pairs_per_second=self.pairs_per_second if at_end else self.speeds.now,
            seconds_left=None if at_end else self.seconds_left,
            elsewhere=self.elsewhere,
        )

    def record(self) -> dict[str, Any]:
        """Return what the execution's record says of it."""
        return {
            "seconds": round(self.seconds, 3),
            "pairs_scored": self.scored,
            "pairs_failed": self.failed,
            "pairs_committed_before": self.earlier,
            "pairs_per_second": round(self.pairs_per_second, 3),
            "tokens": self.tokens,
            "score_rows": self.score_rows,
            "score_bytes": self.score_bytes,
            "model_share": self.model_share,
            "worker_peak_bytes": self.worker_peak_bytes,
            "worker_parameters": self.worker_parameters,
            "worker_load_seconds": round(self.worker_load_seconds, 3),
            "downloaded_bytes": self.downloaded_bytes,
            "warnings": self.warnings,
            "arithmetic": self.arithmetic,
        }


def _covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return how many seconds lie in at least one of the intervals."""
    total, reached = 0.0, -math.inf
    for begun, until in sorted(intervals):
        total += max(0.0, until - max(begun, reached))
        reached = max(reached, until)
    return total
