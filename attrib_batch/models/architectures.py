"""Where each component lives, for each architecture: the one place that knows module names.

A component is read at a *site*: the input or output of one module of a decoder layer, and the view that turns that
tensor into (pair, position, head, feature). Queries and keys are read after their normalisation and before the rotary
embedding. The embedding rotates each position's vector by an angle that depends on the position alone, and a rotation
keeps inner products; so a score there equals the score after the rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from einops import rearrange

from attrib_batch.errors import ModelError
from attrib_batch.spec import Component

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Float
    from torch import Tensor, nn

    HeadsView = Callable[["Float[Tensor, '...']", "Dimensions"], "Float[Tensor, 'pair position head feature']"]

End = Literal["input", "output"]
SiteKey = tuple[str, End]
"""Path of a module below its layer, and which end of it: sites with the same key read the same tensor."""


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a model that scores depend on."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_vocab: int
    max_tokens: int

    def heads_of(self, component: Component) -> int | None:
        """How many heads the component is split into; None where it is not."""
        if not component.has_heads:
            return None
        return self.n_kv_heads if component in {Component.K, Component.V} else self.n_heads


# Views of a site's tensor as (pair, position, head, feature). Each inverts a layout some architecture uses.


def _whole(x: Tensor, _: Dimensions) -> Tensor:
    return rearrange(x, "pair position feature -> pair position 1 feature")


def _flat(x: Tensor, d: Dimensions) -> Tensor:
    return rearrange(x, "pair position (head feature) -> pair position head feature", feature=d.head_dim)


def _split(x: Tensor, _: Dimensions) -> Tensor:
    return x


def _split_heads_first(x: Tensor, _: Dimensions) -> Tensor:
    return rearrange(x, "pair head position feature -> pair position head feature")


def _blocks_of_three(part: int) -> HeadsView:
    """GPT-2's fused projection: all queries, then all keys, then all values."""

    def view(x: Tensor, d: Dimensions) -> Tensor:
        return rearrange(
            x,
            "pair position (part head feature) -> part pair position head feature",
            part=3,
            feature=d.head_dim,
        )[part]

    return view


def _interleaved_by_head(part: int) -> HeadsView:
    """GPT-NeoX's fused projection: each head's query, key and value side by side."""

    def view(x: Tensor, d: Dimensions) -> Tensor:
        return rearrange(
            x,
            "pair position (head part feature) -> part pair position head feature",
            part=3,
            feature=d.head_dim,
        )[part]

    return view


@dataclass(frozen=True)
class Site:
    """Where one component of a decoder layer is read."""

    module: str
    """Path below the layer; empty for the layer itself."""
    end: End
    view: HeadsView = _whole

    @property
    def key(self) -> SiteKey:
        """Sites with the same key read the same tensor."""
        return self.module, self.end

    @property
    def head_axis(self) -> int | None:
        """The axis of heads where the tensor has one of its own; None where heads are part of the feature axis."""
        axes: dict[HeadsView, int] = {_split: 2, _split_heads_first: 1}
        return axes.get(self.view)


@dataclass(frozen=True)
class Architecture:
    """Where the parts of one family of models are, as paths below its ``ForCausalLM`` module."""

    layers: str
    embedding: str
    final_norm: str
    attention: str
    """Path of the attention module below a layer."""
    sites: Mapping[Component, Site]
    """Every component this family has, in the order of the forward pass."""
    unembedding: str = "lm_head"

    def site(self, component: Component, model_type: str) -> Site:
        """The component's site.

        Raises:
            ModelError: the family does not have the component.
        """
        try:
            return self.sites[component]
        except KeyError:
            raise ModelError(self.missing(component, model_type)) from None

    def missing(self, component: Component, model_type: str) -> str:
        """Say that the family does not have a component, why, and which ones it has."""
        return (
            f"{model_type} has no {component}: its attention and MLP read the same residual stream in parallel. "
            f"Components it has: {', '.join(self.sites)}"
        )


