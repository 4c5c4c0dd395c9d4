"""A Ray cluster on loopback: a head without CPUs, nodes that come and go, and token authentication."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support.forked import FORKER
from tests.support.jobs import forker
from tests.support.ports import LOOPBACK, N_WORKER_PORTS, RAY_PORTS, free_ports, listens
from tests.support.processes import Guard, Service, end, members_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

START_SECONDS = 90
HEAD_ALONE = {"port", "ray-client-server-port", "dashboard-port"}
"""The ports that a head listens on and other nodes do not."""
STARTED = "Ray runtime started"
"""What a node prints when all of it is there: it listens before the head knows of it."""
OBJECT_STORE_BYTES = 100 << 20
JOIN = """
import ray._private.services as services
services.resolve_ip_for_localhost = lambda host: host
from ray.scripts.scripts import main
main()
"""
"""The ``ray`` command of a node that joins: by itself it puts the machine's own address in the place of 127.0.0.1, and
listens there; the variable that keeps the head from doing so makes it refuse to join."""


class RayCluster:
    """Every process is a service of its own: killing one with all it started is the loss of a node."""

    def __init__(
        self,
        folder: Path,
        *,
        head_cpus: int = 0,
        dashboard: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Take what the cluster is to be like.

        Args:
            folder: for logs.
            head_cpus: the processors of the head.
            dashboard: with a dashboard, to which jobs are submitted.
            variables: variables of every node's environment; those of ``with_forked_workers`` among them, or workers
                are started as always.
        """
        self._folder = folder
        self._head_cpus = head_cpus
        self._dashboard = dashboard
        self._variables = dict(variables or {})
        self._temporary: dict[str, Path] = {}
        self._nodes: dict[str, Service] = {}
        self._n_started = 0
        self._stopping = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Short, since the paths of Ray's sockets have to stay below 108 bytes.
            self._ray_folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-")))
            self._guard = Guard()
            stack.callback(self._guard.dismiss)
            stack.callback(self._end_all)
            token = self._ray_folder / "token"
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32), encoding="ascii")
            self.credentials = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
            ports = _take_ports(RAY_PORTS)
            self.gcs_address, self.address = (
                f"{LOOPBACK}:{ports['port']}",
                f"http://{LOOPBACK}:{ports['dashboard-port']}",
            )
            head = self._start(
                "head",
                ports,
                "--head",
                f"--num-cpus={self._head_cpus}",
                f"--include-dashboard={str(self._dashboard).lower()}",
                f"--dashboard-host={LOOPBACK}",
                "--no-monitor",
                "--include-log-monitor=false",
            )
            if self._dashboard:
                head.wait_until(lambda: listens(ports["dashboard-port"]), START_SECONDS)
            self._stopping = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.close()

    @property
    def joining(self) -> dict[str, str]:
        """The variables of a driver that joins at ``gcs_address``, from which Ray would else make the machine's own."""
        return self.credentials | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

    def add_node(self, cpus: int = 2, gpus: int = 0, **resources: float) -> str:
        """Start another node, which may state GPUs that it does not have.

        Returns:
            Its name.
        """
        self._n_started += 1
        name = f"node-{self._n_started}"
        ports = _take_ports([port for port in RAY_PORTS if port not in HEAD_ALONE])
        self._start(
            name,
            ports,
            f"--address={self.gcs_address}",
            f"--num-cpus={cpus}",
            f"--num-gpus={gpus}",
            f"--resources={json.dumps(resources)}",
        )
        return name

    def kill_node(self, name: str) -> None:
        """Kill a node's processes, the workers on it included."""
        service, forked = self._nodes.pop(name), self._forked(name)
        for process in forked:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        end([service])
        for process in forked:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._guard.release(service)

    def processes(self, name: str) -> list[psutil.Process]:
        """A node's processes, its raylet and its workers among them."""
        return members_of({self._nodes[name].process.pid}) + self._forked(name)

    def _forked(self, name: str) -> list[psutil.Process]:
        """The workers of a node that are forked: they are no descendants of its raylet."""
        return forker().forked_for(self._temporary[name]) if FORKER in self._variables else []

    def listening(self) -> set[str]:
        """The addresses that the cluster's processes listen on."""
        leaders = {service.process.pid for service in self._nodes.values()}
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(process.pid) in leaders:
                    sockets = process.net_connections(kind="inet")
                    found |= {
                        each.laddr.ip.removeprefix("::ffff:") for each in sockets if each.status == psutil.CONN_LISTEN
                    }
        return found

    def ray(self, *arguments: str) -> list[str]:
        """The command line of ``ray``."""
        return [str(Path(sys.executable).parent / "ray"), *arguments]

    def _start(self, name: str, ports: Mapping[str, int], *options: str) -> Service:
        worker_ports = free_ports(N_WORKER_PORTS)
        joins = "--head" not in options
        # Of its own, as on a machine of its own: a node that unpacks a job's folder replaces one that is there.
        temporary = self._ray_folder / str(len(list(self._ray_folder.iterdir())))
        temporary.mkdir()
        self._temporary[name] = temporary
        service = Service.start(
            name,
            [
                *([sys.executable, "-c", JOIN] if joins else self.ray()),
                "start",
                "--block",
                f"--node-ip-address={LOOPBACK}",
                *(f"--{option}={port}" for option, port in ports.items()),
                f"--worker-port-list={','.join(map(str, worker_ports))}",
                f"--temp-dir={temporary}",
                f"--object-store-memory={OBJECT_STORE_BYTES}",
                "--disable-usage-stats",
                *options,
            ],
            environment=self._environment() | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1" if joins else "0"},
            folder=self._folder,
        )
        self._nodes[name] = service
        self._guard.watch(service)
        service.wait_until(lambda: STARTED in service.log.read_text(errors="replace"), START_SECONDS)
        return service

    def _environment(self) -> dict[str, str]:
        """No PYTHONPATH that leads to the package: what jobs run has to come with them."""
        return {
            **{name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self._folder),
            "HF_HUB_OFFLINE": "1",
            # On a machine that others fill, Ray would kill the workers.
            "RAY_memory_monitor_refresh_ms": "0",
            **self.credentials,
            **self._variables,
        }

    def _end_all(self) -> None:
        end(self._nodes.values())
        self._nodes.clear()


def _take_ports(names: Sequence[str]) -> dict[str, int]:
    return dict(zip(names, free_ports(len(names)), strict=True))
