"""Small real tokenizers, built in a moment, and a short way to write tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attrib_batch.pairs.making.ioi_words import FIRST_NAMES, FRAMES, OBJECTS, PLACES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNKNOWN, BEGIN = "<unk>", "<s>"


def _vocabulary(prefix: str = "") -> dict[str, int]:
    text = " ".join((*FRAMES, *FIRST_NAMES, *PLACES, *OBJECTS, "and met gave the bag to When Jo Jane"))
    words = dict.fromkeys(re.findall(r"\w+|[.,]", text))
    return {word: i for i, word in enumerate([UNKNOWN, BEGIN, prefix or "_", *(prefix + w for w in words)])}


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """One token per word or punctuation mark; white space belongs to no token."""
    tokenizer = Tokenizer(models.WordLevel(_vocabulary(), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, unk_token=UNKNOWN)


@pytest.fixture(scope="session")
def dummy_prefix() -> PreTrainedTokenizerFast:
    """A space is put before every text and then belongs to the word after it, as in Llama 2's tokenizer."""
    tokenizer = Tokenizer(models.WordLevel(_vocabulary("▁"), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), behavior="merged_with_next")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN)


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Write columns to a Parquet file; those required and not given are filled in."""

    def write(n_rows: int = 3, name: str = "pairs.parquet", row_group_size: int = 10, **columns: Any) -> Path:
        filled: dict[str, Any] = {
            "clean": [f"clean {i}" for i in range(n_rows)],
            "corrupted": [f"corrupted {i}" for i in range(n_rows)],
            "answers": [[" yes"]] * n_rows,
            "wrong_answers": [[" no"]] * n_rows,
        } | columns
        path = tmp_path / name
        pq.write_table(
            pa.table({k: v for k, v in filled.items() if v is not None}), path, row_group_size=row_group_size
        )
        return path

    return write
