"""Random pairs of prompts, as token ids, for the tiny models."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.support.tiny_models import NAMES, VOCABULARY

FIRST_WORD = VOCABULARY.index("w0")
"""The id of the first plain word; below it are the special tokens and the names."""
NAME_IDS = tuple(VOCABULARY.index(name) for name in NAMES)


@dataclass(frozen=True)
class TokenPair:
    """A pair of prompts of one length, and the answers to the clean one."""

    clean: list[int]
    corrupted: list[int]
    answers: list[int]
    wrong_answers: list[int]


def random_pairs(
    n: int,
    length: int,
    first_difference: int,
    *,
    vocab: int = len(VOCABULARY),
    seed: int = 0,
    changed_share: float = 0.3,
) -> list[TokenPair]:
    """Make ``n`` pairs of ``length`` tokens, the same before ``first_difference`` and different there.

    Args:
        vocab: prompts are made of ids from ``FIRST_WORD`` up to this.
        changed_share: the chance that a later position differs too.
    """
    source = random.Random(seed)
    words = range(FIRST_WORD, vocab)
    pairs = []
    for _ in range(n):
        clean = source.choices(words, k=length)
        corrupted = list(clean)
        for position in range(first_difference, length):
            if position == first_difference or source.random() < changed_share:
                corrupted[position] = source.choice([word for word in words if word != clean[position]])
        names = source.sample(NAME_IDS, k=4)
        n_right = source.randint(1, 3)
        pairs.append(TokenPair(clean, corrupted, names[:n_right], names[n_right:]))
    return pairs
