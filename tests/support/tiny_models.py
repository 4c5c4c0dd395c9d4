"""A tiny random model of every supported architecture: real transformers classes, random weights.

The weights are larger than a fresh initialisation and no norm or bias is trivial, so that a forgotten norm,
bias, window or soft cap changes a score visibly.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

BOS, UNKNOWN = "<bos>", "<unk>"
NAMES = ("Mary", "John", "Anna", "Paul", "Kate", "Mark")
WORDS = tuple(f"w{i}" for i in range(120))
VOCABULARY = (BOS, UNKNOWN, *NAMES, *WORDS)
"""Every token; its index is its id."""

N_LAYERS, HIDDEN, N_HEADS, N_KV_HEADS, MAX_POSITIONS = 3, 48, 4, 2, 128
SHORT_WINDOW = 6
"""A sliding window shorter than the test prompts."""

_SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_GROUPED = {"num_key_value_heads": N_KV_HEADS}
_WIDE_HEADS = {"head_dim": 16}  # not HIDDEN / N_HEADS: the attention is wider than the residual stream
_MIXED_WINDOWS = {
    "sliding_window": SHORT_WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_HALF_ROTARY = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}


def _tiny(model_type: str, **options: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **{**_SHAPE, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        _make_vectors_random(model)
    return model.float().eval()


def _make_vectors_random(model: PreTrainedModel) -> None:
    """Move norm weights off one (off zero in Gemma, which adds one itself) and biases off zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": partial(_tiny, "gpt2"),
    "gpt_neox": partial(_tiny, "gpt_neox", rope_parameters=_HALF_ROTARY),
    "gpt_neox_sequential": partial(_tiny, "gpt_neox", rope_parameters=_HALF_ROTARY, use_parallel_residual=False),
    "llama": partial(_tiny, "llama", **_GROUPED),
    "mistral": partial(_tiny, "mistral", sliding_window=64, **_GROUPED, **_WIDE_HEADS),
    "mistral_short_window": partial(_tiny, "mistral", sliding_window=SHORT_WINDOW, **_GROUPED),
    "qwen2": partial(_tiny, "qwen2", **_GROUPED),
    "qwen3": partial(_tiny, "qwen3", **_GROUPED, **_WIDE_HEADS),
    "gemma2": partial(
        _tiny,
        "gemma2",
        attn_logit_softcapping=3.0,
        final_logit_softcapping=8.0,
        query_pre_attn_scalar=20,
        **_GROUPED,
        **_WIDE_HEADS,
        **_MIXED_WINDOWS,
    ),
    "gemma3": partial(_tiny, "gemma3_text", query_pre_attn_scalar=20, **_GROUPED, **_WIDE_HEADS, **_MIXED_WINDOWS),
    "phi": partial(_tiny, "phi", rope_parameters=_HALF_ROTARY, **_GROUPED),
    "olmo2": partial(_tiny, "olmo2", **_GROUPED),
}
"""A function per architecture (or variant of one) that builds its tiny model, the same one at every call."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of ``VOCABULARY``; words are split at spaces, and no BOS is added unasked."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        unk_token=UNKNOWN,
        model_max_length=MAX_POSITIONS,
    )


def save_tiny(name: str, folder: Path) -> Path:
    """Save the tiny model ``name`` and its tokenizer in ``folder``, as ``from_pretrained`` reads them.

    ``AutoTokenizer`` takes whatever lies beside a Qwen2 model for a byte-level BPE and then knows no word:
    read the tokenizer of ``qwen2`` with ``PreTrainedTokenizerFast``.
    """
    ARCHITECTURES[name]().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
