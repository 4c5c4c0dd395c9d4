from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.making.ioi import Counterfactual, generate_ioi
from attrib_batch.pairs.making.ioi_words import FIRST_NAMES, FRAMES, OBJECTS, PLACES
from attrib_batch.pairs.making.writer import write_pairs

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from attrib_batch.pairs.reading.reader import Pair


def names_in(text: str | None) -> list[str]:
    return [word for word in re.findall(r"\w+", text or "") if word in FIRST_NAMES]


def role_text(pair: Pair) -> dict[str, str]:
    assert pair.clean is not None
    return {role.name: pair.clean[role.start : role.end] for role in pair.roles}


def test_one_seed_gives_one_file(tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.parquet" for name in "abc")
    for path, seed in ((a, 3), (b, 3), (c, 4)):
        write_pairs(path, generate_ioi(300, seed))
    assert a.read_bytes() == b.read_bytes()
    assert a.read_bytes() != c.read_bytes()


def test_a_seed_means_these_rows() -> None:
    # Changing words, frames or the order of draws changes what published seeds mean: do it knowingly.
    first = next(generate_ioi(1, 0))
    assert (first.template, first.answers, first.wrong_answers) == ("baba-14", (" Ryan",), (" Joseph",))
    assert first.clean == FRAMES[14].format(
        first="Joseph", second="Ryan", third="Joseph", place="cottage", object="knife"
    )


def test_words_are_many_distinct_and_no_two_lists_share_one() -> None:
    assert len(set(FIRST_NAMES)) == len(FIRST_NAMES) >= 60
    assert len(set(PLACES)) == len(PLACES) >= 30
    assert len(set(OBJECTS)) == len(OBJECTS) >= 30
    assert not set(FIRST_NAMES) & {word for frame in FRAMES for word in re.findall(r"\w+", frame)}


def test_templates_are_many_and_of_different_lengths() -> None:
    templates = Counter(pair.template for pair in generate_ioi(4000, 0))
    by_order = {order: [t for t in templates if t and t.startswith(order)] for order in ("abba", "baba")}
    assert {order: len(found) for order, found in by_order.items()} == {"abba": 17, "baba": 17}
    lengths = [len(frame.split()) for frame in FRAMES]
    assert max(lengths) > 3 * min(lengths)
    assert len(set(lengths)) >= 10


def test_frames_name_each_person_once_and_end_before_the_answer() -> None:
    for frame in FRAMES:
        assert re.findall(r"\{(first|second|third)\}", frame) == ["first", "second", "third"]
        assert frame.endswith(" to")
        # A name at the start would have no leading space, and would be another token than the answer.
        assert not frame.startswith("{")


@pytest.mark.parametrize("counterfactual", list(Counterfactual))
def test_clean_prompts_repeat_the_subject(counterfactual: Counterfactual) -> None:
    for pair in generate_ioi(200, 1, counterfactual, mirror=False):
        first, second, third = names_in(pair.clean)
        io, s = (first, second) if pair.template and pair.template.startswith("abba") else (second, first)
        assert third == s != io
        assert (pair.answers, pair.wrong_answers) == ((f" {io}",), (f" {s}",))
        roles = role_text(pair)
        assert (roles["IO"], roles["S1"], roles["S2"], roles["end"]) == (io, s, s, "to")
        assert pair.task == "ioi"
        assert pair.group is None


@pytest.mark.parametrize("counterfactual", list(Counterfactual))
def test_counterfactuals_change_the_names_they_should(counterfactual: Counterfactual) -> None:
    for pair in generate_ioi(200, 1, counterfactual, mirror=False):
        clean, corrupted = names_in(pair.clean), names_in(pair.corrupted)
        io = role_text(pair)["IO"]
        if counterfactual is Counterfactual.S2_TO_IO:
            assert corrupted == [*clean[:2], io]
        elif counterfactual is Counterfactual.S2_TO_RANDOM:
            assert corrupted[:2] == clean[:2]
            assert corrupted[2] not in clean
        else:
            assert len({*corrupted, *clean}) == 5
        pattern = "|".join(FIRST_NAMES)
        assert re.sub(rf"\b({pattern})\b", "N", pair.clean or "") == re.sub(
            rf"\b({pattern})\b", "N", pair.corrupted or ""
        )


def test_the_word_after_s1_is_marked() -> None:
    for pair in generate_ioi(300, 2):
        spans = {role.name: role for role in pair.roles}
        assert pair.clean is not None
        assert spans["S1+1"].start == spans["S1"].end + 1
        assert pair.clean[spans["S1"].end] == " "
        assert role_text(pair)["S1+1"].islower()


def test_a_mirror_under_s2_to_io_is_an_ioi_prompt_of_its_own() -> None:
    pairs = list(generate_ioi(400, 5))
    for pair, mirror in zip(pairs[::2], pairs[1::2], strict=True):
        assert (mirror.clean, mirror.corrupted) == (pair.corrupted, pair.clean)
        assert (mirror.answers, mirror.wrong_answers) == (pair.wrong_answers, pair.answers)
        assert mirror.group == pair.group == pair.pair_id // 2
        roles = role_text(mirror)
        assert roles["S1"] == roles["S2"] != roles["IO"]
        assert mirror.answers == (f" {roles['IO']}",)
        first_name = names_in(mirror.clean)[0]
        assert mirror.template is not None
        assert pair.template is not None
        assert mirror.template[:4] == ("abba" if roles["IO"] == first_name else "baba")
        assert {mirror.template[:4], pair.template[:4]} == {"abba", "baba"}
        assert mirror.template[4:] == pair.template[4:]


@pytest.mark.parametrize("counterfactual", [Counterfactual.S2_TO_RANDOM, Counterfactual.ABC])
def test_other_mirrors_keep_the_places_of_the_roles(counterfactual: Counterfactual) -> None:
    pairs = list(generate_ioi(200, 5, counterfactual))
    for pair, mirror in zip(pairs[::2], pairs[1::2], strict=True):
        assert (mirror.answers, mirror.wrong_answers) == (pair.wrong_answers, pair.answers)
        assert mirror.template == pair.template
        there, here = names_in(pair.clean), names_in(mirror.clean)
        roles, turned = role_text(pair), role_text(mirror)
        assert turned["IO"] == here[there.index(roles["IO"])]
        assert turned["S1"] == here[there.index(roles["S1"])]
        assert turned["S2"] == here[2]


def test_without_mirrors_the_rows_are_the_even_ones() -> None:
    even = [pair.clean for pair in islice(generate_ioi(100, 8), 0, None, 2)]
    assert [pair.clean for pair in generate_ioi(50, 8, mirror=False)] == even


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_count_is_the_number_of_rows(count: int, mirror: bool) -> None:
    assert [pair.pair_id for pair in generate_ioi(count, 0, mirror=mirror)] == list(range(count))


def test_rows_are_made_as_they_are_taken() -> None:
    assert next(generate_ioi(10**15, 0)).pair_id == 0


def test_a_wrong_request_is_refused_at_once() -> None:
    with pytest.raises(DatasetError, match="count"):
        generate_ioi(0, 0)
    with pytest.raises(DatasetError, match="s2_to_io, s2_to_random, abc"):
        generate_ioi(1, 0, "shuffle")


@pytest.mark.parametrize("counterfactual", list(Counterfactual))
def test_both_prompts_are_of_one_length_in_words(
    words: PreTrainedTokenizerFast, counterfactual: Counterfactual
) -> None:
    results = encode_pairs(list(generate_ioi(500, 9, counterfactual)), words, prepend_bos=False)
    assert all(isinstance(result, EncodedPair) for result in results)


@pytest.mark.slow
def test_every_name_place_and_object_is_one_token(smollm2_tokenizer: Any) -> None:
    texts = [f" {word}" for word in (*FIRST_NAMES, *PLACES, *OBJECTS)]
    ids = smollm2_tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [text for text, tokens in zip(texts, ids, strict=True) if len(tokens) != 1] == []
