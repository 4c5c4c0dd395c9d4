"""Hand a job to a Ray cluster through its job API, and follow it to its end.

What is submitted is ``attrib-batch run`` itself, in a copy of the folder and with this package: it resumes by itself
when it is submitted again. The runtime environment of a job is shown to everyone who may ask the cluster about it, its
variables in clear to Ray's own client, so no key is ever put there.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import shlex
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from attrib_batch.errors import ExitCode, RequestError, RunInterruptedError
from attrib_batch.execution.ray.package import outside_paths, write_package

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrib_batch.spec import SweepSpec

OBJECT_STORES = ("s3", "gs")
PASSED_ON = ("NDIF_HOST", "HF_ENDPOINT", "HF_HUB_OFFLINE")
"""Variables of this environment that a job needs and that are no secrets."""
RAYS_OWN_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Variables that Ray's client prefers to the address it is given."""
UNREACHABLE_SECONDS = 600.0
"""How long a job is followed while the cluster does not answer."""
RETRY_SECONDS = 2.0


class ClusterJobs:
    """The job API of one cluster."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            RequestError: the address is none, or the cluster wants a token.
            RunInterruptedError: nothing answers there.
        """
        if urlsplit(address).scheme not in {"http", "https"} or not urlsplit(address).hostname:
            raise RequestError(
                f"--address {address}: name the cluster's dashboard, such as http://127.0.0.1:8265 "
                "(`ray dashboard cluster.yaml` brings it there)"
            )
        for name in RAYS_OWN_ADDRESSES:
            os.environ.pop(name, None)
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for name in ("job.sdk", "dashboard_sdk"):  # they report on uploads and connections as they go
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        self.address = address.rstrip("/")
        try:
            self._client = JobSubmissionClient(self.address)
        except AuthenticationError as error:
            raise RequestError(
                f"the cluster at {address} wants a token, and this is not it: set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN_PATH to the file that holds the cluster's (by default ~/.ray/auth_token)"
            ) from error
        except (OSError, RuntimeError) as error:
            raise RunInterruptedError(
                f"no Ray cluster answers at {address} ({error}). Is its dashboard reachable from here?"
            ) from error

    def is_here(self) -> bool:
        """Return whether every node is this machine: a loopback address may lead elsewhere, through a tunnel."""
        from ray.util.state import list_nodes

        if not _is_loopback(urlsplit(self.address).hostname or ""):
            return False
        nodes = list_nodes(address=self.address, filters=[("state", "=", "ALIVE")])
        return all(_is_own_address(node.node_ip) for node in nodes)

    def submit(self, command: list[str], package: Path, variables: dict[str, str], about: dict[str, str]) -> str:
        """Submit a command that runs in a copy of the package.

        Returns:
            The job's id.
        """
        job_id: str = self._client.submit_job(
            entrypoint=shlex.join(command),
            runtime_env={"working_dir": str(package), "env_vars": variables},
            metadata=about,
        )
        return job_id

    def follow(self, job_id: str, write: Callable[[str], None]) -> ExitCode | int:
        """Pass on what a job prints until it ends.

        Returns:
            Its exit code; 1 where it was stopped or never came to run.

        Raises:
            RunInterruptedError: the cluster does not answer any more.
        """
        info = asyncio.run(self._follow(job_id, write))
        if info.driver_exit_code is not None and str(info.status) != "STOPPED":
            return int(info.driver_exit_code)
        if str(info.status) == "SUCCEEDED":
            return ExitCode.OK
        write(f"the job ended as {info.status}: {info.message}\n")
        return ExitCode.UNFINISHED

    async def _follow(self, job_id: str, write: Callable[[str], None]) -> Any:
        n_written, answered = 0, time.monotonic()
        while True:
            n_known = n_written  # a log that is followed again begins anew
            try:
                async for text in self._client.tail_job_logs(job_id):
                    new = text[n_known:]
                    n_known -= min(n_known, len(text))
                    n_written += len(new)
                    answered = time.monotonic()
                    write(new)
            except (OSError, RuntimeError, _client_error()):
                pass  # whether the job goes on is what the next question tells
            try:
                info = await asyncio.to_thread(self._client.get_job_info, job_id)
            except (OSError, RuntimeError) as error:
                if time.monotonic() - answered > UNREACHABLE_SECONDS:
                    raise RunInterruptedError(
                        f"the cluster has not answered for {UNREACHABLE_SECONDS:.0f} s. {how_to_go_on(self, job_id)}"
                    ) from error
            else:
                answered = time.monotonic()
                if info.status.is_terminal():
                    return info
            await asyncio.sleep(RETRY_SECONDS)


