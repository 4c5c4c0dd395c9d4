"""TransformerLens on the same model and pairs, where it is installed."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from benchmarks import lens
from benchmarks.gpu import throughput
from benchmarks.workloads import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import torch

    from attrib_batch.models.load import LoadedModel
    from attrib_batch.pairs.encoding.encode import EncodedPair
    from benchmarks.gpu.bench import Bench, Clock

NAME = "TransformerLens, hooks on both runs"


class _There(Workload):
    """A workload whose token ids lie where the model is."""

    device: torch.device

    @property
    def clean(self) -> torch.Tensor:
        return super().clean.to(self.device)

    @property
    def corrupted(self) -> torch.Tensor:
        return super().corrupted.to(self.device)

    @property
    def answers(self) -> torch.Tensor:
        return super().answers.to(self.device)


def speed(bench: Bench, model: LoadedModel, pairs: Sequence[EncodedPair], clock: Clock) -> throughput.Speed:
    """Time it in batches of one length, as it needs them."""
    try:
        bridge = _bridge(model, bench.device)
    except ImportError:
        return throughput.Speed(NAME, len(pairs), None, "not installed")
    except Exception as error:  # noqa: BLE001 - it may want the hub for the model's name
        return throughput.Speed(NAME, len(pairs), None, " ".join(f"{type(error).__name__}: {error}".split())[:160])
    by_length: dict[int, list[EncodedPair]] = defaultdict(list)
    for pair in pairs:
        by_length[pair.n_tokens].append(pair)

    def run() -> None:
        for members in by_length.values():
            work = _There(members)
            object.__setattr__(work, "device", bench.device)
            lens.scores(bridge, work)

    try:
        return throughput.timed(NAME, len(pairs), run, bench, clock, rounds=2)
    finally:
        model.module.requires_grad_(False)


def _bridge(model: LoadedModel, device: torch.device) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    model.module.requires_grad_(True)
    return TransformerBridge.boot_transformers(
        "gpt2", hf_model=model.module, tokenizer=model.tokenizer, device=str(device)
    )
