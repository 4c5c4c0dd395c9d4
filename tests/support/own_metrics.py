"""A metric of one's own, as an installed package offers it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def install_package(folder: Path, name: str, source: str, entry: str) -> None:
    """Install a package of one module that offers a metric, as pip would; its folder is to be on the path.

    Args:
        folder: what stands for site-packages.
        name: the module.
        source: its text.
        entry: the line of its entry point, ``metric = module:function``.
    """
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[attrib_batch.metrics]\n{entry}\n")
