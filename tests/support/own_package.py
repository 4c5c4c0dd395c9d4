"""A package of one module that offers something of one's own (a metric, a method, a family), as if installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def install_package(folder: Path, name: str, source: str, entry: str, *, group: str = "attrib_batch.metrics") -> None:
    """Install a package of one module with an entry point, as pip would; its folder is to be on the path.

    Args:
        folder: what stands for site-packages.
        name: the module.
        source: its text.
        entry: the line of its entry point, ``name = module:attribute``.
        group: the entry-point group.
    """
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
