"""The registry of methods: one entry each, with all that is known of a method beside how it is computed.

What a job may ask of it, how it is planned, what it needs of a model, and how a report explains it are read here. The
function that computes it is named and not imported: a job file is checked where no model runs.

A method of one's own is an entry that an installed package offers in the entry-point group ``attrib_batch.methods``,
under the name of its kind. The module of the entry is imported when a job names the kind, or a report shows it, so it
should import nothing heavy; the module of the function may.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainValidator

from attrib_batch.errors import JobError
from attrib_batch.spec.base import Strict
from attrib_batch.spec.cell import Component
from attrib_batch.spec.positions import ALL, LAST, AtPositions, check_at
from attrib_batch.spec.registries.entry_points import load_offered, offered

if TYPE_CHECKING:
    from collections.abc import Mapping

METHOD_GROUP = "attrib_batch.methods"
"""The entry-point group in which an installed package offers methods of its own, by kind."""


class GradientAt(Enum):
    """Where a method differentiates the metric."""

    BASE = "the base prompt"
    PATH = "points between the two prompts"
    NOWHERE = "nowhere"


class NoParameters(Strict):
    """The parameters of a method that has none."""


@dataclass(frozen=True)
class MethodEntry:
    """What is known of a kind of method. Every field has a value that suits a method that says nothing of it."""

    kind: str
    """What jobs call it."""
    function: str
    """Where it is computed, as ``module:function``.

    The function is a `ScoringFunction` of `attrib_batch.attribution.groups`; with ``shares_forward_passes`` a
    `SharedScoringFunction`.
    """
    title: str
    """Its name in a report."""
    explanation: str
    """What its scores are, as one sentence or more; ``{name}`` stands for the value of a parameter."""
    cost: str
    """What it costs for a pair, in forward passes of one prompt (a backward pass counts as one)."""
    paper: str
    """Where it was defined."""
    parameters: type[Strict] = NoParameters
    """The keys that jobs give it beside those of every method, with their defaults."""
    gradient_at: GradientAt = GradientAt.NOWHERE
    magnitudes: bool = False
    """Whether its scores are magnitudes, which say nothing about the direction of an effect."""
    measured: bool = False
    """Whether its scores are the effects themselves; otherwise they are estimates, which can be verified."""
    advice: str = "use exact"
    """What to do where its estimates turn out to be wrong, for a report."""
    shares_forward_passes: bool = False
    """Whether all methods of this kind, of any direction, metric and components, are computed together."""
    mixes_shapes: bool = False
    """Whether its function takes pairs of any lengths and first differences at once."""
    adds_over_answers: bool = False
    """Whether its scores by a sum of metrics are the sums of those by each: then whole answers may be scored apart."""
    takes_references: bool = False
    """Whether it can replace activations by something else than those of the other prompt."""
    collects: bool = False
    """Whether it adds up activations and gives no scores: it is a stage's, and no job's."""
    begins_within_prompts: bool = False
    """Whether its rows begin at positions of a prompt, from the keys of those before; a state instead will not do."""
    second_derivatives: bool = False
    """Whether it differentiates gradients; collectives of a model that is split over processes have no second ones."""
    passes_by_skip_connections: bool = False
    """Whether it lets gradients pass a layer by its skip connection alone, which must then change nothing."""
    replaces_gradients_of_mlps: bool = False
    """Whether it must know what of a model's MLPs is not linear, to pass gradients there by a rule of its own."""
    measured_with: Mapping[str, Any] = field(default_factory=dict)
    """Values of parameters with which its memory is measured: of what it does again and again, few times say it all."""
    least_layers: int = 1
    """How many layers a model must have."""
    least_layers_reason: str = ""
    """Why, for messages."""
    reads_attention_for: frozenset[Component] = frozenset()
    """Components for which it must see the queries and keys that attention works on."""

    @property
    def differentiates(self) -> bool:
        """Whether it takes the metric's gradient anywhere."""
        return self.gradient_at is not GradientAt.NOWHERE

    def explain(self, parameters: Mapping[str, Any]) -> str:
        """Return what its scores are, with these values of its parameters and its defaults for all others."""
        values = self.parameters().model_dump()
        values |= {name: value for name, value in parameters.items() if name in values and value is not None}
        phrases = {
            name: value if isinstance(value, str | int | float) else ", ".join(value) for name, value in values.items()
        }
        return f"{self.title}: {self.explanation.format_map(phrases)}"


class _PathParameters(Strict):
    ig_steps: int = Field(8, ge=1, description="points on the path that gradients are averaged over")


