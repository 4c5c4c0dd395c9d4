"""A metric that is the logit difference, except for pairs with an answer that is poison: those it reacts to.

TEST_FAULTS_FILE names a JSON file: ``poison`` leads from token ids to ``raise``, ``break``, ``nan``, ``exit``,
``segfault``, ``hang`` or ``hold``, which waits until there is a file ``gate`` in ``folder``; ``slow`` are seconds that
every call takes.
"""

import ctypes
import json
import os
import time
from pathlib import Path

from attrib_batch.attribution.metrics import logit_diff

_FAULTS = json.loads(Path(os.environ["TEST_FAULTS_FILE"]).read_text()) if "TEST_FAULTS_FILE" in os.environ else {}
_POISON = {int(token): how for token, how in _FAULTS.get("poison", {}).items()}
_SLOW = float(_FAULTS.get("slow", 0))


def faulty(logits, clean_logits, answers):
    """The logit difference, or worse."""
    time.sleep(_SLOW)
    values = logit_diff(logits, clean_logits, answers)
    for token, how in _POISON.items():
        met = (answers.right == token).any(-1)
        if not met.any():
            continue
        if how == "exit":
            os._exit(13)
        if how == "segfault":
            ctypes.string_at(0)
        if how == "hang":
            time.sleep(3600)
        if how == "hold":
            while not Path(_FAULTS["folder"], "gate").exists():
                time.sleep(0.02)
            continue
        if how == "raise":
            raise ArithmeticError("this pair has no metric")
        if how == "break":
            raise KeyError("missing thing")
        values = values.masked_fill(met, float("nan"))
    return values
