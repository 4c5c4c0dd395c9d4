"""The scheduler without Ray: which worker is given what, how many there are, and when a run stops."""

from __future__ import annotations

import random

from attrib_batch.run.scheduler import MAX_FAILED_STARTS, MAX_LOSSES_IN_A_ROW, Give
from tests.support.scheduler_world import SCORED, World


def test_a_run_in_which_nothing_is_ever_finished_stops() -> None:
    world = World.of(1000, 1)
    world.run(random.Random(0), loss=1.0)
    assert world.scheduler.stopped is not None
    assert "40 workers in a row were lost before they finished anything; the last one said: gone" in (
        world.scheduler.stopped
    )
    assert world.n_losses == MAX_LOSSES_IN_A_ROW
    assert not world.ended


def test_tasks_go_to_the_least_busy_worker() -> None:
    world = World.of(4, 1, n_workers=2, depth=2)
    world.obey()
    for worker in (0, 1):
        world.start(worker)
    given = [(a.worker, a.assignment.task[0].start) for a in world.scheduler.decide(0.0) if isinstance(a, Give)]
    assert given == [(0, 0), (1, 1), (0, 2), (1, 3)]


def test_no_more_workers_are_started_than_there_are_tasks() -> None:
    world = World.of(2, 1, n_workers=5)
    world.obey()
    assert world.loading == [0, 1]


def test_workers_that_never_start_stop_the_run_with_their_error() -> None:
    world = World.of(4, 1, n_workers=2)
    world.obey()
    while world.scheduler.stopped is None:
        world.fail_to_start(world.loading[0])
        world.obey()
    assert "3 workers in a row could not start; the last one said: no room" in world.scheduler.stopped


def test_a_replacement_that_does_not_start_leaves_the_others_at_work() -> None:
    world = World.of(4, 1, n_workers=2)
    world.obey()
    for worker in (0, 1):
        world.start(worker)
    world.obey()
    world.lose(1)
    world.obey()
    for _ in range(MAX_FAILED_STARTS):
        world.fail_to_start(world.loading[0])
        world.obey()
    assert not world.loading
    world.run(random.Random(0))
    assert world.rows(SCORED) == set(range(4))


def test_more_workers_are_started_when_there_is_room_and_lost_ones_are_not_when_there_is_none() -> None:
    world = World.of(n_pairs=40, chunk=2, n_workers=1)
    world.obey()
    assert world.loading == [0]
    world.scheduler.want(3)
    world.obey()
    assert world.loading == [0, 1, 2]
    for worker in (0, 1, 2):
        world.start(worker)
    world.scheduler.want(1)
    world.obey()
    assert set(world.ready) == {0, 1, 2}  # nobody is sent away who has a place
    for worker in (1, 2):
        world.lose(worker)
    world.obey()
    assert (set(world.ready), world.loading) == ({0}, [])
    world.lose(0)
    world.obey()
    assert (set(world.ready), world.loading) == (set(), [3])
