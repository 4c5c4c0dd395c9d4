"""One Ray for all tests of a test process that need workers and no Ray of their own: joined by its address."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.faults import FAULTS_FILE, install_metric, write_faults
from tests.support.forked import ForkedCommand
from tests.support.jobs import (
    COMMAND_SECONDS,
    ROOT,
    Ended,
    attrib_batch,
    environment,
    forker,
    start,
    with_forked_workers,
)
from tests.support.ray_cluster import RayCluster


@dataclass(frozen=True)
class SharedRay:
    """A Ray of one node whose workers go wrong where a test says."""

    cluster: RayCluster
    packages: Path
    """Where the faulty metric is installed, and what is to go wrong is written."""
    variables: dict[str, str]
    """The environment of its nodes, in which workers go wrong."""

    @property
    def options(self) -> tuple[str, str]:
        """The options of a command that joins it."""
        return "--address", self.cluster.gcs_address

    def run(
        self,
        *arguments: str | Path,
        env: dict[str, str] | None = None,
        seconds: float = COMMAND_SECONDS,
        fresh: bool = False,
    ) -> Ended:
        """Run a command whose workers are here; without an environment of faults nothing goes wrong."""
        if env is None:
            write_faults(self.packages)
        env = (env or environment()) | self.cluster.joining
        return attrib_batch(*arguments, *self.options, env=env, seconds=seconds, fresh=fresh)

    def start(self, *arguments: str | Path) -> AbstractContextManager[ForkedCommand]:
        """Start a command whose workers are here; nothing goes wrong by itself."""
        write_faults(self.packages)
        return start(*arguments, *self.options, env=environment() | self.cluster.joining)

    def workers(self, kind: str = "ReplicaWorker") -> list[psutil.Process]:
        """The processes of workers, in the order in which they started."""
        found = []
        for process in forker().processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends while it is looked at
                if "".join(process.cmdline()[:1]).startswith(f"ray::{kind}"):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def wait_until_workers_are_gone(self, seconds: float = 60) -> None:
        """Wait until Ray has ended the workers of a driver that was killed: they meet what is to go wrong next."""
        _, alive = psutil.wait_procs(self.workers(), timeout=seconds)
        assert not alive, f"workers that outlived their driver by {seconds} s: {alive}"


@pytest.fixture(scope="session")
def shared_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedRay]:
    """A Ray of two processors."""
    folder = tmp_path_factory.mktemp("shared-ray")
    packages = folder / "packages"
    install_metric(packages)
    write_faults(packages)
    variables = with_forked_workers(
        {
            "PYTHONPATH": f"{ROOT}:{packages}",
            "TEST_FAULTS_FILE": str(packages / FAULTS_FILE),
            "OMP_NUM_THREADS": "1",
        }
    )
    with RayCluster(folder, head_cpus=2, variables=variables) as cluster:
        yield SharedRay(cluster, packages, variables)
