from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from attrib_batch.errors import DatasetError, ModelError
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.columns import ANSWER_COLUMNS, TableForm
from attrib_batch.pairs.reading.notes import TableNotes, TokenizerNote, vocabulary_fingerprint
from attrib_batch.pairs.reading.reader import Pair, PairTable, Role

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

IDS = Pair(0, "a", "b", (5,), (6,))


@pytest.mark.parametrize(
    "notes",
    [
        TableNotes(),
        TableNotes(TokenizerNote("gpt2")),
        TableNotes(TokenizerNote("käse", "0" * 64), from_chat=True),
    ],
)
def test_a_table_keeps_what_it_says_of_itself(tmp_path: Path, notes: TableNotes) -> None:
    path = tmp_path / "p.parquet"
    write_pairs(path, [IDS], form=TableForm(id_columns=ANSWER_COLUMNS, notes=notes))
    table = PairTable.open(path)
    assert table.form.notes == notes
    assert table.rows(0, 1)[0].from_chat is notes.from_chat
    # What is written again from its form says the same.
    write_pairs(tmp_path / "again.parquet", table.rows(0, 1), form=table.form)
    assert PairTable.open(tmp_path / "again.parquet").form == table.form


def test_roles_by_token_are_written_and_read(tmp_path: Path) -> None:
    roles = (Role("a", 0, 1), Role("b", 2, 3, by_token=True), Role("c", -1, 0, by_token=True))
    pair = Pair(0, "a", "b", ("c",), ("d",), roles)
    write_pairs(tmp_path / "p.parquet", [pair], form=TableForm(token_roles=True))
    table = PairTable.open(tmp_path / "p.parquet")
    assert table.rows(0, 1) == [pair]
    assert table.form.token_roles
    assert pq.read_table(tmp_path / "p.parquet").column("roles").to_pylist()[0][1] == {
        "name": "b",
        "start": None,
        "end": None,
        "start_token": 2,
        "end_token": 3,
    }


def test_metadata_of_another_form_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "p.parquet", [IDS], form=TableForm(id_columns=ANSWER_COLUMNS))
    table = pq.read_table(tmp_path / "p.parquet")
    for stated in ("{", '{"names": 1}', "[1]"):
        pq.write_table(table.replace_schema_metadata({"attrib_batch.tokenizer": stated}), tmp_path / "q.parquet")
        with pytest.raises(DatasetError, match="Import the table again"):
            PairTable.open(tmp_path / "q.parquet")


class Named:
    """A tokenizer by its name and vocabulary, the two things that are compared."""

    def __init__(self, name: str, **vocabulary: int) -> None:
        self.name_or_path, self._vocabulary = name, vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary


@pytest.mark.parametrize(
    ("noted", "model", "same"),
    [
        ("gpt2", "openai-community/gpt2", True),
        ("openai-community/gpt2", "models/GPT2/", True),
        ("gpt2", "gpt2-xl", True),
        ("gpt2", "distilgpt2", True),
        ("gpt2-medium", "gpt2", True),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-2.8b-deduped", True),
        ("EleutherAI/gpt-neox-20b", "pythia-160m", True),
        ("gpt2", "gpt2-chinese", False),
        ("gpt2", "EleutherAI/pythia-70m", False),
        ("gpt2", "smollm2-135m", False),
        ("a/llama", "a/llama2", False),
    ],
)
def test_names_tell_tokenizers_apart(noted: str, model: str, same: bool) -> None:
    tokenizer: Any = Named("somewhere/else")
    assert TokenizerNote(noted).is_of(model, tokenizer) is same
    # A local folder may have any name, and so may the model; one of the two must be known.
    assert TokenizerNote(noted).is_of("mine", Named(model)) is same  # type: ignore[arg-type]


def test_a_vocabulary_that_is_known_decides(words: PreTrainedTokenizerFast) -> None:
    one, other = Named("x", a=0, b=1), Named("gpt2", a=1, b=0)
    known: Any = vocabulary_fingerprint(one)  # type: ignore[arg-type]
    assert TokenizerNote("gpt2", known).is_of("y", Named("z", b=1, a=0))  # type: ignore[arg-type]
    assert not TokenizerNote("gpt2", known).is_of("gpt2", other)  # type: ignore[arg-type]
    assert vocabulary_fingerprint(words) == vocabulary_fingerprint(words) != known


def test_the_message_names_the_table_and_both_tokenizers(words: PreTrainedTokenizerFast) -> None:
    TableNotes().check("p.parquet", "gpt2", words)
    TableNotes(TokenizerNote("gpt2")).check("p.parquet", "gpt2", words)
    with pytest.raises(ModelError) as raised:
        TableNotes(TokenizerNote("gpt2")).check("p.parquet", "smollm2-135m", words)
    said = str(raised.value)
    assert "p.parquet: its answers are token ids of the tokenizer 'gpt2', and the model 'smollm2-135m' has" in said
    assert "(the names differ)" in said
    with pytest.raises(ModelError, match=r"its prompts hold a chat template of .* \(the vocabularies differ\)"):
        TableNotes(TokenizerNote("gpt2", "0"), from_chat=True).check("p.parquet", "gpt2", words)
