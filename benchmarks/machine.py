"""What the figures were measured on: kind of machine and versions, nothing that names it."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("attrib_batch", "torch", "transformers", "nnsight", "ray", "numpy")


def describe() -> str:
    """One paragraph of Markdown."""
    processor = _processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}. {os.cpu_count()} cores of {processor}, {memory:.0f} GiB of memory, "
        f"{torch.get_num_threads()} threads. Python {platform.python_version()}, {versions}."
    )


def _version(name: str) -> str | None:
    from attrib_batch._version import __version__

    try:
        return __version__ if name == "attrib_batch" else version(name)
    except PackageNotFoundError:  # Ray, where one process measures
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
