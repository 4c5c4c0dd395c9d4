"""Moments: additive sums of a chunk's scores, from which every mean, spread and standard error follows.

They are committed beside the scores, so that no summary has to read a score again. Of the pairs that have a value at a
key (a head at the last position, say), with values x_i, in units g (see below):

- ``n`` pairs, their ``mean`` m, and ``m2`` = sum_i (x_i - m)^2;
- ``units`` of them, of k_g pairs each, with d_g = sum_{i in g} (x_i - m): ``q`` = sum d_g^2, ``r`` = sum d_g k_g and
  ``k2`` = sum k_g^2, for cluster-robust standard errors (Liang & Zeger 1986);
- with the gap y_i = clean - corrupted metric of *all* K_g pairs of a unit in the chunk, their mean M, and
  e_g = sum_{i in g} (y_i - M): ``cross`` = sum d_g e_g, ``r_all`` = sum d_g K_g, ``r_gap`` = sum e_g k_g and ``k_all``
  = sum k_g K_g, for the covariance of a mean with the mean gap, by which it is normalised;
- ``positive``, the pairs with a value above 0; ``min`` and ``max``, and the pairs that have them.

Every sum is kept relative to the mean of its own chunk and shifted when chunks are merged (Chan, Golub, LeVeque 1983),
so that neither many chunks nor a mean far from 0 cost precision; of a sum as many bits are kept as that needs (see
`attrib_batch.tables.sums`). A *unit* is what was sampled: all pairs of one
``group`` (a pair and its mirror), or one pair without a group.
"""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa


class Scope(StrEnum):
    """Which scores of a pair are added to its value: the ``scope`` column of moments and summaries."""

    ROLE = "role"
    """Those at the positions of a role's span."""
    LAST = "last"
    """That at the last position."""
    ALL = "all"
    """Those at every position that has a row."""
    POSITION = "position"
    """Those of every head at one position, counted from the first."""
    FROM_END = "from_end"
    """Those of every head at one position, counted back from the last, which is -1."""


_name = pa.dictionary(pa.int32(), pa.string())
_SUMS = [
    pa.field("n", pa.int64(), nullable=False),
    pa.field("mean", pa.float64(), nullable=False),
    pa.field("m2", pa.float64(), nullable=False),
    pa.field("units", pa.int64(), nullable=False),
    pa.field("q", pa.float64(), nullable=False),
    pa.field("r", pa.float64(), nullable=False),
    pa.field("k2", pa.float64(), nullable=False),
    pa.field("positive", pa.int64(), nullable=False),
]
_GAP_SUMS = [
    pa.field("gap", pa.float64(), nullable=False),  # M: the mean gap of all pairs of the chunk
    pa.field("cross", pa.float64(), nullable=False),
    pa.field("r_all", pa.float64(), nullable=False),
    pa.field("r_gap", pa.float64(), nullable=False),
    pa.field("k_all", pa.float64(), nullable=False),
]

MOMENTS = pa.schema(
    [
        pa.field("component", _name, nullable=False),
        pa.field("scope", _name, nullable=False),  # a Scope
        pa.field("role", _name),  # the role's name where scope is role
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("head", pa.int16()),  # null without heads, and where heads are added up
        pa.field("position", pa.int32()),  # where scope is position or from_end
        *_SUMS,
        *_GAP_SUMS,
        pa.field("min", pa.float64(), nullable=False),  # metric units
        pa.field("max", pa.float64(), nullable=False),
        pa.field("min_pair", pa.int64(), nullable=False),  # the pair_id that has it, the smallest of several
        pa.field("max_pair", pa.int64(), nullable=False),
    ]
)
"""One row per (component, scope, role, layer, head, position) of a chunk."""

STRATA = pa.schema(
    [
        pa.field("kind", _name, nullable=False),  # a StratumKind
        pa.field("stratum", _name, nullable=False),  # the template's or the task's name
        pa.field("component", _name, nullable=False),
        pa.field("scope", _name, nullable=False),  # last or all
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("head", pa.int16()),
        # Without m2: with a few pairs of each of many templates in a chunk, every sum here weighs on its bytes.
        *(field for field in _SUMS if field.name != "m2"),
    ]
)
"""The same of the pairs of each template and of each task, of a chunk."""


class StratumKind(StrEnum):
    """What pairs are divided by: the ``kind`` column of strata."""

    TEMPLATE = "template"
    TASK = "task"
