"""An answer is the token that follows its prompt, under tokenizers that join, group, strip and prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_any
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attrib_batch.pairs.encoding import answers as answers_module
from attrib_batch.pairs.encoding.encode import EncodedPair, PairProblem, encode_pairs
from attrib_batch.pairs.making.ioi import generate_ioi
from attrib_batch.pairs.reading.reader import Pair, PairTable
from attrib_batch.tables import FailureReason
from tests.pairs.conftest import BEGIN, UNKNOWN

DATASETS = Path(__file__).parents[3] / "datasets"


def byte_level(*words: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE that has a token for each of ``words`` and joins whatever its merges join."""
    return _bpe(pre_tokenizers.ByteLevel.alphabet(), words, pre_tokenizers.ByteLevel(add_prefix_space=False))


def joining(*words: str) -> PreTrainedTokenizerFast:
    """A BPE over whole texts: nothing keeps words, digits or spaces apart."""
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\Z.\A"), behavior="isolated")])
    return _bpe([*map(chr, range(32, 127)), "\n"], words, splitter)


def metaspace(*words: str) -> PreTrainedTokenizerFast:
    """A BPE whose spaces belong to the word after them, with one before the text, as in Llama 2's."""
    return _bpe(["▁", *map(chr, range(33, 127))], words, pre_tokenizers.Metaspace(prepend_scheme="first", split=True))


def _bpe(alphabet: list[str], words: tuple[str, ...], splitter: Any) -> PreTrainedTokenizerFast:
    vocabulary = {UNKNOWN: 0, BEGIN: 1} | {letter: i for i, letter in enumerate(sorted(alphabet), start=2)}
    merges: list[tuple[str, str]] = []
    for word in words:
        for stop in range(2, len(word) + 1):
            merge = (word[: stop - 1], word[stop - 1])
            if merge not in merges:
                merges.append(merge)
                vocabulary.setdefault("".join(merge), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([UNKNOWN, BEGIN])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, unk_token=UNKNOWN)


def pair(clean: str, answer: str | int, corrupted: str, wrong: str | int = " no") -> Pair:
    return Pair(7, clean, corrupted, (answer,), (wrong,))


def outcome(tokenizer: Any, given: Pair, **options: Any) -> EncodedPair | PairProblem:
    (result,) = encode_pairs([given], tokenizer, **{"prepend_bos": False, **options})
    return result


def token(tokenizer: Any, given: Pair, **options: Any) -> str:
    """The token of the right answer, of a pair that can be scored."""
    result = outcome(tokenizer, given, **options)
    assert isinstance(result, EncodedPair), result
    (text,) = tokenizer.convert_ids_to_tokens(list(result.answers))
    return text


def problem(tokenizer: Any, given: Pair, **options: Any) -> PairProblem:
    result = outcome(tokenizer, given, **options)
    assert isinstance(result, PairProblem), result
    return result


ENGLISH = byte_level("Ġno", "ĠParis", "Paris", "Ġing", "playing", "ing", "ĊĊ")


@pytest.mark.parametrize(
    ("prompts", "answer", "expected"),
    [
        (("2 + 3 =", "2 + 4 ="), "5", "5"),
        (("2 + 3 = ", "2 + 4 = "), "5", "5"),
        (("2 + 3 is", "2 + 4 is"), " five", "▁five"),
        (("2 + 3 is fi", "2 + 4 is fi"), "x", "x"),
    ],
)
def test_a_dummy_prefix_does_not_come_between(prompts: tuple[str, str], answer: str, expected: str) -> None:
    tokenizer = metaspace("▁five", "▁no", "▁is")
    assert token(tokenizer, pair(prompts[0], answer, prompts[1], "9")) == expected
    assert token(tokenizer, pair(prompts[0], answer, prompts[1], "9"), prepend_bos=True) == expected


def test_a_space_that_is_a_token_of_its_own_counts_as_one() -> None:
    found = problem(metaspace("▁is"), pair("2 + 3 =", " 5", "2 + 4 =", "9"))
    assert found.reason is FailureReason.MULTI_TOKEN_ANSWER
    assert "answers: ' 5' is 2 tokens ['▁', '5'], not one" in found.message


