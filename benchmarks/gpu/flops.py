"""The floating-point operations that attribution patching of ``z`` needs, counted from a model's sizes.

A multiplication and an addition are two operations. What is counted, for a pair whose prompts have T tokens and first
differ at k: the k tokens of the prefix once, forward, in all layers but the last, of which keys and values alone are
needed; the T - k tokens of both suffixes, forward; and the T - k of the corrupted one, backward, from the answers'
logits to the first layer's ``z``. Weights have no gradients, so a backward pass costs as much as a forward pass, but
for attention: each of its two products has two gradients, of which those of the prefix's keys and values are not
needed. A token attends to itself and what is before it. Of the unembedding the answers' rows are needed, at the last
position. Norms, softmax and activations are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig

    from attrib_batch.pairs.encoding.encode import EncodedPair


@dataclass(frozen=True)
class ModelFlops:
    """Operations of one token in one layer, by what it is multiplied with."""

    n_layers: int
    d_model: int
    queries: int
    keys_and_values: int
    output: int
    mlp: int
    attended: int
    """Of one query and one key in one of attention's two products, all heads together."""

    @classmethod
    def of(cls, config: PretrainedConfig) -> ModelFlops:
        """Count by the configuration of a model of the GPT-2 or Llama family."""
        d = config.hidden_size
        if config.model_type == "gpt2":
            width, kv_width, mlp = d, d, 2 * d * (config.n_inner or 4 * d)
        else:
            head = getattr(config, "head_dim", None) or d // config.num_attention_heads
            width, kv_width = head * config.num_attention_heads, head * config.num_key_value_heads
            mlp = 3 * d * config.intermediate_size
        return cls(
            n_layers=config.num_hidden_layers,
            d_model=d,
            queries=2 * d * width,
            keys_and_values=4 * d * kv_width,
            output=2 * width * d,
            mlp=2 * mlp,
            attended=2 * width,
        )

    @property
    def layer(self) -> int:
        """All products of one token with weights in one layer."""
        return self.queries + self.keys_and_values + self.output + self.mlp

    def forward(self, start: int, stop: int) -> int:
        """The tokens [start, stop) of one prompt through all layers, those before them from a cache."""
        return self.n_layers * ((stop - start) * self.layer + 2 * self.attended * _seen(start, stop))

    def prefix(self, length: int) -> int:
        """The prefix of one prompt, up to the last layer's keys and values."""
        whole = length * self.layer + 2 * self.attended * _seen(0, length)
        return (self.n_layers - 1) * whole + length * self.keys_and_values

    def backward(self, start: int, stop: int) -> int:
        """From the logits of one prompt to the first layer's ``z`` at the tokens [start, stop)."""
        n = stop - start
        # Gradients of queries and probabilities by all keys; those of keys and values at the suffix alone.
        attention = 2 * self.attended * _seen(start, stop) + 2 * self.attended * _seen(0, n)
        above = n * self.layer + attention
        return (self.n_layers - 1) * above + n * (self.output + self.mlp)

    def pair(self, pair: EncodedPair) -> int:
        """One pair whose prefix no other has."""
        start, stop = pair.first_difference, pair.n_tokens
        unembedded = 2 * self.d_model * (len(pair.answers) + len(pair.wrong_answers))
        suffixes = 2 * self.forward(start, stop) + self.backward(start, stop)
        return self.prefix(start) + suffixes + 3 * unembedded

    def total(self, pairs: Sequence[EncodedPair]) -> int:
        """Pairs of which no two share a prefix."""
        return sum(map(self.pair, pairs))


def _seen(start: int, stop: int) -> int:
    """How many keys the queries at [start, stop) see together."""
    return (stop * (stop + 1) - start * (start + 1)) // 2
