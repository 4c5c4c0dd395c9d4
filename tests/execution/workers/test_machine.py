"""A device that is lost while a worker computes: whose fault it is, and whether a fresh worker may do better."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attrib_batch.errors import DeviceLostError, ExitCode, RunInterruptedError
from attrib_batch.execution.events import TaskFailed, WorkerFailedToStart, WorkerId
from attrib_batch.execution.executor import judge
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.machine import computing
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Cell, ModelSpec, load_spec
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk
from tests.support.jobs import TinyJob, attrib_batch_here, read_table
from tests.support.worker_here import replica_here

SPEC = ModelSpec.model_validate({"id": "x", "prepend_bos": False, "deterministic": True})
LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")
TASK = (Chunk(Cell("tiny", "random", "atp"), 0, 8),)
WORKER = WorkerId("tiny", 0)


def test_what_is_raised_far_from_its_kernel_is_judged_the_same() -> None:
    """A dead device raises at any later call: when memory is given back, when a result is copied."""
    with pytest.raises(DeviceLostError) as caught, computing(SPEC):
        raise LOST
    event = judge(caught.value, WORKER, Assignment(TASK))
    assert isinstance(event, TaskFailed), "no pair of it is suspected"
    assert isinstance(judge(caught.value, WORKER, None), WorkerFailedToStart)


def test_a_process_that_others_share_cannot_be_replaced() -> None:
    with (
        pytest.raises(RunInterruptedError, match="Start a new process") as caught,
        computing(SPEC, shares_process=True),
    ):
        raise LOST
    with pytest.raises(RunInterruptedError):
        judge(caught.value, WORKER, Assignment(TASK))


def test_other_exceptions_pass_as_they_are_and_the_job_says_how_to_compute() -> None:
    with pytest.raises(KeyError), computing(SPEC):
        raise KeyError(torch.are_deterministic_algorithms_enabled())
    with computing(SPEC):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def break_the_device(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """From some micro-batch on, whatever is computed raises, as on a device that is lost."""
    from attrib_batch.attribution.methods import atp

    whole, computed = atp.attribution_patching, []

    def broken(*arguments: object, **options: object) -> object:
        computed.append(1)
        if len(computed) > after:
            raise LOST
        return whole(*arguments, **options)

    monkeypatch.setattr(atp, "attribution_patching", broken)


def test_a_worker_whose_device_is_lost_commits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = TinyJob.make(tmp_path, n_pairs=20)
    worker = replica_here(
        load_spec(job.write()), Store(tmp_path / "out"), {"random": PairTable.open(job.pairs).fingerprint()}
    )
    assert worker.load().arithmetic["device"] == "cpu"
    break_the_device(monkeypatch, after=0)
    with pytest.raises(DeviceLostError):
        worker.score(Assignment(TASK))
    assert not worker.store.root.exists()


def test_a_run_says_on_what_it_was_computed_and_how(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=8)
    model = {"id": str(job.model), "name": "tiny", "prepend_bos": False, "deterministic": True}
    out = tmp_path / "out"
    ended = attrib_batch_here("run", job.write(models=[model]), "--out", out)
    assert ended.code == ExitCode.OK, ended.said
    assert not torch.are_deterministic_algorithms_enabled(), "of the worker alone"
    [record] = (json.loads(file.read_text()) for file in (out / "executions").glob("*.json"))
    how = {
        "device": "cpu", "torch": torch.__version__, "cuda": None, "float32_matmul_precision": "highest",
        "deterministic": True,
    }  # fmt: skip
    assert record["arithmetic"] == {"tiny": [how]}
    [log] = (out / "logs").glob("*.jsonl")
    [ready] = [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "worker_ready"]
    assert {key: ready.get(key) for key in how} == how


def test_a_run_in_this_process_ends_and_blames_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = TinyJob.make(tmp_path, n_pairs=20)
    path, out = job.write(chunk_pairs=5), tmp_path / "out"
    with monkeypatch.context() as patched:
        break_the_device(patched, after=3)
        ended = attrib_batch_here("run", path, "--out", out)
    assert ended.code == ExitCode.UNFINISHED
    said = " ".join(ended.said.split())
    assert "the device is lost to this process (AcceleratorError: CUDA error: an illegal memory access" in said
    assert "Start a new process (in a notebook, restart the kernel)" in said
    again = attrib_batch_here("run", path, "--out", out)
    assert again.code == ExitCode.OK, again.said
    assert not list(out.glob("failures/**/*.parquet"))
    assert read_table(out, "baselines")["pair_id"].to_list() == list(range(20))
