"""Pack a folder for a cluster: code, job files and what the job reads; no other data and no secrets.

The folder of a checkout holds this package. From any other folder the installed package travels too, so that the
cluster runs the same code as this machine.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attrib_batch.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.spec import SweepSpec

LARGEST_PACKAGE = 100 << 20
"""Most bytes that Ray's dashboard takes in one request."""
LEFT_OUT_FOLDERS = {"runs", "build", "dist", "venv", "node_modules", "__pycache__"}
LEFT_OUT_FILES = {
    # data and weights
    ".parquet", ".arrow", ".feather", ".csv", ".jsonl", ".npy", ".npz", ".h5", ".db", ".sqlite",
    ".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".gguf", ".onnx",
    # archives and logs
    ".zip", ".tar", ".gz", ".tgz", ".xz", ".zst", ".whl", ".log",
    # keys
    ".pem", ".key", ".p12", ".pfx",
}  # fmt: skip
SUBMITTED = "submitted"
"""The folder of the package that a job file from elsewhere lies in."""
SHOWN_FILES = 3
INSTALLED = Path(__file__).resolve().parents[2]
"""The folder of this package, wherever it is installed."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """A zip archive of the files a job needs."""

    path: Path
    job_file: str
    """Where the job file lies in it."""
    n_files: int
    size: int
    """Bytes of the archive."""
    with_installed: bool
    """Whether the installed package is in it, because the folder has none."""


def outside_paths(spec: SweepSpec, folder: Path) -> list[str]:
    """Return the datasets and model folders of a job that a copy of ``folder`` does not bring along."""
    return [path for path in local_paths(spec, folder) if Path(path).is_absolute() or not _is_inside(path, folder)]


def local_paths(spec: SweepSpec, folder: Path) -> list[str]:
    """Return the datasets and model folders that a job names by a path, as it names them."""
    datasets = [dataset.path for dataset in spec.datasets if "://" not in dataset.path]
    return datasets + [model.id for model in spec.models if (folder / Path(model.id).expanduser()).is_dir()]


def write_package(folder: Path, spec: SweepSpec, job_file: Path, target: Path) -> Package:
    """Pack what a job needs of ``folder``, and this package if it is not there; the same files give the same bytes.

    Args:
        folder: the folder the command runs in; paths in the job are relative to it.
        spec: the job.
        job_file: its file, which may lie elsewhere.
        target: the archive to write.

    Raises:
        RequestError: it is larger than Ray takes.
    """
    read = [(folder / path).resolve() for path in local_paths(spec, folder) if _is_inside(path, folder)]
    files = dict(sorted((str(path.relative_to(folder)), path) for path in _chosen(folder, read)))
    job_file = job_file.resolve()
    name = str(job_file.relative_to(folder)) if job_file.is_relative_to(folder) else f"{SUBMITTED}/{job_file.name}"
    files[name] = job_file
    with_installed = f"{INSTALLED.name}/__init__.py" not in files
    if with_installed:
        files |= {str(path.relative_to(INSTALLED.parent)): path for path in sorted(_chosen(INSTALLED, []))}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for arcname, path in files.items():
            entry = zipfile.ZipInfo(arcname, _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, path.read_bytes())
            if target.stat().st_size >= LARGEST_PACKAGE:
                raise RequestError(_too_large(files))
    size = target.stat().st_size
    if size >= LARGEST_PACKAGE:
        raise RequestError(_too_large(files))
    return Package(target, name, len(files), size, with_installed)


def _is_inside(path: str, folder: Path) -> bool:
    return (folder / Path(path).expanduser()).resolve().is_relative_to(folder)


def _chosen(folder: Path, read: list[Path]) -> Iterator[Path]:
    """Yield the files that travel; files and folders in ``read`` do so whatever their names are."""
    for path in read:
        yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_left_out(Path(here, name)))
        for name in names:
            path = Path(here, name)
            hidden = name.startswith(".")  # .env, .netrc: settings of this machine, and often secrets
            inside = not path.is_symlink() or path.resolve().is_relative_to(folder)
            if not hidden and inside and path.is_file() and path.suffix.lower() not in LEFT_OUT_FILES:
                yield path


def _is_left_out(folder: Path) -> bool:
    """Return whether a folder stays: hidden, an environment, a cache, a build product, or the directory of a run."""
    name = folder.name
    is_run = (folder / "manifest.json").is_file() and (folder / "scores").is_dir()
    is_environment = (folder / "pyvenv.cfg").is_file()
    return name.startswith(".") or name in LEFT_OUT_FOLDERS or name.endswith(".egg-info") or is_run or is_environment


def _too_large(files: dict[str, Path]) -> str:
    largest = sorted(((path.stat().st_size, name) for name, path in files.items()), reverse=True)[:SHOWN_FILES]
    return (
        f"what the job needs of this folder is larger than the {LARGEST_PACKAGE >> 20} MiB that Ray takes. Largest: "
        + ", ".join(f"{name} ({size / 2**20:,.0f} MiB)" for size, name in largest)
        + ". Put large tables and models where every node can read them (s3://, a shared file system), or run the "
        "command in the project's own folder."
    )
