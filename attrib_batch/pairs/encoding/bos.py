"""The token that ``prepend_bos`` puts before every prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.errors import ModelError

if TYPE_CHECKING:
    from attrib_batch.pairs.encoding.tokens import Tokenizer


def bos_id(tokenizer: Tokenizer, vocabulary_size: int | None, bos_token: str | None) -> int:
    """Return the id of the token that begins a prompt.

    Args:
        tokenizer: the model's.
        vocabulary_size: how many tokens the model has; not checked where absent.
        bos_token: the token that a job asks for, as the vocabulary writes it; the tokenizer's own BOS where absent.

    Raises:
        ModelError: there is no such token, or the model does not know it.
    """
    if bos_token is not None:
        asked = tokenizer.get_vocab().get(bos_token)
        if asked is None:
            raise ModelError(
                f"bos_token: the model's tokenizer has no token {bos_token!r}. Write it as its vocabulary does"
                f"{_for_example(tokenizer)}"
            )
        bos = asked
    elif tokenizer.bos_token_id is None:
        raise ModelError(f"prepend_bos is true, but the model's tokenizer has no BOS token. {_way_out(tokenizer)}")
    else:
        bos = tokenizer.bos_token_id
    if vocabulary_size is not None and bos >= vocabulary_size:
        raise ModelError(
            f"prepend_bos is true, but the tokenizer's BOS token has the id {bos}, and the model's vocabulary has "
            f"{vocabulary_size} tokens: set prepend_bos: false"
        )
    return bos


def _way_out(tokenizer: Tokenizer) -> str:
    eos = _eos(tokenizer)
    if eos is None:
        return "Set prepend_bos: false, or name another of its tokens as bos_token"
    return (
        f"Other tools (TransformerLens among them) put its EOS token {eos!r} in that place without a word: write "
        f"bos_token: {eos!r} to do so too, or set prepend_bos: false"
    )


def _for_example(tokenizer: Tokenizer) -> str:
    eos = _eos(tokenizer)
    return "" if eos is None else f", for example {eos!r}"


def _eos(tokenizer: Tokenizer) -> str | None:
    if tokenizer.eos_token_id is None:
        return None
    return tokenizer.convert_ids_to_tokens([tokenizer.eos_token_id])[0]
