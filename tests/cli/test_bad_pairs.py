"""Every kind of pair that cannot be scored, through the command line: exit code 3 and a row in failures each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.reader import Pair, Role
from attrib_batch.tables import FailureReason
from tests.support.demo_pairs import random_pairs
from tests.support.jobs import Ended, TinyJob, attrib_batch_here, in_words, read_scores, read_table
from tests.support.tiny_models import MAX_POSITIONS

GOOD = in_words(random_pairs(3, 9, 4))
_PAIR = GOOD[0]
_LONG = " w1" * MAX_POSITIONS

BAD = {
    FailureReason.NULL_VALUE: replace(_PAIR, corrupted=None),
    FailureReason.EMPTY_PROMPT: replace(_PAIR, clean="", roles=()),
    FailureReason.IDENTICAL_PROMPTS: replace(_PAIR, corrupted=_PAIR.clean),
    FailureReason.UNEQUAL_LENGTH: replace(_PAIR, corrupted=f"{_PAIR.corrupted} w1"),
    FailureReason.TOO_LONG: replace(_PAIR, clean=f"w2{_LONG}", corrupted=f"w3{_LONG}", roles=()),
    FailureReason.NO_ANSWER: replace(_PAIR, answers=()),
    FailureReason.MULTI_TOKEN_ANSWER: replace(_PAIR, answers=(" Mary John",)),
    FailureReason.BOUNDARY: replace(_PAIR, answers=("Mary",)),
    FailureReason.AMBIGUOUS_ANSWER: replace(_PAIR, answers=(" Mary",), wrong_answers=(" John", " Mary")),
    FailureReason.ROLE_OFF_TOKENS: replace(_PAIR, roles=(Role("S1", 1, 4),)),
}


def numbered(pairs: list[Pair]) -> list[Pair]:
    return [replace(pair, pair_id=10 + index) for index, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyJob, Path, Ended]:
    """Good and bad pairs in one table, run once."""
    job = TinyJob.make(tmp_path_factory.mktemp("job"))
    write_pairs(job.pairs, numbered([*GOOD, *BAD.values()]))
    out = job.folder / "out"
    return job, out, attrib_batch_here("run", job.write(chunk_pairs=5), "--out", out)


@pytest.mark.slow
def test_exit_code_and_count(run: tuple[TinyJob, Path, Ended]) -> None:
    _, _, ended = run
    assert ended.code == 3, ended.said
    assert f"3 of {3 + len(BAD)} pairs scored, {len(BAD)} in failures" in ended.said


@pytest.mark.slow
def test_every_pair_is_in_scores_or_failures_and_in_one_only(run: tuple[TinyJob, Path, Ended]) -> None:
    _, out, _ = run
    scored = set(read_scores(out)["pair_id"])
    failed = read_table(out, "failures")
    assert scored == {10, 11, 12} == set(read_table(out, "baselines")["pair_id"])
    assert failed["pair_id"].to_list() == list(range(13, 13 + len(BAD)))
    assert failed["error"].to_list() == list(BAD)
    assert set(failed["stage"]) == {"validate"}
    assert (failed["attempts"] == 1).all()
    assert failed["message"].str.len_chars().min() > 10  # type: ignore[operator]  # a number here


@pytest.mark.slow
def test_messages_say_what_is_wrong(run: tuple[TinyJob, Path, Ended]) -> None:
    failed = read_table(run[1], "failures")
    messages = dict(zip(failed["error"], failed["message"], strict=True))
    assert "9" in messages["unequal_length"]
    assert "10" in messages["unequal_length"]
    assert "' Mary John' is 2 tokens" in messages["multi_token_answer"]
    assert f"the model takes {MAX_POSITIONS}" in messages["too_long"]
    assert "S1" in messages["role_off_tokens"]
    assert "when 'Mary' follows" in messages["boundary"]


@pytest.mark.slow
def test_a_run_with_failures_resumes_to_the_same_end(run: tuple[TinyJob, Path, Ended]) -> None:
    job, out, _ = run
    before = read_scores(out)
    again = attrib_batch_here("run", job.write(chunk_pairs=5), "--out", out)
    assert again.code == 3, again.said
    assert read_scores(out).equals(before)
    assert attrib_batch_here("status", out).code == 3
    assert f"3 scored, {len(BAD)} failed, 0 waiting" in attrib_batch_here("status", out).said


@pytest.mark.slow
def test_summary_and_report_tell_of_the_failures(run: tuple[TinyJob, Path, Ended]) -> None:
    _, out, _ = run
    assert attrib_batch_here("report", out).code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "multi_token_answer" in page
    counts = pl.read_parquet(out / "summary/failures.parquet")
    assert counts["count"].sum() == len(BAD)


@pytest.mark.slow
def test_validate_finds_the_same_without_a_run(run: tuple[TinyJob, Path, Ended]) -> None:
    job, _, _ = run
    ended = attrib_batch_here("pairs", "validate", job.pairs, "--model", job.model)
    assert ended.code == 3, ended.said
    for reason in BAD:
        assert reason in ended.said
    write_pairs(job.folder / "good.parquet", GOOD)
    assert attrib_batch_here("pairs", "validate", job.folder / "good.parquet", "--model", job.model).code == 0


@pytest.mark.slow
def test_validate_allows_what_a_run_allows_and_warns_without_a_failure(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=4)
    write_pairs(job.pairs, numbered([GOOD[0], replace(_PAIR, answers=("Mary",))]))
    validate = ("pairs", "validate", job.pairs, "--model", job.model)
    ended = attrib_batch_here(*validate)
    assert (ended.code, "boundary: 1" in ended.output) == (3, True), ended.said
    ended = attrib_batch_here(*validate, "--allow-boundary")
    assert (ended.code, "boundary" in ended.output) == (0, False), ended.said
    assert _PAIR.clean is not None
    unknown = replace(_PAIR, clean="zaphod" + _PAIR.clean[_PAIR.clean.index(" ") :], roles=())
    write_pairs(job.pairs, numbered([GOOD[0], unknown]))
    ended = attrib_batch_here(*validate)
    assert ended.code == 0, ended.said
    assert "Warnings, about pairs that can be scored:\n\nunknown_token: 1\n  row 1, pair_id 11: " in ended.output
