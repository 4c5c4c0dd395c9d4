"""A real NDIF server on loopback: redis, an object store, Ray with a controller and model actors, and the API."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support.ndif_environment import moto_environment, ndif_environment
from tests.support.ports import LOOPBACK, N_WORKER_PORTS, RAY_PORTS, free_ports, listens
from tests.support.processes import Guard, Service, end
from tests.support.require import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

START_SECONDS, DEPLOY_SECONDS, REQUEST_SECONDS = 120, 240, 10
ACTOR_MODULE = Path(__file__).parent / "ndif_model_actor.py"
WRAPPER = "nnsight.modeling.transformers.TransformersModel"

RAY_RESOURCES = {"head": 10, "cuda_memory_bytes": 4 << 30, "cpu_memory_bytes": 4 << 30}
"""NDIF leaves out nodes without GPU memory; this much is declared, and none is there."""

LARGEST_API_FILE = 400_000
"""In blocks of 512 bytes."""


class NdifServer:
    """A server of the models in some folders, each by a name.

    What its processes print is in ``folder``, in a file per process, and when it has stopped also Ray's own logs.
    """

    def __init__(self, folder: Path, models: Mapping[str, Path]) -> None:
        self._folder = folder
        self._models = dict(models)
        names = ("redis", "store", "api", "dashboard-metrics", *RAY_PORTS)
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._services: dict[str, Service] = {}
        self._stopping = ExitStack()
        self.url = f"http://{LOOPBACK}:{self._ports['api']}"
        self.object_store_url = f"http://{LOOPBACK}:{self._ports['store']}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start every process and deploy the models."""
        self._bin = ndif_environment() / "bin"
        moto_server = moto_environment() / "bin/moto_server"
        with ExitStack() as stack:
            # Elsewhere than the logs: the paths of Ray's sockets have to stay below 108 bytes.
            self._ray_folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ndif-")))
            stack.callback(self._keep_ray_logs)
            self._guard = Guard()
            stack.callback(self._guard.dismiss)
            stack.callback(self._end_all)
            self._environment = self._make_environment()

            redis = self._start("redis", "redis-server", *self._redis_options())
            moto = self._start("moto", moto_server, "-H", LOOPBACK, "-p", str(self._ports["store"]))
            ray = self._start("ray", self._bin / "ray", "start", "--head", "--block", *self._ray_options())
            redis.wait_until(lambda: listens(self._ports["redis"]), START_SECONDS)
            moto.wait_until(lambda: listens(self._ports["store"]), START_SECONDS)
            api = self._start_api()  # meanwhile: it waits for Ray and the controller by itself
            ray.wait_until(lambda: listens(self._ports["ray-client-server-port"]), START_SECONDS)
            self._run(
                "controller",
                self._bin / "python",
                "-m",
                "ndif.services.ray.deployments.controller.controller",
                seconds=START_SECONDS,
                NDIF_SERVICE="ray",
                RAY_ADDRESS=f"{LOOPBACK}:{self._ports['port']}",
            )
            self._deploy(*(_deployment(folder) for folder in self._models.values()))
            api.wait_until(self._connected, START_SECONDS)
            self._stopping = stack.pop_all()

    def stop(self) -> None:
        """End every process."""
        self._stopping.close()

    def model_folder(self, name: str) -> Path:
        """Where a deployed model was loaded from."""
        return self._models[name]

    def model_key(self, name: str) -> str:
        """The key that requests to a deployed model carry."""
        return _model_key(self._models[name])

    def deploy(self, name: str, folder: Path, execution_timeout_seconds: float | None = None) -> None:
        """Deploy one more model; each takes a process of its own."""
        if name in self._models:
            raise ValueError(f"there is a model called {name!r}")
        self._deploy(_deployment(folder) | {"execution_timeout_seconds": execution_timeout_seconds})
        self._models[name] = folder

    def stop_api(self) -> None:
        """Kill the API and its dispatcher; models and stored results stay."""
        self._end_one("api")

    def start_api(self) -> None:
        """Start the API again, on the same port."""
        # The killed dispatcher's word that it is connected; a new one would only take it back when it has started.
        with socket.create_connection((LOOPBACK, self._ports["redis"]), REQUEST_SECONDS) as redis:
            redis.sendall(b"DEL ray:connected\r\n")
            redis.recv(64)
        self._start_api().wait_until(self._connected, START_SECONDS)

    def jobs_received(self) -> list[str]:
        """The ids of all jobs that the API has accepted, in order; stops of the API do not matter."""
        log = (self._folder / "api.log").read_text(encoding="utf-8", errors="replace")
        return re.findall(r"\[ndif\.request\] Your job has been received .*\brequest_id=(\w+)", log)

    def _start(self, name: str, *command: str | Path, **environment: str) -> Service:
        service = Service.start(name, command, environment=self._environment | environment, folder=self._folder)
        self._services[name] = service
        self._guard.watch(service)
        return service

    def _run(self, name: str, *command: str | Path, seconds: float, **environment: str) -> None:
        service = self._start(name, *command, **environment)
        try:
            service.wait_for_success(seconds)
        finally:
            self._end_one(name)

    def _end_one(self, name: str) -> None:
        service = self._services.pop(name)
        end([service])
        self._guard.release(service)

    def _end_all(self) -> None:
        end(self._services.values())
        self._services.clear()

    def _keep_ray_logs(self) -> None:
        for logs in self._ray_folder.glob("session_2*/logs"):
            shutil.move(logs, self._folder / "ray-logs")

    def _make_environment(self) -> dict[str, str]:
        """What every process gets; of this process's environment only what has nothing to do with NDIF or Ray."""
        modules = self._folder / "modules"
        modules.mkdir(parents=True)
        shutil.copy(ACTOR_MODULE, modules)
        token = self._ray_folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        return {
            **{name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ},
            "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self._folder),
            "PYTHONPATH": str(modules),
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            # Otherwise Ray puts the machine's own address in the place of 127.0.0.1.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # On a machine that others fill, Ray would kill the model actors.
            "RAY_memory_monitor_refresh_ms": "0",
            # A fixed port otherwise, and one among those of outgoing connections.
            "DASHBOARD_METRIC_PORT": str(self._ports["dashboard-metrics"]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "NDIF_REDIS_URL": f"redis://{LOOPBACK}:{self._ports['redis']}",
            "NDIF_OBJECT_STORE_URL": self.object_store_url,
            "NDIF_OBJECT_STORE_ACCESS_KEY": "test",
            "NDIF_OBJECT_STORE_SECRET_KEY": "testtest",
            "NDIF_API_PORT": str(self._ports["api"]),
            "NDIF_API_URL": self.url,
            "NDIF_RAY_ADDRESS": f"ray://{LOOPBACK}:{self._ports['ray-client-server-port']}",
            "NDIF_DEFAULT_MODEL_ACTOR_CLASS": f"{ACTOR_MODULE.stem}.CpuModelActor",
            "NDIF_DEFAULT_DTYPE": "float32",
            "NDIF_DEFAULT_PADDING_BIAS": "0",
            "NDIF_AUTOSCALING_MAX_REPLICAS": "1",
        }

    def _redis_options(self) -> list[str]:
        return ["--bind", LOOPBACK, "--port", str(self._ports["redis"]), "--save", "", "--appendonly", "no"]

    def _ray_options(self) -> list[str]:
        return [
            f"--node-ip-address={LOOPBACK}",
            f"--dashboard-host={LOOPBACK}",
            *(f"--{option}={self._ports[option]}" for option in RAY_PORTS),
            f"--worker-port-list={','.join(map(str, free_ports(N_WORKER_PORTS)))}",
            f"--temp-dir={self._ray_folder}",
            "--num-cpus=8",
            "--num-gpus=1",
            f"--resources={json.dumps(RAY_RESOURCES)}",
            f"--object-store-memory={200 << 20}",
            "--no-monitor",
            "--include-log-monitor=false",
            "--disable-usage-stats",
        ]

    def _start_api(self) -> Service:
        gunicorn = [self._bin / "gunicorn", "--config", "python:ndif.services.api.gunicorn_conf"]
        return self._start(
            "api",
            # Without redis the dispatcher complains without a pause; its log must not fill the disk.
            *("sh", "-c", f'ulimit -f {LARGEST_API_FILE} && exec "$@"', "sh"),
            # By itself the configuration binds every address.
            *(*gunicorn, "--bind", f"{LOOPBACK}:{self._ports['api']}", "--no-control-socket"),
            "ndif.services.api.app:app",
            NDIF_SERVICE="api",
        )

    def _connected(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self._ports["api"], timeout=REQUEST_SECONDS)
        try:
            connection.request("GET", "/connected")
            return connection.getresponse().status == http.HTTPStatus.OK
        finally:
            connection.close()

    def _deploy(self, *deployments: dict[str, object]) -> None:
        file = self._folder / "models.yaml"
        file.write_text(yaml.safe_dump({"models": list(deployments)}), encoding="utf-8")
        self._run("deploy", self._bin / "ndif", "deploy", "-f", file, seconds=DEPLOY_SECONDS)


def _model_key(folder: Path) -> str:
    identity = {"repo_id": str(folder), "revision": None, "task": "text-generation"}
    return f"{WRAPPER}:{json.dumps(identity)}"


def _deployment(folder: Path) -> dict[str, object]:
    return {
        "checkpoint": str(folder),
        "model_key": _model_key(folder),
        "size_bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "dtype": "float32",
        "pinned": True,
    }


@pytest.fixture(scope="session")
def ndif_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NdifServer]:
    """A server of a tiny GPT-2 (``gpt2``) and a tiny Llama (``llama``)."""
    require(shutil.which("redis-server") is not None, "redis-server is not on the PATH")
    from tests.support.tiny_models import save_tiny

    folder = tmp_path_factory.mktemp("ndif")
    models = {name: save_tiny(name, folder / "models" / name) for name in ("gpt2", "llama")}
    with NdifServer(folder, models) as server:
        yield server
