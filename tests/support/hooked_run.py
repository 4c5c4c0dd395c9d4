"""One run of a model, with every component recorded, or many with an activation replaced in each, by plain torch hooks.

Queries, keys and values are read and replaced inside an attention function of its own, which transformers
calls with what the model really uses: after rotary position embedding, one key and one value per key/value
head, and the mask of the layer (causal or sliding window).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tests.support import device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel

QKV = ("q", "k", "v")


@dataclass(frozen=True)
class Sites:
    """Module names of one architecture; those below ``layers`` are relative to a layer."""

    layers: str
    embedding: str
    projection: str  # its input is z
    attn_out: str  # its output is what attention adds to the residual stream
    mlp_out: str  # its output is what the MLP adds
    mid: str | None  # its input is resid_mid; None where attention and MLP run in parallel


def sites_of(model: nn.Module) -> Sites:
    """Where ``model`` has its components."""
    config = model.config
    kind = config.model_type
    if kind == "gpt2":
        return Sites("transformer.h", "transformer.wte", "attn.c_proj", "attn.c_proj", "mlp", "ln_2")
    if kind == "gpt_neox":
        mid = None if config.use_parallel_residual else "post_attention_layernorm"
        dense = "attention.dense"
        return Sites("gpt_neox.layers", "gpt_neox.embed_in", dense, dense, "mlp", mid)
    if kind == "phi":
        return _llama_like("self_attn.dense", "self_attn.dense", "mlp", None)
    if kind in {"gemma2", "gemma3_text"}:
        return _llama_like(
            "self_attn.o_proj",
            "post_attention_layernorm",
            "post_feedforward_layernorm",
            "pre_feedforward_layernorm",
        )
    if kind == "olmo2":
        return _llama_like("self_attn.o_proj", "post_attention_layernorm", "post_feedforward_layernorm", "mlp")
    if kind in {"llama", "mistral", "qwen2", "qwen3"}:
        return _llama_like("self_attn.o_proj", "self_attn.o_proj", "mlp", "post_attention_layernorm")
    raise ValueError(f"the oracle does not know {kind}")


def _llama_like(projection: str, attn_out: str, mlp_out: str, mid: str | None) -> Sites:
    return Sites("model.layers", "model.embed_tokens", projection, attn_out, mlp_out, mid)


def component_names(model: nn.Module) -> list[str]:
    """The components ``model`` has, in the order of the forward pass."""
    names = ["resid_pre", *QKV, "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    return [name for name in names if name != "resid_mid" or sites_of(model).mid is not None]


@dataclass(frozen=True)
class Patch:
    """Replace one activation, at one layer, head and position, by ``value`` [feature]."""

    component: str
    layer: int
    head: int
    position: int
    value: Tensor


@dataclass
class Run:
    """What one forward pass of one prompt leaves behind."""

    logits: Tensor  # [vocab], at the last position
    embeddings: Tensor  # [1, position, feature]
    seen: dict[tuple[str, int], Tensor]  # (component, layer) -> the tensor the model itself went on with
    softmax: dict[int, Softmax]  # layer -> how its attention turns queries and keys into probabilities


@dataclass(frozen=True)
class Softmax:
    """What a layer's attention needs beside its queries and keys."""

    mask: Tensor  # [1, query, key], added to the scores
    scaling: float
    softcap: float | None

    def probabilities(self, query: Tensor, key: Tensor) -> Tensor:
        """Attention probabilities [..., head, query, key], of ``query`` [..., head, position, feature] and ``key``."""
        scores = query @ to_query_heads(key, query.shape[-3]).transpose(-1, -2) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        return (scores + self.mask).softmax(-1)


