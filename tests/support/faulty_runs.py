"""The job whose runs are made to fail, what it writes when nothing does, and how the two are compared."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from attrib_batch.pairs.making.writer import write_pairs
from tests.support.demo_pairs import random_pairs
from tests.support.faults import METRIC, faulty_environment
from tests.support.forked import FORKER, ForkedCommand
from tests.support.jobs import COMMAND_SECONDS, Ended, TinyJob, attrib_batch, forker, in_words, read_table, start
from tests.support.same_tables import Tables, assert_same_numbers
from tests.support.shared_ray import SharedRay
from tests.support.tiny_models import VOCABULARY

N_PAIRS, CHUNK = 160, 8
RAISES, NAN, EXITS, SEGFAULTS, HANGS = 13, 50, 77, 133, 100
"""Pairs that may harm who meets them, each by an answer that no other pair has."""
ANSWERS = {RAISES: "w117", NAN: "w118", EXITS: "w119", SEGFAULTS: "w116", HANGS: "w115"}


PARTITION = "model=tiny/dataset=random/method=atp"


def poison(how: dict[int, str]) -> dict[int, str]:
    """What becomes of those who meet the answers of these pairs, see ``faulty_metric``."""
    return {VOCABULARY.index(ANSWERS[pair]): what for pair, what in how.items()}


@dataclass(frozen=True)
class Runs:
    """A job, and everything to run it with."""

    job: TinyJob
    shared: SharedRay
    """The Ray of runs that have none of their own."""

    @property
    def packages(self) -> Path:
        """Where the metric is installed."""
        return self.shared.packages

    def write(
        self, file: str = "job.yaml", *, chunk_pairs: int = CHUNK, limit: int = N_PAIRS, **workers: object
    ) -> Path:
        """Write the job file, of all pairs or of the first ones."""
        model = {"id": str(self.job.model), "name": "tiny", "prepend_bos": False, "workers": workers}
        methods = [{"id": "atp", "metric": METRIC}]
        datasets = [{"id": "random", "path": str(self.job.pairs), "limit": limit}]
        return self.job.write(file, models=[model], datasets=datasets, methods=methods, chunk_pairs=chunk_pairs)

    def environment(self, **faults: object) -> dict[str, str]:
        """The environment of a run with these faults, see ``faulty_environment``."""
        return faulty_environment(self.packages, **faults)  # type: ignore[arg-type]  # passed on

    def run(
        self,
        out: Path,
        *options: str,
        env: dict[str, str] | None = None,
        job: Path | None = None,
        seconds: float = COMMAND_SECONDS,
        fresh: bool = False,
    ) -> Ended:
        """Run the job to its end, whatever that is: on the shared Ray, unless the options say ``--local``."""
        arguments = ("run", job or self.write(), "--out", out, *options)
        if "--local" in options:
            return attrib_batch(*arguments, env=env or self.environment(), seconds=seconds)
        return self.shared.run(*arguments, env=env or self.environment(), seconds=seconds, fresh=fresh)

    @contextmanager
    def started(
        self,
        out: Path,
        job: Path | None = None,
        *options: str,
        more_than: int = 2,
        slow: float = 0.05,
        own_ray: bool = False,
        **faults: object,
    ) -> Iterator[ForkedCommand]:
        """A slow run, some of whose chunks are committed: more than a number."""
        env = self.environment(slow=slow, **faults)
        if own_ray:
            env[FORKER] = str(forker().path)
        elif "--local" not in options:
            env |= self.shared.cluster.joining
            options = (*options, *self.shared.options)
        with start("run", job or self.write(), "--out", out, *options, env=env) as driver:
            deadline = time.monotonic() + 120
            while len(committed(out)) <= more_than:
                assert driver.poll() is None, driver.said()
                assert time.monotonic() < deadline, "no chunk was committed"
                time.sleep(0.01)
            yield driver


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, shared_ray: SharedRay) -> Runs:
    """The job, made once."""
    folder = tmp_path_factory.mktemp("job")
    job = TinyJob.make(folder, n_pairs=N_PAIRS)
    rows = in_words(random_pairs(N_PAIRS // 2, 9, 4) + random_pairs(N_PAIRS // 2, 11, 5, seed=1))
    for pair, answer in ANSWERS.items():
        rows[pair] = replace(rows[pair], answers=(f" {answer}",))
    write_pairs(job.pairs, rows, row_group_rows=40)
    return Runs(job, shared_ray)


@pytest.fixture(scope="session")
def undisturbed(runs: Runs) -> Path:
    """What it writes when nothing goes wrong."""
    out = runs.job.folder / "undisturbed"
    ended = runs.run(out, "--local")
    assert ended.code == 0, ended.said
    return out


def committed(out: Path) -> list[Path]:
    """The scores files of the committed chunks."""
    return list(out.glob("scores/**/part-*.parquet"))


def assert_same_tables(out: Path, expected: Path, *, without: set[int] | None = None) -> None:
    """The same rows once each, but for some pairs, which are failures, and the same numbers but for rounding."""
    assert_same_numbers(Tables.read(out), Tables.read(expected, without=without))
    failed = set(read_table(out, "failures")["pair_id"]) if list(out.glob("failures/**/*.parquet")) else set()
    assert failed == (without or set())
