"""Files of MIB."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing.options import ImportOptions, LeadingSpace
from attrib_batch.pairs.reading.reader import Pair
from tests.pairs.importing.files_of import lines, pairs_of

NESTED = [
    {
        "prompt": "Alice and Robert went to the harbour. Alice sold a boat to",
        "choices": ["Alice", "Robert"],
        "answerKey": 1,
        "metadata": {"subject": "Alice"},
        "flip_counterfactual": {
            "prompt": "Alice and Robert went to the harbour. Robert sold a boat to",
            "choices": ["Alice", "Robert"],
            "answerKey": 0,
        },
        "abc_counterfactual": {
            "prompt": "Alice and Robert went to the harbour. Karen sold a boat to",
            "choices": ["Alice", "Robert"],
            "answerKey": -1,
        },
    },
    {
        "prompt": "Laura and Simon left. Laura sold a boat to",
        "choices": ["Laura", "Simon"],
        "answerKey": 1,
        "metadata": {"subject": "Laura"},
        "flip_counterfactual": None,
        "abc_counterfactual": {"prompt": "Laura and Simon left. Julia sold a boat to", "choices": [], "answerKey": -1},
    },
]


def test_one_of_several_counterfactuals_is_chosen(tmp_path: Path) -> None:
    source = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist(NESTED), source)
    with pytest.raises(DatasetError, match=r"several counterfactuals\. Choose one with --counterfactual: flip, abc"):
        pairs_of(source, tmp_path)
    with pytest.raises(DatasetError, match=r"no counterfactual 'x'\. .* flip, abc"):
        pairs_of(source, tmp_path, ImportOptions(counterfactual="x"))
    pairs, imported = pairs_of(source, tmp_path, ImportOptions(counterfactual="flip"))
    flip = NESTED[0]["flip_counterfactual"]
    assert isinstance(flip, dict)
    assert pairs == [
        Pair(0, str(NESTED[0]["prompt"]), flip["prompt"], (" Robert",), (" Alice",), template="flip")
    ]  # fmt: skip
    assert imported.recipe.name == "mib"
    assert imported.counts.refused == {"no flip_counterfactual": 1}
    pairs, imported = pairs_of(source, tmp_path, ImportOptions(counterfactual="abc_counterfactual"))
    assert [pair.wrong_answers for pair in pairs] == [(" Alice",), (" Laura",)]
    assert imported.counts.unused == ("metadata", "flip_counterfactual")


def test_labels_of_choices_and_plain_labels_are_answers(tmp_path: Path) -> None:
    choices = {"label": ["A", "B"], "text": ["red", "blue"]}
    question = {
        "prompt": "q",
        "choices": choices,
        "answerKey": 0,
        "answerPosition_counterfactual": {"prompt": "r", "choices": choices, "answerKey": 1},
    }
    pairs, _ = pairs_of(lines(tmp_path / "p.jsonl", [question]), tmp_path)
    assert pairs == [Pair(0, "q", "r", (" A",), (" B",), template="answerPosition")]
    sum_ = {"prompt": "3 + 4 =", "label": 7, "random_counterfactual": {"prompt": "3 + 5 =", "label": 8}}
    same = {"prompt": "3 + 4 =", "label": 7, "random_counterfactual": {"prompt": "4 + 3 =", "label": 7}}
    keep = ImportOptions(leading_space=LeadingSpace.KEEP)
    pairs, imported = pairs_of(lines(tmp_path / "p.jsonl", [sum_, same]), tmp_path, keep)
    assert pairs == [Pair(0, "3 + 4 =", "3 + 5 =", ("7",), ("8",), template="random")]
    assert imported.counts.refused == {"the counterfactual has the same answer, and there is no other choice": 1}
