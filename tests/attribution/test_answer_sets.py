"""A pair's answers are sets of tokens: metrics and scores do not depend on how often a table names one."""

from __future__ import annotations

import math

import pytest
import torch

from attrib_batch.attribution.metrics import AnswerSets, metric_named
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.reading.reader import Pair
from tests.support import oracle
from tests.support.near import assert_near, assert_same_scores
from tests.support.scored import method, score, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES, VOCABULARY, tiny_tokenizer

TWICE = Pair(0, "w1 w2 w3", "w1 w4 w3", (" Mary", " Mary"), (" John", " Anna", " John"))
"""A row that names two of its answers twice."""


def _encoded_twice() -> EncodedPair:
    (pair,) = encode_pairs([TWICE], tiny_tokenizer(), prepend_bos=False)
    assert isinstance(pair, EncodedPair), pair
    return pair


def test_an_answer_that_stands_twice_counts_once_by_hand() -> None:
    """With 0.6, 0.3 and 0.1 for the three names."""
    logits = torch.full((1, len(VOCABULARY)), -100.0)
    for name, probability in {"Mary": 0.6, "John": 0.3, "Anna": 0.1}.items():
        logits[0, VOCABULARY.index(name)] = math.log(probability)
    answers = AnswerSets.of([_encoded_twice()], torch.device("cpu"))
    terms = sum(-math.log(probability) for probability in (0.6, 0.3, 0.1))
    for name, by_hand in (
        ("prob_diff", 0.6 - 0.4),
        ("log_prob", math.log(0.6)),
        ("logit_diff", math.log(0.6) - (math.log(0.3) + math.log(0.1)) / 2),
    ):
        assert_near(metric_named(name)(logits, logits, answers), by_hand, terms, what=name)


@pytest.mark.parametrize("name", ["logit_diff", "prob_diff", "log_prob"])
def test_scores_are_those_of_the_set_of_answers(name: str) -> None:
    pair = _encoded_twice()
    right, wrong = ([VOCABULARY.index(answer) for answer in answers] for answers in (["Mary"], ["John", "Anna"]))
    metric = {
        "logit_diff": oracle.logit_diff(right, wrong),
        "prob_diff": oracle.prob_diff(right, wrong),
        "log_prob": oracle.log_prob(right),
    }[name]
    plain = ARCHITECTURES["llama"]()
    ours = score(tiny_model("llama"), [pair], method(metric=name))[0]
    theirs = oracle.atp(plain, pair.clean, pair.corrupted, metric, ["z"], direction="denoise")
    assert_same_scores(ours, theirs, terms_of(plain, pair, name))
