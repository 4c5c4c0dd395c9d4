"""The random order in which units are drawn."""

from __future__ import annotations

import numpy as np
from scipy import stats

from attrib_batch.tables.sampling import in_random_order, pairs_by_unit, unit_of

UNITS = [unit_of(pair_id, None if pair_id % 3 else pair_id // 2) for pair_id in range(60)]


def test_pairs_of_a_group_are_one_unit_and_a_pair_without_one_is_its_own() -> None:
    assert pairs_by_unit({0: 1, 1: None, 2: 1, 3: 7}) == {(False, 1): {0, 2}, (True, 1): {1}, (False, 7): {3}}


def test_the_order_is_one_of_all_units_and_the_seed_alone_changes_it() -> None:
    order = in_random_order(UNITS, 3)
    assert sorted(order) == sorted(UNITS)
    assert in_random_order(reversed(UNITS), 3) == order
    assert in_random_order(UNITS, -4) != order
    assert in_random_order([], 3) == []


def test_units_that_come_later_take_their_places_among_the_others() -> None:
    order = in_random_order(UNITS, 5)
    assert in_random_order(UNITS[:25], 5) == [unit for unit in order if unit in UNITS[:25]]


def test_every_unit_is_as_likely_to_be_drawn_first_whatever_its_number() -> None:
    units = [(True, number) for number in range(20)]
    orders = [in_random_order(units, seed) for seed in range(2000)]
    places = np.array([[order.index(unit) for unit in units] for order in orders])
    first = np.bincount(places.argmin(axis=1), minlength=20)
    assert stats.chisquare(first).pvalue > 0.001
    # Of neighbours neither tends to be drawn with the other.
    together = np.corrcoef((places < 10).astype(float), rowvar=False)
    assert np.abs(together[~np.eye(20, dtype=bool)] + 1 / 19).max() < 5 / np.sqrt(2000)
