"""A model so small that a run on it measures the machinery around it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from pathlib import Path

N_LAYERS, N_HEADS, HIDDEN = 2, 2, 16
WORD_OR_MARK = r"\w+|[^\w\s]"
UNKNOWN = "<unk>"


def save_model(folder: Path, pairs: Path) -> None:
    """A random Llama whose tokens are the words and punctuation marks of a table of pairs."""
    words: set[str] = set()
    for batch in pq.ParquetFile(pairs).iter_batches(columns=["clean", "corrupted"]):
        for column in batch.columns:
            words.update(*(re.findall(WORD_OR_MARK, text) for text in column.to_pylist()))
    vocabulary = {word: number for number, word in enumerate([UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(WORD_OR_MARK), "removed", invert=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS, num_key_value_heads=N_HEADS, max_position_embeddings=128, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