@dataclass(frozen=True)
class _Qkv:
    """The sites of queries, keys and values."""

    q: Site
    k: Site
    v: Site


def _sites(
    qkv: _Qkv,
    *,
    projection: str,
    resid_mid: str | None,
    attn_out: str | None = None,
    mlp_out: str = "mlp",
) -> Mapping[Component, Site]:
    """The sites of a layer; ``attn_out`` is the output projection unless a norm follows it."""
    projected = {Component.Q: qkv.q, Component.K: qkv.k, Component.V: qkv.v}
    if qkv.q.view is _split_heads_first:
        # These normalise queries and keys after all three projections, so values come first.
        projected = {Component.V: qkv.v, Component.Q: qkv.q, Component.K: qkv.k}
    sites = {
        Component.RESID_PRE: Site("", "input"),
        **projected,
        Component.Z: Site(projection, "input", _flat),
        Component.ATTN_OUT: Site(attn_out or projection, "output"),
        Component.RESID_MID: Site(resid_mid or "", "input"),
        Component.MLP_OUT: Site(mlp_out, "output"),
        Component.RESID_POST: Site("", "output"),
    }
    if resid_mid is None:
        del sites[Component.RESID_MID]
    return MappingProxyType(sites)


def _projections(q: str = "q_proj", k: str = "k_proj", view: HeadsView = _flat) -> _Qkv:
    return _Qkv(
        Site(f"self_attn.{q}", "output", view),
        Site(f"self_attn.{k}", "output", view),
        Site("self_attn.v_proj", "output", _flat),
    )


def _fused(module: str, part: Callable[[int], HeadsView]) -> _Qkv:
    return _Qkv(*(Site(module, "output", part(index)) for index in range(3)))


def _llama_like(sites: Mapping[Component, Site], *, final_norm: str = "model.norm") -> Architecture:
    return Architecture(
        layers="model.layers",
        embedding="model.embed_tokens",
        final_norm=final_norm,
        attention="self_attn",
        sites=sites,
    )


_LLAMA = _llama_like(_sites(_projections(), projection="self_attn.o_proj", resid_mid="post_attention_layernorm"))


def _post_normed(qkv: _Qkv, *, resid_mid: str = "pre_feedforward_layernorm") -> Architecture:
    """Attention and MLP pass a norm of their own before they are added to the residual stream."""
    return _llama_like(
        _sites(
            qkv,
            projection="self_attn.o_proj",
            attn_out="post_attention_layernorm",
            mlp_out="post_feedforward_layernorm",
            resid_mid=resid_mid,
        )
    )


_GPT2 = Architecture(
    layers="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    attention="attn",
    sites=_sites(_fused("attn.c_attn", _blocks_of_three), projection="attn.c_proj", resid_mid="ln_2"),
)


def _gpt_neox(config: Any) -> Architecture:
    return Architecture(
        layers="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        sites=_sites(
            _fused("attention.query_key_value", _interleaved_by_head),
            projection="attention.dense",
            resid_mid=None if config.use_parallel_residual else "post_attention_layernorm",
        ),
    )


def _phi(config: Any) -> Architecture:
    projections = (
        _projections("q_layernorm", "k_layernorm", _split_heads_first) if config.qk_layernorm else _projections()
    )
    return _llama_like(
        _sites(projections, projection="self_attn.dense", resid_mid=None),
        final_norm="model.final_layernorm",
    )


_ARCHITECTURES: Mapping[str, Callable[[Any], Architecture]] = {
    "gpt2": lambda _: _GPT2,
    "gpt_neox": _gpt_neox,
    "llama": lambda _: _LLAMA,
    "mistral": lambda _: _LLAMA,
    "qwen2": lambda _: _LLAMA,
    "qwen3": lambda _: _llama_like(
        _sites(
            _projections("q_norm", "k_norm", _split),
            projection="self_attn.o_proj",
            resid_mid="post_attention_layernorm",
        )
    ),
    "gemma2": lambda _: _post_normed(_projections()),
    "gemma3_text": lambda _: _post_normed(_projections("q_norm", "k_norm", _split_heads_first)),
    "phi": _phi,
    "olmo2": lambda _: _post_normed(_projections("q_norm", "k_norm"), resid_mid="mlp"),
}

