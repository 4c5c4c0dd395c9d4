"""Both ways of passing suffixes: which models are packed, that both give the same, and what prefixes cost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from attrib_batch.attribution.engine import TokenBudget, score_pairs
from attrib_batch.attribution.passes import packed, passes_for
from attrib_batch.attribution.passes.fitness import why_not_packed
from attrib_batch.attribution.passes.packed import PackedAttention, PackedPasses
from attrib_batch.attribution.passes.padded import PaddedPasses
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_near, assert_same_scores
from tests.support.scored import encoded, method, score, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.models.load import LoadedModel
    from attrib_batch.pairs.encoding.encode import EncodedPair


def mixture() -> list[EncodedPair]:
    """Pairs of many shapes, some of them with a prefix in common."""
    shapes = [(9, 4), (12, 0), (14, 11), (10, 4), (10, 9)]
    pairs = [pair for seed, shape in enumerate(shapes) for pair in random_pairs(2, *shape, seed=seed)]
    return encoded(pairs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_suffixes_are_packed_where_the_family_says_that_its_attention_can_be_replaced(name: str) -> None:
    model = tiny_model(name)
    fit = model.architecture.attention_interface and model.architecture.takes_position_ids
    assert isinstance(passes_for(model), PackedPasses if fit else PaddedPasses)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llama", None),
        ("stablelm", "its layers do not hand on to attention what a call is given"),
        ("falcon", "it computes attention in a way of its own"),
        ("llama4", "it finds the positions of tokens itself"),
    ],
)
def test_why_suffixes_are_padded_is_said(name: str, reason: str | None) -> None:
    assert why_not_packed(tiny_model(name)) == reason


@pytest.mark.parametrize("kind", ["atp", "atp_ig", "atp_star", "relp", "exact"])
def test_a_mixture_of_shapes_scores_as_its_pairs_one_at_a_time(kind: str) -> None:
    model, pairs = tiny_model("mistral_short_window"), mixture()
    job = method(id=kind, components=["z", "k", "resid_mid"])
    together = score(model, pairs, job)
    for pair in pairs[::3]:
        alone = score(model, [pair], job)
        assert_same_scores(together[pair.pair_id], alone[pair.pair_id], terms_of(model.module, pair))


def test_in_half_precision_too_scores_do_not_depend_on_the_batch() -> None:
    model, pairs = tiny_model("llama", dtype="float16"), mixture()
    together = score(model, pairs, method(components=["z", "resid_post"]))
    for pair in pairs[::3]:
        alone = score(model, [pair], method(components=["z", "resid_post"]))
        terms = terms_of(tiny_model("llama").module, pair)
        for component, scores in alone[pair.pair_id].items():
            assert_near(together[pair.pair_id][component], scores, terms, dtype="float16")


@pytest.mark.parametrize("kind", ["atp", "atp_ig", "atp_star", "relp", "exact"])
def test_padded_suffixes_score_as_packed_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny_model("gemma2"), mixture()
    job = method(id=kind, components=["z", "q", "mlp_out"])
    packed = score(model, pairs, job)
    monkeypatch.setattr("attrib_batch.attribution.engine.passes_for", PaddedPasses)
    padded = score(model, pairs, job)
    for pair in pairs:
        assert_same_scores(padded[pair.pair_id], packed[pair.pair_id], terms_of(model.module, pair))


@pytest.mark.parametrize("name", ["mistral_short_window", "gpt_oss"])
def test_what_is_followed_is_copied_where_it_is_little_and_that_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Behind a prefix that all share, which is a stretch of its own.
    shared = tuple(range(20, 60))
    pairs = [
        replace(
            pair,
            clean=shared + pair.clean,
            corrupted=shared + pair.corrupted,
            roles=(None,) * len(shared) + pair.roles,
            first_difference=pair.first_difference + len(shared),
        )
        for pair in mixture()
    ]
    model, job, levels = tiny_model(name), method(id="exact", components=["z", "k"], at="last"), set()
    true = PackedAttention.__call__

    def watched(self: PackedAttention, *args: object, **options: object) -> object:
        levels.add(len(self.levels))
        return true(self, *args, **options)

    monkeypatch.setattr(PackedAttention, "__call__", watched)
    found = {}
    for most in (0, packed.COPIED_KEYS):
        monkeypatch.setattr(packed, "COPIED_KEYS", most)
        levels.clear()
        found[most] = score(model, pairs, job)
        assert (max(levels) > 1) == (most == 0)
    for pair in pairs:
        apart, copied = (of[pair.pair_id] for of in found.values())
        assert_same_scores(copied, apart, terms_of(model.module, pair))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the token ids of every forward pass of the model of `counted`."""
    found: list[tuple[int, ...]] = []
    return found


def counted(model: LoadedModel, found: list[tuple[int, ...]]) -> LoadedModel:
    embedding = model.module.get_input_embeddings()
    embedding.register_forward_hook(lambda _module, args, _output: found.append(tuple(args[0].shape)))
    passes_for(model)  # what finds out whether it can be packed is not counted
    found.clear()
    return model


def long_prefixes(n_prefixes: int, n_pairs: int, length: int) -> Iterator[EncodedPair]:
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(2, 120, (n_prefixes, length), generator=generator).tolist()
    for number, pair in enumerate(encoded(random_pairs(n_pairs, 6, 1, seed=3))):
        start = tuple(starts[number % n_prefixes])
        yield pair.__class__(
            pair_id=number,
            clean=(*start, *pair.clean[1:]),
            corrupted=(*start, *pair.corrupted[1:]),
            answers=pair.answers,
            wrong_answers=pair.wrong_answers,
            first_difference=length,
            roles=(None,) * (length + 5),
            template=None,
            group=None,
        )


@pytest.mark.parametrize("n_prefixes", [1, 2])
def test_a_prefix_is_computed_once_for_all_micro_batches(n_prefixes: int, calls: list[tuple[int, ...]]) -> None:
    model = counted(tiny_model("llama"), calls)
    pairs = list(long_prefixes(n_prefixes, 12, 50))
    budget = TokenBudget(4 * 2 * 5)
    assert len(list(score_pairs(model, pairs, [method()], budget))) >= 3
    suffixes = 12 * 2 * 5
    assert sum(rows * positions for rows, positions in calls) == n_prefixes * 50 + suffixes


def test_packed_passes_compute_no_padding(calls: list[tuple[int, ...]]) -> None:
    model, pairs = counted(tiny_model("llama"), calls), mixture()
    list(score_pairs(model, pairs, [method()], TokenBudget(4096)))
    prefixes = {pair.clean[: pair.first_difference] for pair in pairs if pair.first_difference}
    tokens = sum(2 * (pair.n_tokens - pair.first_difference) for pair in pairs)
    assert len(calls) == 3, "prefixes, one prompt of every pair without a graph, the other with one"
    assert sum(positions for _, positions in calls) == tokens + sum(map(len, prefixes))
