"""Every Python process of a run under test reads this first: it makes the process die where the test says.

TEST_FAULTS_FILE names a JSON file: ``folder`` for marks, and ``faults``, each of which strikes once in the whole run,
in the first process that comes to it. A worker may be started before the run begins: it reads the file when it matters.

    {"at": "before" | "after", "path": "scores/.*", "target": "worker" | "driver"}
        A worker (or the driver itself) gives a file a name that matches, by renaming or linking: the target dies before
        or after it.
    {"at": "open", "path": "logs/.*", "target": "driver"}
        The driver opens a file whose path matches: it dies before that.
    {"at": "start"}
        A worker imports torch: it fails.

Where TEST_FORKER names a socket, what was to become a worker, or the driver of a submitted job, has that process fork
one, which need not import torch again, and stays until it ends: Ray counts the worker by the process that registers.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

_FILE = os.environ.get("TEST_FAULTS_FILE")
_IS_WORKER = any("default_worker.py" in argument for argument in sys.orig_argv) and not any(
    # It prepares what a job brings, and then becomes the worker.
    "setup_worker.py" in argument
    for argument in sys.orig_argv
)
_IS_DRIVER = "attrib_batch" in sys.orig_argv


def _read():
    """Read what is to go wrong."""
    return json.loads(Path(_FILE).read_text()) if _FILE else {"folder": "", "faults": []}


_AT_START = _read()


def _spec():
    # Not again in a driver: its hooks watch the files that it opens.
    return _read() if _IS_WORKER else _AT_START


def _strikes(index):
    """Whether this process is the first to come to a fault."""
    try:
        os.close(os.open(Path(_spec()["folder"], f"struck-{index}"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _kill(target):
    if target == "driver":
        os.kill(int(Path(_spec()["folder"], "driver.pid").read_text()), signal.SIGKILL)
    else:
        os._exit(13)


def _faulty(publish):
    """What gives files their names, made faulty."""

    def faulty(source, target, **options):
        for moment in ("before", "after"):
            for index, fault in enumerate(_spec()["faults"]):
                if fault["at"] == moment and re.search(fault["path"], str(target)) and _strikes(index):
                    _kill(fault["target"])
            if moment == "before":
                publish(source, target, **options)

    return faulty


def _faulty_open(event, arguments):
    if event != "open":
        return
    for index, fault in enumerate(_spec()["faults"]):
        if fault["at"] == "open" and re.search(fault["path"], str(arguments[0])) and _strikes(index):
            _kill(fault["target"])


class _NoTorch:
    def find_spec(self, name, path=None, target=None):  # noqa: ARG002 - the protocol's
        if name == "torch":
            for index, fault in enumerate(_spec()["faults"]):
                if fault["at"] == "start" and _strikes(index):
                    raise ImportError("libcudart.so.99: cannot open shared object file")


def _fork(forker):
    """Have the process forked that this one was to become, with its streams; end as it ends."""
    script = next((argument for argument in sys.orig_argv if argument.endswith("/default_worker.py")), None)
    request = {
        "script": script,
        "arguments": sys.orig_argv[sys.orig_argv.index(script or "attrib_batch") + 1 :],
        "env": dict(os.environ),
        "cwd": str(Path.cwd()),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(forker)
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [1, 2])
        pid = int(connection.recv(16))

        def pass_on(number, _frame):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, pass_on)
        ended = connection.recv(64)
    os._exit(os.waitstatus_to_exitcode(int(ended)) % 256 if ended else 1)


def _is_to_fail_at_start():
    """Whether a fault waits for a worker that imports torch; one that is forked never does."""
    spec = _spec()
    return any(
        fault["at"] == "start" and not Path(spec["folder"], f"struck-{index}").exists()
        for index, fault in enumerate(spec["faults"])
    )


_IS_FORK = os.environ.get("TEST_FORK") == str(os.getpid())
if (_IS_WORKER or _IS_DRIVER) and "TEST_FORKER" in os.environ and not _IS_FORK and not _is_to_fail_at_start():
    _fork(os.environ["TEST_FORKER"])
if _FILE and (_IS_WORKER or (_IS_DRIVER and _AT_START["faults"])):
    os.replace, os.link = _faulty(os.replace), _faulty(os.link)
if _FILE and _IS_WORKER:
    sys.meta_path.insert(0, _NoTorch())
if _FILE and _IS_DRIVER:
    Path(_AT_START["folder"], "driver.pid").write_text(str(os.getpid()))
    sys.addaudithook(_faulty_open)
