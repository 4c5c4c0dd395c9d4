from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from attrib_batch.report.page import read_material, render
from attrib_batch.report.sections.examples import MOST_TOKENS, cut, examples_of, parse_examples
from attrib_batch.report.tokens import MOST_CHARACTERS, shown, token_axis
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from tests.report.test_page import data, visible
from tests.support.synthetic_report import examples_frame
from tests.support.synthetic_run import IoiLike, Pair, write_run

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.report.sections.cell import Material

CELL = Cell("gpt2", "ioi", "atp")


def material_of(out: Path, pairs: list[Pair]) -> Material:
    write_run(out, {CELL: pairs})
    return read_material(Store(out))


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (" Mary", " Mary"),
        ("a\nb\tc", "a↵b→c"),
        ("\u202eevil\u202c", "⟨202E⟩evil⟨202C⟩"),
        ("\u200fx\x00", "⟨200F⟩x⟨0000⟩"),
        ("\U0001f469\u200d\U0001f52c", "\U0001f469\u200d\U0001f52c"),
        ("<b>&\"'", "<b>&\"'"),
        ("a\u2028b", "a⟨2028⟩b"),
        ("\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
    ],
)
def test_a_token_is_shown_as_text_that_moves_nothing(token: str, text: str) -> None:
    assert shown(token) == text


def test_a_long_token_is_cut_with_a_mark() -> None:
    assert shown("x" * 5000) == "x" * MOST_CHARACTERS + "…"
    assert shown("x" * MOST_CHARACTERS) == "x" * MOST_CHARACTERS


def test_a_prompt_of_ten_thousand_tokens_keeps_its_ends_and_its_strongest_tokens() -> None:
    tokens = [f"t{index}" for index in range(10_000)]
    corrupted = ["other" if index == 5000 else token for index, token in enumerate(tokens)]
    scores = np.zeros(10_000)
    scores[5000], scores[7000] = -3.0, 1.0
    pieces = cut(tokens, corrupted, scores.tolist())
    kept = {piece[3]: piece for piece in pieces if len(piece) > 1}
    assert len(kept) <= MOST_TOKENS
    assert kept[5000] == ["t5000", "other", -3.0, 5000]
    assert {0, 7000, 9999} <= set(kept)
    assert sum(piece[0] for piece in pieces if len(piece) == 1) == 10_000 - len(kept)


def test_a_prompt_that_scores_everywhere_stays_short() -> None:
    n = 10_000
    pieces = cut(["x"] * n, ["x"] * n, np.linspace(1, 2, n).tolist())
    assert len(pieces) <= MOST_TOKENS + 20


def test_examples_without_prompts_keep_their_numbers() -> None:
    frame = pl.DataFrame(
        {
            "which": ["weakest", "strongest"],
            "rank": [1, 1],
            "pair_id": [7, 8],
            "value": [-1.0, 2.0],
            "tokens": [None] * 2,
        }
    )
    first, second = parse_examples(frame)
    assert (first.which, first.pair_id, first.pieces) == ("strongest", 8, None)
    assert second.to_json() == {"which": "weakest", "rank": 1, "pair": 7, "value": -1.0}


def test_scores_at_some_positions_alone_are_read() -> None:
    frame = pl.DataFrame(
        {
            "which": ["strongest"], "rank": [1], "pair_id": [1], "value": [2.0], "tokens": [["a", "b"]],
            "corrupted_tokens": [["a", "c"]], "scores": [[None, 2.0]],
        }
    )  # fmt: skip
    assert parse_examples(frame)[0].pieces == [["a", None, None, 0], ["b", "c", 2.0, 1]]


def test_a_cell_has_its_own_examples_alone() -> None:
    row = {
        "which": "strongest", "rank": 1, "pair_id": 1, "value": 1.0, "component": "mlp_out", "layer": 3, "head": None,
        "at": "end",
    }  # fmt: skip
    frame = pl.DataFrame([{**row, "model": name, "dataset": "ioi", "method": "atp"} for name in ("gpt2", "other")])
    found = examples_of(frame, CELL)
    assert list(found.heads) == [("mlp_out", 3, -1)]
    assert found.at == {"mlp_out": "end"}
    assert not found.has_prompts
    assert examples_of(None, CELL).heads == {}