KNOWN_ARCHITECTURES = tuple(sorted(_ARCHITECTURES))

CHECKED_TOKENS = 4
"""How many tokens are run to check a model's shapes."""


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model by its transformers configuration.

    Raises:
        ModelError: naming the architectures that are known.
    """
    build = _ARCHITECTURES.get(config.model_type)
    if build is None:
        raise ModelError(f"architecture {config.model_type!r} is not known; known: {', '.join(KNOWN_ARCHITECTURES)}")
    return build(config)


def dimensions_of(config: Any) -> Dimensions:
    """The sizes a transformers configuration states."""
    n_heads = config.num_attention_heads
    return Dimensions(
        n_layers=config.num_hidden_layers,
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        d_model=config.hidden_size,
        d_vocab=config.vocab_size,
        max_tokens=config.max_position_embeddings,
    )


def check_shapes(model: nn.Module, architecture: Architecture, dimensions: Dimensions) -> None:
    """Run a few tokens through the model and compare every site's tensor with the sizes the configuration states.

    Raises:
        ModelError: a module is missing or a shape is not what the architecture says.
    """
    import torch

    check_modules(model, architecture, dimensions)
    last = _submodule(model, architecture.layers)[-1]  # type: ignore[index]  # a ModuleList
    seen: dict[SiteKey, Tensor] = {}
    handles = []
    for module, end in {site.key for site in architecture.sites.values()}:
        target = _submodule(last, module) if module else last
        if end == "input":

            def keep_input(_m: Any, args: Any, kwargs: Any, key: Any = (module, end)) -> None:
                seen[key] = args[0] if args else kwargs["hidden_states"]

            handles.append(target.register_forward_pre_hook(keep_input, with_kwargs=True))
        else:

            def keep_output(_m: Any, _args: Any, out: Any, key: Any = (module, end)) -> None:
                seen[key] = out

            handles.append(target.register_forward_hook(keep_output))
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(torch.arange(CHECKED_TOKENS, device=device).unsqueeze(0), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    compare_shapes(seen, architecture, dimensions)


def check_modules(model: nn.Module, architecture: Architecture, dimensions: Dimensions) -> None:
    """Look for the modules that stand once in a model.

    Raises:
        ModelError: a module is missing, or there are more or fewer layers than the configuration states.
    """
    layers = _submodule(model, architecture.layers)
    for path in (architecture.embedding, architecture.final_norm, architecture.unembedding):
        _submodule(model, path)
    if len(layers) != dimensions.n_layers:  # type: ignore[arg-type]  # a ModuleList, which has a length
        raise ModelError(
            f"{architecture.layers} does not hold the {dimensions.n_layers} layers its configuration states"
        )


def compare_shapes(seen: Mapping[SiteKey, Tensor], architecture: Architecture, dimensions: Dimensions) -> None:
    """Compare the tensors at the sites of a layer, from a run of ``CHECKED_TOKENS`` tokens, with what they must be.

    Raises:
        ModelError: a shape is not what the architecture says.
    """
    for component, site in architecture.sites.items():
        n_heads = dimensions.heads_of(component)
        expected = (1, CHECKED_TOKENS, n_heads or 1, dimensions.head_dim if n_heads else dimensions.d_model)
        found = tuple(site.view(seen[site.key], dimensions).shape)
        if found != expected:
            raise ModelError(
                f"{component} at {site.module or 'the layer'}.{site.end} has shape {found}, expected {expected} "
                "(pair, position, head, feature); this transformers version lays the model out differently"
            )


def _submodule(model: Any, path: str) -> nn.Module:
    try:
        found: nn.Module = model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"{type(model).__name__} has no module {path!r}: {error}") from error
    return found
