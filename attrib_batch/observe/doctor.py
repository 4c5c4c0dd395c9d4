"""Check whether this machine can run jobs: one finding per question, each with what to do."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attrib_batch.errors import ModelError
from attrib_batch.models.sources import BUNDLED, cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXTRA_OF = {
    "torch": "local",
    "nnsight": "local",
    "transformers": "local",
    "einops": "local",
    "accelerate": "local",
    "gguf": "local",
    "ray": "run",
}
"""The packages that jobs need beside the base, and the extra that each comes with; Ray is for several workers."""


PROC_DRIVER = Path("/proc/driver/nvidia")
"""Where the kernel's NVIDIA driver says what it is and what it drives."""


@dataclass(frozen=True)
class Finding:
    """The answer to one question about this machine."""

    subject: str
    ok: bool
    detail: str
    needed: bool = True
    """Whether jobs cannot run without it."""


def examine() -> list[Finding]:
    """Check Python, packages, bundled models, the cache folder and GPUs; load no model and start nothing."""
    return [*_python(), *_packages(), *_bundled(), *_cache(), *_gpus(), *_build_of_torch()]


def _python() -> Iterator[Finding]:
    ok = sys.version_info >= (3, 11)
    yield Finding("python", ok, platform.python_version() + ("" if ok else "; 3.11 or newer is needed"))


def _packages() -> Iterator[Finding]:
    for package, extra in _EXTRA_OF.items():
        try:
            yield Finding(package, ok=True, detail=importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                package, ok=False, detail=f"not installed; pip install 'attrib_batch[{extra}]'", needed=extra == "local"
            )


def _bundled() -> Iterator[Finding]:
    for name, model in BUNDLED.items():
        try:
            yield Finding(f"bundled model {name}", ok=True, detail=model.path().name, needed=False)
        except ModelError as error:
            yield Finding(f"bundled model {name}", ok=False, detail=str(error), needed=False)


def _cache() -> Iterator[Finding]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield Finding("cache folder", ok=False, detail=f"{folder} cannot be written: {error.strerror}")
    else:
        yield Finding("cache folder", ok=True, detail=str(folder))


def _gpus() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield Finding("GPUs", ok=n_gpus > 0, detail=f"{n_gpus} found; without one, models run on the CPU", needed=False)
    for index in range(n_gpus):
        card = torch.cuda.get_device_properties(index)
        detail = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
        yield Finding(f"GPU cuda:{index}", ok=True, detail=detail, needed=False)


def _build_of_torch() -> Iterator[Finding]:
    """Say whether torch can use the NVIDIA devices of this machine; nothing where there are none and it could not."""
    try:
        import torch
    except ImportError:
        return
    driver, usable = driver_version(), torch.cuda.is_available()
    if torch.version.cuda is None:
        if driver is not None:
            yield Finding(
                "CUDA",
                ok=False,
                detail=f"this machine has NVIDIA devices (driver {driver}), and torch {torch.__version__} is built for "
                "the CPU; install a CUDA build of it: https://pytorch.org/get-started/locally",
                needed=False,
            )
        return
    detail = f"torch is built for CUDA {torch.version.cuda}; the NVIDIA driver is {driver or 'not there'}"
    if (newest := driver_cuda()) is not None:
        detail += f" and can run CUDA {newest}"
    if driver is not None and not usable:
        detail += (
            "; torch cannot use the devices. The driver may be too old for that CUDA, or CUDA_VISIBLE_DEVICES hides "
            "them"
        )
    yield Finding("CUDA", ok=usable, detail=detail, needed=False)


def driver_version() -> str | None:
    """Return the version of the kernel's NVIDIA driver; None where there is none, or no device that it drives."""
    if not list(PROC_DRIVER.glob("gpus/*")):
        return None
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", (PROC_DRIVER / "version").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[0] if found else "of an unknown version"


def driver_cuda() -> str | None:
    """Return the newest CUDA that the NVIDIA driver can run; None where there is no driver."""
    version = ctypes.c_int()
    try:
        answer = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if answer else f"{version.value // 1000}.{version.value % 1000 // 10}"
