"""What opening a run writes, clears and leaves alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from attrib_batch.errors import ExitCode, ModelError, OutputError, ResumeMismatchError
from attrib_batch.execution.planning.estimate import estimate_job
from attrib_batch.execution.planning.opening import open_run
from attrib_batch.execution.planning.stages import OpenRun
from attrib_batch.execution.planning.validate import validate_job
from attrib_batch.models.load import load_tokenizer
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.columns import ANSWER_COLUMNS, TableForm
from attrib_batch.pairs.reading.notes import TableNotes, TokenizerNote, vocabulary_fingerprint
from attrib_batch.pairs.reading.reader import Pair
from attrib_batch.spec import Cell, parse_spec
from attrib_batch.storage.store import Store
from attrib_batch.tables import BASELINES, SCORES, Chunk, Table, find_manifest
from tests.support.demo_pairs import random_pairs
from tests.support.jobs import TinyJob, in_words

PART = Chunk(Cell("tiny", "random", "atp"), 0, 8)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=12)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def opened(job: TinyJob, store: Store, **changes: Any) -> OpenRun:
    """Open a run, and give its lease back as a driver that ended would."""
    run = open_run(parse_spec(job.data(**changes), source="job"), store)
    run.lease.release()
    return run


def test_a_run_without_scores_gives_way_to_another(job: TinyJob, store: Store) -> None:
    first = opened(job, store)
    store.write_table(PART.path(Table.BASELINES), BASELINES.empty_table())  # its commit never came
    store.write_bytes("ndif/job.json", b"{}")
    store.write_bytes("logs/1.jsonl", b"{}")
    second = opened(job, store, methods=[{"id": "atp", "direction": "noise"}])
    assert not second.resumed
    assert second.manifest.run_id != first.manifest.run_id
    assert find_manifest(store) == second.manifest
    assert not store.list(Table.BASELINES, recursive=True)
    assert not store.list("ndif")
    assert store.exists("logs/1.jsonl"), "what happened stays told"


def test_the_same_run_goes_on_without_scores_too(job: TinyJob, store: Store) -> None:
    opened(job, store)
    store.write_table(PART.path(Table.BASELINES), BASELINES.empty_table())
    assert opened(job, store).resumed
    assert store.exists(PART.path(Table.BASELINES))


def test_a_run_with_scores_is_kept(job: TinyJob, store: Store) -> None:
    before = opened(job, store).manifest
    store.write_table(PART.path(Table.SCORES), SCORES.empty_table())
    with pytest.raises(ResumeMismatchError, match=r"method atp, direction: was .denoise., is now .noise"):
        opened(job, store, methods=[{"id": "atp", "direction": "noise"}])
    assert store.exists(PART.path(Table.SCORES))
    assert find_manifest(store) == before
    assert not store.exists("lease.json")


def test_what_a_job_adds_is_all_that_waits(job: TinyJob, store: Store) -> None:
    opened(job, store, datasets=[{"id": "random", "path": str(job.pairs), "limit": 8}])
    store.write_table(PART.path(Table.SCORES), SCORES.empty_table())
    run = opened(job, store, methods=[{"id": "atp"}, {"id": "atp_ig"}])
    assert run.resumed
    [stage] = [stage.plan(run) for stage in run.stages]
    [tasks] = stage.waiting.values()
    assert [[(chunk.cell.method, chunk.start, chunk.stop) for chunk in task] for task in tasks] == [
        [("atp", 8, 12)], [("atp_ig", 0, 8)], [("atp_ig", 8, 12)],
    ]  # fmt: skip


def test_tables_without_a_manifest_are_not_touched(job: TinyJob, store: Store) -> None:
    store.write_table(PART.path(Table.BASELINES), BASELINES.empty_table())
    with pytest.raises(OutputError, match="not the directory of a run"):
        opened(job, store)


def test_other_pairs_under_a_known_name_are_refused(job: TinyJob, store: Store, tmp_path: Path) -> None:
    opened(job, store)
    store.write_table(PART.path(Table.SCORES), SCORES.empty_table())
    write_pairs(tmp_path / "other.parquet", in_words(random_pairs(12, 9, 4)))
    with pytest.raises(ResumeMismatchError, match="dataset random, content: was"):
        opened(job, store, datasets=[{"id": "random", "path": str(tmp_path / "other.parquet")}])


def test_a_table_made_for_another_tokenizer_is_refused_before_anything_is_written(
    job: TinyJob, store: Store, tmp_path: Path
) -> None:
    rows = [Pair(n, f"w{n} w1", f"w{n} w2", (5,), (6,)) for n in range(3, 6)]
    tokenizer = load_tokenizer(parse_spec(job.data(), source="job").models[0])
    tables = {}
    for name, note in (
        ("other", TokenizerNote("gpt2")),
        ("changed", TokenizerNote(str(job.model), "0" * 64)),
        ("same", TokenizerNote(f"elsewhere/{job.model.name}")),
        ("known", TokenizerNote("gpt2", vocabulary_fingerprint(tokenizer))),
    ):
        path = tmp_path / f"{name}.parquet"
        write_pairs(path, rows, form=TableForm(id_columns=ANSWER_COLUMNS, notes=TableNotes(note)))
        tables[name] = [{"id": "random", "path": str(path)}]
    for name in ("other", "changed"):
        for ask in (
            partial(opened, job, store, datasets=tables[name]),
            lambda name=name: list(validate_job(parse_spec(job.data(datasets=tables[name]), source="job"))),
            lambda name=name: estimate_job(parse_spec(job.data(datasets=tables[name]), source="job")),
        ):
            with pytest.raises(
                ModelError, match=f"{name}.parquet: its answers are token ids of the tokenizer"
            ) as raised:
                ask()
            assert raised.value.exit_code == ExitCode.BAD_REQUEST
    assert find_manifest(store) is None
    for number, name in enumerate(("same", "known")):
        opened(job, Store(tmp_path / f"out-{number}"), datasets=tables[name])
