"""The random order in which sampling units are drawn to be verified.

A unit's place in the order depends on the seed and on the unit alone, as permanent random numbers do (Ohlsson 1995,
"Coordination of samples using permanent random numbers"). The first units of the order are therefore a simple random
sample of whatever units there are, also after a run has grown: units that came later take their places among the
others, and those of them that come early are drawn next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from attrib_batch.tables.manifest import VERIFICATION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Unit = tuple[bool, int]
"""A sampling unit: whether it is a pair without a group, and the id of the pair or the number of the group."""

SEED = "seed of the sample"
"""The key under which a verification's identity of a dataset holds the seed."""

_STEP = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def unit_of(pair_id: int, group: int | None) -> Unit:
    """Return the sampling unit of a pair."""
    return (group is None, pair_id if group is None else group)


def pairs_by_unit(groups: Mapping[int, int | None]) -> dict[Unit, set[int]]:
    """Return the pairs of every sampling unit.

    Args:
        groups: the group of each pair, None for a pair without one, by pair id.
    """
    units: dict[Unit, set[int]] = {}
    for pair_id, group in groups.items():
        units.setdefault(unit_of(pair_id, group), set()).add(pair_id)
    return units


def in_random_order(units: Iterable[Unit], seed: int) -> list[Unit]:
    """Return units in the order in which they are drawn."""
    known = sorted(units)
    of_alone, number = (np.array([unit[index] for unit in known], dtype=np.int64) for index in (0, 1))
    start = np.array([(2 * seed + 1) * _STEP & _WORD], dtype=np.uint64)
    drawn = _mixed(_mixed(number.view(np.uint64) ^ _mixed(start)) + of_alone.view(np.uint64))
    return [known[index] for index in np.argsort(drawn, kind="stable").tolist()]


def sample_path(dataset: str) -> str:
    """Return where the table of a dataset's drawn pairs lies in a run's directory."""
    return f"{VERIFICATION}/pairs/{dataset}.parquet"


def _mixed(values: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit numbers, one to one (the finaliser of SplitMix64: Steele, Lea, Flood 2014)."""
    values = values + np.uint64(_STEP)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
