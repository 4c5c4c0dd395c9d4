"""What a run counts for Prometheus, through Ray's own metrics.

The driver counts what is committed, so that nothing counts twice. The metrics agent of the driver's node, which Ray
starts with or without a dashboard, serves the numbers on the node's metrics export port, as ``ray_attrib_batch_...``.
Without an agent they go nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrib_batch.execution.workers.task import TaskReport

TAGS = ("run", "model", "worker")
CHUNK_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]
"""Upper bounds of the histogram's buckets."""
DRIVER = "driver"
"""The ``worker`` of pairs that the driver itself commits: those that ended every worker that met them."""


class RunMetrics:
    """The metrics of one model of a run; Ray has to be initialised."""

    def __init__(self, run: str, model: str) -> None:
        from ray.util.metrics import Counter, Histogram

        self._tags = {"run": run, "model": model}
        self._scored = Counter("attrib_batch_pairs_scored", "Pairs committed to scores, for each method.", TAGS)
        self._failed = Counter("attrib_batch_pairs_failed", "Pairs committed to failures, for each method.", TAGS)
        self._tokens = Counter("attrib_batch_tokens", "Prompt positions of pairs scored, clean and corrupted.", TAGS)
        self._seconds = Histogram(
            "attrib_batch_chunk_seconds",
            "From a worker's start on a chunk to its commit; chunks of methods that share forward passes are one.",
            CHUNK_SECONDS,
            TAGS,
        )

    def committed(self, worker: int, report: TaskReport) -> None:
        """Count a task that a worker committed; a probe counts nothing."""
        if report.assignment.probe is not None:
            return
        tags = self._tags | {"worker": str(worker)}
        for counter, amount in (
            (self._scored, report.n_scored),
            (self._failed, report.n_failed),
            (self._tokens, report.tokens),
        ):
            if amount:  # Ray refuses to count nothing
                counter.inc(amount, tags)
        self._seconds.observe(report.seconds, tags)

    def given_up(self, n_pairs: int) -> None:
        """Count pairs that the driver committed to failures itself."""
        self._failed.inc(n_pairs, self._tags | {"worker": DRIVER})
