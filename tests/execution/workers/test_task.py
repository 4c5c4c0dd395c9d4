"""What a worker makes of the rows of a task: which are failures, what is warned of, what the job allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from polars.testing import assert_frame_equal

from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.task import TaskReport
from attrib_batch.pairs.making.writer import PLAIN, write_pairs
from attrib_batch.pairs.reading.columns import ANSWER_COLUMNS, TableForm
from attrib_batch.pairs.reading.notes import TableNotes
from attrib_batch.pairs.reading.reader import Pair, PairTable, Role
from attrib_batch.spec import Cell, load_spec
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk
from tests.support.jobs import TinyJob, read_scores, read_table
from tests.support.tiny_models import BOS, VOCABULARY
from tests.support.worker_here import replica_here

METHODS = ({"id": "atp"}, {"id": "noise", "kind": "atp", "direction": "noise"})
GOOD = Pair(0, "w1 w2 w3", "w1 w4 w3", (" Mary",), (" John",))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=4)


def work(
    job: TinyJob, out: Path, rows: list[Pair], *, form: TableForm = PLAIN, prepend_bos: bool = False, **keys: Any
) -> TaskReport:
    """Score rows as one task of two methods; their ids are their numbers."""
    rows = [replace(row, pair_id=number) for number, row in enumerate(rows)]
    write_pairs(job.pairs, rows, form=form)
    models = [{"id": str(job.model), "name": "tiny", "prepend_bos": prepend_bos}]
    spec = load_spec(job.write(**{"methods": list(METHODS), "models": models, **keys}))
    worker = replica_here(spec, Store(out), {"random": PairTable.open(job.pairs).fingerprint()})
    worker.load()
    chunks = (Chunk(Cell("tiny", "random", str(method["id"])), 0, len(rows)) for method in METHODS)
    return worker.score(Assignment(tuple(chunks)))


def failures(out: Path) -> dict[int, tuple[str, str]]:
    rows = read_table(out, "failures").select("pair_id", "stage", "error")
    return {pair_id: (stage, error) for pair_id, stage, error in rows.rows()}


BOUNDARY = replace(GOOD, answers=("Mary",), wrong_answers=("John",))
"""Words are split at spaces: 'w3Mary' is one that the tokenizer does not know."""


def test_a_boundary_is_a_failure_unless_the_job_allows_it(job: TinyJob, tmp_path: Path) -> None:
    report = work(job, tmp_path / "refused", [GOOD, BOUNDARY])
    assert (report.n_scored, report.n_failed) == (2, 2)
    assert failures(tmp_path / "refused") == {1: ("validate", "boundary")}
    report = work(job, tmp_path / "allowed", [GOOD, BOUNDARY], allow_boundary=True)
    assert (report.n_scored, report.n_failed) == (4, 0)
    # Alone 'Mary' is the token of ' Mary', under this tokenizer.
    scores = [read_scores(tmp_path / "allowed").filter(pair_id=number).drop("pair_id") for number in (0, 1)]
    assert_frame_equal(*scores)
    assert len(scores[0]) > 0


def test_a_bos_that_would_stand_twice_is_a_failure(job: TinyJob, tmp_path: Path) -> None:
    begun = replace(GOOD, clean=f"{BOS} {GOOD.clean}", corrupted=f"{BOS} {GOOD.corrupted}")
    work(job, tmp_path / "out", [GOOD, begun], prepend_bos=True)
    assert failures(tmp_path / "out") == {1: ("validate", "double_bos")}
    assert set(read_scores(tmp_path / "out")["pair_id"]) == {0}


def test_ids_are_held_against_the_models_vocabulary(job: TinyJob, tmp_path: Path) -> None:
    size = len(VOCABULARY)
    rows = [replace(GOOD, answers=(answer,), wrong_answers=(2,)) for answer in (3, size - 1, size, -1)]
    report = work(job, tmp_path / "out", rows, form=TableForm(id_columns=ANSWER_COLUMNS))
    assert failures(tmp_path / "out") == {2: ("validate", "off_vocabulary"), 3: ("validate", "off_vocabulary")}
    assert (report.n_scored, report.n_failed) == (4, 4)


def test_warnings_are_counted_once_a_pair_and_change_nothing_else(job: TinyJob, tmp_path: Path) -> None:
    hidden = replace(GOOD, roles=(Role("a", 3, 5), Role("b", 3, 5)))
    unknown = replace(GOOD, clean="w1 zaphod w3")
    both = replace(unknown, roles=(Role("a", 0, 2), Role("b", 0, 2)))
    failed = replace(both, answers=())
    report = work(job, tmp_path / "out", [GOOD, hidden, unknown, both, failed])
    assert report.warnings == {"role_hidden": 2, "unknown_token": 2}
    assert (report.n_scored, report.n_failed) == (8, 2)
    assert work(job, tmp_path / "good", [GOOD]).warnings == {}


def test_a_probe_counts_no_warnings(job: TinyJob, tmp_path: Path) -> None:
    work(job, tmp_path / "out", [replace(GOOD, clean="w1 zaphod w3")])
    spec = load_spec(job.folder / "job.yaml")
    worker = replica_here(spec, Store(tmp_path / "probe"), {"random": PairTable.open(job.pairs).fingerprint()})
    worker.load()
    task = (Chunk(Cell("tiny", "random", "atp"), 0, 1),)
    assert worker.score(Assignment(task, probe=(0, 1))).warnings == {}
    assert worker.score(Assignment(task)).warnings == {"unknown_token": 1}


def test_the_bos_token_that_a_job_names_stands_before_both_prompts(job: TinyJob, tmp_path: Path) -> None:
    word = VOCABULARY[-1]
    models = [{"id": str(job.model), "name": "tiny", "prepend_bos": True, "bos_token": word}]
    work(job, tmp_path / "named", [GOOD], models=models)
    by_hand = replace(GOOD, clean=f"{word} {GOOD.clean}", corrupted=f"{word} {GOOD.corrupted}")
    work(job, tmp_path / "by-hand", [by_hand])
    assert_frame_equal(read_scores(tmp_path / "named"), read_scores(tmp_path / "by-hand"))
    assert read_table(tmp_path / "named", "prompts")["clean_tokens"].to_list()[0][0] == word


def test_a_chat_is_scored_with_the_bos_of_its_template_alone(job: TinyJob, tmp_path: Path) -> None:
    begun = replace(GOOD, clean=f"{BOS} {GOOD.clean}", corrupted=f"{BOS} {GOOD.corrupted}")
    chat = TableForm(notes=TableNotes(from_chat=True))
    for out, prepend_bos in (("put", True), ("left", False)):
        assert work(job, tmp_path / out, [begun], form=chat, prepend_bos=prepend_bos).n_failed == 0
    work(job, tmp_path / "plain", [GOOD], prepend_bos=True)
    scores = [read_scores(tmp_path / out) for out in ("put", "left", "plain")]
    assert_frame_equal(scores[0], scores[1])
    assert_frame_equal(scores[0], scores[2])