def test_a_piece_of_a_word_is_not_the_word() -> None:
    assert token(ENGLISH, pair("They see", "ing", "Thou see")) == "ing"
    assert token(ENGLISH, pair("They see", " ing", "Thou see")) == "Ġing"


@pytest.mark.parametrize(
    ("tokenizer", "prompts", "answer", "alone"),
    [
        (joining(" Paris", "Paris", " no", "no"), ("It is ", "It as "), "Paris", "Paris"),
        (joining("1364", "64", "no"), ("in 13", "on 13"), "6", "6"),
        (ENGLISH, ("a town\n", "a city\n"), "\n", "Ċ"),
        (ENGLISH, ("dogs play", "cats play"), "ing", "ing"),
        (metaspace("▁is", "▁five", "▁no"), ("it is ", "he is "), "five", None),
    ],
    ids=["space", "digits", "newlines", "word", "metaspace"],
)
def test_where_the_prompts_own_tokens_change_it_is_a_boundary(
    tokenizer: Any, prompts: tuple[str, str], answer: str, alone: str | None
) -> None:
    given = pair(prompts[0], answer, prompts[1], "+")
    found = problem(tokenizer, given)
    assert found.reason is FailureReason.BOUNDARY
    assert f"answers: the tokens at the end of clean change when {answer!r} follows" in found.message
    assert "allow_boundary: true" in found.message
    if alone is not None:
        assert token(tokenizer, given, allow_boundary=True) == alone


def test_a_boundary_message_shows_the_text_its_tokens_and_the_way_out() -> None:
    tokenizer = joining(" Paris", " no")
    found = problem(tokenizer, pair("The main town of France is ", "Paris", "The main town of Italy is "))
    assert (
        "'... main town of France is ' ends in [' '], '... main town of France is Paris' in [' Paris']" in found.message
    )
    assert "Move the white space to the answer: 'is' + ' Paris'" in found.message
    good = pair("The main town of France is", " Paris", "The main town of Russia is")
    assert token(tokenizer, good) == " Paris"
    found = problem(ENGLISH, pair("dogs play", "ing", "cats play"))
    assert "End the prompt earlier, before the token that the answer changes" in found.message


def test_an_allowed_answer_must_be_one_token_on_its_own() -> None:
    found = problem(joining("in", "ing"), pair("They wi", "nging", "We wi", "+"), allow_boundary=True)
    assert found.reason is FailureReason.MULTI_TOKEN_ANSWER
    assert "'nging' is 3 tokens ['n', 'g', 'ing']" in found.message


def test_an_allowed_answer_with_a_dummy_prefix_is_its_token_after_a_word(
    dummy_prefix: PreTrainedTokenizerFast,
) -> None:
    given = pair("When Mary and", " Anna", "When Jane and", " Jo")
    changing = _replacing(dummy_prefix, "and▁Anna", "bag▁Anna")
    assert problem(changing, given).reason is FailureReason.BOUNDARY
    assert token(changing, given, allow_boundary=True) == "▁Anna"


def test_the_corrupted_prompt_must_keep_its_tokens_as_well() -> None:
    given = pair("They are see", "ing", "They are play")
    found = problem(byte_level("Ġno", "Ġsee", "Ġplay", "Ġplaying", "ing"), given)
    assert found.reason is FailureReason.BOUNDARY
    assert "the tokens at the end of corrupted change when 'ing' follows" in found.message
    assert found.message.endswith("allow_boundary: true to take the token that it is after clean")
    assert token(byte_level("Ġno", "Ġsee", "Ġplay", "Ġplaying", "ing"), given, allow_boundary=True) == "ing"


def test_the_answer_must_be_the_same_token_behind_both_prompts(words: PreTrainedTokenizerFast) -> None:
    given = pair("When Jo met Mary", " Jane", "When Jo met Anna", " Jo")
    changing = _replacing(words, "Anna Jane", "Anna Mary")
    found = problem(changing, given)
    assert found.reason is FailureReason.BOUNDARY
    assert "' Jane' is the token ['Jane'] after clean and ['Mary'] after corrupted" in found.message
    assert token(changing, given, allow_boundary=True) == "Jane"
    assert token(words, given) == "Jane"