def test_the_page_holds_the_examples(tmp_path: Path) -> None:
    pairs = IoiLike().pairs(12)
    material = material_of(tmp_path, pairs)
    page = render(replace(material, examples=examples_frame({CELL: pairs}, material.summary, n_heads=3)))
    found = data(page)["cells"][0]["components"]["z"]
    assert next(iter(found["examples"])) == "9/9"
    assert len(found["examples"]) == 3
    strongest = found["examples"]["9/9"][0]
    assert strongest["value"] == max(example["value"] for example in found["examples"]["9/9"])
    assert strongest["pieces"][9][1] is not None
    assert 'data-show="0/z/9/9" aria-pressed="true"' in " ".join(page.split())


def test_a_release_without_examples_says_so_and_names_pairs(tmp_path: Path) -> None:
    pairs = IoiLike(layers=3, heads=4).pairs(8)
    page = render(replace(material_of(tmp_path, pairs), examples=None))
    assert "This release shows no prompts." in visible(page)
    low, low_pair, high, high_pair, _ = data(page)["cells"][0]["components"]["z"]["extremes"]["2/1"]
    values = {pair.pair_id: float(np.float32(pair.scores["z"][2, 1, -1])) for pair in pairs}
    assert (low_pair, high_pair) == (min(values, key=values.get), max(values, key=values.get))
    assert (low, high) == (pytest.approx(min(values.values()), rel=1e-3), pytest.approx(max(values.values()), rel=1e-3))


HOSTILE = ["</script><script>alert(1)</script>", "<!--", "\u202e", "\"'`${x}{{ y }}", "\U0001f600", "]]>", "\u2028"]


def test_hostile_prompts_stay_data(tmp_path: Path) -> None:
    pairs = IoiLike(layers=2, heads=2).pairs(6)
    material = material_of(tmp_path, pairs)
    tokens = {pair.pair_id: [HOSTILE[i % len(HOSTILE)] for i in range(pair.n_tokens)] for pair in pairs}
    hostile = [replace(pair, template=HOSTILE[0]) for pair in pairs]
    page = render(replace(material, examples=examples_frame({CELL: hostile}, material.summary, tokens=tokens)))
    assert "alert(1)</script>" not in page
    assert "\u202e" not in page
    example = next(iter(data(page)["cells"][0]["components"]["z"]["examples"].values()))[0]
    assert example["pieces"][0][0] == HOSTILE[0]
    assert example["template"] == HOSTILE[0]


def test_token_text_stands_on_the_axis_of_a_dataset_of_one_wording(tmp_path: Path) -> None:
    pairs = [replace(pair, template="only") for pair in IoiLike().pairs(30) if pair.n_tokens == 15]
    material = material_of(tmp_path, pairs)
    page = render(replace(material, examples=examples_frame({CELL: pairs}, material.summary)))
    spec = data(page)["figures"]["cell-0-z-position"]
    assert spec["x"] == list(range(9, 15))
    assert [text.removesuffix("*") in {"Mary", "John", "Anna", "Tom"} for text in spec["tokens"]] == [True] + [
        False
    ] * 5
    assert spec["tokens"][0].endswith("*")
    assert spec["tokens"][1:] == ["gave", "a", "drink", "kindly", "to"]
    assert "A token with * differs between pairs." in visible(page)
    several = [replace(pair, template=f"T{pair.pair_id % 2}") for pair in pairs]
    other = material_of(tmp_path / "several", several)
    page = render(replace(other, examples=examples_frame({CELL: several}, other.summary)))
    assert "tokens" not in data(page)["figures"]["cell-0-z-position"]


def test_prompts_of_other_lengths_have_no_axis_of_tokens() -> None:
    assert token_axis([["a", "b"], ["a"]], 2) is None
    assert token_axis([], 2) is None
    assert token_axis([["a", " "], ["a", " c"]], 2).texts == ["a", "␣*"]
