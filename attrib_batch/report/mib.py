"""Node scores as the circuit track of the MIB benchmark reads them (Mueller et al. 2025, arXiv 2504.13151).

Its evaluation (``run_evaluation.py --level node``) loads ``importances.json`` with ``Graph.from_json`` of EAP-IG, keeps
the nodes of the largest scores, by value or (``--absolute``) by magnitude, and patches all others. A node without a
score is always kept. The score of ``a{layer}.h{head}`` is that of ``z``: a head's output is linear in it. The score of
``m{layer}`` is that of ``mlp_out``. Both are means over pairs of sums over positions, in metric units, with the sign
that MIB means: positive where keeping the node brings about the clean behaviour.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from attrib_batch.analysis.comparison.orientation import towards_clean
from attrib_batch.analysis.places import is_at
from attrib_batch.spec import Component
from attrib_batch.spec.registries.methods import has_magnitudes
from attrib_batch.tables import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.spec import Cell

NodeOrder = Literal["value", "magnitude"]
NODE_ORDERS: tuple[NodeOrder, ...] = ("value", "magnitude")


def importances_path(cell: Cell) -> str:
    """Return where MIB looks for a cell's file below its ``--circuit-dir``: a folder named after task and model."""
    return f"{cell.method}_patching_node/{cell.dataset.replace('_', '-')}_{cell.model}/importances.json"


def importances(
    heads: pl.DataFrame, cell: Cell, method: Mapping[str, Any], order: NodeOrder, *, parallel: bool = False
) -> bytes:
    """Write the node scores of a cell.

    Args:
        heads: the cell's rows of the ``heads`` summary.
        cell: the cell.
        method: its method, as the manifest has it.
        order: nodes come by ``value``, the largest first, or by ``magnitude``; the file says which.
        parallel: whether attention and MLP of a layer read the same input, as in GPT-NeoX and Phi. MIB takes it from
            the file, and a run does not know it.

    Returns:
        The file's content. ``cfg``, ``nodes`` and ``edges`` are what MIB reads, ``attrib_batch`` says what they are.

    Raises:
        ValueError: the cell has no scores of ``z``.
    """
    summed = heads.filter(is_at(Scope.ALL))
    z, mlp = (
        summed.filter(pl.col("component") == str(part)).sort("layer", "head")
        for part in (Component.Z, Component.MLP_OUT)
    )
    if z.is_empty():
        raise ValueError(f"{cell}: MIB takes scores of z, and there are none")
    sign = towards_clean(method)
    scores = {f"a{layer}.h{head}": sign * mean for layer, head, mean in z.select("layer", "head", "mean").iter_rows()}
    scores |= {f"m{layer}": sign * mean for layer, mean in mlp.select("layer", "mean").iter_rows()}
    # Sorting keeps the order of equal scores.
    ranked = sorted(scores.items(), key=lambda item: -(abs(item[1]) if order == "magnitude" else item[1]))
    nodes: dict[str, dict[str, Any]] = {"input": {"in_graph": True}}
    nodes |= {name: {"score": score + 0.0, "in_graph": False} for name, score in ranked}
    nodes["logits"] = {"in_graph": True}
    layers, n_heads = (int(z.get_column(name).max()) + 1 for name in ("layer", "head"))  # type: ignore[arg-type]  # integers
    content = {
        "cfg": {
            "n_layers": layers,
            "n_heads": n_heads,
            "parallel_attn_mlp": parallel,
            "d_model": 0,  # a run does not know it, and it matters to scores of neurons alone
        },
        "nodes": nodes,
        "edges": {},
        "attrib_batch": {
            "model": cell.model,
            "dataset": cell.dataset,
            "method": dict(method),
            "order": order,
            "order_means": {
                "value": "nodes come by score, the largest first: evaluate with --level node",
                "magnitude": "nodes come by absolute score: evaluate with --level node --absolute",
            }[order],
            "score_means": "a magnitude, without a direction"
            if has_magnitudes(method)
            else "positive where keeping the node brings about the clean behaviour",
            "score_is": "mean over pairs of the sum over positions, in metric units",
            "n_pairs": int(z.get_column("n_pairs").max()),  # type: ignore[arg-type]  # integers
            "without_a_score": ["input"] if len(mlp) else ["input", *(f"m{layer}" for layer in range(layers))],
        },
    }
    return (json.dumps(content, indent=1) + "\n").encode()
