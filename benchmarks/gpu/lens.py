"""TransformerLens on the same model and pairs, where it is installed."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
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
            work = Workload(members)
            ids = {"clean": work.clean, "corrupted": work.corrupted, "answers": work.answers}
            lens.scores(bridge, SimpleNamespace(**{name: values.to(bench.device) for name, values in ids.items()}))

    return throughput.timed(NAME, len(pairs), run, bench, clock, rounds=2)


def _bridge(model: LoadedModel, device: torch.device) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    # A copy of its own, made from the weights: it puts modules of its own into the model that it is given.
    module = type(model.module)(model.module.config)
    module.load_state_dict(model.module.state_dict())
    module = module.to(device).eval()
    return TransformerBridge.boot_transformers("gpt2", hf_model=module, tokenizer=model.tokenizer, device=str(device))
