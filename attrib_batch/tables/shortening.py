"""Leave out the digits of sums that no summary shows, which most of a sum's bytes in a file would hold."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

LEFT_OUT_BITS = 16
"""Of the 53 bits of a sum's significand. They are at most 4e-12 of it, far below the 1e-9 to which summaries of
differently cut chunks agree, and two bytes of zeros take no place in a file."""

_SUMS = ("m2", "q", "r", "cross", "r_all")


def shortened(sums: pa.Table) -> pa.Table:
    """Round the means and sums of a table of the schema `MOMENTS` or `STRATA`.

    Sums keep 37 bits. A mean keeps as many of itself and of the spread: chunks are merged by how far their means lie
    apart, which their spread measures, and a mean far from 0 must not lose it.
    """
    n, mean = (sums[name].to_numpy().astype(np.float64) for name in ("n", "mean"))
    squares = sums["m2" if "m2" in sums.column_names else "q"].to_numpy()
    rounded = {"mean": _rounded_mean(mean, np.sqrt(squares / n))}
    rounded |= {name: _rounded(sums[name].to_numpy()) for name in _SUMS if name in sums.column_names}
    for name, values in rounded.items():
        place = sums.schema.get_field_index(name)
        sums = sums.set_column(place, sums.schema.field(place), pa.array(values))
    return sums


def _rounded(sums: np.ndarray) -> np.ndarray:
    """Round each number to the bits that are kept of it."""
    bits = sums.view(np.int64) + (1 << (LEFT_OUT_BITS - 1))
    return (bits & -(1 << LEFT_OUT_BITS)).view(np.float64)


def _rounded_mean(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Round means to a power of two."""
    size = np.minimum(np.abs(mean), spread)
    step = np.ldexp(1.0, np.frexp(size)[1] - (53 - LEFT_OUT_BITS))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rounded = np.rint(mean / step) * step
    # Not where nothing varies, nor where a number is so small that there are no smaller steps.
    return np.where((size > 0) & (step > 0), rounded, mean)