def to_query_heads(tensor: Tensor, n_heads: int) -> Tensor:
    """Repeat each key/value head for the query heads it serves, which are neighbours."""
    return tensor.repeat_interleave(n_heads // tensor.shape[-3], dim=-3)


@dataclass
class _Attention:
    """What the attention function is to record and replace in the run under way."""

    patches: Sequence[Patch] = ()
    seen: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    softmax: dict[int, Softmax] = field(default_factory=dict)


_IMPLEMENTATION = "oracle"
_under_way = _Attention()


def _oracle_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention written out; query, key and value are [row, head, position, feature], and all rows have one mask."""
    layer = module.layer_idx
    tensors = {"q": query, "k": key, "v": value}
    for name in {patch.component for patch in _under_way.patches if patch.layer == layer} & tensors.keys():
        tensors[name] = tensors[name].clone()
        for row, patch in enumerate(_under_way.patches):
            if (patch.component, patch.layer) == (name, layer):
                tensors[name][row, patch.head, patch.position] = patch.value
    softmax = Softmax(attention_mask[0], scaling, softcap)
    _under_way.seen |= {(name, layer): tensor for name, tensor in tensors.items()}
    _under_way.softmax[layer] = softmax
    probabilities = softmax.probabilities(tensors["q"], tensors["k"])
    mixed = probabilities @ to_query_heads(tensors["v"], query.shape[1])
    return mixed.transpose(1, 2), None


AttentionInterface.register(_IMPLEMENTATION, _oracle_attention)
AttentionMaskInterface.register(_IMPLEMENTATION, eager_mask)


@contextmanager
def _own_attention(model: PreTrainedModel, patches: Sequence[Patch]) -> Iterator[_Attention]:
    """Let ``model`` use the oracle's attention function, and its own again afterwards."""
    global _under_way  # noqa: PLW0603 - transformers calls the function with no place for a state of ours
    before = model.config._attn_implementation
    _under_way = _Attention(patches)
    model.set_attn_implementation(_IMPLEMENTATION)
    try:
        yield _under_way
    finally:
        model.set_attn_implementation(before)
        _under_way = _Attention()


def run(
    model: PreTrainedModel,
    ids: Sequence[int],
    *,
    own_attention: bool,
    embeddings: Tensor | None = None,
    dropped_layer: int | None = None,
) -> Run:
    """Run ``model`` on one prompt and record every component.

    Args:
        own_attention: use the oracle's attention function; without it there are no q, k, v and no softmax.
        embeddings: take these [1, position, feature] for the token embeddings of ``ids``.
        dropped_layer: let no gradient through what this layer adds to the residual stream; its skip
            connection passes gradients on, and no value changes.
    """
    found, [logits] = _run_rows(
        model, [ids], (), own_attention=own_attention, embeddings=embeddings, dropped_layer=dropped_layer
    )
    return replace(found, logits=logits)


def patched_logits(
    model: PreTrainedModel, ids: Sequence[int], patches: Sequence[Patch], *, own_attention: bool
) -> Tensor:
    """Return the logits [patch, vocab] of one prompt with each activation replaced alone, the others left.

    Each has a row of its own: together they cost little more than one.
    """
    _, logits = _run_rows(model, [ids] * len(patches), patches, own_attention=own_attention)
    return logits


def _run_rows(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    patches: Sequence[Patch],
    *,
    own_attention: bool,
    embeddings: Tensor | None = None,
    dropped_layer: int | None = None,
) -> tuple[Run, Tensor]:
    """Run ``model`` on rows that are alike but for the patches, one a row; what it leaves, and the logits of all."""
    sites = sites_of(model)
    seen: dict[tuple[str, int], Tensor] = {}
    leaf: list[Tensor] = []

    def replace_embeddings(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        chosen = output if embeddings is None else embeddings
        leaf.append(chosen.detach().clone().requires_grad_())
        return leaf[0]

    with ExitStack() as stack:
        attention = stack.enter_context(_own_attention(model, patches)) if own_attention else _Attention()
        stack.callback(model.get_submodule(sites.embedding).register_forward_hook(replace_embeddings).remove)
        for index, layer in enumerate(model.get_submodule(sites.layers)):
            handles = _hook_layer(layer, index, sites, seen, patches, drop=index == dropped_layer)
            for handle in handles:
                stack.callback(handle.remove)
        tokens = torch.tensor([list(ids) for ids in rows], device=device.of(model))
        logits = model(tokens, use_cache=False).logits[:, -1]
    return Run(logits, leaf[0], seen | attention.seen, attention.softmax), logits


def _hook_layer(
    layer: nn.Module,
    index: int,
    sites: Sites,
    seen: dict[tuple[str, int], Tensor],
    patches: Sequence[Patch],
    *,
    drop: bool,
) -> list[Any]:
    """Record, and where asked replace, the activations of one layer."""

    def put(component: str, tensor: Tensor) -> Tensor:
        mine = [row for row, patch in enumerate(patches) if (patch.component, patch.layer) == (component, index)]
        if mine:
            tensor = tensor.clone()
        for row in mine:
            patch, width = patches[row], patches[row].value.shape[0]
            tensor[row, patch.position, patch.head * width : (patch.head + 1) * width] = patch.value
        seen[component, index] = tensor
        return tensor

    def on_input(component: str) -> Callable[..., tuple[Any, ...]]:
        return lambda _module, args: (put(component, args[0]), *args[1:])

    def on_output(component: str) -> Callable[..., Tensor]:
        return lambda _module, _args, output: put(component, output)

    def on_branch(component: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            output = put(component, output)
            return output.detach() if drop else output

        return hook

    def on_mid(_module: nn.Module, args: tuple[Any, ...]) -> None:
        # The skip connection holds this very tensor: replacing it would change only one of two paths.
        for row, patch in enumerate(patches):
            if (patch.component, patch.layer) == ("resid_mid", index):
                args[0][row, patch.position] = patch.value
        seen["resid_mid", index] = args[0]

    handles = [
        layer.register_forward_pre_hook(on_input("resid_pre")),
        layer.get_submodule(sites.projection).register_forward_pre_hook(on_input("z")),
        layer.get_submodule(sites.attn_out).register_forward_hook(on_branch("attn_out")),
        layer.get_submodule(sites.mlp_out).register_forward_hook(on_branch("mlp_out")),
        layer.register_forward_hook(on_output("resid_post")),
    ]
    if sites.mid is not None:
        handles.append(layer.get_submodule(sites.mid).register_forward_pre_hook(on_mid))
    return handles


def n_layers(model: PreTrainedModel) -> int:
    """How many layers ``model`` has."""
    return len(model.get_submodule(sites_of(model).layers))


def by_head(model: PreTrainedModel, component: str, tensor: Tensor) -> Tensor:
    """An activation, or a gradient on it, as [head, position, feature]."""
    if component == "z":
        return tensor[0].unflatten(-1, (model.config.num_attention_heads, -1)).transpose(0, 1)
    return tensor if component not in QKV else tensor[0]
