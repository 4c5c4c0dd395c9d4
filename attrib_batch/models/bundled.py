"""The bundled model: converted once from GGUF to safetensors, safely when several processes start at once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from attrib_batch.errors import ModelError
from attrib_batch.models.sources import BUNDLED, cache_folder

if TYPE_CHECKING:
    from attrib_batch.models.sources import ModelSource


def bundled_folder(source: ModelSource) -> Path:
    """Return the folder with the converted model; make it if it is not there yet.

    The first process converts it under a lock, into a temporary folder that is then renamed; the others wait.

    Raises:
        ModelError: the cache folder cannot be written.
    """
    folder = cache_folder() / "models" / f"{source.location}-{source.fingerprint.removeprefix('sha256:')[:16]}"
    try:
        return _make(folder, source)
    except OSError as error:
        if error.errno is None:  # what transformers raises of a model's content
            raise
        raise ModelError(
            f"the bundled model {source.location} is converted once, into your cache folder, and {folder.parent} "
            f"cannot be written: {error.strerror}. Set XDG_CACHE_HOME to a folder that can."
        ) from error


def _make(folder: Path, source: ModelSource) -> Path:
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
            try:
                _convert(BUNDLED[source.location].path(), temporary)
                temporary.replace(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dequantised now; what still says otherwise would make saving refuse.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
