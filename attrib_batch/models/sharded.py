"""One model over several processes: joining them, loading one process's share, and keeping them on one path.

The weights are split by transformers' tensor parallelism: every process (a *rank*) holds its share of the attention
heads, the MLP width and the vocabulary. All ranks make the same runs on the same tokens and meet in collectives within
every layer, so a rank that leaves the common path holds up all others: they live and die together.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

from attrib_batch.errors import ModelError, ShardGroupError, ShardsDisagreeError
from attrib_batch.models.activations import activation_at
from attrib_batch.models.causality import check_prefixes
from attrib_batch.models.families import architecture_of, dimensions_of
from attrib_batch.models.load import (
    choose_device,
    load_tokenizer,
    load_weights,
    prepare_tracing,
    read_config,
)
from attrib_batch.models.shapes import CHECKED_TOKENS, check_modules, compare_shapes
from attrib_batch.models.sources import find_model
from attrib_batch.models.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from datetime import timedelta

    import torch
    from torch.distributed.distributed_c10d import Store
    from transformers import PretrainedConfig

    from attrib_batch.models.families import SiteKey
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.spec import ModelSpec


STORE_GRACE_SECONDS = 5.0
"""How much longer than its timeout a question to the store of verdicts may take."""


def check_degree(spec: ModelSpec, config: PretrainedConfig, shards: int) -> None:
    """Refuse a number of shards that a model cannot be split into, by its configuration.

    Raises:
        ModelError: naming the numbers that are possible, or what to do with a model that cannot be split at all.
    """
    from nnsight.modeling.tp import SIDES, max_tp_size

    most = max_tp_size(config)
    if most is None:
        plan = getattr(config, "base_model_tp_plan", None) or {}
        if not plan:
            reason = f"{config.model_type} has no tensor-parallel plan in transformers"
        elif unknown := sorted(set(plan.values()) - SIDES.keys()):
            reason = f"its tensor-parallel plan uses {', '.join(unknown)}, whose activations nnsight cannot gather"
        else:
            reason = f"{_divided_sizes(config)} have no common divisor"
        raise ModelError(
            f"model {spec.id!r} cannot be split into shards: {reason}. Use workers of kind replica; "
            "with gpus 2 or more, each spreads the layers over that many GPUs"
        )
    possible = [degree for degree in range(2, most + 1) if most % degree == 0]
    if shards not in possible:
        raise ModelError(
            f"model {spec.id!r} cannot be split into {shards} shards: the number must be 2 or more and divide "
            f"{_divided_sizes(config)}; possible: {', '.join(map(str, possible))}"
        )


def join_ranks(
    rank: int, world_size: int, address: str, port: int, *, timeout: timedelta, backend: str | None = None
) -> Agreement:
    """Join the processes that are to share a model's weights; returns once all of them are there.

    On GPUs every process must see exactly one: transformers takes the device with the number LOCAL_RANK, which is 0
    then. Ray shows an actor that asks for one GPU only that one.

    Args:
        rank: this process's number, from 0.
        world_size: how many processes there are.
        address: an address of rank 0's machine; rank 0 listens on this address alone.
        port: a free port there.
        timeout: how long to wait for the others here, in a collective, and in ``Agreement.agree``. The first collective
            comes after loading, so this bounds how much longer one rank may load than another.
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
            master_listen_fd=_listen(address, port) if rank == 0 else None,
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


def load_shard(spec: ModelSpec, shards: int) -> LoadedModel:
    """Load this rank's share of a model as a job asks, after ``join_ranks``; every rank must call this.

    Raises:
        ModelError: not found, not loadable, of an unknown architecture, not divisible so, not of the shapes it states,
            looks ahead, has a tokenizer that is not its own, or is asked for on a device that shards cannot be put on.
        ShardGroupError: the ranks that were joined are not ``shards``.
    """
    import torch.distributed
    from transformers.distributed import DistributedConfig

    source = find_model(spec)
    config = read_config(spec, source)
    check_degree(spec, config, shards)
    _check_device(spec)
    tokenizer = load_tokenizer(spec, source)
    check_vocabulary(spec, tokenizer, dimensions_of(config).d_vocab)
    n_ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 0
    if n_ranks != shards:
        raise ShardGroupError(f"model {spec.id!r} is to be split into {shards} shards, but {n_ranks} ranks were joined")
    # The plan transformers has for the model, with the embedding always split over the vocabulary: an unembedding that
    # is split cannot be tied to an embedding that is not.
    plan = DistributedConfig(tp_size=shards, tp_plan={architecture_of(config).embedding: "embedding_rowwise"})
    module = load_weights(spec, source, distributed_config=plan)
    model = prepare_tracing(module, tokenizer, shards=shards)
    _check_shapes(model)
    check_prefixes(model.module, model.device)
    return model


