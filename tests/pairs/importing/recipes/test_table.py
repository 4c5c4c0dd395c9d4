"""Tables with the columns of pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.reading.reader import Role
from tests.pairs.importing.files_of import lines, pairs_of


def test_roles_may_be_stated_by_token(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    row = {"clean": "When Mary met Anna", "corrupted": "When Jane met Anna", "answers": " Jo", "wrong_answers": " Jane"}
    roles = [
        {"name": "when", "start": 0, "end": 4},
        {"name": "name", "start_token": 1, "end_token": 2},
        {"name": "end", "start_token": -2, "end_token": 0},
    ]
    source = lines(
        tmp_path / "p.jsonl",
        [row | {"roles": roles}, row | {"roles": [{"name": "x", "start_token": 4, "end_token": 5}]}],
    )
    pairs, _ = pairs_of(source, tmp_path)
    assert pairs[0].roles == (Role("when", 0, 4), Role("name", 1, 2, by_token=True), Role("end", -2, 0, by_token=True))
    good, bad = encode_pairs(pairs, words, prepend_bos=True)
    assert isinstance(good, EncodedPair)
    assert good.roles == (None, "when", "name", "end", "end")
    assert not isinstance(bad, EncodedPair)
    assert (bad.reason, bad.message) == (
        "role_off_tokens",
        "role x: [4, 5) is no span of clean's tokens, of which it has 4",
    )
    for wrong in (
        {"name": "x", "start_token": 1},
        {"name": "x"},
        {"start": 1, "end": 2},
        {"name": "x", "start": 1.5, "end": 2},
    ):
        with pytest.raises(DatasetError, match=r"a role is .* not an object with name, start and end, or"):
            pairs_of(lines(tmp_path / "p.jsonl", [row | {"roles": [wrong]}]), tmp_path)
