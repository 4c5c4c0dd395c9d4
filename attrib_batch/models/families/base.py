"""What a family of models is described by: the site of each component.

A component is read at a *site*: the input or output of one module of a decoder layer, and the view that turns that
tensor into (pair, position, head, feature). Queries and keys are read after their normalisation and before the rotary
embedding. The embedding rotates each position's vector by an angle that depends on the position alone, and a rotation
keeps inner products; so a score there equals the score after the rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from attrib_batch.errors import ModelError
from attrib_batch.models.families.views import HeadsView, flat, split, split_heads_first, whole
from attrib_batch.spec import Component

End = Literal["input", "output"]
SiteKey = tuple[str, End]
"""Path of a module below its layer, and which end of it: sites with the same key read the same tensor."""


@dataclass(frozen=True)
class Site:
    """Where one component of a decoder layer is read.

    Where a module gives a tuple, the tensor is its first element.
    """

    module: str
    """Path below the layer; empty for the layer itself."""
    end: End
    view: HeadsView = whole
    head_axis: int | None = None
    """The axis of heads where the tensor has one of its own; None where heads are part of the feature axis."""
    changed_later: bool = False
    """Whether the model changes this output in place afterwards; then it is given a copy to go on with."""
    bound: float | None = None
    """The size to which the model clips this output when it changes it; the activation is what is clipped already."""
    rows_as_in: SiteKey | None = None
    """Where this output has rows and positions on one axis: what has them on two. It is read first."""

    @property
    def key(self) -> SiteKey:
        """Sites with the same key read the same tensor."""
        return self.module, self.end


@dataclass(frozen=True)
class Mlp:
    """What of an MLP is not linear; paths below its layer."""

    activation: str
    """The module that is an element-wise function and nothing else."""
    gated_into: str | None = None
    """The module whose input is the product of the activation and another projection; None without a gate."""


GATED = Mlp("mlp.act_fn", "mlp.down_proj")
"""Of MLPs whose modules are named as Llama's."""
GATED_IN_ONE = Mlp("mlp.activation_fn", "mlp.down_proj")
"""The same where one projection gives both factors."""


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
    attention_interface: bool = True
    """Whether attention is computed by the function that transformers looks up by name (`AttentionInterface`)."""
    takes_position_ids: bool = True
    """Whether all that depends on a token's position follows ``position_ids``; some models count cached keys."""
    plain_skip: bool = True
    """Whether a layer adds to the residual stream and changes it in no other way; a norm of the stream would."""
    layer_gives_tuple: bool = False
    """Whether a decoder layer gives a tuple that begins with the residual stream."""
    whole_because: str | None = None
    """Why the model cannot be split over processes although transformers has a plan for it."""
    mlp: Mlp | None = None
    """What of its MLPs is not linear; None where they are of another kind, or where the family does not say it."""
    mlp_because: str = "its family does not say what of its MLPs is not linear"
    """Why there is no `mlp`, as what follows a colon."""
    n_kv_heads: int | None = None
    """How many key/value heads there are; None where the configuration says so under ``num_key_value_heads``."""
    reasons: Mapping[Component, str] = field(default_factory=dict)
    """Why components that one may expect are missing, as what follows a colon."""

    def site(self, component: Component, model_type: str) -> Site:
        """Return the component's site.

        Raises:
            ModelError: the family does not have the component.
        """
        try:
            return self.sites[component]
        except KeyError:
            raise ModelError(self.missing(component, model_type)) from None

    def missing(self, component: Component, model_type: str) -> str:
        """Say that the family does not have a component, why, and which ones it has."""
        reason = f": {self.reasons[component]}" if component in self.reasons else ""
        return f"{model_type} has no {component}{reason}. Components it has: {', '.join(self.sites)}"

    def within(self, wrapper: str) -> Architecture:
        """Return where these parts are if the text model is ``wrapper`` of a multimodal one, below its body.

        Args:
            wrapper: what stands in place of ``model`` in the paths of the body; the unembedding stays where it is.
        """

        def moved(path: str) -> str:
            return f"{wrapper}{path.removeprefix('model')}"

        return replace(
            self,
            layers=moved(self.layers),
            embedding=moved(self.embedding),
            final_norm=moved(self.final_norm),
        )


PARALLEL: Mapping[Component, str] = MappingProxyType(
    {Component.RESID_MID: "its attention and MLP read the same residual stream in parallel"}
)
"""Why a model whose attention and MLP stand side by side has nothing between them."""

EXPERTS = "its MLPs are mixtures of experts"
"""Why rules for ordinary MLPs do not apply to some models."""

CHANGED_IN_PLACE = "it changes what its processes have gathered in place, where no gradient passes"
"""Why some models cannot be split over processes."""

ArchitectureOf = Callable[[Any], Architecture]
"""Gives the architecture of a model from its transformers configuration."""


@dataclass(frozen=True)
class Family:
    """The registry's entry of a family: models that have their parts in the same places."""

    name: str
    """As its authors write it."""
    model_types: tuple[str, ...]
    """The ``model_type`` of transformers configurations of this family."""
    architecture: ArchitectureOf


