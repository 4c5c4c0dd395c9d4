"""Processes that share one model, as on a cluster, on this machine: each runs the functions it is sent."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tests.support.ports import LOOPBACK, free_ports

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext
    from multiprocessing.process import BaseProcess

    from attrib_batch.models.ranks import Agreement

START_SECONDS = 90
STOP_SECONDS = 5


IMPORTED = [
    "attrib_batch.models.families",
    "attrib_batch.models.sharded",
    "nnsight.modeling.transformers",
    "tests.support.scored",
    "transformers.models.auto.modeling_auto",
]


def forking() -> ForkServerContext:
    """Return how processes are started that need not import torch: from one that has, and has done nothing else.

    It is one for each test process, and ends with it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@dataclass
class Ranks:
    """A group of processes joined by gloo, each with the threads of the tests.

    Started when first used, and again after a failure.
    """

    size: int
    collective_seconds: float = 40
    """How long a rank waits for the others in a collective, and when they agree."""
    _processes: list[BaseProcess] = field(default_factory=list, init=False)
    _pipes: list[Connection] = field(default_factory=list, init=False)

    def run(self, function: Callable[..., Any], *arguments: Any, seconds: float = 120) -> list[Any]:
        """Call ``function(*arguments)``, a function of a module, in every rank; its results in the order of the ranks.

        Fails with the traceback of every rank that raised, and where a rank gives nothing for so many seconds.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))
        try:
            return self._collect(seconds)
        except AssertionError:
            self.close()
            raise

    def close(self) -> None:
        """End the processes, wherever they are."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(STOP_SECONDS)
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context = forking()
        [port] = free_ports(1)
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, rank, self.size, port, self.collective_seconds), daemon=True
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)
        try:
            self._collect(START_SECONDS)
        except AssertionError:
            self.close()
            raise

    def _collect(self, seconds: float) -> list[Any]:
        until = time.monotonic() + seconds
        results, failures = [], []
        for rank, pipe in enumerate(self._pipes):
            try:
                if not pipe.poll(max(0, until - time.monotonic())):
                    failures.append(f"rank {rank} gave nothing within {seconds} s")
                    continue
                ok, result = pipe.recv()
            except EOFError:
                failures.append(f"rank {rank} died")
                continue
            if ok:
                results.append(result)
            else:
                failures.append(f"rank {rank}:\n{result}")
        assert not failures, "\n".join(failures)
        return results


agreement: list[Agreement] = []
"""In a rank: the means to agree with the others."""


def _serve(pipe: Connection, rank: int, size: int, port: int, collective_seconds: float) -> None:
    import torch

    torch.set_num_threads(int(os.environ["ATTRIB_BATCH_TEST_THREADS"]))
    _reply(pipe, _join, rank, size, port, timedelta(seconds=collective_seconds))
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        _reply(pipe, function, *arguments)


def _join(rank: int, size: int, port: int, timeout: timedelta) -> None:
    from attrib_batch.models.ranks import join_ranks

    agreement.append(join_ranks(rank, size, LOOPBACK, port, timeout=timeout))


def _reply(pipe: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        pipe.send((True, function(*arguments)))
    except BaseException:  # noqa: BLE001 - whatever it is, the test is to show it
        pipe.send((False, traceback.format_exc()))
