"""The texts of tokens: leading spaces kept, and something to read for bytes that are no text."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attrib_batch.pairs.encoding.texts import TokenTexts
from attrib_batch.pairs.encoding.tokens import Tokenizer as AnyTokenizer
from tests.support.tiny_models import UNKNOWN, VOCABULARY, tiny_tokenizer


def texts_of(tokenizer: AnyTokenizer, tokens: list[int]) -> list[str]:
    found = TokenTexts(tokenizer).of(tokens)
    return [found[token] for token in tokens]


def test_byte_level_tokens_keep_their_space_and_half_a_character_is_shown_as_the_vocabulary_has_it() -> None:
    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠMary", "Ġ,", "ĊĊ", "Ã©"]
    model = models.BPE({entry: index for index, entry in enumerate(entries)}, [])
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    tokens = [entries.index(entry) for entry in ("ĠMary", "Ġ,", "ĊĊ", "Ã©", "Ã", "a")]
    assert texts_of(fast, tokens) == [" Mary", " ,", "\n\n", "é", "Ã", "a"]


def test_tokens_of_a_sentencepiece_vocabulary_keep_their_space() -> None:
    entries = [UNKNOWN, "▁Mary", "Mary", "▁", "▁▁a", "<0x0A>", "<0xC3>"]
    model = models.BPE({entry: index for index, entry in enumerate(entries)}, [], unk_token=UNKNOWN, byte_fallback=True)
    tokenizer = Tokenizer(model)
    # As in Llama 2's file.
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN)
    assert texts_of(fast, list(range(1, 7))) == [" Mary", "Mary", " ", "  a", "\n", "<0xC3>"]


def test_a_vocabulary_whose_decoder_leaves_the_mark_in_place(dummy_prefix: PreTrainedTokenizerFast) -> None:
    (token,) = dummy_prefix.convert_tokens_to_ids(["▁Mary"])
    assert texts_of(dummy_prefix, [token]) == [" Mary"]


def test_each_token_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    texts = TokenTexts(tokenizer)
    first = dict(texts.of([3, 4, 3]))
    assert first == {3: VOCABULARY[3], 4: VOCABULARY[4]}
    monkeypatch.setattr(tokenizer, "decode", lambda *_, **__: pytest.fail("decoded again"))
    assert texts.of([4, 3]) == first


@pytest.mark.slow
def test_the_texts_of_a_real_prompt_are_the_prompt(smollm2_tokenizer: AnyTokenizer) -> None:
    prompt = "When Mary and John went to the café 東京 🙂, John gave a drink to"
    tokens = smollm2_tokenizer([prompt])["input_ids"][0]
    texts = texts_of(smollm2_tokenizer, tokens)
    assert " Mary" in texts
    whole = [text for token, text in zip(tokens, texts, strict=True) if smollm2_tokenizer.decode([token]) == text]
    assert "".join(whole).startswith("When Mary and John went to the caf")
