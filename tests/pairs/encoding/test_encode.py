from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from attrib_batch.errors import ModelError
from attrib_batch.pairs.encoding.encode import EncodedPair, PairProblem, PairWarning, encode_pairs
from attrib_batch.pairs.making.ioi import Counterfactual, generate_ioi
from attrib_batch.pairs.reading.reader import Pair, Role
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GOOD = Pair(
    pair_id=5,
    clean="When Mary met Anna and Anna gave the bag to",
    corrupted="When Mary met Anna and Mary gave the bag to",
    answers=(" Mary",),
    wrong_answers=(" Anna",),
    roles=(Role("IO", 5, 9), Role("S1", 14, 18), Role("S2", 23, 27), Role("end", 41, 43)),
    template="t",
    group=3,
)


def encode_one(pair: Pair, tokenizer: Any, **options: Any) -> EncodedPair | PairProblem:
    (result,) = encode_pairs([pair], tokenizer, **{"prepend_bos": False, **options})
    return result


def encode_good(pair: Pair, tokenizer: Any, **options: Any) -> EncodedPair:
    result = encode_one(pair, tokenizer, **options)
    assert isinstance(result, EncodedPair), result
    return result


def test_a_good_pair(words: PreTrainedTokenizerFast) -> None:
    encoded = encode_good(GOOD, words)
    assert words.convert_ids_to_tokens(list(encoded.clean)) == GOOD.clean.split()
    assert words.convert_ids_to_tokens(list(encoded.corrupted)) == GOOD.corrupted.split()
    assert words.convert_ids_to_tokens(list(encoded.answers + encoded.wrong_answers)) == ["Mary", "Anna"]
    assert encoded.n_tokens == 10
    assert encoded.first_difference == 5
    assert encoded.roles == (None, "IO", None, "S1", None, "S2", None, None, None, "end")
    assert (encoded.pair_id, encoded.template, encoded.group) == (5, "t", 3)


def test_a_bos_shifts_every_position_and_has_no_role(words: PreTrainedTokenizerFast) -> None:
    plain, with_bos = encode_good(GOOD, words), encode_good(GOOD, words, prepend_bos=True)
    assert with_bos.clean == (words.bos_token_id, *plain.clean)
    assert with_bos.corrupted == (words.bos_token_id, *plain.corrupted)
    assert with_bos.first_difference == plain.first_difference + 1
    assert with_bos.roles == (None, *plain.roles)


def test_a_bos_the_tokenizer_lacks_is_a_model_error(dummy_prefix: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="no BOS token"):
        encode_pairs([GOOD], dummy_prefix, prepend_bos=True)


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"clean": None}, FailureReason.NULL_VALUE, "clean is null"),
        ({"corrupted": None}, FailureReason.NULL_VALUE, "corrupted is null"),
        ({"answers": None}, FailureReason.NULL_VALUE, "answers is null"),
        ({"wrong_answers": (" Anna", None)}, FailureReason.NULL_VALUE, "wrong_answers holds a null"),
        ({"clean": ""}, FailureReason.EMPTY_PROMPT, "clean is empty"),
        ({"corrupted": " \n"}, FailureReason.EMPTY_PROMPT, "corrupted is empty"),
        ({"corrupted": GOOD.clean}, FailureReason.IDENTICAL_PROMPTS, "same tokens"),
        ({"corrupted": "When Mary met Anna"}, FailureReason.UNEQUAL_LENGTH, "10 tokens and corrupted 4"),
        ({"answers": ()}, FailureReason.NO_ANSWER, "answers is an empty list"),
        ({"wrong_answers": ("",)}, FailureReason.NO_ANSWER, "wrong_answers holds an empty string"),
        (
            {"answers": (" Mary", " Mary Jane")},
            FailureReason.MULTI_TOKEN_ANSWER,
            r"' Mary Jane' is 2 tokens \['Mary', 'Jane'\]",
        ),
        ({"answers": (" Zaphod",)}, FailureReason.MULTI_TOKEN_ANSWER, "no token for ' Zaphod'"),
        ({"wrong_answers": (" Jo", " Mary")}, FailureReason.AMBIGUOUS_ANSWER, "' Mary' is in answers and in"),
        ({"roles": (Role("IO", 5, 7),)}, FailureReason.ROLE_OFF_TOKENS, "IO: its span holds 'Ma'.*'Mary'"),
        ({"roles": (Role("IO", 4, 6),)}, FailureReason.ROLE_OFF_TOKENS, "IO: its span holds ' M'"),
        ({"roles": (Role("end", 41, 99),)}, FailureReason.ROLE_OFF_TOKENS, r"\[41, 99\).*43 characters"),
        ({"roles": (Role("IO", -2, 9),)}, FailureReason.ROLE_OFF_TOKENS, "no span of clean"),
        ({"roles": (Role("IO", 5, 5),)}, FailureReason.ROLE_OFF_TOKENS, "no span of clean"),
        ({"roles": (Role("IO", 4, 5),)}, FailureReason.ROLE_OFF_TOKENS, "span holds ' '"),
    ],
)
def test_each_problem_has_its_reason(
    words: PreTrainedTokenizerFast, change: dict[str, Any], reason: FailureReason, message: str
) -> None:
    result = encode_one(replace(GOOD, **change), words)
    assert isinstance(result, PairProblem)
    assert (result.pair_id, result.reason) == (5, reason)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(result.message)


