"""The driver's log: a line an event, ids on every line, no secret; without a way to append, the log as a whole."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from attrib_batch.errors import OutputError
from attrib_batch.execution.events import TaskFailed, WorkerFailedToStart, WorkerId, WorkerLost, WorkerReady
from attrib_batch.execution.journal import ModelJournal
from attrib_batch.execution.scheduling.assignment import Assignment, LeftOut
from attrib_batch.execution.scheduling.scheduler import End, Give, GiveUp, Start
from attrib_batch.execution.workers.task import LoadReport
from attrib_batch.observe.log import LOGS, EventKind, Level, RunLog
from attrib_batch.observe.sinks import FileSink, ObjectSink, open_sink
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from attrib_batch.tables import MANIFEST, Chunk
from tests.support.jobs import TinyJob, attrib_batch_here

if TYPE_CHECKING:
    from pathlib import Path

TASK = tuple(Chunk(Cell("m", "d", method), 8, 16) for method in ("atp", "atp_ig"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Bucket:
    """As much of an object store as a log needs; it can refuse."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.n_puts = 0
        self.refuses = False

    def write_bytes(self, relative: str, data: bytes) -> int:
        if self.refuses:
            raise OutputError("the store answers 500")
        self.objects[relative] = data
        self.n_puts += 1
        return len(data)

    def path(self, relative: str) -> str:
        return f"bucket/{relative}"


def a_log(folder: Path, **changes: Any) -> RunLog:
    return RunLog(FileSink(folder / "log.jsonl"), run="r1", execution="e1", **changes)


def test_a_line_is_in_the_file_at_once_and_carries_every_id(tmp_path: Path) -> None:
    log = ModelJournal(a_log(tmp_path / "new"), "m")
    log.decided(Start(3))
    [line] = lines(tmp_path / "new/log.jsonl")
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info", "event": "worker_starting", "run": "r1", "execution": "e1", "model": "m", "worker": 3,
    }  # fmt: skip
    log.decided(Give(3, Assignment(TASK)))
    log.decided(Give(3, Assignment(TASK, probe=(8, 12))))
    [given, probe] = lines(tmp_path / "new/log.jsonl")[1:]
    assert {key: given[key] for key in ("event", "worker", "dataset", "methods", "start", "stop")} == {
        "event": "task_given", "worker": 3, "dataset": "d", "methods": ["atp", "atp_ig"], "start": 8, "stop": 16,
    }  # fmt: skip
    assert "probe" not in given
    assert (probe["event"], probe["probe"]) == ("probe_given", [8, 12])


def test_what_goes_wrong_stands_out_and_says_why(tmp_path: Path) -> None:
    log = ModelJournal(a_log(tmp_path), "m")
    log.happened(WorkerReady(WorkerId("m", 0), LoadReport(peak_bytes=5, parameters=7, seconds=1.0)))
    log.happened(WorkerFailedToStart(WorkerId("m", 1), "no GPU"))
    log.happened(TaskFailed(WorkerId("m", 3), Assignment(TASK), "KeyError: 'missing thing'"))
    log.happened(WorkerLost(WorkerId("m", 0), "it died"))
    log.decided(End(2, "it hung"))
    log.decided(GiveUp(TASK, (LeftOut(8, 3, "it died again"),)))
    log.unreadable(TASK, "the file changed")
    found = [(line["event"], line["level"], line.get("message")) for line in lines(tmp_path / "log.jsonl")]
    assert found == [
        ("worker_ready", "info", None),
        ("worker_failed_to_start", "warning", "no GPU"),
        ("task_failed", "warning", "KeyError: 'missing thing'"),
        ("worker_lost", "warning", "it died"),
        ("worker_ended", "warning", "it hung"),
        ("task_given_up", "warning", "it died again"),
        ("task_unreadable", "error", "the file changed"),
    ]


