from __future__ import annotations

from attrib_batch.pairs.advice import ADVICE
from attrib_batch.tables import FailureReason

ONLY_IN_A_RUN = {FailureReason.NON_FINITE, FailureReason.SCORING_ERROR, FailureReason.WORKER_LOST}


def test_there_is_advice_for_everything_that_validation_finds() -> None:
    assert set(FailureReason) - set(ADVICE) == ONLY_IN_A_RUN
    assert not ONLY_IN_A_RUN & set(ADVICE)
