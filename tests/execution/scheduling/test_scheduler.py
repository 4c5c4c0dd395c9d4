"""The scheduler without Ray: which worker is given what, how many there are, and when a run stops."""

from __future__ import annotations

import random

from attrib_batch.execution.scheduling.scheduler import (
    MAX_FAILED_STARTS,
    MAX_GIVEN_UP_WORKERS,
    MAX_LOSSES_IN_A_ROW,
    Give,
)
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
    assert world.failed_starts <= 2 * MAX_FAILED_STARTS
    assert f"{world.failed_starts} starts of 2 workers failed and none succeeded; the last one said: no room" in (
        world.scheduler.stopped
    )


def test_a_run_of_one_worker_stops_when_it_has_failed_to_start_three_times() -> None:
    world = World.of(4, 1)
    world.obey()
    for _ in range(MAX_FAILED_STARTS):
        assert world.scheduler.stopped is None
        world.fail_to_start(world.loading[0])
        world.obey()
    assert "3 starts of 1 worker failed and none succeeded; the last one said: no room" in str(world.scheduler.stopped)


def test_some_of_many_workers_may_die_before_any_is_ready() -> None:
    world = World.of(1000, 1, n_workers=64)
    world.obey()
    for worker in list(world.loading)[:10]:  # their nodes are taken away
        world.fail_to_start(worker)
        world.obey()
    for _ in range(MAX_FAILED_STARTS - 1):  # one is unlucky
        world.fail_to_start(world.loading[-1])
        world.obey()
    assert world.scheduler.stopped is None
    assert len(world.loading) == 63
    for worker in list(world.loading):
        world.start(worker)
    world.run(random.Random(0))
    assert world.rows(SCORED) == set(range(1000))


def test_what_keeps_every_worker_from_starting_ends_a_run_of_many_soon() -> None:
    world = World.of(1000, 1, n_workers=64)
    world.obey()
    while world.scheduler.stopped is None:
        world.fail_to_start(world.loading[0])  # those that were started first are the first to fail
        world.obey()
    # Every worker fails twice before any fails a third time.
    assert world.failed_starts == 64 * (MAX_FAILED_STARTS - 1) + MAX_GIVEN_UP_WORKERS
    assert f"{world.failed_starts} starts of 64 workers failed" in world.scheduler.stopped


def test_a_worker_that_cannot_start_is_not_replaced_when_the_run_is_to_stop() -> None:
    world = World.of(4, 1)
    world.obey()
    for _ in range(MAX_FAILED_STARTS - 1):
        world.fail_to_start(world.loading[0])
        world.obey()
    world.scheduler.stop()
    world.fail_to_start(world.loading[0])
    world.obey()
    assert not world.loading
    assert world.scheduler.finished
    assert world.scheduler.stopped is None, "it ends since it was asked to"


def test_a_worker_for_which_there_is_no_room_any_more_may_fail_to_start() -> None:
    world = World.of(4, 1, n_workers=2)
    world.obey()
    world.scheduler.want(1)
    for worker in list(world.loading):
        world.fail_to_start(worker)
        world.obey()
    assert len(world.loading) == 1
    world.run(random.Random(0))
    assert world.rows(SCORED) == set(range(4))


def test_a_task_that_fails_as_a_whole_is_done_next_by_a_fresh_worker_and_the_others_in_hand_are_no_suspects() -> None:
    world = World.of(6, 1, depth=2)
    world.obey()
    world.start(0)
    world.obey()
    world.fail_task(0, index=1)
    world.obey()
    assert world.loading == [1]
    world.start(1)
    world.obey()
    held = world.ready[1]
    assert [(a.task[0].start, a.probe, a.left_out) for a in held] == [(1, None, ()), (0, None, ())]
    world.run(random.Random(0))
    assert world.rows(SCORED) == set(range(6))
    assert world.n_losses == 0


def test_a_task_that_fails_on_two_workers_stops_the_run_with_its_exception() -> None:
    world = World.of(6, 1)
    world.obey()
    world.start(0)
    world.obey()
    world.finish(0)
    world.obey()
    world.fail_task(0)
    world.obey()
    assert world.scheduler.stopped is None
    world.start(1)
    world.obey()
    world.fail_task(1)
    world.obey()
    assert world.scheduler.finished
    assert world.scheduler.stopped == (
        "a task failed on 2 workers for a reason that lies in none of its pairs; the last one said: "
        "KeyError: 'missing thing'. What is committed stays; mend the cause and run the same command again."
    )
    assert world.ended == {0: SCORED}


def test_tasks_that_fail_once_each_do_not_stop_the_run() -> None:
    world = World.of(3, 1)
    world.obey()
    for worker in range(3):  # the first task fails, is done, the second fails, and so on
        world.start(worker)
        world.obey()
        if worker > 0:
            world.finish(worker)
            world.obey()
        world.fail_task(worker)
        world.obey()
    world.run(random.Random(0))
    assert world.rows(SCORED) == set(range(3))


def test_a_suspect_that_fails_as_a_whole_stays_a_suspect() -> None:
    world = World.of(2, 2, poison={1})
    world.obey()
    world.start(0)
    world.obey()
    world.finish(0)  # it meets the poison
    world.obey()
    world.start(1)
    world.obey()
    world.fail_task(1)
    world.obey()
    world.run(random.Random(0))
    assert world.rows(SCORED) == {0}
    assert world.n_losses == 2 + 2, "the loss before the failure counts: one more whole attempt, two of the pair alone"


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


def test_a_task_that_comes_back_is_not_given_to_the_worker_of_a_suspect() -> None:
    world = World.of(2, 1, n_workers=2, depth=2)
    world.obey()
    for worker in (0, 1):
        world.start(worker)
    world.obey()
    world.lose(1)
    world.obey()
    world.start(2)
    world.obey()
    assert [a.task[0].start for a in world.ready[2]] == [1], "the suspect waits for no other task"
    world.fail_task(0)
    world.obey()
    assert [a.task[0].start for a in world.ready[2]] == [1]
    world.run(random.Random(0))
    assert world.rows(SCORED) == {0, 1}
