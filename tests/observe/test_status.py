"""What ``status`` tells from the files: counts, who is at work, what is in hand, speed, time left, what went wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from attrib_batch.errors import ExitCode
from attrib_batch.observe.history import SHOWN_MESSAGES, parse_log
from attrib_batch.observe.log import log_name
from attrib_batch.observe.records import EXECUTIONS
from attrib_batch.observe.status import read_status
from attrib_batch.spec import Cell
from attrib_batch.storage.lease import LEASE, Holder
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk, Table
from tests.support.faults import faulty_environment, install_metric
from tests.support.jobs import TinyJob, attrib_batch, attrib_batch_here, environment, start
from tests.support.synthetic_run import Failure, Pair, failure_table, write_chunk, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

CELL = Cell("m", "d", "atp")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DEAD_PID = 2**22 - 3
"""A process number that no test machine gives out."""


def line(seconds: float, event: str, **fields: Any) -> bytes:
    """A line of the log of execution e1, so long after its beginning."""
    at = (BEGIN + timedelta(seconds=seconds)).isoformat()
    data = {"time": at, "level": "info", "event": event, "run": "r", "execution": "e1"}
    return json.dumps(data | {"model": "m", "dataset": "d", "methods": ["atp"]} | fields).encode()


def given(seconds: float, start: int, *, worker: int = 0, **fields: Any) -> bytes:
    return line(seconds, "task_given", worker=worker, start=start, stop=start + 10, **fields)


def committed(seconds: float, start: int, *, worker: int = 0, pairs: int = 10, **fields: Any) -> bytes:
    counts = {"pairs": pairs, "failed": 10 - pairs}
    return line(seconds, "task_committed", worker=worker, start=start, stop=start + 10, **counts, **fields)


def write_log(out: Path, *lines: bytes, execution: str = "e1") -> None:
    Store(out).write_bytes(log_name(execution), b"\n".join(lines) + b"\n")


def hold(out: Path, **changes: Any) -> None:
    """Leave a lease, by default this process's."""
    holder = replace(Holder.here("e1"), **changes)
    Store(out).write_bytes(LEASE, json.dumps(asdict(holder)).encode())


