"""``pairs import`` and ``pairs formats``: what they say, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from attrib_batch.cli.app import app
from attrib_batch.errors import ExitCode, ModelError, RequestError
from attrib_batch.models.load import load_tokenizer
from attrib_batch.pairs.importing.registry import RECIPES
from attrib_batch.pairs.reading.notes import TokenizerNote, vocabulary_fingerprint
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import ModelSpec
from tests.support.tiny_models import save_tiny

if TYPE_CHECKING:
    from click.testing import Result

FILES = Path(__file__).parents[1] / "pairs/importing/files"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny")


def pairs(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["pairs", *map(str, arguments)], standalone_mode=False)


def test_it_says_what_was_read_changed_and_refused_and_why(tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    result = pairs("import", FILES / "list_cells_bom.csv", "--out", out)
    assert (result.return_value, result.exception) == (ExitCode.OK, None)
    assert result.stdout == (
        f"3 pairs -> {out}\n"
        f"layout: hypernymy ({RECIPES['hypernymy'].explanation})\n"
        "read: 3 rows\n"
        "changed: 9 times a space put before an answer (--leading-space keep leaves it out)\n"
        "not used: hypernym\n"
    )
    result = pairs("import", FILES / "lines_named.json", "--out", out)
    assert "repeated: 1 rows; each is imported all the same (first: line 4)\n" in result.stdout


def test_refused_rows_make_the_exit_code_3_and_none_left_makes_it_2(tmp_path: Path) -> None:
    source, out = tmp_path / "p.csv", tmp_path / "p.parquet"
    source.write_text("clean,corrupted,label\nfrom 1742 to 17,from 1701 to 17,42\nfrom 1799 to 17,x,99\n")
    result = pairs("import", source, "--out", out)
    assert result.return_value == ExitCode.SOME_FAILED
    assert "refused: 1 rows: label is 99, and no larger ending exists (first: line 3)\n" in result.stdout
    out.unlink()
    source.write_text("clean,corrupted,label\nfrom 1799 to 17,x,99\n")
    result = pairs("import", source, "--out", out)
    assert isinstance(result.exception, RequestError)
    assert "no row became a pair (1 rows: label is 99" in str(result.exception)
    assert not out.exists()


def test_token_ids_are_checked_against_the_tokenizer_that_is_named(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "p.parquet"
    # A name that is not on this machine is noted, and not asked for on the Hub.
    assert pairs("import", FILES / "ids_ioi.csv", "--tokenizer", "gpt2", "--out", out).exception is None
    assert PairTable.open(out).form.notes.tokenizer == TokenizerNote("gpt2")
    result = pairs("validate", out, "--model", model)
    assert isinstance(result.exception, ModelError)
    assert "token ids of the tokenizer 'gpt2', and the model" in str(result.exception)
    assert pairs("import", FILES / "ids_ioi.csv", "--tokenizer", model, "--out", out).exception is None
    tokenizer = load_tokenizer(ModelSpec(id=str(model), prepend_bos=False))
    known = TokenizerNote(str(model), vocabulary_fingerprint(tokenizer))
    assert PairTable.open(out).form.notes.tokenizer == known
    # It is the same tokenizer now; that its ids are too large for it is said pair by pair.
    result = pairs("validate", out, "--model", model)
    assert (result.return_value, "off_vocabulary: 12" in result.stdout) == (ExitCode.SOME_FAILED, True)
    assert "what to do: Use the model whose tokenizer the ids are of" in result.stdout


def test_options_reach_the_import(tmp_path: Path, model: Path) -> None:
    source, out = tmp_path / "p.jsonl", tmp_path / "p.parquet"
    prompts = {"clean": "When Mary met w1 w2", "corrupted": "When John met w1 w2"}
    source.write_text(json.dumps({**prompts, "answers": " Anna w3", "wrong_answers": " Paul"}))
    options = ("--answers", "first-token", "--tokenizer", model, "--repair", "--seed", "7", "--format", "table")
    result = pairs("import", source, "--out", out, *options)
    assert result.exception is None
    assert "changed: 1 times an answer cut to its first token" in result.stdout
    tokenizer = load_tokenizer(ModelSpec(id=str(model), prepend_bos=False))
    anna, paul = tokenizer.convert_tokens_to_ids(["Anna", "Paul"])
    [pair] = PairTable.open(out).rows(0, 1)
    assert (pair.answers, pair.wrong_answers) == ((anna,), (paul,))
    clean, join = FILES / "joined_clean.csv", FILES / "joined_counter.csv"
    assert pairs("import", clean, "--join", join, "--positions", "without-bos", "--out", out).exception is None
    [pair] = PairTable.open(out).rows(0, 1)
    assert [(role.start, role.end) for role in pair.roles] == [(1, 2)]
    shuffled = ("import", FILES / "minimal_pairs.jsonl", "--corrupt", "shuffle", "--leading-space", "keep")
    assert pairs(*shuffled, "--tokenizer", model, "--out", out).exception is None
    assert [pair.answers for pair in PairTable.open(out).rows(0, 2)] == [("herself",), ("himself",)]
    result = pairs("import", FILES / "chat.jsonl", "--chat-template", "--tokenizer", model, "--out", out)
    assert isinstance(result.exception, RequestError)
    assert "has no chat template" in str(result.exception)


def test_all_layouts_are_listed() -> None:
    result = pairs("formats")
    for recipe in RECIPES.values():
        assert (
            f"{recipe.name}: {recipe.explanation}\n  columns: {recipe.columns}\n  from: {recipe.published}\n"
            in result.stdout
        )


def test_a_bos_token_needs_a_bos(model: Path) -> None:
    result = pairs("validate", FILES / "p.parquet", "--model", model, "--bos-token", "<bos>")
    assert isinstance(result.exception, RequestError)
    assert "--bos-token is what --prepend-bos prepends" in str(result.exception)
