"""What of a run is measured exactly, to check its estimates."""

from __future__ import annotations

from pydantic import Field

from attrib_batch.spec.positions import AtPositions

DEFAULT_VERIFIED_PAIRS = 32


class VerificationSpec(AtPositions):
    """A sample of pairs that is measured by activation patching once all pairs are scored."""

    pairs: int = Field(
        DEFAULT_VERIFIED_PAIRS, ge=1, description="pairs to measure from each dataset; a pair comes with its mirror"
    )
    seed: int = Field(0, description="the same seed samples the same pairs")
