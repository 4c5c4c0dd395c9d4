from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attrib_batch.errors import ModelError
from attrib_batch.pairs.encoding.bos import bos_id
from attrib_batch.pairs.encoding.encode import EncodedPair, PairProblem, encode_pairs
from attrib_batch.pairs.reading.reader import Pair
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from collections.abc import Callable

VOCABULARY = ["<eos>", "a", "b", "c", "d"]


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    model = Tokenizer(models.WordLevel({word: n for n, word in enumerate(VOCABULARY)}, unk_token=VOCABULARY[0]))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, **special)


PAIR = Pair(0, "a b", "a c", (" d",), (" a",))


def test_without_a_bos_the_message_says_what_other_tools_do() -> None:
    with pytest.raises(ModelError) as raised:
        bos_id(tokenizer(eos_token="<eos>"), None, None)  # noqa: S106 - a token
    assert "has no BOS token. Other tools (TransformerLens among them) put its EOS token '<eos>'" in str(raised.value)
    assert "write bos_token: '<eos>' to do so too, or set prepend_bos: false" in str(raised.value)
    with pytest.raises(ModelError, match="Set prepend_bos: false, or name another of its tokens as bos_token"):
        bos_id(tokenizer(), None, None)


def test_the_token_that_is_asked_for_stands_first() -> None:
    (encoded,) = encode_pairs(
        [PAIR],
        tokenizer(eos_token="<eos>"),  # noqa: S106 - a token
        prepend_bos=True,
        bos_token="<eos>",  # noqa: S106
    )
    assert isinstance(encoded, EncodedPair)
    assert (encoded.clean, encoded.corrupted, encoded.first_difference) == ((0, 1, 2), (0, 1, 3), 2)
    # It is that one too where the tokenizer has a BOS of its own, and it is not put there twice.
    own = tokenizer(bos_token="d")  # noqa: S106
    assert [bos_id(own, None, name) for name in (None, "c")] == [4, 3]
    (problem,) = encode_pairs([PAIR], own, prepend_bos=True, bos_token="a")  # noqa: S106
    assert isinstance(problem, PairProblem)
    assert problem.reason is FailureReason.DOUBLE_BOS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bos_id(tokenizer(eos_token="<eos>"), None, "eos"), "no token 'eos'.*for example '<eos>'"),  # noqa: S106
        (lambda: bos_id(tokenizer(), None, "x"), "no token 'x'. Write it as its vocabulary does$"),
        (lambda: bos_id(tokenizer(), 4, "d"), "has the id 4, and the model's vocabulary has 4 tokens"),
    ],
)
def test_a_token_that_there_is_not_is_refused(call: Callable[[], int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call()
