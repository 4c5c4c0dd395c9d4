"""The scheduler without Ray: whatever happens in whatever order, every pair ends once, and budgets hold."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attrib_batch.run.deadlines import Deadlines
from attrib_batch.run.scheduler import (
    MAX_FAILED_STARTS,
    MAX_LOSSES_IN_A_ROW,
    End,
    Give,
    GiveUp,
    Scheduler,
    Start,
)
from attrib_batch.run.suspect import MAX_LEFT_OUT, PAIR_ATTEMPTS, WHOLE_ATTEMPTS, Suspect
from attrib_batch.schema import Cell, Chunk
from attrib_batch.workers.assignment import Assignment, LeftOut

CELL = Cell("model", "dataset", "method")
SHORTEST, LONGEST = 10.0, 1000.0
LEFT_OUT, SCORED, UNREADABLE = "left out", "scored", "unreadable"


def task(start: int, stop: int) -> tuple[Chunk, ...]:
    return (Chunk(CELL, start, stop),)


def tasks_of(n_pairs: int, chunk: int) -> list[tuple[Chunk, ...]]:
    return [task(start, min(start + chunk, n_pairs)) for start in range(0, n_pairs, chunk)]


def touched(assignment: Assignment) -> set[int]:
    """The rows that a worker scores."""
    return set(range(*assignment.rows)) - {pair.row for pair in assignment.left_out}


@dataclass
class World:
    """Workers as the scheduler has them, and what becomes of every row."""

    scheduler: Scheduler
    poison: set[int] = field(default_factory=set)
    """Rows that end any worker that touches them."""
    now: float = 0.0
    loading: list[int] = field(default_factory=list)
    ready: dict[int, list[Assignment]] = field(default_factory=dict)
    gone: list[tuple[int, Assignment]] = field(default_factory=list)
    """What lost workers had in hand."""
    hanging: set[int] = field(default_factory=set)
    ended: dict[int, str] = field(default_factory=dict)
    """What became of each row."""
    lost_alone: dict[int, int] = field(default_factory=dict)
    """Workers lost with one row alone in hand, by row."""
    given_up: set[int] = field(default_factory=set)
    """Rows that were left out as the rest of a hopeless task."""
    n_losses: int = 0
    failed_starts: int = 0

    @classmethod
    def of(
        cls, n_pairs: int, chunk: int, *, n_workers: int = 1, depth: int = 1, poison: set[int] | None = None
    ) -> World:
        deadlines = Deadlines(SHORTEST, LONGEST)
        scheduler = Scheduler(tasks_of(n_pairs, chunk), n_workers=n_workers, deadlines=deadlines, depth=depth)
        return cls(scheduler, poison or set())

    def obey(self) -> None:
        for action in self.scheduler.decide(self.now):
            match action:
                case Start(worker):
                    assert worker not in self.loading
                    assert worker not in self.ready
                    self.loading.append(worker)
                case Give(worker, assignment):
                    held = self.ready[worker]
                    held.append(assignment)
                    assert len(held) <= self.scheduler.depth
                    assert all(not a.left_out and a.probe is None for a in held) or len(held) == 1
                    assert touched(assignment)
                case End(worker, _):
                    self._drop(worker)
                case GiveUp(given_up, pairs):
                    assert {pair.row for pair in pairs} == set(range(given_up[0].start, given_up[0].stop))
                    self.given_up |= {pair.row for pair in pairs if pair.message.endswith("together)")}
                    self._end(pairs, LEFT_OUT)

    def start(self, worker: int) -> None:
        self.loading.remove(worker)
        self.ready[worker] = []
        self.scheduler.worker_ready(worker, self.now)

    def fail_to_start(self, worker: int) -> None:
        self.loading.remove(worker)
        self.failed_starts += 1
        self.scheduler.worker_failed_to_start(worker, "no room", self.now)

    def finish(self, worker: int, index: int = 0) -> None:
        """A worker comes to the end of something it has in hand, or to a pair that ends it."""
        assignment = self.ready[worker][index]
        if touched(assignment) & self.poison:
            self.lose(worker)
            return
        self.ready[worker].pop(index)
        self.scheduler.done(worker, assignment, self.now)
        if assignment.probe is None:
            self._end(assignment.left_out, LEFT_OUT)
            for row in touched(assignment):
                self._end_row(row, SCORED)

    def cannot_read(self, worker: int) -> None:
        assignment = self.ready[worker].pop()
        self.scheduler.cannot_read(worker, assignment, "damaged", self.now)
        for row in range(assignment.task[0].start, assignment.task[0].stop):
            self._end_row(row, UNREADABLE)

    def lose(self, worker: int) -> None:
        self._drop(worker)
        self.scheduler.lost(worker, "gone", self.now)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def run(self, source: random.Random, *, loss: float = 0.0) -> None:
        """Let things happen at random until the scheduler is done."""
        steps = 0
        self.obey()
        while not self.scheduler.finished:
            steps += 1
            assert steps < 100_000, "it does not end"
            busy = [worker for worker, held in self.ready.items() if held and worker not in self.hanging]
            choice = source.choice([*self.loading, *busy, None])
            if choice is None:
                self.pass_time(LONGEST if not busy and not self.loading else 0.1)
            elif choice in self.loading:
                self.start(choice)
            elif source.random() < loss:
                self.lose(choice)
            else:
                self.finish(choice, source.randrange(len(self.ready[choice])))
            self.obey()

    def _drop(self, worker: int) -> None:
        self.hanging.discard(worker)
        if worker in self.loading:
            self.loading.remove(worker)
            self.failed_starts += 1
            return
        held = self.ready.pop(worker)
        self.n_losses += 1
        for assignment in held:
            self.gone.append((worker, assignment))
            if assignment.probe is not None and len(rows := touched(assignment)) == 1:
                (row,) = rows
                self.lost_alone[row] = self.lost_alone.get(row, 0) + 1

    def _end(self, pairs: tuple[LeftOut, ...], how: str) -> None:
        for pair in pairs:
            assert pair.attempts >= WHOLE_ATTEMPTS
            assert pair.message
            self._end_row(pair.row, how)

    def _end_row(self, row: int, how: str) -> None:
        assert row not in self.ended, f"row {row} ended twice"
        self.ended[row] = how

    def rows(self, how: str) -> set[int]:
        return {row for row, ended in self.ended.items() if ended == how}


class AnyOrder(RuleBasedStateMachine):
    """Workers start, fail, finish, die and hang as they like; some rows end any worker."""

    @initialize(
        n_pairs=st.integers(1, 40), chunk=st.integers(1, 12), n_workers=st.integers(1, 3), depth=st.integers(1, 2),
        poison=st.sets(st.integers(0, 39), max_size=6),
    )  # fmt: skip
    def begin(self, n_pairs: int, chunk: int, n_workers: int, depth: int, poison: set[int]) -> None:
        self.n_pairs = n_pairs
        poison = {row for row in poison if row < n_pairs}
        self.world = World.of(n_pairs, chunk, n_workers=n_workers, depth=depth, poison=poison)
        self.n_workers = n_workers
        self.world.obey()

    def busy(self) -> list[int]:
        return [worker for worker, held in self.world.ready.items() if held and worker not in self.world.hanging]

    @precondition(lambda self: self.world.loading)
    @rule(data=st.data())
    def worker_starts(self, data: st.DataObject) -> None:
        self.world.start(data.draw(st.sampled_from(self.world.loading)))
        self.world.obey()

    @precondition(lambda self: self.world.loading)
    @rule(data=st.data())
    def worker_fails_to_start(self, data: st.DataObject) -> None:
        self.world.fail_to_start(data.draw(st.sampled_from(self.world.loading)))
        self.world.obey()

    @precondition(lambda self: self.busy())
    @rule(data=st.data(), last=st.booleans(), seconds=st.floats(0, 5))
    def worker_finishes(self, data: st.DataObject, last: bool, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.world.finish(data.draw(st.sampled_from(self.busy())), -1 if last else 0)
        self.world.obey()

    @precondition(lambda self: self.world.ready)
    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        self.world.lose(data.draw(st.sampled_from(sorted(self.world.ready))))
        self.world.obey()

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def worker_hangs(self, data: st.DataObject) -> None:
        self.world.hanging.add(data.draw(st.sampled_from(self.busy())))

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def pairs_cannot_be_read(self, data: st.DataObject) -> None:
        self.world.cannot_read(data.draw(st.sampled_from(self.busy())))
        self.world.obey()

    @rule(seconds=st.sampled_from([SHORTEST, LONGEST]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.world.obey()
        if seconds == LONGEST:
            assert not self.world.hanging, "a worker that hangs was not ended"

    @precondition(lambda self: self.world.gone)
    @rule(data=st.data())
    def a_lost_worker_is_heard_of_late(self, data: st.DataObject) -> None:
        worker, assignment = data.draw(st.sampled_from(self.world.gone))
        self.world.scheduler.done(worker, assignment, self.world.now)
        self.world.scheduler.lost(worker, "gone", self.world.now)
        self.world.obey()

    @rule()
    def stop_is_asked_for(self) -> None:
        self.world.scheduler.stop_asked()
        self.world.obey()

    @invariant()
    def there_are_never_more_workers_than_asked_for(self) -> None:
        if hasattr(self, "world"):
            assert len(self.world.loading) + len(self.world.ready) <= self.n_workers

    @invariant()
    def only_what_ended_workers_alone_is_left_out(self) -> None:
        if hasattr(self, "world"):
            for row in self.world.rows(LEFT_OUT) - self.world.given_up:
                assert self.world.lost_alone.get(row, 0) >= PAIR_ATTEMPTS

    def teardown(self) -> None:
        """From any state it comes to an end when nothing more goes wrong than poison does."""
        if not hasattr(self, "world"):
            return
        self.world.run(random.Random(0))
        scheduler = self.world.scheduler
        if scheduler.stopped is not None:
            assert self.world.failed_starts >= MAX_FAILED_STARTS or self.world.n_losses >= MAX_LOSSES_IN_A_ROW
        elif not scheduler.stopping:
            assert set(self.world.ended) == set(range(self.n_pairs))
            assert self.world.poison <= self.world.rows(LEFT_OUT) | self.world.rows(UNREADABLE)
        assert len(scheduler.unreadable) == len({t for t, _ in scheduler.unreadable})


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


@settings(deadline=None)
@given(
    n_pairs=st.integers(1, 120),
    chunk=st.integers(1, 64),
    n_workers=st.integers(1, 4),
    depth=st.integers(1, 3),
    poison=st.sets(st.integers(0, 119), max_size=8),
    seed=st.integers(0, 999),
)
def test_exactly_the_poison_is_left_out_in_any_order(  # noqa: PLR0917 - hypothesis names them
    n_pairs: int, chunk: int, n_workers: int, depth: int, poison: set[int], seed: int
) -> None:
    poison = {row for row in poison if row < n_pairs}
    world = World.of(n_pairs, chunk, n_workers=n_workers, depth=depth, poison=poison)
    world.run(random.Random(seed))
    assert world.rows(LEFT_OUT) == poison
    assert world.rows(SCORED) == set(range(n_pairs)) - poison


@settings(deadline=None)
@given(loss=st.floats(0, 1), n_workers=st.integers(1, 3), seed=st.integers(0, 999))
def test_it_ends_however_many_workers_are_lost(loss: float, n_workers: int, seed: int) -> None:
    world = World.of(60, 10, n_workers=n_workers, depth=2)
    world.run(random.Random(seed), loss=loss)
    assert world.scheduler.stopped is not None or set(world.ended) == set(range(60))


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


def test_a_run_in_which_nothing_is_ever_finished_stops() -> None:
    world = World.of(1000, 1)
    world.run(random.Random(0), loss=1.0)
    assert world.scheduler.stopped is not None
    assert "40 workers in a row were lost before they finished anything; the last one said: gone" in (
        world.scheduler.stopped
    )
    assert world.n_losses == MAX_LOSSES_IN_A_ROW
    assert not world.ended


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


def test_a_task_that_only_kills_whole_is_given_up() -> None:
    world = World.of(8, 8)
    world.obey()
    while not world.scheduler.finished:
        for worker in list(world.loading):
            world.start(worker)
        world.obey()
        (worker,) = world.ready
        if world.ready[worker][0].probe is None:
            world.lose(worker)
        else:
            world.finish(worker)
        world.obey()
    assert world.rows(LEFT_OUT) == set(range(8))
    assert world.n_losses <= 5


def test_suspects_wait_for_what_is_certain_and_are_tried_alone() -> None:
    world = World.of(6, 1, depth=2, poison={0})
    world.run(random.Random(3))
    first = next(i for i, (_, a) in enumerate(world.gone) if a.probe is not None)
    assert world.rows(SCORED) == {1, 2, 3, 4, 5}
    assert {a.task[0].start for _, a in world.gone[first:]} == {0}


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