def parameters_here(model: LoadedModel) -> int:
    """How many parameters this process holds, those that other ranks hold too included."""
    from torch.distributed.tensor import DTensor

    return sum(
        (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()
        for parameter in model.module.parameters()
    )


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
        """
        from torch.distributed import barrier

        verdicts = self._exchange(verdict)
        if len({_kind(found) for found in verdicts}) > 1:
            listed = "; ".join(f"rank {rank}: {found}" for rank, found in enumerate(verdicts))
            raise ShardsDisagreeError(f"attempt {self._number} ended differently in the ranks of a model: {listed}")
        if verdict != "ok":
            # Ranks that raised alike may have raised at different places. A collective that works now shows that none
            # is left over from before.
            try:
                barrier()
            except RuntimeError as error:
                raise ShardsDisagreeError(
                    f"attempt {self._number} ended with {verdict!r} in every rank, and the ranks do not meet any more: "
                    f"{error}"
                ) from error
        self._number += 1

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
            raise ShardsDisagreeError(
                f"rank {self._rank} of {self._world_size} ended attempt {self._number} with {verdict!r}, and not all "
                f"others said within {self._timeout} how they ended it: {reason}"
            ) from (problem[0] if problem else None)
        return found

    def _key(self, rank: int, number: int | None = None) -> str:
        return f"{self._number if number is None else number}/{rank}"


def _kind(verdict: str) -> str:
    return verdict.split(":", 1)[0]


def _check_shapes(model: LoadedModel) -> None:
    """Run a few tokens and compare every site's tensor, as a trace shows it, with the sizes of the whole model.

    Raises:
        ModelError: a module is missing or a shape is not what the architecture says.
    """
    import torch

    check_modules(model.module, model.architecture, model.dimensions)
    ids = torch.arange(CHECKED_TOKENS, device=model.device).unsqueeze(0)
    seen: dict[SiteKey, torch.Tensor] = {}
    with torch.no_grad(), model.traced.trace(input_ids=ids, use_cache=False) as tracer:
        last = model.traced.get(model.architecture.layers)[-1]
        for site in {site.key: site for site in model.architecture.sites.values()}.values():
            seen[site.key] = activation_at(model, last, site)
        tracer.stop()
    compare_shapes(seen, model.architecture, model.dimensions)


def _check_device(spec: ModelSpec) -> None:
    """Refuse a device that is not the one transformers puts shards on: the only GPU, or the CPU where there is none.

    Raises:
        ModelError: naming the device and what to do.
    """
    import torch

    if spec.device.startswith("cuda:") and spec.device != "cuda:0":
        raise ModelError(f"device {spec.device!r}: a shard takes the only GPU its worker sees; use auto, cpu or cuda")
    device = choose_device(spec)
    offered = "cuda" if torch.cuda.is_available() else "cpu"
    if device.type != offered:
        raise ModelError(
            f"device {spec.device!r}: shards go to {offered} in this process; use device auto"
            + (", or hide the GPUs from the workers with CUDA_VISIBLE_DEVICES=''" if offered == "cuda" else "")
        )


def _divided_sizes(config: PretrainedConfig) -> str:
    """The sizes that a number of shards must divide, in words."""
    sizes = {
        "attention heads": getattr(config, "num_attention_heads", None),
        "key/value heads": getattr(config, "num_key_value_heads", None),
        "MLP width": getattr(config, "intermediate_size", None),
    }
    return ", ".join(f"{name} ({size})" for name, size in sizes.items() if size)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _listen(address: str, port: int) -> int:
    """A socket that listens on one address, as a file descriptor that the caller owns."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family).detach()
