"""Chats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attrib_batch.errors import RequestError
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.importing.options import GivenTokenizer, ImportOptions
from attrib_batch.pairs.reading.notes import TokenizerNote
from tests.pairs.importing.files_of import FILES, lines, pairs_of

UNKNOWN, BEGIN = "<unk>", "<s>"


CHAT_WORDS = [UNKNOWN, BEGIN, "<user>", "<assistant>", "Alice", "Robert", "gave"]


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} <{{ m.role }}> {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(CHAT_WORDS)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, unk_token=UNKNOWN)
    made.chat_template = TEMPLATE
    return made


def test_a_chat_becomes_text_and_its_bos_is_not_doubled(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--chat-template with --tokenizer M"):
        pairs_of(FILES / "chat.jsonl", tmp_path)
    with pytest.raises(RequestError, match=r"--chat-template needs a tokenizer: .*--tokenizer M"):
        pairs_of(FILES / "chat.jsonl", tmp_path, ImportOptions(chat_template=True))
    tokenizer = chat_tokenizer()
    chat = ImportOptions(chat_template=True, tokenizer=GivenTokenizer(TokenizerNote("m"), tokenizer))
    pairs, imported = pairs_of(FILES / "chat.jsonl", tmp_path, chat)
    assert (imported.recipe.name, imported.n_pairs) == ("chat", 2)
    assert pairs[0].clean == "<s> <user> Alice gave Robert a pen. Who has the pen? One word. <assistant>"
    assert (pairs[0].answers, pairs[0].from_chat) == (("Robert",), True)

    def says(*contents: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]

    rows: list[dict[str, Any]] = [
        {
            "clean": says("Alice gave"),
            "corrupted": says("Robert gave"),
            "answers": " Robert",
            "wrong_answers": [" Alice"],
        },
        {"clean": [{"role": "user"}], "corrupted": says("x"), "answers": "a", "wrong_answers": ["b"]},
        {"clean": says("x", "y"), "corrupted": says("x", "z"), "answers": ["a"], "wrong_answers": ["b"]},
    ]
    pairs, imported = pairs_of(lines(tmp_path / "p.jsonl", rows), tmp_path, chat)
    assert imported.counts.refused == {"clean is no list of messages with role and content": 1}
    # What the assistant has begun goes on.
    assert pairs[1].clean == "<s> <user> x <assistant> y"
    expected = [CHAT_WORDS.index(word) for word in ("<s>", "<user>", "Alice", "gave", "<assistant>")]
    for prepend_bos in (False, True):
        (encoded,) = encode_pairs(pairs[:1], tokenizer, prepend_bos=prepend_bos)
        assert isinstance(encoded, EncodedPair)
        assert list(encoded.clean) == expected
        assert (encoded.first_difference, len(encoded.roles)) == (2, 5)
    tokenizer.chat_template = None
    with pytest.raises(RequestError, match="the tokenizer has no chat template"):
        pairs_of(FILES / "chat.jsonl", tmp_path, chat)
