"""The search for the pairs that end a worker: it finds them, costs little, and ends."""

from __future__ import annotations

import random

import pytest

from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.scheduling.suspect import HALVINGS, MAX_LEFT_OUT, PAIR_ATTEMPTS, WHOLE_ATTEMPTS, Suspect
from tests.support.scheduler_world import LEFT_OUT, SCORED, World, task, touched


@pytest.mark.parametrize(("row", "n_losses"), [(0, 11), (100, 8), (255, 4)])
def test_one_poison_pair_among_many_costs_few_workers_and_little_work(row: int, n_losses: int) -> None:
    world = World.of(256, 256, poison={row})
    given: list[Assignment] = []
    world.obey()
    while not world.scheduler.finished:
        for worker in list(world.loading):
            world.start(worker)
        world.obey()
        (worker,) = world.ready
        given += world.ready[worker]
        world.finish(worker)
        world.obey()
    assert world.rows(LEFT_OUT) == {row}
    assert world.n_losses == n_losses  # with a half that is clean the other is known to be guilty
    assert len(given) <= 2 * 8 + WHOLE_ATTEMPTS + PAIR_ATTEMPTS
    assert sum(map(len, map(touched, given))) <= 5 * 256


def test_a_pair_that_ended_one_worker_and_survives_the_next_begins_anew() -> None:
    suspect = Suspect(task(0, 1))
    for _ in range(WHOLE_ATTEMPTS):
        assert suspect.next().probe is None
        suspect.lost("node lost")
    for _ in range(2):
        assert suspect.next().probe == (0, 1)
        suspect.lost("node lost")
        assert suspect.next() == Assignment(task(0, 1), probe=(0, 1))
        suspect.survived()
        assert suspect.next() == Assignment(task(0, 1))
        assert suspect.given_up is None
        suspect.lost("node lost")
    assert suspect.given_up is not None  # two searches found nothing


def test_a_task_of_poison_alone_is_given_up_and_says_how_often_it_was_tried() -> None:
    n_pairs = MAX_LEFT_OUT + 4
    suspect = Suspect(task(0, n_pairs))
    while suspect.given_up is None:
        suspect.lost("segfault")
    assert [pair.row for pair in suspect.given_up] == list(range(n_pairs))
    alone = [pair for pair in suspect.given_up if pair.message == "segfault"]
    assert len(alone) == MAX_LEFT_OUT
    assert all(pair.attempts >= WHOLE_ATTEMPTS + PAIR_ATTEMPTS for pair in alone)
    rest = [pair for pair in suspect.given_up if pair not in alone]
    assert all("no worker survived the pairs of rows 0 to 19 together" in pair.message for pair in rest)


def test_the_second_worker_computes_a_task_in_smaller_micro_batches() -> None:
    """The kernel ends a process that runs out of memory without a word; then no pair is searched, and none is lost."""
    world = World.of(8, 8)
    world.obey()
    tried: list[int] = []
    while not world.scheduler.finished:
        for worker in list(world.loading):
            world.start(worker)
        world.obey()
        (worker,) = world.ready
        assert world.ready[worker][0].probe is None
        tried.append(world.ready[worker][0].halvings)
        if tried[-1] == 0:
            world.lose(worker)
        else:
            world.finish(worker)
        world.obey()
    assert tried == [0, HALVINGS]
    assert world.scheduler.stopped is None
    assert not world.rows(LEFT_OUT)


def test_a_task_that_only_kills_whole_ends_the_run_and_costs_no_pair() -> None:
    world = World.of(8, 8)
    world.obey()
    halvings: list[int] = []
    while not world.scheduler.finished:
        for worker in list(world.loading):
            world.start(worker)
        world.obey()
        (worker,) = world.ready
        if world.ready[worker][0].probe is None:
            halvings.append(world.ready[worker][0].halvings)
            world.lose(worker)
        else:
            world.finish(worker)
        world.obey()
    assert not world.rows(LEFT_OUT)
    assert halvings == [0, HALVINGS, 2 * HALVINGS, 3 * HALVINGS]
    assert world.scheduler.stopped is not None
    assert "memory seems to be too short" in world.scheduler.stopped
    assert "rows 0 to 7" in world.scheduler.stopped


def test_suspects_wait_for_what_is_certain_and_are_tried_alone() -> None:
    world = World.of(6, 1, depth=2, poison={0})
    world.run(random.Random(3))
    first = next(i for i, (_, a) in enumerate(world.gone) if a.probe is not None)
    assert world.rows(SCORED) == {1, 2, 3, 4, 5}
    assert {a.task[0].start for _, a in world.gone[first:]} == {0}
