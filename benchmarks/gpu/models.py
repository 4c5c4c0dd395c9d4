"""Models with random weights in the shapes of real ones, made on the device: no hub, no download, no copy."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from attrib_batch.models.load import LoadedModel, wrap_model
from attrib_batch.pairs.encoding.encode import EncodedPair

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
PROMPTS = ((14, 9), (15, 9), (16, 10), (17, 11), (18, 11), (19, 12), (20, 12), (21, 13), (22, 14), (23, 14), (24, 15))
"""Lengths and first differences as IOI prompts of many wordings have them."""
LONG_PROMPTS = ((160, 96), (176, 100), (192, 108), (208, 120), (224, 128))
"""Of prompts with an instruction or an example in front."""


@dataclass(frozen=True)
class Shape:
    """The configuration of a model, in which all sizes lie."""

    name: str
    model_type: str
    options: tuple[tuple[str, Any], ...]
    dtype: torch.dtype

    def config(self) -> PretrainedConfig:
        """The configuration, as transformers has it."""
        return AutoConfig.for_model(self.model_type, **dict(self.options), **NO_TOKENS)

    def of(self, dtype: torch.dtype) -> Shape:
        """The same shape in another precision."""
        return Shape(self.name, self.model_type, self.options, dtype)


GPT2 = Shape("GPT-2 small", "gpt2", (), torch.float32)
LLAMA = Shape(
    "Llama 3.1 8B",
    "llama",
    (
        ("vocab_size", 128_256),
        ("hidden_size", 4096),
        ("intermediate_size", 14_336),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
        ("num_key_value_heads", 8),
        ("max_position_embeddings", 8192),
        ("rms_norm_eps", 1e-5),
    ),
    torch.bfloat16,
)
_TINY = {
    "gpt2": (("vocab_size", 211), ("n_embd", 16), ("n_layer", 2), ("n_head", 2)),
    "llama": (
        ("vocab_size", 211),
        ("hidden_size", 16),
        ("intermediate_size", 32),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
    ),
}


def tiny(shape: Shape) -> Shape:
    """A shape of the same kind and precision that any machine can compute."""
    return Shape(f"tiny {shape.name}", shape.model_type, _TINY[shape.model_type], shape.dtype)


def make(shape: Shape, device: torch.device) -> LoadedModel:
    """A model with random weights, the same for every call on one kind of device, wrapped as a worker would wrap it."""
    config = shape.config()
    torch.manual_seed(0)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=shape.dtype)
    return wrap_model(module.to(device), _tokenizer(config.vocab_size))


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer that has one token per word, and as many as the model."""
    tokenizer = Tokenizer(WordLevel({word(token): token for token in range(size)}, unk_token=word(0)))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=word(0))


def word(token: int) -> str:
    """The text of a token."""
    return f"t{token}"


def make_pairs(
    model: LoadedModel, n_pairs: int, shapes: tuple[tuple[int, int], ...] = PROMPTS, *, seed: int = 0
) -> list[EncodedPair]:
    """Pairs of random tokens: no two share a prefix, and as in IOI two positions of the suffix differ."""
    source = random.Random(seed)  # noqa: S311 - no secret depends on it
    size = model.dimensions.d_vocab
    pairs = []
    for index in range(n_pairs):
        length, first = shapes[index % len(shapes)]
        clean = [source.randrange(1, size) for _ in range(length)]
        corrupted = list(clean)
        for position in (first, length - 2):
            corrupted[position] = 1 + clean[position] % (size - 1)
        right, wrong = source.sample(range(1, size), 2)
        pairs.append(
            EncodedPair(
                pair_id=index,
                clean=tuple(clean),
                corrupted=tuple(corrupted),
                answers=(right,),
                wrong_answers=(wrong,),
                first_difference=first,
                roles=(None,) * length,
                template=None,
                group=None,
            )
        )
    return pairs
