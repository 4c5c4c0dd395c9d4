"""Which device a model goes to, how much of it is this process's, and what the process's environment says of it."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

from attrib_batch.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    import numpy as np
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from attrib_batch.spec import ModelSpec

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where a user may have set up torch's allocator, by its new and by its old name."""
WORKSPACE_VARIABLE, DETERMINISTIC_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
"""With work areas of one size cuBLAS always adds up in the same order; torch asks for that."""
SHOWN_MODULES = 4
"""Most modules that a message names."""


def prepare_environment(spec: ModelSpec, environment: MutableMapping[str, str], *, gpus: float | None) -> None:
    """Set what torch and CUDA read of a process's environment when they start; what a user has set stays.

    Many shapes of micro-batches leave torch's allocator with pieces of memory that fit none of them: segments that
    grow do not have that. A worker that was given no GPU must not see any: the libraries below would use it.

    Args:
        spec: the model's part of the job.
        environment: the process's.
        gpus: how many GPUs this process was given; None where nobody gives them out.
    """
    if gpus == 0 and spec.device in {"auto", "cpu"}:
        environment["CUDA_VISIBLE_DEVICES"] = ""
        return
    if spec.device == "cpu":
        return
    if spec.deterministic:
        environment.setdefault(WORKSPACE_VARIABLE, DETERMINISTIC_WORKSPACE)
    set_up_allocator(environment)


def set_up_allocator(environment: MutableMapping[str, str]) -> None:
    """Have torch's allocator let its segments grow, unless the user has set it up, or torch is imported already."""
    if "torch" not in sys.modules and not any(name in environment for name in ALLOCATOR_VARIABLES):
        environment[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"


def choose_device(spec: ModelSpec, *, gpus: float | None = None) -> torch.device:
    """Choose the device a job's model goes to.

    Args:
        spec: the model's part of the job.
        gpus: how many GPUs this process was given, as Ray does, which may leave all of them visible to a process that
            was given none; None where nobody gives them out, and whatever is there may be taken.

    Raises:
        ModelError: this machine does not have the device that is asked for.
    """
    import torch

    there = devices_here()
    if spec.device == "auto":
        if gpus and "cuda" not in there:
            raise ModelError(
                f"model {spec.id!r}: its workers have gpus: {gpus:g}, and torch {torch.__version__} finds no CUDA "
                f"device on {socket.gethostname()}. `attrib-batch doctor` there says why; for the CPU, set gpus: 0"
            )
        return torch.device("cuda" if "cuda" in there and gpus != 0 else "cpu")
    where = f"model {spec.id!r}, device {spec.device!r}"
    try:
        device = torch.device(spec.device)
    except RuntimeError as error:
        raise ModelError(f"{where}: this is no device; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type not in there or (device.index or 0) >= there[device.type]:
        names = (f"cuda:{index}" if kind == "cuda" else kind for kind in there for index in range(there[kind]))
        raise ModelError(f"{where}: this machine ({socket.gethostname()}) does not have it; it has {', '.join(names)}")
    return device


def devices_here() -> dict[str, int]:
    """Count the devices that this process can use, by type."""
    import torch

    counts = {"cpu": 1, "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0}
    counts["mps"] = int(torch.backends.mps.is_available())
    return {kind: count for kind, count in counts.items() if count}


def take_memory_share(device: torch.device, gpus: float | None) -> float:
    """Return which share of a device's memory is this process's, and have torch keep to it.

    Ray gives out fractions of a GPU, and isolates no memory: others have the rest of it.
    """
    import torch

    if device.type != "cuda" or gpus is None or not 0 < gpus < 1:
        return 1.0
    torch.cuda.set_per_process_memory_fraction(gpus, None if device.index is None else device)
    return gpus


def spreads_over_gpus(spec: ModelSpec) -> bool:
    """Return whether one actor spreads the model over several GPUs with a device map."""
    return spec.workers.gpus >= 2


def check_placement(spec: ModelSpec, module: PreTrainedModel) -> None:
    """Check that a model that was spread over GPUs lies on them alone.

    Raises:
        ModelError: some of it is on the CPU or on disk, from where it would be fetched for every forward pass.
    """
    placed = {name: str(place) for name, place in getattr(module, "hf_device_map", {}).items()}
    off = {name: place for name, place in placed.items() if place in {"cpu", "disk"}}
    if not off:
        return
    missing = sum(_bytes_of(module, name) for name in off)
    shown = ", ".join(f"{name or 'all of it'} ({place})" for name, place in list(off.items())[:SHOWN_MODULES])
    more = f" and {len(off) - SHOWN_MODULES} more" if len(off) > SHOWN_MODULES else ""
    n_gpus = len(set(placed.values()) - {"cpu", "disk"})
    raise ModelError(
        f"model {spec.id!r} does not fit on {n_gpus} GPUs: {missing / 1e9:.3g} GB of its weights found no room there "
        f"({shown}{more}). Give its workers more gpus, a smaller dtype, or split it into shards"
    )


def _bytes_of(module: PreTrainedModel, place: str) -> int:
    """Return the size of what a device map's key stands for: a submodule, a parameter, or all where it is empty."""
    return sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in module.named_parameters()
        if not place or name == place or name.startswith(f"{place}.")
    )


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device; to a GPU without waiting for it."""
    import numpy as np
    import torch

    found = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        found = found.pin_memory()
    return found.to(device, non_blocking=True)