@dataclass(frozen=True)
class Projections:
    """The sites of queries, keys and values."""

    q: Site
    k: Site
    v: Site
    values_first: bool = False
    """Whether values are there before queries and keys: where these are normalised after all three projections."""

    def in_order(self) -> dict[Component, Site]:
        """Return the sites in the order of the forward pass."""
        queries_and_keys, values = {Component.Q: self.q, Component.K: self.k}, {Component.V: self.v}
        return values | queries_and_keys if self.values_first else queries_and_keys | values


def separate(q: str = "q_proj", k: str = "k_proj", *, attention: str = "self_attn", **facts: Any) -> Projections:
    """Describe projections of their own, with heads side by side on the feature axis.

    Args:
        q: the module below the attention that gives the queries last: a norm, where one follows the projection.
        k: the same for keys.
        attention: the module that holds the projections, as a path below the layer.
        facts: further fields of each `Site`.
    """
    q_site, k_site, v_site = (Site(f"{attention}.{module}", "output", flat, **facts) for module in (q, k, "v_proj"))
    return Projections(q_site, k_site, v_site)


def normed_by_head(
    q: str = "q_norm", k: str = "k_norm", *, heads_first: bool = False, values_first: bool = False
) -> Projections:
    """Describe projections of their own, with a norm of each head's queries and keys below ``self_attn``.

    Args:
        q: the norm of the queries.
        k: the norm of the keys.
        heads_first: whether the norms see heads before positions.
        values_first: as in `Projections`.
    """
    view, axis = (split_heads_first, 1) if heads_first else (split, 2)
    return Projections(
        q=Site(f"self_attn.{q}", "output", view, head_axis=axis),
        k=Site(f"self_attn.{k}", "output", view, head_axis=axis),
        v=Site("self_attn.v_proj", "output", flat),
        values_first=values_first,
    )


def fused(module: str, part: Callable[[int], HeadsView]) -> Projections:
    """Describe one projection that gives queries, keys and values.

    Args:
        module: its path below the layer.
        part: gives the view of queries, keys and values, for 0, 1 and 2.
    """
    q, k, v = (Site(module, "output", part(index)) for index in range(3))
    return Projections(q, k, v)


def layer_sites(
    projections: Projections,
    *,
    output: str = "self_attn.o_proj",
    resid_mid: str | Site | None,
    attn_out: str | None = None,
    mlp_out: str | Site = "mlp",
) -> Mapping[Component, Site]:
    """List the sites of a layer, in the order of the forward pass.

    Args:
        projections: of queries, keys and values.
        output: the attention's output projection, whose input is ``z``.
        resid_mid: the module that reads the residual stream between attention and MLP, or the site where it is; None
            where it is nowhere.
        attn_out: the module whose output attention adds to the stream; the output projection unless a norm follows it.
        mlp_out: the module whose output the MLP adds, or the site of it.
    """
    sites = {
        Component.RESID_PRE: Site("", "input"),
        **projections.in_order(),
        Component.Z: Site(output, "input", flat),
        Component.ATTN_OUT: Site(attn_out or output, "output"),
        Component.RESID_MID: resid_mid if isinstance(resid_mid, Site) else Site(resid_mid or "", "input"),
        Component.MLP_OUT: mlp_out if isinstance(mlp_out, Site) else Site(mlp_out, "output"),
        Component.RESID_POST: Site("", "output"),
    }
    if resid_mid is None:
        del sites[Component.RESID_MID]
    return MappingProxyType(sites)


def llama_like(
    sites: Mapping[Component, Site],
    *,
    final_norm: str = "model.norm",
    reasons: Mapping[Component, str] = PARALLEL,
    mlp: Mlp | None = GATED,
    mlp_because: str = "",
) -> Architecture:
    """Describe a model whose modules are named as Llama's."""
    return Architecture(
        layers="model.layers",
        embedding="model.embed_tokens",
        final_norm=final_norm,
        attention="self_attn",
        sites=sites,
        reasons=reasons,
        mlp=mlp,
        mlp_because=mlp_because,
    )


def gpt_like(
    sites: Mapping[Component, Site], *, attention: str = "attn", embedding: str = "wte", **facts: Any
) -> Architecture:
    """Describe a model whose modules are named as GPT-2's; ``facts`` are further fields of its `Architecture`."""
    facts = {"mlp": Mlp("mlp.act"), **facts}
    return Architecture(
        layers="transformer.h",
        embedding=f"transformer.{embedding}",
        final_norm="transformer.ln_f",
        attention=attention,
        sites=sites,
        reasons=PARALLEL,
        **facts,
    )


def post_normed(
    projections: Projections,
    *,
    resid_mid: str = "pre_feedforward_layernorm",
    attn_out: str = "post_attention_layernorm",
    mlp_out: str = "post_feedforward_layernorm",
    mlp: Mlp = GATED,
) -> Architecture:
    """Describe a model in which attention and MLP pass a norm of their own before they are added to the stream."""
    return llama_like(layer_sites(projections, attn_out=attn_out, mlp_out=mlp_out, resid_mid=resid_mid), mlp=mlp)
