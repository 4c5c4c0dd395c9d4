"""The scheduler without Ray: whatever happens in whatever order, every pair ends once, and budgets hold."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attrib_batch.execution.scheduling.scheduler import MAX_FAILED_STARTS, MAX_LOSSES_IN_A_ROW, TASK_ATTEMPTS
from attrib_batch.execution.scheduling.suspect import PAIR_ATTEMPTS
from tests.support.scheduler_world import LEFT_OUT, LONGEST, SCORED, SHORTEST, UNREADABLE, World


class AnyOrder(RuleBasedStateMachine):
    """Workers start, fail, finish, die and hang as they like, and room comes and goes; some rows end any worker."""

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

    @precondition(lambda self: self.busy())
    @rule(data=st.data(), last=st.booleans())
    def a_task_fails(self, data: st.DataObject, last: bool) -> None:
        worker = data.draw(st.sampled_from(self.busy()))
        index = -1 if last else 0
        if self.world.ready[worker][index].probe is None:
            self.world.fail_task(worker, index)
            self.world.obey()

    @rule(n_workers=st.integers(1, 4))
    def room_changes(self, n_workers: int) -> None:
        self.n_workers = max(self.n_workers, n_workers)
        self.world.scheduler.want(n_workers)
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
        self.world.scheduler.stop()
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
            assert (
                self.world.failed_starts >= MAX_FAILED_STARTS
                or self.world.n_losses >= MAX_LOSSES_IN_A_ROW
                or max(self.world.failed_tasks.values(), default=0) == TASK_ATTEMPTS
            )
        elif not scheduler.stopping:
            assert set(self.world.ended) == set(range(self.n_pairs))
            assert self.world.poison <= self.world.rows(LEFT_OUT) | self.world.rows(UNREADABLE)
        assert len(scheduler.unreadable) == len({t for t, _ in scheduler.unreadable})


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=120, stateful_step_count=50)


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


@given(loss=st.floats(0, 1), n_workers=st.integers(1, 3), seed=st.integers(0, 999))
def test_it_ends_however_many_workers_are_lost(loss: float, n_workers: int, seed: int) -> None:
    world = World.of(60, 10, n_workers=n_workers, depth=2)
    world.run(random.Random(seed), loss=loss)
    assert world.scheduler.stopped is not None or set(world.ended) == set(range(60))
