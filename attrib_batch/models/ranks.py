"""Processes that share one model's weights: joining them, and keeping them on one path.

All of them (the *ranks*) compute the same forward passes on the same tokens and meet in collectives within every layer,
so a rank that leaves the common path holds up all others: they live and die together.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import threading
from typing import TYPE_CHECKING

from attrib_batch.errors import ModelError, ShardGroupError, ShardsDisagreeError, ShardsOutOfMemoryError
from attrib_batch.models.meeting import listen

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from datetime import timedelta

    from torch.distributed.distributed_c10d import Store

OUT_OF_MEMORY = "out of memory"
"""The verdict of a rank whose memory ran out."""
STORE_GRACE_SECONDS = 5.0
"""How much longer than its timeout a question to the store of verdicts may take."""


def join_ranks(
    rank: int,
    world_size: int,
    address: str,
    port: int,
    *,
    timeout: timedelta,
    listener: socket.socket | None = None,
    backend: str | None = None,
) -> Agreement:
    """Join the processes that are to share a model's weights; returns once all of them are there.

    On GPUs every process must see exactly one: transformers takes the device with the number LOCAL_RANK, which is 0
    then. Ray shows an actor that asks for one GPU only that one.

    Args:
        rank: this process's number, from 0.
        world_size: how many processes there are.
        address: an address of rank 0's machine; rank 0 listens on this address alone.
        port: a free port there, or that of ``listener``.
        timeout: how long to wait for the others here, in a collective, and in ``Agreement.agree``. The first collective
            comes after loading, so this bounds how much longer one rank may load than another.
        listener: of rank 0: a socket that listens at the address and port already; it is taken over.
        backend: of torch.distributed; by default nccl where CUDA is available, else gloo.

    Raises:
        ModelError: this process sees several GPUs.
        ShardGroupError: the others did not come in time, or rank 0 cannot listen there.
    """
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but re-exported by a star import
    from torch.distributed.distributed_c10d import PrefixStore, init_process_group

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if n_gpus > 1:
        raise ModelError(
            f"rank {rank} sees {n_gpus} GPUs, and a shard takes the only one it sees: give each worker one GPU, "
            "or set CUDA_VISIBLE_DEVICES for each"
        )
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": "0" if n_gpus else str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    if _is_loopback(address):
        # Otherwise gloo looks up the host's name and listens on whatever address that has.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    device = torch.device("cuda", 0) if n_gpus else None
    if device is not None:
        torch.cuda.set_device(device)
    backend = backend or ("nccl" if n_gpus else "gloo")
    try:
        store = TCPStore(
            address,
            port,
            world_size,
            is_master=rank == 0,
            timeout=timeout,
            # Left to itself the store listens on every address of the machine.
            master_listen_fd=(listener or listen(address, port)).detach() if rank == 0 else None,
        )
        init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=device if backend == "nccl" else None,
        )
    except (RuntimeError, OSError) as error:
        raise ShardGroupError(
            f"rank {rank} of {world_size} did not meet the others at {address}:{port} within {timeout}: {error}"
        ) from error
    return Agreement(PrefixStore("verdicts", store), rank, world_size, timeout)


class Agreement:
    """How ranks make sure that what each of them did ended alike, before they go on.

    They compare notes in a store, not in a collective: a rank that raised has left the collectives that others may
    still be in.
    """

    def __init__(self, store: Store, rank: int, world_size: int, timeout: timedelta) -> None:
        """Agree with the other ranks through ``store``, waiting for them for ``timeout`` at most."""
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._timeout = timeout
        self._number = 0

    def agree(self, verdict: str) -> None:
        """Publish how this rank's attempt ended and wait for all others'; return if all ended alike.

        Args:
            verdict: what is before the first colon is compared: "ok", "out of memory", or an exception's class with its
                message behind the colon.

        Raises:
            ShardsDisagreeError: the verdicts differ, or one is missing after the timeout. Other ranks may still be on
                another path, so all of them have to be replaced.
            ShardsOutOfMemoryError: the same, and memory ran out in one that is heard of.
        """
        from torch.distributed import barrier

        verdicts = self._exchange(verdict)
        if len({_kind(found) for found in verdicts}) > 1:
            listed = "; ".join(f"rank {rank}: {found}" for rank, found in enumerate(verdicts))
            raise _parted(verdicts)(f"attempt {self._number} ended differently in the ranks of a model: {listed}")
        if verdict != "ok":
            # Ranks that raised alike may have raised at different places. A collective that works now shows that none
            # is left over from before.
            try:
                barrier()
            except RuntimeError as error:
                raise _parted(verdicts)(
                    f"attempt {self._number} ended with {verdict!r} in every rank, and the ranks do not meet any more: "
                    f"{error}"
                ) from error
        self._number += 1

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """Return for each of some numbers, as many in every rank, the largest that any rank has."""
        import torch
        from torch.distributed import ReduceOp, all_reduce

        # Ranks on GPUs talk through them alone.
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = torch.tensor(list(numbers), dtype=torch.float64, device=device)
        all_reduce(found, ReduceOp.MAX)
        return [float(number) for number in found.tolist()]

    def _exchange(self, verdict: str) -> list[str]:
        """Publish a verdict and wait for those of all ranks."""
        found: list[str] = []
        problem: list[BaseException] = []

        def talk() -> None:
            try:
                self._store.set(self._key(self._rank), verdict)
                every = [self._key(rank) for rank in range(self._world_size)]
                self._store.wait(every, self._timeout)
                found.extend(verdict.decode() for verdict in self._store.multi_get(every))
                if self._number > 0:
                    # All are past the previous attempt, or they would not have published this one.
                    self._store.delete_key(self._key(self._rank, self._number - 1))
            except RuntimeError as error:
                problem.append(error)

        # In a thread that can be left behind: where the first rank is stopped, so is the store, and asking it waits for
        # ever, whatever timeout it was given.
        talking = threading.Thread(target=talk, daemon=True)
        talking.start()
        talking.join(self._timeout.total_seconds() + STORE_GRACE_SECONDS)
        if problem or talking.is_alive():
            reason = problem[0] if problem else "the first rank, which keeps the verdicts, does not answer"
            raise _parted([verdict])(
                f"rank {self._rank} of {self._world_size} ended attempt {self._number} with {verdict!r}, and not all "
                f"others said within {self._timeout} how they ended it: {reason}"
            ) from (problem[0] if problem else None)
        return found

    def _key(self, rank: int, number: int | None = None) -> str:
        return f"{self._number if number is None else number}/{rank}"


def _parted(verdicts: Sequence[str]) -> type[ShardsDisagreeError]:
    """Return what ranks that ended an attempt so have to be replaced for."""
    return ShardsOutOfMemoryError if OUT_OF_MEMORY in verdicts else ShardsDisagreeError


def _kind(verdict: str) -> str:
    return verdict.split(":", 1)[0]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
