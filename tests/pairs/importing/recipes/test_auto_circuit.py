"""Files of auto-circuit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.importing.options import ImportOptions, Positions
from attrib_batch.pairs.reading.reader import Role
from tests.pairs.importing.files_of import FILES, pairs_of


def test_an_object_of_prompts_states_its_roles_once(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    pairs, imported = pairs_of(FILES / "object_prompts.json", tmp_path)
    assert (imported.recipe.name, imported.n_pairs) == ("auto_circuit", 3)
    assert pairs[0].answers is not None
    assert pairs[0].answers[:2] == ("24", "25")
    assert pairs[0].corrupted == "The strike lasted from 1401 to 14"
    assert pairs[2].roles == (Role("subject", 1, 2, by_token=True), Role("end", -1, 0, by_token=True))
    assert imported.counts.unused == ("seq_labels",)
    prompts = {"clean": "When Mary met Anna", "corrupt": "When Jane met Anna"}
    rows = [{**prompts, "answers": [" Jo"], "wrong_answers": [" Jane"]}]
    source = tmp_path / "p.json"
    source.write_text(json.dumps({"word_idxs": {"name": 1, "end": -1}, "prompts": rows}), encoding="utf-8")
    for options, names in (
        (ImportOptions(), (None, "name", None, "end")),
        (ImportOptions(positions=Positions.WITH_BOS), ("name", None, None, "end")),
    ):
        (encoded,) = encode_pairs(pairs_of(source, tmp_path, options)[0], words, prepend_bos=False)
        assert isinstance(encoded, EncodedPair)
        assert encoded.roles == names
    source.write_text(json.dumps({"word_idxs": {"name": "one"}, "prompts": rows}), encoding="utf-8")
    with pytest.raises(DatasetError, match="not an object from names to token positions"):
        pairs_of(source, tmp_path)
