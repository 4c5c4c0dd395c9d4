"""What a run remembers of its jobs on an NDIF server."""

from __future__ import annotations

from pathlib import Path

import pytest

from attrib_batch.errors import OutputError
from attrib_batch.spec import Cell, MethodSpec
from attrib_batch.storage.remote_jobs import (
    RemoteJob,
    forget_jobs,
    format_counts,
    job_name,
    jobs_under_way,
    read_job,
    write_job,
)
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk

CHUNK = Chunk(Cell("m", "d", "atp"), 0, 8)
ATP = MethodSpec(id="atp")


def job(name: str, submitted_at: float = 1.0) -> RemoteJob:
    return RemoteJob(name, "f00", "http://host", "m", ("atp",), 8, submitted_at)


def test_a_job_is_found_again_by_its_pairs_with_what_was_last_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    name = job_name(CHUNK, ATP, range(8))
    assert read_job(store, name) is None
    told = job(name).with_status("QUEUED", "Added to Queue at position 2.")
    write_job(store, told)
    assert read_job(store, job_name(CHUNK, ATP, list(range(8)))) == told
    assert told.describe() == "f00 on http://host: QUEUED (Added to Queue at position 2.)"


def test_methods_that_share_runs_share_a_job_and_others_do_not() -> None:
    noise = MethodSpec(id="noise", kind="atp", direction="noise")
    assert job_name(CHUNK, ATP, [1]) == job_name(Chunk(Cell("m", "d", "noise"), 0, 8), noise, [1])
    assert job_name(CHUNK, ATP, [1]) != job_name(CHUNK, MethodSpec(id="exact"), [1])
    assert job_name(CHUNK, ATP, [1]) != job_name(CHUNK, ATP, [2])
    assert job_name(CHUNK, ATP, [1]) != job_name(Chunk(CHUNK.cell, 8, 16), ATP, [1])


def test_a_committed_chunk_leaves_no_job_of_its_parts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    forget_jobs(store, CHUNK, ATP)  # there is no folder yet
    other = job_name(Chunk(CHUNK.cell, 8, 16), ATP, [9])
    for name in (job_name(CHUNK, ATP, range(8)), job_name(CHUNK, ATP, range(4)), other):
        write_job(store, job(name))
    forget_jobs(store, CHUNK, ATP)
    assert [left.name for left in jobs_under_way(store)] == [other]


def test_jobs_are_counted_by_state() -> None:
    waiting = job("b", 2.0).with_status("QUEUED", "Added to Queue at position 1.")
    running = job("a").with_status("RUNNING", "Your job has started running.")
    assert format_counts([]) == ""
    assert format_counts([running, waiting]) == "NDIF jobs: 1 RUNNING, 1 QUEUED (Added to Queue at position 1)"


def test_a_file_that_is_no_job_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("ndif/x.json", b"{}")
    with pytest.raises(OutputError, match=r"x\.json cannot be read"):
        read_job(store, "ndif/x.json")
