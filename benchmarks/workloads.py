"""What is scored: IOI pairs in the tutorial's wording, in batches of one shape.

Names, places and objects vary, so prefixes are as different as in a real table.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.making.ioi import Order, fill, ioi_pair
from attrib_batch.pairs.making.ioi_words import FIRST_NAMES, OBJECTS, PLACES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attrib_batch.models.load import LoadedModel

FRAME = "When {first} and {second} went to the {place}, {third} gave the {object} to"
PREAMBLE = (
    "The following sentences were taken from a collection of short stories that several authors wrote for young "
    "readers. Each one tells of two people who spend some time together, and of something that one of them hands to "
    "the other before they part. Read every sentence slowly and with care, then finish it with the single name that "
    "fits best. Here is the first sentence that we chose for you. "
)
PREAMBLE_TOKENS = 70


@dataclass(frozen=True)
class Workload:
    """A batch of pairs of one length and one first difference."""

    pairs: list[EncodedPair]

    def parts(self, most_tokens: int) -> list[Workload]:
        """The same pairs, in order, in parts whose clean prompts are at most ``most_tokens`` tokens together."""
        size = max(1, most_tokens // self.pairs[0].n_tokens)
        return [Workload(self.pairs[start : start + size]) for start in range(0, len(self.pairs), size)]

    @property
    def clean(self) -> torch.Tensor:
        """Token ids of the clean prompts (pair, position)."""
        return torch.tensor([pair.clean for pair in self.pairs])

    @property
    def corrupted(self) -> torch.Tensor:
        """Token ids of the corrupted prompts (pair, position)."""
        return torch.tensor([pair.corrupted for pair in self.pairs])

    @property
    def answers(self) -> torch.Tensor:
        """Token ids of the right and the wrong answer (pair, 2)."""
        return torch.tensor([[*pair.answers, *pair.wrong_answers] for pair in self.pairs])


def plain(model: LoadedModel, n_pairs: int) -> Workload:
    """Pairs of 14 tokens that first differ at position 9."""
    return _workload(model, n_pairs, shape=(14, 9))


def mirrored(model: LoadedModel, n_pairs: int) -> Workload:
    """The same kind of pairs, each next to its mirror."""
    return _workload(model, n_pairs, shape=(14, 9), mirror=True)


def with_preamble(model: LoadedModel, n_pairs: int) -> Workload:
    """The same kind of pairs after 70 tokens that all prompts begin with."""
    return _workload(model, n_pairs, shape=(14 + PREAMBLE_TOKENS, 9 + PREAMBLE_TOKENS), preamble=True)


def _workload(
    model: LoadedModel, n_pairs: int, *, shape: tuple[int, int], mirror: bool = False, preamble: bool = False
) -> Workload:
    rng = random.Random(0)  # noqa: S311 - no secret depends on it
    texts = []
    while len(texts) < n_pairs:
        io, subject = rng.sample(FIRST_NAMES, 2)
        words = {"place": rng.choice(PLACES), "thing": rng.choice(OBJECTS)}
        clean, corrupted = (fill(FRAME, (io, subject, third), **words) for third in (subject, io))
        texts.append(((clean, corrupted), (io, subject), Order.ABBA))
        if mirror:
            texts.append(((corrupted, clean), (subject, io), Order.BABA))
    rows = [
        ioi_pair(index, prompts, answers, order=order, template="tutorial", group=None)
        for index, (prompts, answers, order) in enumerate(texts)
    ]
    encoded = encode_pairs(rows, model.tokenizer, prepend_bos=False)
    pairs = [pair for pair in encoded if isinstance(pair, EncodedPair)]
    if preamble:
        pairs = _behind(_preamble_tokens(model), pairs)
    found = {(pair.n_tokens, pair.first_difference) for pair in pairs}
    if len(pairs) != n_pairs or found != {shape}:
        raise ValueError(f"expected {n_pairs} pairs of (length, first difference) {shape}, got {len(pairs)} of {found}")
    return Workload(pairs)


def _preamble_tokens(model: LoadedModel) -> tuple[int, ...]:
    ids = model.tokenizer(PREAMBLE.strip())["input_ids"]
    if len(ids) < PREAMBLE_TOKENS:
        raise ValueError(f"the preamble is {len(ids)} tokens, expected at least {PREAMBLE_TOKENS}")
    return tuple(ids[:PREAMBLE_TOKENS])


def _behind(tokens: tuple[int, ...], pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    return [
        EncodedPair(
            pair_id=pair.pair_id,
            clean=tokens + pair.clean,
            corrupted=tokens + pair.corrupted,
            answers=pair.answers,
            wrong_answers=pair.wrong_answers,
            first_difference=len(tokens) + pair.first_difference,
            roles=(*[None] * len(tokens), *pair.roles),
            template=pair.template,
            group=pair.group,
        )
        for pair in pairs
    ]
