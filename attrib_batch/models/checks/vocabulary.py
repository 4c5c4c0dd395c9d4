"""Check that a tokenizer and a model belong together: every text must become tokens that the model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from attrib_batch.spec import ModelSpec


def check_vocabulary(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> None:
    """Refuse a tokenizer that makes tokens of ordinary text which the model does not have.

    Special tokens that were added to a tokenizer may lie outside: Gemma 3's text models come with one for images. They
    occur only where a prompt spells them, and such a prompt is refused by itself.

    Args:
        spec: the model's part of the job, which messages name.
        tokenizer: the model's.
        d_vocab: how many tokens the model's embedding has.

    Raises:
        ModelError: naming both sizes and a token.
    """
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    outside = {
        index: token for token, index in tokenizer.get_vocab().items() if index >= d_vocab and index not in special
    }
    if outside:
        first = min(outside)
        raise ModelError(
            f"model {spec.id!r}: its tokenizer is larger than its vocabulary: the tokenizer has {len(tokenizer):,} "
            f"tokens, the model {d_vocab:,}, and {len(outside):,} of the tokens that text can give are none of the "
            f"model's, from {outside[first]!r} with the id {first:,} on. Use the tokenizer that the model was trained "
            "with"
        )