def test_a_secret_is_in_no_line(tmp_path: Path) -> None:
    log = a_log(tmp_path, secrets=['se"cret', ""])
    log.write(EventKind.WORKER_LOST, Level.WARNING, message='the header was se"cret, and that was refused')
    [line] = lines(tmp_path / "log.jsonl")
    assert line["message"] == "the header was ***, and that was refused"
    assert "se" + '"cret' not in repr(log)


def test_a_disk_that_refuses_the_log_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = RunLog(FileSink(tmp_path / "file/log.jsonl"), run="r", execution="e")
    log.write(EventKind.STOP_ASKED)
    log.close()


def test_the_sink_suits_the_store(tmp_path: Path) -> None:
    assert isinstance(open_sink(Store(tmp_path), "logs/x.jsonl"), FileSink)
    sink = open_sink(Bucket(), "logs/x.jsonl")  # type: ignore[arg-type]  # a stand-in
    assert isinstance(sink, ObjectSink)
    sink.close()


def test_an_object_store_gets_the_whole_log_now_and_then_and_at_the_end() -> None:
    bucket = Bucket()
    sink = ObjectSink(bucket, "logs/x.jsonl", seconds=0.05)  # type: ignore[arg-type]  # a stand-in
    sink.write(b"1\n")
    deadline = time.monotonic() + 10
    while not bucket.objects:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert bucket.objects == {"logs/x.jsonl": b"1\n"}
    bucket.refuses = True
    sink.write(b"2\n")
    time.sleep(0.2)
    bucket.refuses = False
    sink.write(b"3\n")
    sink.close()
    assert bucket.objects == {"logs/x.jsonl": b"1\n2\n3\n"}
    written = bucket.n_puts
    sink.close()
    assert bucket.n_puts == written, "nothing new, nothing written"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and the same command again."""
    job = TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=16)
    path = job.write()
    out = job.folder / "out"
    for _ in range(2):
        ended = attrib_batch_here("run", path, "--out", out)
        assert ended.code == 0, ended.said
    return out


def test_a_run_leaves_a_log_of_each_execution(runs: Path) -> None:
    manifest = json.loads((runs / MANIFEST).read_text())
    logs = sorted((lines(path) for path in (runs / LOGS).glob("*.jsonl")), key=lambda log: log[0]["time"])
    assert len({line["execution"] for log in logs for line in log}) == len(logs) == 2
    assert {line["run"] for log in logs for line in log} == {manifest["run_id"]}
    first, second = logs
    assert [line["event"] for line in second] == [
        "execution_started", "lease_taken", "stage_started", "lease_released", "execution_ended",
    ]  # fmt: skip
    counts = {what: [line for line in first if line["event"] == what] for what in EventKind}
    assert [(line["start"], line["stop"]) for line in counts[EventKind.TASK_GIVEN]] == [(0, 8), (8, 16)]
    assert sum(line["pairs"] for line in counts[EventKind.TASK_COMMITTED]) == 16
    assert all(line["seconds"] > 0 and line["tokens"] > 0 for line in counts[EventKind.TASK_COMMITTED])
    assert {line["worker"] for line in counts[EventKind.WORKER_READY]} >= {
        line["worker"] for line in counts[EventKind.TASK_COMMITTED]
    }
    [ended] = counts[EventKind.EXECUTION_ENDED]
    assert (ended["exit_code"], ended["pairs"], ended["failed"]) == (0, 16, 0)
    assert first[-1] == ended
    records = [json.loads(path.read_text()) for path in (runs / "executions").glob("*.json")]
    assert {record["execution"] for record in records} == {log[0]["execution"] for log in logs}


def test_a_run_that_cannot_finish_says_so_in_its_log(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=4)
    for weights in job.model.glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-64])
    ended = attrib_batch_here("run", job.write(), "--out", tmp_path / "out")
    [path] = (tmp_path / "out" / LOGS).glob("*.jsonl")
    last = lines(path)[-1]
    assert (last["event"], last["level"], last["exit_code"]) == ("execution_ended", "error", ended.code)
    assert ended.code != 0
    assert last["message"].split()[0] in ended.said