def _replacing(tokenizer: Any, text: str, other: str) -> PreTrainedTokenizerFast:
    """The tokenizer with one text read as another, so that a token depends on what stands before it."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    replaced = normalizers.Replace(text, other)
    backend.normalizer = normalizers.Sequence([backend.normalizer, replaced] if backend.normalizer else [replaced])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNKNOWN)


def test_a_normaliser_that_strips_makes_no_boundary(words: PreTrainedTokenizerFast) -> None:
    backend = Tokenizer.from_str(words.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Strip()
    stripping = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNKNOWN)
    assert token(stripping, pair("When Mary met ", "Anna", "When Jo met ", "Jane")) == "Anna"
    found = problem(stripping, pair("When Mary met", " ", "When Jo met", " Jane"))
    assert found.reason is FailureReason.NO_ANSWER
    assert "answers: the tokenizer makes no token of ' ' behind the prompt" in found.message


def test_bytes_that_join_across_the_boundary_are_one() -> None:
    # 'é' is two bytes: the first is part of a token with the letter before it.
    tokenizer = byte_level("fÃ", "Ġno")
    assert problem(tokenizer, pair("a caf", "é", "one caf")).reason is FailureReason.BOUNDARY
    found = problem(tokenizer, pair("a ca", "é", "e ca"))
    assert (found.reason, "2 tokens" in found.message) == (FailureReason.MULTI_TOKEN_ANSWER, True)
    assert token(tokenizer, pair("a café", " no", "e café", "x")) == "Ġno"


def test_special_tokens_and_unknown_text_as_answers() -> None:
    tokenizer = metaspace("▁is", "▁no")
    assert token(tokenizer, pair("ot is", "<s>", "at is")) == "<s>"
    found = problem(tokenizer, pair("ot is", "é", "at is"))
    assert found.reason is FailureReason.MULTI_TOKEN_ANSWER
    assert "no token for 'é'" in found.message


def test_answers_are_sets_in_the_order_of_their_first_tokens(words: PreTrainedTokenizerFast) -> None:
    given = Pair(7, "When Mary met Anna", "When Mary met Jo", (" Jane", " Mary", "  Jane", " Mary"), (" Jo", " Jo"))
    result = outcome(words, given)
    assert isinstance(result, EncodedPair), result
    assert words.convert_ids_to_tokens(list(result.answers)) == ["Jane", "Mary"]
    assert words.convert_ids_to_tokens(list(result.wrong_answers)) == ["Jo"]
    ids = words.convert_tokens_to_ids(["Mary", "Jane"])
    by_id = outcome(words, Pair(7, "When Mary met Anna", "When Mary met Jo", (ids[0], " Mary", ids[1]), (" Jo",)))
    assert isinstance(by_id, EncodedPair), by_id
    assert by_id.answers == tuple(ids)


JOINING = joining("ab", "b 1", "11", "\n\n", " a")
LETTERS = st.text("ab 1\n", min_size=1, max_size=6)


@for_any(prompt=LETTERS, answer=LETTERS)
def test_whatever_is_scored_is_how_the_text_is_tokenised(prompt: str, answer: str) -> None:
    given = pair(f"c{prompt}", answer, f"d{prompt}", "+")
    joined = tuple(JOINING(given.clean + answer)["input_ids"])
    alone = tuple(JOINING(given.clean)["input_ids"])
    result = outcome(JOINING, given)
    if isinstance(result, EncodedPair):
        assert joined == result.clean + result.answers
    elif result.reason is FailureReason.BOUNDARY:
        assert joined[: len(alone)] != alone
    else:
        assert result.reason is FailureReason.MULTI_TOKEN_ANSWER
        assert joined[: len(alone)] == alone
        assert len(joined) > len(alone) + 1


class Counting:
    """A tokenizer that notes what it is asked."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def __call__(self, text: list[str], **options: Any) -> Any:
        self.texts += text
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_each_text_is_tokenised_once_and_in_batches_of_any_size(
    words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = list(generate_ioi(200, 1))
    counting = Counting(words)
    results = encode_pairs(pairs, counting, prepend_bos=False)
    assert all(isinstance(result, EncodedPair) for result in results)
    # A couple of mirrors: two prompts, each alone and with either answer.
    assert len(counting.texts) == len(set(counting.texts)) == 600
    monkeypatch.setattr(answers_module, "_BATCH_CHARACTERS", 200)
    assert encode_pairs(pairs, words, prepend_bos=False) == results


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ioi", "ioi_tutorial"])
def test_the_tables_that_come_with_the_project_keep_their_tokens(smollm2_tokenizer: Any, name: str) -> None:
    """Names after a space are the same token alone and behind a prompt: what was scored before stays."""
    table = PairTable.open(DATASETS / f"{name}.parquet")
    for given, result in zip(
        rows := table.rows(0, table.n_rows), encode_pairs(rows, smollm2_tokenizer, prepend_bos=False), strict=True
    ):
        assert isinstance(result, EncodedPair), result
        for texts, tokens in ((given.answers, result.answers), (given.wrong_answers, result.wrong_answers)):
            assert list(tokens) == [
                smollm2_tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts or ()
            ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "answer", "alone"),
    [
        (("The main town of France is ", "The main town of Italy is "), "Paris", "Paris"),
        (("The dogs are play", "The cats are play"), "ing", "ing"),
        (("Name the town\n", "Name the city\n"), "\n", "\n"),
    ],
)
def test_boundaries_of_the_bundled_tokenizer(
    smollm2_tokenizer: Any, prompts: tuple[str, str], answer: str, alone: str
) -> None:
    given = pair(prompts[0], answer, prompts[1], "ed")
    assert problem(smollm2_tokenizer, given).reason is FailureReason.BOUNDARY
    result = outcome(smollm2_tokenizer, given, allow_boundary=True)
    assert isinstance(result, EncodedPair), result
    assert smollm2_tokenizer.decode(list(result.answers)) == alone


