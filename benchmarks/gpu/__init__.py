"""``python -m benchmarks.gpu``: the engine on one GPU, beside other ways to the same scores and beside the card's peak.

Everything it needs is made here: models with random weights in the shapes of real ones, and pairs of random tokens.
"""

from __future__ import annotations

import os

from attrib_batch.models.devices import set_up_allocator

# Before torch is imported, as workers do.
set_up_allocator(os.environ)
