"""How long a worker may finish nothing before it is taken for hung."""

from __future__ import annotations

import random

from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.scheduling.deadlines import Deadlines
from attrib_batch.spec import Cell
from attrib_batch.tables import Chunk
from tests.support.scheduler_world import LONGEST, SCORED, SHORTEST, World, task


def test_a_hung_worker_is_ended_by_the_speed_seen_so_far() -> None:
    world = World.of(40, 10)
    world.obey()
    world.start(0)
    world.obey()
    world.pass_time(LONGEST - 1)  # nothing is known yet
    world.obey()
    assert 0 in world.ready
    world.scheduler.deadlines = Deadlines(SHORTEST, LONGEST)
    world.now = 20.0
    world.finish(0)  # 2 s a pair: 10 times that for 10 pairs
    world.obey()
    world.pass_time(199.0)
    world.obey()
    assert 0 in world.ready
    world.pass_time(1.0)
    world.obey()
    assert 0 not in world.ready
    world.run(random.Random(0))
    assert world.rows(SCORED) == set(range(40))


def test_a_task_that_was_taken_for_hung_is_given_more_time() -> None:
    deadlines = Deadlines(SHORTEST, LONGEST)
    assignment = Assignment(task(0, 10))
    assert deadlines.allowance([assignment]) == LONGEST
    deadlines.learn(assignment, 0.1)
    assert deadlines.allowance([assignment]) == SHORTEST
    assert deadlines.allowance([assignment], hung=1) == 4 * SHORTEST
    assert deadlines.allowance([assignment], hung=9) == LONGEST
    deadlines.learn(assignment, 50.0)
    deadlines.learn(assignment, 0.1)
    assert deadlines.allowance([assignment]) == 500.0  # the slowest counts
    assert deadlines.allowance([assignment, assignment]) == LONGEST
    other = Assignment((Chunk(Cell("model", "dataset", "exact"), 0, 10),))
    assert deadlines.allowance([other]) == LONGEST  # another method has another speed


def test_the_time_a_store_may_take_comes_on_top() -> None:
    deadlines = Deadlines(SHORTEST, LONGEST, patience=7.0)
    assignment = Assignment(task(0, 10))
    assert deadlines.allowance([assignment]) == LONGEST + 7.0
    deadlines.learn(assignment, 0.1)
    assert deadlines.allowance([assignment]) == SHORTEST + 7.0
    assert deadlines.allowance([assignment], hung=9) == LONGEST + 7.0


def test_a_worker_is_given_its_time_anew_with_everything_it_finishes() -> None:
    world = World.of(4, 1, depth=2)
    world.obey()
    world.start(0)
    world.obey()
    world.pass_time(LONGEST - 1)
    world.finish(0)
    world.obey()
    world.pass_time(LONGEST - 1)
    world.obey()
    assert 0 in world.ready
    world.pass_time(1)
    world.obey()
    assert 0 not in world.ready


def test_what_was_taken_for_hung_may_take_longer_the_next_time() -> None:
    world = World.of(2, 1)
    world.obey()
    world.start(0)
    world.obey()
    world.finish(0)
    world.obey()
    world.pass_time(SHORTEST)
    world.obey()
    assert world.loading == [1]
    world.start(1)
    world.obey()
    world.pass_time(4 * SHORTEST - 1)
    world.obey()
    world.finish(1)
    assert world.rows(SCORED) == {0, 1}
