"""What a model cannot do is refused from its configuration; what that does not tell, by a check on the loaded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from attrib_batch.errors import ModelError
from attrib_batch.models.checks.capabilities import check_config, check_methods
from attrib_batch.models.checks.causality import check_prefixes
from attrib_batch.models.load import load_model, read_config, wrap_model
from attrib_batch.spec import ModelSpec
from tests.support.scored import method
from tests.support.tiny_models import ARCHITECTURES, EVERY_ARCHITECTURE, save_tiny, tiny_tokenizer

CPU = torch.device("cpu")


def job(model: object = "a/model", **options: object) -> ModelSpec:
    return ModelSpec.model_validate({"id": str(model), "prepend_bos": False, **options})


def changed(folder: Path, **keys: object) -> Path:
    """A model's folder with keys of its configuration changed."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "is_causal", False),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma3", "use_bidirectional_attention", True),
    ],
)
def test_attention_that_looks_ahead_is_refused_from_the_configuration(
    name: str, key: str, value: object, tmp_path: Path
) -> None:
    folder = changed(save_tiny(name, tmp_path / "m"), **{key: value})
    for load in (read_config, load_model):
        with pytest.raises(ModelError, match=f"{key}: {str(value).lower()}, so its attention sees later positions"):
            load(job(folder))


def test_attention_that_looks_ahead_is_caught_on_the_model_itself() -> None:
    module = ARCHITECTURES["llama"]()
    module.config.is_causal = False
    with pytest.raises(ModelError, match="other logits than the same prompt from a cached prefix"):
        wrap_model(module, tiny_tokenizer())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_passes_the_check_in_every_type(name: str, dtype: torch.dtype) -> None:
    check_prefixes(ARCHITECTURES[name]().to(dtype), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_check_finds_attention_that_looks_ahead_in_every_type(dtype: torch.dtype) -> None:
    module = ARCHITECTURES["llama"]().to(dtype)
    module.config.is_causal = False
    with pytest.raises(ModelError, match="cached prefix"):
        check_prefixes(module, CPU)


def test_the_check_finds_attention_that_looks_ahead_where_no_prefix_is_cached() -> None:
    module = EVERY_ARCHITECTURE["qwen3_next"]()
    check_prefixes(module, CPU)
    module.config.is_causal = False
    with pytest.raises(ModelError, match="other logits than its prefix alone"):
        check_prefixes(module, CPU)


@pytest.mark.slow
def test_the_bundled_model_passes_the_check(smollm2) -> None:
    check_prefixes(smollm2.module, CPU)


@pytest.mark.parametrize(
    ("scheme", "package"),
    [("bitsandbytes", "bitsandbytes"), ("gptq", "gptqmodel"), ("fp8", None), ("mxfp4", "kernels")],
)
def test_quantised_weights_are_refused_by_model_scheme_and_package(
    scheme: str, package: str | None, tmp_path: Path
) -> None:
    folder = changed(save_tiny("llama", tmp_path / "m"), quantization_config={"quant_method": scheme, "bits": 4})
    with pytest.raises(ModelError, match=f"m'.*quantised, quantization_config says {scheme}") as refused:
        load_model(job(folder))
    assert (package is None) or f"with the package {package}" in str(refused.value)


def test_quantised_weights_on_an_ndif_server_are_its_own_affair() -> None:
    config = AutoConfig.for_model("llama", quantization_config={"quant_method": "fp8"})
    check_config(job(workers={"kind": "ndif"}), config)
    with pytest.raises(ModelError, match="quantised"):
        check_config(job(), config)


def test_a_component_the_family_lacks_is_refused_for_each_method() -> None:
    config = ARCHITECTURES["gpt_neox"]().config
    check_methods(job(), config, [method(components=["z", "resid_pre"])])
    with pytest.raises(ModelError, match=r"model 'model', method 'b': gpt_neox has no resid_mid.*it has: resid_pre, q"):
        check_methods(job(), config, [method(id="a", kind="atp"), method(id="b", kind="atp", components=["resid_mid"])])
    check_methods(job(), ARCHITECTURES["gpt_neox_sequential"]().config, [method(components=["resid_mid"])])


def test_atp_star_on_one_layer_is_refused() -> None:
    config = ARCHITECTURES["llama"]().config
    check_methods(job(), config, [method(id="atp_star")])
    config.num_hidden_layers = 1
    check_methods(job(), config, [method()])
    with pytest.raises(ModelError, match="atp_star needs a model of 2 layers or more"):
        check_methods(job(), config, [method(id="atp_star")])


def test_second_derivatives_of_a_model_that_is_split_over_processes_are_refused() -> None:
    config = ARCHITECTURES["llama"]().config
    check_methods(job(), config, [method(id="atp_hvp")])
    shards = job(workers={"kind": "sharded", "shards": 2})
    check_methods(shards, config, [method(), method(id="refined")])
    with pytest.raises(ModelError, match=r"'atp_hvp': atp_hvp differentiates gradients.*Use workers of kind replica"):
        check_methods(shards, config, [method(id="atp_hvp")])


def test_an_attention_that_atp_star_cannot_read_is_refused_where_it_has_to() -> None:
    config = ARCHITECTURES["gpt2"]().config
    config.reorder_and_upcast_attn = True
    own = method(id="atp_star", components=["q"])
    with pytest.raises(ModelError, match=r"atp_star cannot read .* Set attention: sdpa"):
        check_methods(job(attention="eager"), config, [own])
    check_methods(job(attention="eager"), config, [method(id="atp_star", components=["z"]), method()])
    check_methods(job(attention="sdpa"), config, [own])


def test_a_model_whose_code_needs_a_missing_package_is_refused_with_its_name(tmp_path: Path) -> None:
    folder = changed(
        save_tiny("llama", tmp_path / "m"), auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    )
    (folder / "modeling_own.py").write_text("import no_such_package\n\nclass OwnForCausalLM: ...\n")
    with pytest.raises(ModelError, match=r"m' cannot be loaded: a package is missing .*no_such_package"):
        load_model(job(folder, trust_remote_code=True))


def test_weights_that_are_cut_off_or_of_other_sizes_are_refused(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(job(folder))
    weights.write_bytes(whole)
    with pytest.raises(ModelError, match="not of the sizes that its configuration states"):
        load_model(job(changed(folder, intermediate_size=64)))
