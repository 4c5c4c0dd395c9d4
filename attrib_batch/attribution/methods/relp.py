"""Relevance patching.

Jafari, Eberle, Khakzar, Nanda 2025 ("RelP", arXiv 2508.21258): attribution patching with the gradient replaced by the
coefficients of layer-wise relevance propagation (LRP). For an activation a of a pair,

    score(a) = sum over features of  R_a |base prompt  *  (a_other - a_base) ,

where R_a is what a backward pass gives in which norms have constant scales, element-wise functions pass gradients by
their ratio f(x) / x, and products with a gate pass half of it to each factor (the paper's LN-rule, Identity-rule and
Half-rule, as its published code applies them to language models). Gradients pass attention as they are: through the
probabilities too, so that queries and keys have scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrib_batch.attribution.method import Method
from attrib_batch.attribution.methods.atp import attribution_patching
from attrib_batch.attribution.passes import Passes
from attrib_batch.attribution.relevance import relevance_rules
from attrib_batch.attribution.scores import Scores
from attrib_batch.pairs.encoding.encode import EncodedPair


def relevance_patching(
    passes: Passes, pairs: Sequence[EncodedPair], methods: Sequence[Method], *, batch_tokens: int
) -> list[Scores]:
    """Score pairs of any shapes in one forward and one backward pass; see `atp.attribution_patching`."""
    with relevance_rules(passes.model):
        return attribution_patching(passes, pairs, methods, batch_tokens=batch_tokens)