def how_to_go_on(jobs: ClusterJobs, job_id: str) -> str:
    """Explain how to follow or stop a job that is not followed any more."""
    return (
        f"The job goes on. Follow it: ray job logs --address {jobs.address} --follow {job_id}; "
        f"stop it: ray job stop --address {jobs.address} {job_id}; the same submission then goes on from there."
    )


def check_paths(job: SweepSpec, out: str, folder: Path, *, shared: Callable[[], bool]) -> None:
    """Check that a job reads its inputs, and leaves its output, where other machines look too.

    Args:
        job: the job.
        out: what was asked for as the run's directory.
        folder: the folder that travels.
        shared: tells whether absolute paths mean the same on every node.

    Raises:
        RequestError: saying which path does not, and what would.
    """
    elsewhere = "name s3://BUCKET/..., or with --out-is-shared an absolute path on a file system that every node mounts"
    scheme = out.partition("://")[0] if "://" in out else ""
    if scheme and scheme not in OBJECT_STORES:
        raise RequestError(f"--out {out}: {scheme}:// is not known here; {elsewhere}")
    if not scheme and not Path(out).is_absolute():
        raise RequestError(
            f"--out {out} is relative: a submitted job runs in a copy of this folder that is thrown away; {elsewhere}"
        )
    outside = outside_paths(job, folder)
    if (not scheme or outside) and not shared():
        if not scheme:
            raise RequestError(
                f"--out {out} is a path of this machine, which the cluster's nodes do not have; {elsewhere}"
            )
        raise RequestError(
            f"the job reads {outside[0]}, which is not in this folder: the cluster's nodes do not have it. Put it here "
            "and name it by a relative path, or on a file system that every node mounts, with --out-is-shared"
        )


def submit_job(
    job: SweepSpec, job_file: Path, jobs: ClusterJobs, *, out: str, ndif_host: str | None, report: Callable[[str], None]
) -> str:
    """Pack the folder of the command, with this package, and submit the job.

    Returns:
        The job's id.
    """
    folder = Path.cwd().resolve()
    with tempfile.TemporaryDirectory() as scratch:
        package = write_package(folder, job, job_file, Path(scratch) / "package.zip")
        sources = "of this folder and of the installed package" if package.with_installed else "of this folder"
        report(f"{package.n_files} files {sources}, {package.size / 2**20:.1f} MiB packed")
        command = ["python", "-m", "attrib_batch", "run", package.job_file, "--address", "auto", "--out", out]
        job_id = jobs.submit(command, package.path, passed_on(ndif_host), {"job": job.name, "out": out})
    report(f"submitted as {job_id} to {jobs.address}")
    return job_id


def passed_on(ndif_host: str | None) -> dict[str, str]:
    """Return the variables that a job gets; everyone who may ask the cluster about its jobs can read them.

    Raises:
        RequestError: the address of the NDIF server holds a password.
    """
    found = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if ndif_host is not None:
        found["NDIF_HOST"] = ndif_host
    for name, value in found.items():
        if "@" in urlsplit(value).netloc:
            raise RequestError(f"{name} holds a password, which Ray would show; leave it out of the address")
    return found


def _client_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_own_address(ip: str) -> bool:
    """Return whether an address is this machine's: only such a one can be listened on."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as trial:
        try:
            trial.bind((ip, 0))
        except OSError:
            return False
    return True
