"""Check whether this machine can run jobs: one finding per question, each with what to do."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import dataclass
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
    return [*_python(), *_packages(), *_bundled(), *_cache(), *_gpus()]


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