class _ProbeParameters(Strict):
    probes: int = Field(4, ge=1, description="random directions that second orders are averaged over")


class _RefinedParameters(Strict):
    budget: float = Field(0.5, gt=0, description="what may be measured, as a share of what atp costs")
    measure_at: Annotated[Any, PlainValidator(check_at)] = Field(
        ALL, description=f"the positions at which scores may be measured: {ALL}, {LAST}, a role, or a list of roles"
    )


EXACT = "exact"
"""The kind that measures what the others estimate."""

_METHODS = "attrib_batch.attribution.methods"

BUILT_IN_METHODS: Mapping[str, MethodEntry] = MappingProxyType(
    {
        entry.kind: entry
        for entry in (
            MethodEntry(
                "atp",
                function=f"{_METHODS}.atp:attribution_patching",
                title="Attribution patching",
                explanation=(
                    "gradient times difference, a first-order estimate of what patching would do, close for attention "
                    "heads and weaker for MLP outputs and the residual stream."
                ),
                cost="3: both prompts, and the gradient on one; two directions together 4",
                paper="Nanda 2023; Syed, Rager, Conmy 2023 (arXiv 2310.10348)",
                gradient_at=GradientAt.BASE,
                mixes_shapes=True,
                adds_over_answers=True,
                takes_references=True,
                advice="use exact, or try atp_ig (saturation) or atp_star (queries and keys) and verify them too",
                shares_forward_passes=True,
            ),
            MethodEntry(
                "atp_ig",
                function=f"{_METHODS}.atp_ig:integrated_gradients",
                title="Integrated gradients",
                explanation=(
                    "as attribution patching, with the gradient averaged over {ig_steps} points on the way between "
                    "the two prompts; an estimate that saturation misleads less."
                ),
                cost="2 + 2 for each of ig_steps points",
                paper="Sundararajan et al. 2017 (arXiv 1703.01365); Hanna et al. 2024 (arXiv 2403.17806)",
                parameters=_PathParameters,
                measured_with=MappingProxyType({"ig_steps": 4}),
                gradient_at=GradientAt.PATH,
                mixes_shapes=True,
                adds_over_answers=True,
                takes_references=True,
                advice="use exact, or more ig_steps and verify again",
            ),
            MethodEntry(
                "atp_hvp",
                function=f"{_METHODS}.atp_hvp:second_order_patching",
                title="Attribution patching to second order",
                explanation=(
                    "as attribution patching, with the curvature of the metric along each difference added, estimated "
                    "by Hessian-vector products along {probes} random directions; where that changes a score much, "
                    "attribution patching is not to be relied on."
                ),
                cost="3 + 3 for each component and each of probes directions",
                paper="Zhang, Wang 2026 (arXiv 2606.09899)",
                parameters=_ProbeParameters,
                measured_with=MappingProxyType({"probes": 1}),
                gradient_at=GradientAt.BASE,
                mixes_shapes=True,
                takes_references=True,
                second_derivatives=True,
                advice="use exact, or more probes and verify again",
            ),
            MethodEntry(
                "atp_star",
                function=f"{_METHODS}.atp_star:attribution_patching_star",
                title="AtP*",
                explanation=(
                    "attribution patching with repairs for saturated attention and for effects that cancel. Its "
                    "scores are magnitudes: they rank activations and say nothing about the direction of an effect."
                ),
                cost="3 + half a pass for each layer",
                paper="Kramar, Lieberum, Shah, Nanda 2024 (arXiv 2403.00745)",
                gradient_at=GradientAt.BASE,
                mixes_shapes=True,
                takes_references=True,
                magnitudes=True,
                passes_by_skip_connections=True,
                least_layers=2,
                least_layers_reason="its scores are means over the other layers",
                reads_attention_for=frozenset({Component.Q, Component.K}),
            ),
            MethodEntry(
                "relp",
                function=f"{_METHODS}.relp:relevance_patching",
                title="Relevance patching",
                explanation=(
                    "attribution patching with rules of relevance propagation in place of gradients where a model is "
                    "not linear: norms have constant scales, element-wise functions pass their ratio, gates half."
                ),
                cost="3: both prompts, and one backward pass; two directions together 4",
                paper="Jafari, Eberle, Khakzar, Nanda 2025 (arXiv 2508.21258)",
                gradient_at=GradientAt.BASE,
                mixes_shapes=True,
                advice="use exact, or atp and verify it too",
                shares_forward_passes=True,
                adds_over_answers=True,
                takes_references=True,
                replaces_gradients_of_mlps=True,
            ),
            MethodEntry(
                "refined",
                function=f"{_METHODS}.refined:refined",
                title="Refined attribution patching",
                explanation=(
                    "attribution patching, with the scores that matter most replaced by measured effects: those of "
                    "each pair, and those of the pairs of a chunk together, as many as {budget} of the cost of "
                    "attribution patching pays for. Positions measured at: {measure_at}. The table measured says which."
                ),
                cost="3 + 3 times budget",
                paper="Nanda 2023; Vig et al. 2020 (arXiv 2004.12265)",
                parameters=_RefinedParameters,
                gradient_at=GradientAt.BASE,
                mixes_shapes=True,
                takes_references=True,
                begins_within_prompts=True,
                advice="use exact, or a larger budget and verify again",
            ),
            MethodEntry(
                EXACT,
                function=f"{_METHODS}.exact:activation_patching",
                title="Activation patching",
                explanation=(
                    "the measured effect of one replacement at a time. A sum over positions or heads adds separate "
                    "replacements, which is not the effect of making them together. Positions measured: {at}."
                ),
                cost="2 + for every component, layer, head and position of at the part of a pass behind it",
                paper="Vig et al. 2020 (arXiv 2004.12265); Meng et al. 2022 (arXiv 2202.05262)",
                parameters=AtPositions,
                measured=True,
                mixes_shapes=True,
                adds_over_answers=True,
                takes_references=True,
                begins_within_prompts=True,
            ),
        )
    }
)
"""The built-in methods, by kind."""

