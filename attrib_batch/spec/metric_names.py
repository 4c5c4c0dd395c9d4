"""The names of metrics, known without loading torch: a job file is checked where no model can run.

What the names mean is in ``attrib_batch.attribution.metrics``.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

BUILT_IN_METRICS = ("logit_diff", "prob_diff", "log_prob", "kl")

ENTRY_POINT_GROUP = "attrib_batch.metrics"
"""The entry-point group in which an installed package offers metrics of its own, by name."""

registered_names: set[str] = set()
"""Names that ``register_metric`` added in this process."""


def entry_point_metrics() -> dict[str, list[EntryPoint]]:
    """The metrics that installed packages offer, by name; more than one entry under a name is a conflict."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def known_metrics() -> list[str]:
    """Every name a job may use in this process, the built-in ones first."""
    own = (registered_names | entry_point_metrics().keys()) - set(BUILT_IN_METRICS)
    return [*BUILT_IN_METRICS, *sorted(own)]


def check_metric_name(name: str) -> str:
    """The name, if it is a metric's.

    Raises:
        ValueError: naming the metrics there are.
    """
    # Packages are searched only for a name that is not built in: it reads the metadata of all of them.
    if name not in BUILT_IN_METRICS and name not in (known := known_metrics()):
        raise ValueError(f"expected the name of a metric ({', '.join(known)})")
    return name
