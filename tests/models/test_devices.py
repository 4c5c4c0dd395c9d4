"""Which device a model goes to, by what this process was given. No GPU is at hand: torch's answers are made up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from attrib_batch.errors import ModelError
from attrib_batch.models.devices import (
    check_placement,
    choose_device,
    prepare_environment,
    spreads_over_gpus,
    take_memory_share,
)
from attrib_batch.models.load import load_model, load_weights
from attrib_batch.models.sources import find_model
from attrib_batch.spec import ModelSpec
from tests.support.tiny_models import ARCHITECTURES, save_tiny


def job(model: object, **options: object) -> ModelSpec:
    return ModelSpec.model_validate({"id": str(model), "prepend_bos": False, **options})


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_devices_of_a_machine_without_gpus() -> None:
    assert choose_device(job("x")).type == choose_device(job("x"), gpus=0).type == "cpu"
    for device in ("cuda:0", "mps", "meta", "xpu"):
        with pytest.raises(
            ModelError, match=rf"'x', device '{device}': this machine \(.*\) does not have it; it has cpu$"
        ):
            choose_device(job("x", device=device))
    with pytest.raises(ModelError, match="'toaster': this is no device; use auto, cpu, cuda"):
        choose_device(job("x", device="toaster"))


@pytest.mark.usefixtures("two_gpus")
def test_devices_of_a_machine_with_gpus() -> None:
    assert choose_device(job("x")).type == "cuda"
    assert choose_device(job("x", device="cuda:1")) == torch.device("cuda", 1)
    with pytest.raises(ModelError, match=r"'cuda:2': this machine .* it has cpu, cuda:0, cuda:1$"):
        choose_device(job("x", device="cuda:2"))


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_that_was_given_no_gpu_takes_none_whatever_it_sees() -> None:
    assert choose_device(job("x"), gpus=0).type == "cpu"
    assert choose_device(job("x"), gpus=0.5).type == choose_device(job("x"), gpus=1).type == "cuda"
    assert choose_device(job("x", device="cuda:1"), gpus=0) == torch.device("cuda", 1), "where it is asked for by name"


@pytest.mark.usefixtures("no_gpu")
def test_a_worker_that_was_given_a_gpu_and_finds_none_does_not_compute_on_the_cpu() -> None:
    with pytest.raises(ModelError, match=r"'x': its workers have gpus: 0\.5, and torch .* finds no CUDA device on"):
        choose_device(job("x"), gpus=0.5)
    assert choose_device(job("x", device="cpu"), gpus=1).type == "cpu"


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_gpus_are_hidden_from_workers_that_were_given_none(device: str) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0,1"}
    prepare_environment(job("x", device=device), environment, gpus=0)
    assert environment == {"CUDA_VISIBLE_DEVICES": ""}


def test_the_allocator_is_set_up_before_torch_starts_unless_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    for gpus in (None, 0.5, 1):
        environment: dict[str, str] = {}
        prepare_environment(job("x"), environment, gpus=gpus)
        assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        environment = {name: "max_split_size_mb:128"}
        prepare_environment(job("x"), environment, gpus=1)
        assert environment == {name: "max_split_size_mb:128"}
    environment = {}
    prepare_environment(job("x", device="cpu"), environment, gpus=1)
    assert environment == {}


def test_the_allocator_is_left_alone_once_torch_is_there() -> None:
    environment: dict[str, str] = {}
    prepare_environment(job("x"), environment, gpus=None)
    assert environment == {}


def test_deterministic_kernels_need_a_setting_of_cublas() -> None:
    for before, after in (({}, ":4096:8"), ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ":16:8")):
        environment = dict(before)
        prepare_environment(job("x", deterministic=True), environment, gpus=1)
        assert environment == {"CUBLAS_WORKSPACE_CONFIG": after}


@pytest.mark.parametrize(
    ("device", "gpus", "share"),
    [("cuda", 0.25, 0.25), ("cuda:1", 0.5, 0.5), ("cuda", 1, 1.0), ("cuda", None, 1.0), ("cpu", 0.5, 1.0)],
)
def test_a_fraction_of_a_gpu_is_a_fraction_of_its_memory(
    device: str, gpus: float | None, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: limits.append(limit))
    assert take_memory_share(torch.device(device), gpus) == share
    place = torch.device(device) if ":" in device else None
    assert limits == ([(share, place)] if share < 1 else [])


def test_the_share_is_told_by_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny("gpt2", tmp_path / "m")
    assert load_model(job(folder)).memory_share == 1.0
    monkeypatch.setattr("attrib_batch.models.load.take_memory_share", lambda _device, gpus: gpus)
    assert load_model(job(folder, device="cpu"), gpus=0.25).memory_share == 0.25


def test_what_transformers_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def record(location: str, **options: object) -> None:
        asked.update(options)
        raise OSError("stop here")

    folder = save_tiny("llama", tmp_path / "m")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", record)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for gpus, there, expected in (
        (2, True, "auto"),
        (1, True, {"": torch.device("cuda")}),
        (0, True, None),
        (0, False, None),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        spread = job(folder, workers={"gpus": gpus})
        assert spreads_over_gpus(spread) is (expected == "auto")
        with pytest.raises(ModelError, match="stop here"):
            load_model(spread, gpus=gpus)
        assert asked["device_map"] == expected
        assert asked["trust_remote_code"] is False
        assert asked["use_safetensors"] is True


def test_a_model_that_is_loaded_onto_one_device_has_no_hooks_and_the_same_weights(tmp_path: Path) -> None:
    """On the CPU, which a device map may name as well as a card."""
    spec = job(save_tiny("llama", tmp_path / "m"))
    straight = load_weights(spec, find_model(spec), device_map={"": torch.device("cpu")})
    assert not any(hasattr(module, "_hf_hook") for module in straight.modules())
    for name, values in load_weights(spec, find_model(spec), device_map=None).state_dict().items():
        assert torch.equal(values, straight.state_dict()[name])


def test_a_model_that_does_not_fit_on_its_gpus_is_refused_with_what_is_missing() -> None:
    model = ARCHITECTURES["llama"]()
    everywhere = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "model.layers.2": 1}
    model.hf_device_map = {**everywhere, "model.norm": 1, "lm_head": 1}
    check_placement(job("x", workers={"gpus": 2}), model)
    model.hf_device_map = {**everywhere, "model.layers.2": "cpu", "model.norm": torch.device("cpu"), "lm_head": "disk"}
    off = [model.model.layers[2], model.model.norm, model.lm_head]
    size = sum(parameter.numel() * 4 for module in off for parameter in module.parameters())
    with pytest.raises(ModelError) as caught:
        check_placement(job("x", workers={"gpus": 2}), model)
    assert str(caught.value) == (
        f"model 'x' does not fit on 2 GPUs: {size / 1e9:.3g} GB of its weights found no room there (model.layers.2 "
        "(cpu), model.norm (cpu), lm_head (disk)). Give its workers more gpus, a smaller dtype, or split it into shards"
    )
