"""Which recipe a file is read by."""

from __future__ import annotations

from pathlib import Path

import pytest

from attrib_batch.errors import DatasetError, RequestError
from attrib_batch.pairs.importing.options import ImportOptions
from attrib_batch.pairs.importing.registry import RECIPES
from attrib_batch.pairs.reading.columns import AnswerKind
from tests.pairs.importing.files_of import FILES, cells, pairs_of


def test_a_layout_is_recognised_by_its_columns_or_named(tmp_path: Path) -> None:
    source = FILES / "year_label.csv"
    assert pairs_of(source, tmp_path, ImportOptions(layout="greater_than"))[1].recipe.name == "greater_than"
    with pytest.raises(RequestError, match=r"--format x: no such layout; there are table, eap_ig"):
        pairs_of(source, tmp_path, ImportOptions(layout="x"))
    with pytest.raises(DatasetError, match=r"is not of the layout mib, which has prompt, .* This file has clean, corr"):
        pairs_of(source, tmp_path, ImportOptions(layout="mib"))
    with pytest.raises(DatasetError, match=r"no known layout has these.*--column(.|\n)*  chat: clean and corrupted"):
        pairs_of(cells(tmp_path / "p.csv", "a,b", "1,2"), tmp_path)
    both = "clean,corrupted,answers,wrong_answers,corrupted_answers"
    source = cells(tmp_path / "p.csv", both, "a,b,['c'],d,['e']")
    with pytest.raises(DatasetError, match=r"several layouts: name one with --format, table or hypernymy"):
        pairs_of(source, tmp_path)
    assert pairs_of(source, tmp_path, ImportOptions(layout="hypernymy"))[0][0].answers == (" c",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ImportOptions(counterfactual="x"),
            r"--counterfactual means nothing to the layout greater_than .* eap_ig, mib",
        ),
        (ImportOptions(join=Path("x")), r"--join means nothing to .*; it is for agreement, peap"),
        (ImportOptions(chat_template=True), r"--chat-template means nothing .*; it is for chat"),
        (
            ImportOptions(answers=AnswerKind.IDS),
            r"--answers ids: the answers of .* greater_than are text or first-token",
        ),
        (ImportOptions(repair=True), r"--repair needs a tokenizer"),
    ],
)
def test_an_option_that_means_nothing_is_refused(tmp_path: Path, options: ImportOptions, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pairs_of(FILES / "year_label.csv", tmp_path, options)
    assert not list(tmp_path.iterdir())


def test_every_recipe_says_what_it_is_for() -> None:
    of_eap_ig = ["eap_ig", "greater_than", "agreement", "hypernymy"]
    published = ["auto_circuit", "feature_circuits", "mib", "peap", "blimp"]
    assert list(RECIPES) == ["table", *of_eap_ig, *published, "chat"]
    for recipe in RECIPES.values():
        assert recipe.explanation
        assert recipe.columns
        assert recipe.published
