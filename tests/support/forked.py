"""Commands as processes of their own that need not import torch first: forked from a process that has.

A process for each test process imports what every command imports, and does nothing else. It is forked for every
command: a real process, with the arguments, the environment and the working folder that a test says, which may be
signalled and killed as any other. A Ray that a command starts is started as always. Where FORKER names the process's
socket, Ray's workers are forked from it too (see ``faulty/sitecustomize.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
IMPORTED = (
    "attrib_batch.api",
    "attrib_batch.cli",
    "attrib_batch.execution.workers.replica",
    "attrib_batch.execution.workers.shard",
    "attrib_batch.models.families",
    "einops._torch_specific",
    "nnsight.modeling.transformers",
    "pyarrow.pandas_compat",
    "transformers.convert_slow_tokenizer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.pipelines",
)
FORKER = "TEST_FORKER"
"""Variable that leads Ray's workers to the process that they are forked from."""
BARE = "TEST_FORKER_BARE"
"""Variable that says that forks are to find the package by themselves, as where a job brings its own."""
FORK = "TEST_FORK"
"""Variable that holds the number of a process that is a fork; what it starts inherits a number that is another's."""
PACKAGE = "attrib_batch"
_POLL_SECONDS = 0.02


@dataclass
class ForkedCommand:
    """A command that runs; as much of `subprocess.Popen` as the tests use."""

    pid: int
    _socket: socket.socket
    _streams: tuple[Any, Any]
    """Files of what it prints, on standard output and on standard error."""
    returncode: int | None = field(default=None, init=False)

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""
        if self.returncode is None:
            self._socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                answer = self._socket.recv(64)
                self.returncode = os.waitstatus_to_exitcode(int(answer)) if answer else -signal.SIGKILL
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("attrib-batch", timeout)
            time.sleep(_POLL_SECONDS)
        return code

    def communicate(self, timeout: float = 120) -> tuple[str, None]:
        """Wait for its end; return what it printed on both streams."""
        self.wait(timeout)
        return self.said(), None

    def said(self) -> str:
        """Return what it has printed on both streams."""
        return "".join(self.streams())

    def streams(self) -> tuple[str, str]:
        """Return what it has printed on standard output and on standard error."""
        output, messages = (Path(file.name).read_text(encoding="utf-8", errors="replace") for file in self._streams)
        return output, messages

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close what it was asked and answers through."""
        self._socket.close()
        for file in self._streams:
            file.close()


@dataclass
class Forker:
    """The process that is forked, and a way to ask it."""

    folder: Path
    _process: subprocess.Popen[bytes] = field(init=False)
    _n_commands: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked", str(self.path)], cwd=ROOT, stdin=subprocess.PIPE
        )

    @property
    def path(self) -> Path:
        """Its socket."""
        return self.folder / "forker"

    def processes(self) -> list[psutil.Process]:
        """What is forked from it and runs, and what that has started."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def forked_for(self, folder: Path) -> list[psutil.Process]:
        """What is forked from it and runs, of those whose arguments name something in a folder."""
        found = []
        for record in self.folder.glob("fork-*"):
            with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):  # it has just ended
                if f"{folder}/" in record.read_text():
                    found.append(psutil.Process(int(record.name.removeprefix("fork-"))))
        return found

    def start(
        self, arguments: Sequence[str], env: dict[str, str], cwd: Path, *, script: Path | None = None
    ) -> ForkedCommand:
        """Start ``attrib-batch``, or a script."""
        self._n_commands += 1
        streams = [(self.folder / f"{name}-{self._n_commands}").open("wb") for name in ("output", "messages")]
        connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 120
        while True:
            try:
                connection.connect(str(self.path))
            except OSError:
                assert self._process.poll() is None, "the process that is to be forked has ended"
                assert time.monotonic() < deadline
                time.sleep(_POLL_SECONDS)
            else:
                break
        request = {"arguments": list(arguments), "env": env, "cwd": str(cwd), "script": script and str(script)}
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [file.fileno() for file in streams])
        pid = int(connection.recv(16))
        return ForkedCommand(pid, connection, (streams[0], streams[1]))

    def close(self) -> None:
        """End it, and what was forked from it: a test that failed may have left a worker that is stopped."""
        left = self.processes()
        self._process.kill()
        self._process.wait()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def serve(path: str) -> None:
    """Import what commands import, then fork for each that is asked for."""
    from attrib_batch.execution.imports import collector_paused

    with collector_paused(keep=True):
        for name in IMPORTED:
            __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    # The end of this process's standard input is the end of who started it.
    while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _supervise(connection, Path(path).parent)
        connection.close()


def _supervise(connection: socket.socket, folder: Path) -> None:
    """Fork the command, tell its number, and at its end how it ended; its arguments are on record while it runs."""
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    while not message.endswith(b"\n"):
        message += connection.recv(1 << 20)
    request = json.loads(message)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(request, *descriptors)
    record = folder / f"fork-{pid}"
    record.write_text(json.dumps(request["arguments"]))
    connection.sendall(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    record.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        connection.sendall(str(status).encode())
    os._exit(0)


def _become(request: dict[str, Any], output: int, messages: int) -> None:
    """Become the command, as ``python -m attrib_batch`` would be, or as a script would be that the request names."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(messages, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as a new process has it
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["env"] | {FORK: str(os.getpid())})
    os.chdir(request["cwd"])
    if BARE in os.environ:
        _forget_package(request)
    script = request.get("script")
    sys.argv = [script or "attrib_batch", *request["arguments"]]
    sys.orig_argv = [sys.executable, *([script] if script else ["-m", "attrib_batch"]), *request["arguments"]]
    if script:
        sys.path.insert(0, str(Path(script).parent))  # as a new process has it
    more = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [path for path in more if path not in sys.path]
    code = 1
    try:
        for folder in more:
            if (custom := Path(folder, "sitecustomize.py")).is_file():
                runpy.run_path(str(custom), run_name="sitecustomize")
        if script:
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module("attrib_batch", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - as a process of its own would show it
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    _run_exit_handlers()
    os._exit(code)


def _forget_package(request: dict[str, Any]) -> None:
    """Make the process import the package anew, from where one that has just started would find it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    sys.path[:] = [folder for folder in sys.path if folder and Path(folder) != ROOT]
    if not request.get("script"):
        sys.path.insert(0, request["cwd"])  # as `python -m` has it


def _run_exit_handlers() -> None:
    import atexit

    atexit._run_exitfuncs()


if __name__ == "__main__":
    serve(sys.argv[1])
