"""The engine with plain torch hooks where it uses nnsight: everything else is the engine's own code.

Two methods run the model: one as far as keys and values go, the other runs suffixes and reads sites. Both are replaced,
so the difference to the engine is what nnsight costs.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from attrib_batch.attribution import engine
from attrib_batch.attribution.passes import Capture
from attrib_batch.attribution.passes.packed import PackedPasses
from benchmarks import recipes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from torch import Tensor, nn

    from attrib_batch.attribution.passes import Layout
    from attrib_batch.models.families import Site, SiteKey
    from attrib_batch.models.load import LoadedModel
    from benchmarks.workloads import Workload


class _StopRunError(Exception):
    """Ends a forward pass when nothing after it is needed."""


def engine_without_nnsight(model: LoadedModel, work: Workload) -> np.ndarray:
    """The engine's scores, with hooks in place of traces."""
    with patch.object(engine, "passes_for", _HookedPasses):
        return recipes.engine(model, work)


class _HookedPasses(PackedPasses):
    """Passes that read by torch hooks what attribution patching reads."""

    def forward(
        self, layout: Layout, sites: Sequence[Site], *, graph: bool, vocabulary: Sequence[int] | None, **_none: Any
    ) -> Capture:
        """Stands in for the engine's."""
        model = self.model
        keys = list(dict.fromkeys(site.key for site in sites))
        layers = model.module.get_submodule(model.architecture.layers)
        read: list[dict[SiteKey, Tensor]] = [{} for _ in layers]
        inputs, calling = self._call(layout)

        def reader(layer: int, key: SiteKey) -> Callable[..., None]:
            def keep(activation: Tensor) -> None:
                if graph and not activation.requires_grad:
                    activation.requires_grad_(True)
                read[layer][key] = activation

            if key[1] == "input":
                return lambda _module, args, kwargs: keep(args[0] if args else kwargs["hidden_states"])
            return lambda _module, _args, output: keep(output)

        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(graph))
            stack.enter_context(calling)
            for index, layer in enumerate(layers):
                for key in keys:
                    module = layer.get_submodule(key[0])
                    handle = (
                        module.register_forward_pre_hook(reader(index, key), with_kwargs=True)
                        if key[1] == "input"
                        else module.register_forward_hook(reader(index, key))
                    )
                    stack.callback(handle.remove)
            head = model.module.get_submodule(model.architecture.unembedding)
            if vocabulary is not None:
                stack.enter_context(_only(head, torch.tensor(vocabulary)))
            last = torch.from_numpy(layout.predicting[:, 0])
            logits = model.module(**inputs, logits_to_keep=last).logits[0]
        return Capture(layout, read, logits)

    def _run_attention(self, inputs: dict[str, Any]) -> None:
        def stop(_module: nn.Module, _args: Any, _output: Any) -> None:
            raise _StopRunError

        architecture = self.model.architecture
        last = self.model.module.get_submodule(architecture.layers)[-1].get_submodule(architecture.attention)
        handle = last.register_forward_hook(stop)
        try:
            self.model.module(**inputs)
        except _StopRunError:
            return
        finally:
            handle.remove()
        raise RuntimeError(f"{architecture.attention} of the last layer never ran")


@contextmanager
def _only(head: nn.Module, index: Tensor) -> Iterator[None]:
    """Let the unembedding give the logits of the tokens at ``index`` alone."""
    weight, bias = head.weight, head.bias
    head.weight = torch.nn.Parameter(weight[index], requires_grad=False)
    head.bias = None if bias is None else torch.nn.Parameter(bias[index], requires_grad=False)
    try:
        yield
    finally:
        head.weight, head.bias = weight, bias