@pytest.mark.slow
@pytest.mark.parametrize("allow_boundary", [False, True])
def test_two_digits_are_two_tokens_of_the_bundled_tokenizer(smollm2_tokenizer: Any, allow_boundary: bool) -> None:
    years = pair("It went on from 1342 to the year 13", "64", "It went on from 1301 to the year 13", "02")
    found = problem(smollm2_tokenizer, years, allow_boundary=allow_boundary)
    assert found.reason is FailureReason.MULTI_TOKEN_ANSWER
    assert found.message == "answers: '64' is 2 tokens ['6', '4'], not one"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "answer", "wrong"),
    [
        (("The main town of France is", "The main town of Italy is"), " Paris", " Rome"),
        (("The main town of France is", "The main town of Italy is"), "Paris", "Rome"),
        (("The main town of France is ", "The main town of Italy is "), " Paris", " Rome"),
        (("It went on from 1342 to the year 13", "It went on from 1301 to the year 13"), "6", "0"),
        (('He said: "Who is there', 'She said: "Who is there'), '?"', '."'),
    ],
)
def test_what_follows_its_prompt_with_the_bundled_tokenizer(
    smollm2_tokenizer: Any, prompts: tuple[str, str], answer: str, wrong: str
) -> None:
    result = outcome(smollm2_tokenizer, pair(prompts[0], answer, prompts[1], wrong))
    assert isinstance(result, EncodedPair), result
    assert smollm2_tokenizer.decode(list(result.answers)) == answer
    assert smollm2_tokenizer.decode(list(result.wrong_answers)) == wrong


def test_an_answer_that_is_a_special_token_of_a_stated_form(words: PreTrainedTokenizerFast) -> None:
    """A special token that takes the space before it changes a prompt that ends in one."""
    backend = Tokenizer.from_str(words.backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<end>", lstrip=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNKNOWN)
    assert token(tokenizer, pair("When Mary met", " <end>", "When Jo met", " Jane")) == "<end>"