@pytest.mark.parametrize("column", ["clean", "corrupted"])
def test_a_bos_in_the_text_is_not_doubled(words: PreTrainedTokenizerFast, column: str) -> None:
    given = replace(GOOD, **{column: f"<s> {getattr(GOOD, column)}"}, roles=())
    result = encode_one(given, words, prepend_bos=True)
    assert isinstance(result, PairProblem)
    assert result.reason is FailureReason.DOUBLE_BOS
    assert f"{column} begins with the BOS token '<s>' already" in result.message
    both = replace(GOOD, clean=f"<s> {GOOD.clean}", corrupted=f"<s> {GOOD.corrupted}", roles=())
    assert encode_good(both, words).clean == encode_good(GOOD, words, prepend_bos=True).clean
    inside = replace(GOOD, clean="When <s> met Mary", corrupted="When <s> met Anna", answers=(" Jo",), roles=())
    encode_good(inside, words, prepend_bos=True)


def test_ids_outside_the_vocabulary_are_a_reason(words: PreTrainedTokenizerFast) -> None:
    mary = words.convert_tokens_to_ids("Mary")
    size = len(words)
    assert encode_good(replace(GOOD, answers=(mary, size - 1)), words, vocabulary_size=size).answers == (mary, size - 1)
    assert encode_good(replace(GOOD, answers=(0,)), words, vocabulary_size=size).answers == (0,)
    for column, token in (("answers", size), ("wrong_answers", -1), ("wrong_answers", 2**62)):
        result = encode_one(replace(GOOD, **{column: (token,)}), words, vocabulary_size=size)
        assert isinstance(result, PairProblem)
        assert result.reason is FailureReason.OFF_VOCABULARY
        assert f"{column}: the token id {token} is outside" in result.message
        assert f"from 0 to {size - 1}" in result.message
    # Without a size a negative id is still none.
    result = encode_one(replace(GOOD, answers=(-1,)), words)
    assert isinstance(result, PairProblem)
    assert result.reason is FailureReason.OFF_VOCABULARY


def test_an_id_and_its_text_are_one_answer(words: PreTrainedTokenizerFast) -> None:
    mary = words.convert_tokens_to_ids("Mary")
    assert encode_good(replace(GOOD, answers=(mary, " Mary")), words).answers == (mary,)
    result = encode_one(replace(GOOD, answers=(" Mary",), wrong_answers=(mary,)), words)
    assert isinstance(result, PairProblem)
    assert result.reason is FailureReason.AMBIGUOUS_ANSWER


