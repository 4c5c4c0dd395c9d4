"""The command line of ``attrib-batch`` as the benchmarks run it: in processes of its own, watched while it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psutil
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAMPLE_SECONDS = 0.5
RAY_SERVICES = ("raylet", "gcs_server")
MIB = 2**20


def command(*arguments: str | Path) -> list[str]:
    """The command line of ``attrib-batch``, in this interpreter."""
    return [sys.executable, "-m", "attrib_batch", *map(str, arguments)]


def attrib_batch(*arguments: str | Path, code: int = 0) -> float:
    """Run a command that ends with ``code``; returns its seconds, Python's start included."""
    started = time.perf_counter()
    ended = subprocess.call(command(*arguments), stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    if ended != code:
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {ended} in place of {code}")
    return seconds


@dataclass(frozen=True)
class Sample:
    """What the processes of a command take at one moment."""

    at: float
    """Seconds since 1970."""
    driver: float
    """Resident memory in MiB, as everything here."""
    worker: float
    """Of the largest worker; 0 before there is one."""
    services: float
    """Of Ray's own processes together."""
    driver_cpu: float
    """Seconds of processor time of the driver so far."""


@dataclass
class Watched:
    """A command that was watched from its first moment to its last."""

    started: float
    """Seconds since 1970."""
    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    @property
    def peak(self) -> float:
        """Most resident memory of the command's first process that a sample saw, in MiB."""
        return max(sample.driver for sample in self.samples)


def watch(
    *arguments: str | Path, until: Callable[[], bool] = lambda: False, sample_seconds: float = SAMPLE_SECONDS
) -> Watched:
    """Run a command and sample its processes; it is killed, with SIGKILL, as soon as ``until`` says so.

    Raises:
        RuntimeError: it ended by itself with another code than 0.
    """
    watched, started = Watched(time.time()), time.perf_counter()
    with subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        driver = psutil.Process(process.pid)
        below: list[psutil.Process] = []
        names: dict[int, str] = {}
        while process.poll() is None:
            try:
                below = driver.children(recursive=True)
                watched.samples.append(_sample(driver, below, names))
            except psutil.NoSuchProcess:
                break
            if until():
                process.kill()
                break
            time.sleep(sample_seconds)
        killed = process.poll() is None or process.wait() < 0
        _, said = process.communicate()
        watched.seconds = time.perf_counter() - started
    if process.returncode and not killed:
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {process.returncode}: {said}")
    # What a killed driver leaves ends by itself; Ray's agents, which do nothing by then, take a minute longer.
    psutil.wait_procs([process for process in below if "Agent" not in names.get(process.pid, "")], timeout=60)
    return watched


def _sample(driver: psutil.Process, below: list[psutil.Process], names: dict[int, str]) -> Sample:
    """Sample the processes, and note what they are called."""
    workers, services = [0.0], 0.0
    for process in below:
        try:
            name, resident = process.name(), process.memory_info().rss / MIB
            names[process.pid] = name
        except psutil.NoSuchProcess:
            continue
        if name.startswith("ray::") and "IDLE" not in name:
            workers.append(resident)
        elif name in RAY_SERVICES:
            services += resident
    used = driver.cpu_times()
    return Sample(time.time(), driver.memory_info().rss / MIB, max(workers), services, used.user + used.system)


@dataclass(frozen=True)
class Event:
    """A line of a run's log."""

    at: float
    """Seconds since 1970."""
    what: str
    worker: int | None
    pairs: int


def read_log(out: Path) -> list[Event]:
    """The newest log of a run."""
    newest = max((out / "logs").glob("*.jsonl"), key=os.path.getmtime)
    lines = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    return [
        Event(
            datetime.fromisoformat(line["time"]).timestamp(),
            line["event"],
            line.get("worker"),
            line.get("pairs", 0) + line.get("failed", 0) if line["event"] == "task_committed" else 0,
        )
        for line in lines
    ]


def write_job(file: Path, model: dict[str, Any], pairs: Path, **options: object) -> Path:
    """A job of plain attribution patching on one table."""
    job = {
        "name": "benchmark",
        "models": [{"prepend_bos": False, "device": "cpu", **model}],
        "datasets": [{"id": "ioi", "path": str(pairs)}],
        "methods": [{"id": "atp"}],
        **options,
    }
    file.write_text(yaml.safe_dump(job), encoding="utf-8")
    return file