def pairs(start: int, stop: int) -> list[Pair]:
    return [Pair(index, {"z": np.zeros((1, 1, 3))}) for index in range(start, stop)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run of 100 pairs, 20 of them committed and 2 of these failed."""
    write_manifest(tmp_path, {CELL: 100})
    write_chunk(tmp_path, Chunk(CELL, 0, 10), pairs(0, 10))
    failures = [Failure(10), Failure(11, error="worker_lost")]
    write_chunk(tmp_path, Chunk(CELL, 10, 20), pairs(12, 20), failures)
    return tmp_path


def test_pairs_are_counted_with_the_reasons_of_those_that_failed(out: Path) -> None:
    Store(out).write_table(
        "failures/" + CELL.partition + "/part-000000020-000000030.parquet", failure_table([Failure(20)])
    )
    found = read_status(out)
    [cell] = found.cells
    assert (cell.expected, cell.scored, cell.failed, cell.waiting) == (100, 18, 2, 80)
    assert found.reasons == {"unequal_length": 1, "worker_lost": 1}, "what is not committed does not count"
    assert not found.running
    assert found.in_flight == []
    assert found.exit_code == ExitCode.UNFINISHED


def test_what_is_in_hand_is_what_was_given_and_has_not_ended() -> None:
    history = parse_log(
        [
            given(0, 0), given(0, 10), given(0, 20, worker=1), given(0, 30, worker=2),
            committed(5, 0),
            line(6, "worker_lost", worker=1, level="warning", message="it died"),
            given(6, 40, worker=3), given(6, 50, worker=3),
            line(7, "task_failed", worker=3, start=40, stop=50, level="warning", message="KeyError"),
            line(7, "task_unreadable", worker=2, start=30, stop=40, level="error", message="no"),
            line(8, "probe_given", worker=2, start=20, stop=30, probe=[20, 25]),
            line(9, "probe_survived", worker=2, start=20, stop=30, probe=[20, 25]),
            line(10, "probe_given", worker=2, start=20, stop=30, probe=[25, 30]),
            b'{"time": "2026-01-01T00:00:11+00:00", "lev',
        ]
    )  # fmt: skip
    assert history is not None
    assert [(task.worker, task.start, task.stop) for task in history.in_hand] == [(0, 10, 20), (2, 25, 30)]
    assert sum(task.n_pairs for task in history.in_hand) == 15
    assert [message.text for message in history.messages] == ["it died", "KeyError", "no"]


def test_pairs_of_methods_that_run_together_are_counted_for_each() -> None:
    history = parse_log([given(0, 0, methods=["atp", "atp_ig"])])
    assert history is not None
    assert history.in_hand[0].n_pairs == 20


def test_nothing_is_in_hand_after_the_end() -> None:
    history = parse_log([given(0, 0), line(5, "execution_ended", exit_code=1, level="error", message="stopped")])
    assert history is not None
    assert history.in_hand == []
    assert history.exit_code == 1


def test_speed_is_that_of_the_last_minutes() -> None:
    ready = line(0, "worker_ready", worker=0)
    slow = [committed(100 * n, 10 * n) for n in range(1, 11)]  # 0.1 pairs/s up to 1000 s
    fast = [committed(1000 + 10 * n, 1000 + 10 * n, pairs=7) for n in range(1, 61)]  # then 1 pair/s
    lines = [ready, *slow, *fast]
    assert speed(lines) == pytest.approx(1.0)
    assert speed([ready, *slow]) == pytest.approx(0.1)
    assert speed(lines, 1750) == pytest.approx(0.5), "150 s without a commit count"
    assert speed([ready, committed(20, 0)]) == pytest.approx(0.5)
    assert speed([ready]) is None


def speed(lines: list[bytes], heard_of: float | None = None) -> float | None:
    history = parse_log(lines, heard_of_at=0.0 if heard_of is None else BEGIN.timestamp() + heard_of)
    assert history is not None
    return history.speeds.now


SLOW_THEN_FAST = [
    line(0, "worker_ready", worker=0, model="slow"),
    *[committed(10 * n, 10 * n, model="slow") for n in range(1, 11)],  # 1 pair/s up to 100 s
    line(100, "model_ended", model="slow"),
    line(120, "worker_ready", worker=0, model="fast"),
    committed(121, 0, model="fast"),
    committed(122, 10, model="fast"),
]
"""Two models one after the other, both with a worker 0."""


def test_the_speed_is_that_of_the_models_at_work() -> None:
    assert speed(SLOW_THEN_FAST[:11]) == pytest.approx(1.0)
    assert speed(SLOW_THEN_FAST[:12], 119) is None, "nothing is at work while the second model loads"
    assert speed(SLOW_THEN_FAST, 124) == pytest.approx(20 / 4)
    assert speed(
        [*SLOW_THEN_FAST, line(130, "model_ended", model="fast"), line(140, "execution_ended", exit_code=0)]
    ) == (pytest.approx(20 / 2)), "the last speed is that of the last model"
    ended = [*SLOW_THEN_FAST, line(130, "model_ended", model="fast")]
    assert speed(ended) == pytest.approx(20 / 2), "its driver has gone and not written its last line yet"
    assert speed(ended, 131) is None


def test_the_speeds_of_models_side_by_side_add_up() -> None:
    lines = [
        line(0, "worker_ready", worker=0, model="slow"), line(10, "worker_ready", worker=0, model="fast"),
        committed(20, 0, model="slow"), committed(20, 0, model="fast"),
    ]  # fmt: skip
    assert speed(lines) == pytest.approx(10 / 20 + 10 / 10)


def test_each_model_needs_its_own_time(tmp_path: Path) -> None:
    slow, fast, none = (Cell(model, "d", "atp") for model in ("slow", "fast", "none"))
    write_manifest(tmp_path, {slow: 110, fast: 100, none: 30})
    hold(tmp_path, renewed_at=BEGIN.timestamp() + 124)
    write_chunk(tmp_path, Chunk(slow, 0, 100), pairs(0, 100))
    write_chunk(tmp_path, Chunk(fast, 0, 20), pairs(0, 20))
    write_log(tmp_path, *SLOW_THEN_FAST)
    found = read_status(tmp_path)
    # 80 pairs at 5 a second; 30 at the mean of 0.2 and 1 s. The 10 that the slow model has left were not readable.
    assert found.seconds_left == pytest.approx(80 / 5 + 30 * 0.6)
    assert found.pairs_per_second == pytest.approx(5.0)


def test_only_the_last_messages_are_kept() -> None:
    history = parse_log([line(n, "worker_lost", worker=n, level="warning", message=f"lost {n}") for n in range(20)])
    assert history is not None
    assert [message.text for message in history.messages] == [f"lost {n}" for n in range(20 - SHOWN_MESSAGES, 20)]


@pytest.mark.parametrize(
    ("holder", "running"),
    [
        ({}, True),
        ({"pid": DEAD_PID}, False),
        ({"process_started": "another process of this number"}, False),
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "renewed_at": time.time() - 1e5}, False),
    ],
)
def test_whether_a_driver_is_at_work_shows_in_its_lease(out: Path, holder: dict[str, Any], *, running: bool) -> None:
    hold(out, **holder)
    write_log(out, line(0, "worker_ready", worker=0), committed(10, 0), given(11, 20))
    found = read_status(out)
    assert found.running == running
    assert len(found.in_flight) == running, "what a driver that died had given is in nobody's hands"
    assert (found.seconds_left is not None) == running


def test_time_left_follows_from_the_speed(out: Path) -> None:
    hold(out, renewed_at=BEGIN.timestamp())
    write_log(out, line(0, "worker_ready", worker=0), committed(10, 0), committed(20, 10))
    assert read_status(out).seconds_left == pytest.approx(80.0)


def commit_at(out: Path, start: int, seconds: float) -> None:
    """Commit ten pairs, so long after the beginning."""
    write_chunk(out, Chunk(CELL, start, start + 10), pairs(start, start + 10))
    date_part(out, start, seconds)


def date_part(out: Path, start: int, seconds: float) -> None:
    at = BEGIN.timestamp() + seconds
    os.utime(out / Chunk(CELL, start, start + 10).path(Table.SCORES), (at, at))


def record(out: Path, seconds: float, **fields: Any) -> None:
    """Leave the record of an execution that ended so long after the beginning."""
    ended = BEGIN + timedelta(seconds=seconds)
    data = json.dumps({"finished_at": ended.isoformat(timespec="seconds"), **fields}).encode()
    Store(out).write_bytes(f"{EXECUTIONS}/{ended:%Y%m%dT%H%M%S.%fZ}.json", data)


def test_without_a_log_the_parts_tell_the_speed(out: Path) -> None:
    hold(out, renewed_at=BEGIN.timestamp())
    date_part(out, 0, 0)
    date_part(out, 10, 5)
    commit_at(out, 20, 10)
    found = read_status(out)
    assert found.history is None
    assert found.pairs_per_second == pytest.approx(2.0)  # the first commit tells when, not how fast
    assert found.seconds_left == pytest.approx(35.0)
    hold(out, renewed_at=BEGIN.timestamp() + 40)
    assert read_status(out).pairs_per_second == pytest.approx(0.5), "30 s without a commit count"
    record(out, 7)
    assert read_status(out).pairs_per_second is None, "of this execution there is one part alone"
    commit_at(out, 30, 20)
    assert read_status(out).pairs_per_second == pytest.approx(10 / 30)


def test_without_a_log_the_parts_of_each_model_tell_its_speed(tmp_path: Path) -> None:
    done, begun = (Cell(model, "d", "atp") for model in ("done", "begun"))
    write_manifest(tmp_path, {done: 20, begun: 50})
    hold(tmp_path, renewed_at=BEGIN.timestamp() + 120)
    for cell, begin, seconds in ((done, 0, 1), (done, 10, 2), (begun, 0, 110), (begun, 10, 115)):
        chunk = Chunk(cell, begin, begin + 10)
        write_chunk(tmp_path, chunk, pairs(begin, begin + 10))
        os.utime(tmp_path / chunk.path(Table.SCORES), (BEGIN.timestamp() + seconds,) * 2)
    found = read_status(tmp_path)
    assert found.pairs_per_second == pytest.approx(10 / 10)  # the first commit tells when, not how fast
    assert found.seconds_left == pytest.approx(30)


def test_without_a_log_the_record_of_the_last_execution_tells_its_speed(out: Path) -> None:
    assert read_status(out).pairs_per_second is None
    record(out, 5, pairs_per_second=7.0)
    record(out, 90, pairs_per_second=3.0)
    found = read_status(out)
    assert (found.pairs_per_second, found.seconds_left) == (3.0, None)
    Store(out).write_bytes(f"{EXECUTIONS}/20990101T000000.000000Z.json", b"{")
    assert "last speed: 3.0 pairs/s" in attrib_batch_here("status", out).output


def test_the_newest_log_counts_and_only_if_it_is_the_holders(out: Path) -> None:
    hold(out, execution="e2")
    write_log(out, given(0, 20))
    assert read_status(out).in_flight == []
    hold(out)
    assert len(read_status(out).in_flight) == 1


def test_status_says_all_of_it(out: Path) -> None:
    hold(out, renewed_at=BEGIN.timestamp())
    lost = line(19, "worker_lost", worker=1, level="warning", message="it\ndied")
    write_log(out, line(0, "worker_ready", worker=0), committed(10, 0), lost, committed(20, 10), given(20, 20))
    ended = attrib_batch_here("status", out)
    assert ended.code == 1
    said = ended.output.splitlines()
    assert said[0] == "m x d x atp: 18 scored, 2 failed, 80 waiting of 100 pairs"
    assert said[1] == "failures: 1 unequal_length, 1 worker_lost"
    assert said[2].endswith("is at work")
    assert said[3:] == [
        "in flight: 10 pairs in 1 chunks, on 1 workers",
        "speed: 1.0 pairs/s, about 1 min 20 s left",
        "last errors:",
        "  2026-01-01 00:00:19Z worker_lost: it died",
    ]


def test_a_driver_that_died_is_named(out: Path) -> None:
    hold(out, pid=DEAD_PID)
    assert f"process {DEAD_PID} on" in attrib_batch_here("status", out).output
    (out / LEASE).unlink()
    assert "no driver is at work\n" in attrib_batch_here("status", out).output


@pytest.mark.slow
def test_watch_ends_at_once_without_a_driver(out: Path) -> None:
    ended = attrib_batch("status", out, "--watch", "--every", "60", seconds=40)
    assert ended.code == 1
    assert ended.output.count("waiting") == 1


@pytest.mark.slow
def test_watch_follows_a_run_to_its_end(tmp_path: Path) -> None:
    job, packages = TinyJob.make(tmp_path, n_pairs=24), tmp_path / "packages"
    install_metric(packages)
    path, out = job.write(methods=[{"id": "atp", "metric": "faulty"}], chunk_pairs=4), tmp_path / "out"
    slow = faulty_environment(packages, slow=0.5)  # long enough for a watch on a busy machine
    with start("run", path, "--out", out, "--local", env=slow) as driver:
        deadline = time.monotonic() + 100
        while not (out / "manifest.json").exists():
            assert time.monotonic() < deadline
            assert driver.poll() is None
            time.sleep(0.05)
        ended = attrib_batch("status", out, "--watch", "--every", "0.2")
        assert driver.wait(60) == 0
    assert ended.code == 0, ended.said
    assert "is at work" in ended.output
    assert "in flight: " in ended.output
    assert " left" in ended.output
    last = ended.output.split("\n\n")[-1].splitlines()
    assert last[0] == "tiny x random x atp: 24 scored, 0 failed, 0 waiting of 24 pairs"
    assert last[1] == "no driver is at work"
    assert last[2].startswith("last speed: ")


@pytest.mark.slow
def test_status_needs_neither_torch_nor_ray(out: Path) -> None:
    write_log(out, given(0, 0))
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'transformers', 'nnsight'): sys.modules[name] = None\n"
        "from attrib_batch.cli import main\n"
        f"sys.argv = ['attrib-batch', 'status', {str(out)!r}]\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "18 scored" in done.stdout