def test_special_tokens_the_model_does_not_have(words: PreTrainedTokenizerFast) -> None:
    larger = deepcopy(words)
    larger.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = len(words)
    for change in (
        {"clean": "When <image> met Anna"},
        {"corrupted": "When Mary met <image>"},
        {"answers": (" <image>",)},
    ):
        given = replace(GOOD, clean="When Mary met Anna", corrupted="When Mary met Jo", roles=())
        result = encode_one(replace(given, **change), larger, vocabulary_size=size)
        assert isinstance(result, PairProblem)
        assert result.reason is FailureReason.OFF_VOCABULARY
    larger.add_special_tokens({"bos_token": "<begin>"})
    with pytest.raises(ModelError, match=rf"BOS token has the id {size + 1}.*vocabulary has {size} tokens"):
        encode_pairs([GOOD], larger, prepend_bos=True, vocabulary_size=size)
    encode_good(GOOD, larger, vocabulary_size=size)


def test_a_role_that_loses_tokens_is_a_warning(words: PreTrainedTokenizerFast) -> None:
    first = Role("names", 5, 18)  # Mary met Anna
    cases = {
        (Role("IO", 5, 9),): "role IO: 1 of its 1 tokens count as names, which stands before it in the list",
        (Role("tail", 14, 22),): "role tail: 1 of its 2 tokens count as names, which stands before it in the list",
        (Role("names", 5, 9),): None,
        (Role("S2", 23, 27),): None,
    }
    for others, message in cases.items():
        encoded = encode_good(replace(GOOD, roles=(first, *others)), words)
        assert encoded.warnings == (((PairWarning.ROLE_HIDDEN, message),) if message else ())
        assert encoded.roles[1:4] == ("names",) * 3
    two = encode_good(replace(GOOD, roles=(first, Role("IO", 5, 9), Role("S1", 14, 18))), words)
    assert [kind for kind, _ in two.warnings] == [PairWarning.ROLE_HIDDEN]
    assert "role IO" in two.warnings[0][1]
    assert "role S1" in two.warnings[0][1]
    assert encode_good(GOOD, words).warnings == ()


def test_text_the_tokenizer_does_not_know_is_a_warning(words: PreTrainedTokenizerFast) -> None:
    given = replace(GOOD, clean="When Zaphod met Anna", corrupted="When Zaphod met Mary", answers=(" Jo",), roles=())
    kept = encode_good(given, words).warnings
    message = "1 of the 4 tokens of clean and 1 of the 4 tokens of corrupted are '<unk>'"
    assert [kind for kind, _ in kept] == [PairWarning.UNKNOWN_TOKEN]
    assert message in kept[0][1]
    one = encode_good(replace(given, corrupted="When Jo met Anna"), words).warnings
    assert "1 of the 4 tokens of clean are" in one[0][1]
    # GPT-2's tokenizer calls its BOS token the unknown one: to spell it is to mean it.
    alike = deepcopy(words)
    alike.unk_token = alike.bos_token
    assert encode_good(replace(given, clean="When <s> met Anna", corrupted="When <s> met Jo"), alike).warnings == ()


def test_too_long_counts_the_bos(words: PreTrainedTokenizerFast) -> None:
    encode_good(GOOD, words, max_tokens=10)
    result = encode_one(GOOD, words, max_tokens=10, prepend_bos=True)
    assert isinstance(result, PairProblem)
    assert result.reason is FailureReason.TOO_LONG
    assert "11 tokens; the model takes 10" in result.message


def test_results_keep_the_order_of_the_pairs(words: PreTrainedTokenizerFast) -> None:
    pairs = [replace(GOOD, pair_id=i, clean=None if i % 3 == 0 else GOOD.clean) for i in range(7)]
    results = encode_pairs(pairs, words, prepend_bos=False)
    assert [r.pair_id for r in results] == list(range(7))
    assert [isinstance(r, PairProblem) for r in results] == [i % 3 == 0 for i in range(7)]
    assert encode_pairs([], words, prepend_bos=False) == []