MEAN_ACTIVATIONS = MethodEntry(
    "mean_activations",
    function="attrib_batch.attribution.means:mean_activations",
    title="Mean activations",
    explanation="means over clean prompts by role, which reference mean puts in place of activations.",
    cost="1: the clean prompt",
    paper="Wang et al. 2022 (arXiv 2211.00593), section 2",
    shares_forward_passes=True,
    mixes_shapes=True,
    adds_over_answers=True,
    takes_references=True,
    collects=True,
)
"""What the stage before the scoring computes, one method for each component."""

_loaded: dict[str, MethodEntry] = {MEAN_ACTIVATIONS.kind: MEAN_ACTIVATIONS}


def known_methods() -> list[str]:
    """Return every kind a job may name, the built-in ones first."""
    return [*BUILT_IN_METHODS, *sorted(offered(METHOD_GROUP).keys() - BUILT_IN_METHODS.keys())]


def find_method_entry(kind: str) -> MethodEntry | None:
    """Return the entry of a kind; None for one that is not known here.

    Raises:
        JobError: an installed package offers it, and what it offers cannot be used.
    """
    # Packages are searched only for a kind that is not built in: it reads the metadata of all of them.
    if (entry := BUILT_IN_METHODS.get(kind) or _loaded.get(kind)) is not None:
        return entry
    if kind not in offered(METHOD_GROUP):
        return None
    found, reference = load_offered(METHOD_GROUP, kind, "method")
    if not isinstance(found, MethodEntry):
        raise JobError(f"method {kind!r}: {reference} is no {MethodEntry.__name__} of {MethodEntry.__module__}")
    if found.kind != kind:
        raise JobError(f"method {kind!r}: the entry at {reference} is of kind {found.kind!r}; give both one name")
    _loaded[kind] = found
    return found


def has_magnitudes(method: Mapping[str, Any]) -> bool:
    """Return whether the scores of a job's method are magnitudes; False for a kind that is not known here."""
    entry = find_method_entry(str(method.get("kind")))
    return entry is not None and entry.magnitudes


def method_entry(kind: str) -> MethodEntry:
    """Return the entry of a kind.

    Raises:
        JobError: the kind is not known here; naming those that are.
    """
    entry = find_method_entry(kind)
    if entry is None:
        raise JobError(
            f"method {kind!r} is not known in this process; known: {', '.join(known_methods())}. A method of one's own "
            f"is offered by an installed package, in the entry-point group {METHOD_GROUP!r}"
        )
    return entry


def check_method_kind(kind: str) -> str:
    """Return the kind, if there is a method of that kind.

    Raises:
        ValueError: naming the kinds there are.
        JobError: see `find_method_entry`.
    """
    entry = find_method_entry(kind)
    if entry is None or entry.collects:
        raise ValueError(f"expected the kind of a method ({', '.join(known_methods())})")
    return kind


def built_in_parameters() -> dict[str, list[str]]:
    """Return the parameters that built-in kinds have, each with those kinds."""
    found: dict[str, list[str]] = {}
    for kind, entry in BUILT_IN_METHODS.items():
        for name in entry.parameters.model_fields:
            found.setdefault(name, []).append(kind)
    return found