def test_spans_may_hold_white_space_and_several_tokens(words: PreTrainedTokenizerFast) -> None:
    pair = replace(GOOD, roles=(Role("names", 4, 14), Role("S1", 13, 19), Role("later", 5, 9)))
    # 'Mary met' with the spaces around it; of two roles that hold a token the first counts.
    assert encode_good(pair, words).roles == (None, "names", "names", "S1", *[None] * 6)


def test_a_token_that_only_touches_a_span_is_not_of_it(words: PreTrainedTokenizerFast) -> None:
    clean = "When Mary met Anna, Anna gave the bag to"
    corrupted = clean.replace("Anna gave", "Mary gave")
    pair = replace(GOOD, clean=clean, corrupted=corrupted, roles=(Role("comma", 18, 19),))
    assert encode_good(pair, words).roles == (*[None] * 4, "comma", *[None] * 5)


def test_truncation_in_a_tokenizer_file_is_not_applied(words: PreTrainedTokenizerFast) -> None:
    stated = deepcopy(words)
    stated.backend_tokenizer.enable_truncation(4)
    stated.backend_tokenizer.enable_padding(length=32)
    assert encode_good(GOOD, stated).n_tokens == 10


def test_a_dummy_prefix_is_not_part_of_the_answer(dummy_prefix: PreTrainedTokenizerFast) -> None:
    assert len(dummy_prefix(" Mary", add_special_tokens=False)["input_ids"]) == 2
    encoded = encode_good(GOOD, dummy_prefix)
    assert dummy_prefix.convert_ids_to_tokens(list(encoded.answers)) == ["▁Mary"]
    assert encoded.answers[0] == encoded.clean[1]  # the very token that the name is inside a prompt
    assert encoded.roles == (None, "IO", None, "S1", None, "S2", None, None, None, "end")
    result = encode_one(replace(GOOD, answers=(" Mary Jane",)), dummy_prefix)
    assert isinstance(result, PairProblem)
    assert result.reason is FailureReason.MULTI_TOKEN_ANSWER


@pytest.mark.slow
@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize("counterfactual", list(Counterfactual))
def test_decoded_tokens_at_a_role_are_its_text(
    smollm2_tokenizer: Any, counterfactual: Counterfactual, prepend_bos: bool
) -> None:
    pairs = list(generate_ioi(400, 7, counterfactual))
    for pair, encoded in zip(pairs, encode_pairs(pairs, smollm2_tokenizer, prepend_bos=prepend_bos), strict=True):
        assert isinstance(encoded, EncodedPair), encoded
        for role in pair.roles:
            (position,) = [i for i, name in enumerate(encoded.roles) if name == role.name]
            assert pair.clean is not None
            decoded = smollm2_tokenizer.decode([encoded.clean[position]])
            assert decoded == " " + pair.clean[role.start : role.end]
        assert encoded.clean[: encoded.first_difference] == encoded.corrupted[: encoded.first_difference]
        assert encoded.clean[encoded.first_difference] != encoded.corrupted[encoded.first_difference]
        assert smollm2_tokenizer.decode(list(encoded.answers)) == pair.answers[0]


@pytest.mark.slow
def test_real_offsets_of_multi_byte_text(smollm2_tokenizer: Any) -> None:
    clean = "The café 🎉 belongs to Mary, so Anna gave it to"
    start = clean.index("🎉")
    pair = replace(GOOD, clean=clean, corrupted=clean.replace("Mary", "Lisa"), roles=(Role("party", start, start + 1),))
    encoded = encode_good(pair, smollm2_tokenizer)
    held = [token for token, role in zip(encoded.clean, encoded.roles, strict=True) if role]
    assert smollm2_tokenizer.decode(held).strip() == "🎉"
