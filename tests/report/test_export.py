"""Files for other programs, against numbers worked out by hand; images are drawn where a browser is."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attrib_batch.errors import OutputError
from attrib_batch.report import export
from attrib_batch.spec import Cell
from tests.support.require import require
from tests.support.synthetic_run import IoiLike, Pair, write_manifest, write_run

ATP, NOISE = Cell("gpt2", "ioi_small", "atp"), Cell("gpt2", "ioi_small", "noise")
LAYERS, HEADS = 3, 2
PAIRS = IoiLike(layers=LAYERS, heads=HEADS, without_heads=True).pairs(10)
TABLES = ("csv", "json", "mib")


def scores(pairs: list[Pair], component: str, at: int | None = None) -> np.ndarray:
    """Means over pairs, at a position or summed over all."""
    found = [np.float64(np.float32(pair.scores[component])) for pair in pairs]
    return np.mean([one.sum(-1) if at is None else one[..., at] for one in found], axis=0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    noising = [replace(p, scores={"z": -p.scores["z"]}) for p in PAIRS]
    folder = write_run(tmp_path / "run", {ATP: PAIRS, NOISE: noising}, method={"components": ["z", "mlp_out"]})
    manifest = json.loads((folder / "manifest.json").read_text())
    for method in manifest["job"]["methods"]:
        method["direction"] = "noise" if method["id"] == "noise" else "denoise"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("by", ["magnitude", "positive", "negative"])
def test_the_strongest_heads_of_each_cell_and_component(out: Path, by: str) -> None:
    done = export(out, formats=["csv", "json"], n=4, by=by)
    assert done.files == [out / "export/top.csv", out / "export/top.json"]
    assert done.left_out == []
    rows = list(csv.DictReader(io.StringIO((out / "export/top.csv").read_text())))
    written = json.loads((out / "export/top.json").read_text())
    assert written["ranked_by"] == {"magnitude": "absolute mean", "positive": "mean", "negative": "minus the mean"}[by]
    assert [row["name"] for row in rows] == [row["name"] for row in written["heads"]]
    for method, component, count in (("atp", "z", 4), ("atp", "mlp_out", 3), ("noise", "z", 4)):
        sign = -1 if method == "noise" else 1
        means = sign * scores(PAIRS, component, -1)
        order = {"magnitude": np.abs(means), "positive": means, "negative": -means}[by]
        best = np.argsort(-order, axis=None, kind="stable")[:count]
        here = [row for row in rows if (row["method"], row["component"]) == (method, component)]
        assert [int(row["rank"]) for row in here] == list(range(1, count + 1))
        for row, place in zip(here, best, strict=True):
            where = np.unravel_index(place, means.shape)
            assert row["name"] == "L{}H{}".format(*where) if component == "z" else "L{}".format(*where)
            assert float(row["mean"]) == pytest.approx(means[where], rel=1e-9)
            assert (row["scope"], row["role"]) == ("role", "end")


def test_one_place_component_and_cell_can_be_chosen(out: Path, tmp_path: Path) -> None:
    export(out, tmp_path / "there", formats=["json"], n=1, at="all", component="z", method="noise")
    [row] = json.loads((tmp_path / "there/top.json").read_text())["heads"]
    means = -scores(PAIRS, "z")
    assert (row["method"], row["scope"], row["role"]) == ("noise", "all", None)
    assert abs(row["mean"]) == pytest.approx(np.abs(means).max())
    assert not (out / "export").exists()


def nodes(out: Path, method: str) -> dict[str, Any]:
    """The file, where MIB's run_evaluation.py looks for it: <method>_patching_node/<task>_<model>/importances.json."""
    read = json.loads((out / f"export/mib/{method}_patching_node/ioi-small_gpt2/importances.json").read_text())
    assert set(read) >= {"cfg", "nodes", "edges"}
    assert read["cfg"] == {"n_layers": LAYERS, "n_heads": HEADS, "parallel_attn_mlp": False, "d_model": 0}
    assert read["edges"] == {}
    return read


@pytest.mark.parametrize("order", ["value", "magnitude"])
def test_node_scores_as_mib_takes_them(out: Path, order: str) -> None:
    export(out, formats=["mib"], node_order=order)  # type: ignore[arg-type]
    expected = {f"a{la}.h{h}": scores(PAIRS, "z")[la, h] for la in range(LAYERS) for h in range(HEADS)}
    mlp = {f"m{layer}": scores(PAIRS, "mlp_out")[layer] for layer in range(LAYERS)}
    read = nodes(out, "atp")
    scored = {name: node["score"] for name, node in read["nodes"].items() if "score" in node}
    assert scored == pytest.approx(expected | mlp, rel=1e-9)
    assert {name for name, node in read["nodes"].items() if "score" not in node} == {"input", "logits"}
    sizes = [abs(score) if order == "magnitude" else score for score in scored.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert read["attrib_batch"]["order"] == order
    assert ("--absolute" in read["attrib_batch"]["order_means"]) == (order == "magnitude")
    assert all(isinstance(node["in_graph"], bool) for node in read["nodes"].values())


def test_noising_is_turned_round_and_what_has_no_score_is_said(out: Path) -> None:
    """Taking away what carries the behaviour has a negative score; MIB keeps the nodes of the largest."""
    export(out, formats=["mib"])
    read = nodes(out, "noise")
    scored = {name: node["score"] for name, node in read["nodes"].items() if "score" in node}
    expected = {f"a{la}.h{h}": scores(PAIRS, "z")[la, h] for la in range(LAYERS) for h in range(HEADS)}
    assert scored == pytest.approx(expected, rel=1e-9)
    assert read["attrib_batch"]["without_a_score"] == ["input", "m0", "m1", "m2"]


def test_a_run_without_z_has_no_nodes_and_all_else_is_written(tmp_path: Path) -> None:
    pairs = [replace(pair, scores={"mlp_out": pair.scores["mlp_out"]}) for pair in PAIRS]
    out = write_run(tmp_path, {ATP: pairs}, method={"components": ["mlp_out"]})
    done = export(out, formats=TABLES)
    assert [Path(path).name for path in done.files] == ["top.csv", "top.json"]
    assert done.left_out == ["mib: gpt2 x ioi_small x atp: MIB takes scores of z, and there are none"]
    with pytest.raises(ValueError, match=r"nothing was written\. mib: gpt2 x ioi_small x atp"):
        export(out, formats=["mib"])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"formats": ["pdf", "csv"]}, "format pdf: choose from csv, json, png, svg, mib"),
        ({"node_order": "size"}, "node order 'size': choose one of value, magnitude"),
        ({"n": 0}, "n=0: ask for at least one head"),
        ({"by": "size"}, "by='size': choose one of magnitude, positive, negative"),
        ({"at": "IO2"}, r"at='IO2': choose last, all, or a role: IO, S1, S2, end"),
        ({"component": "q"}, "no score of q is there; components: z, mlp_out"),
        ({"method": "ig"}, "no cell has method='ig'; there are: gpt2 x ioi_small x atp; gpt2 x ioi_small x noise"),
    ],
)
def test_bad_requests_say_what_there_is(out: Path, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        export(out, **({"formats": TABLES} | asked))
    assert not (out / "export").exists()


def test_a_run_of_which_nothing_is_scored(tmp_path: Path) -> None:
    write_manifest(tmp_path, {ATP: 4})
    with pytest.raises(OutputError, match="no committed chunk yet"):
        export(tmp_path)


def test_without_kaleido_images_are_left_out_and_all_else_is_written(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "kaleido" else find(name, *rest)
    )
    done = export(out)
    assert [Path(path).name for path in done.files] == ["top.csv", "top.json", "importances.json", "importances.json"]
    [reason] = done.left_out
    assert reason.startswith("png and svg: images need kaleido, which is not installed: pip install")
    with pytest.raises(ValueError, match=r"nothing was written\. svg: images need kaleido"):
        export(out, formats=["svg"])


def test_without_a_browser_images_are_left_out_and_the_reason_is_told(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kaleido that finds no Chrome raises when it draws."""

    class Kaleido:
        start_sync_server = stop_sync_server = staticmethod(lambda *_, **__: None)

    def no_chrome(*_: object, **__: object) -> bytes:
        raise RuntimeError("Kaleido requires\nGoogle Chrome")

    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: True)
    monkeypatch.setitem(sys.modules, "kaleido", Kaleido())
    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", no_chrome)
    done = export(out, formats=["csv", "png"])
    assert [Path(path).name for path in done.files] == ["top.csv"]
    [reason] = done.left_out
    assert reason.startswith("png: kaleido could not draw: it needs Chrome or Chromium")
    assert reason.endswith("It says: Kaleido requires Google Chrome")


@pytest.mark.system
@pytest.mark.slow
def test_heatmaps_are_drawn_as_images(out: Path) -> None:
    chrome = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    require(bool(chrome) and importlib.util.find_spec("kaleido") is not None, "kaleido and a Chrome are needed")
    done = export(out, formats=["png", "svg"], method="atp")
    assert done.left_out == []
    names = {f"gpt2__ioi_small__atp__{name}__end.{kind}" for name in ("z", "mlp_out") for kind in ("png", "svg")}
    assert {Path(path).name for path in done.files} == names
    for path in map(Path, done.files):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") if path.suffix == ".png" else b"z, at" in data or b"mlp_out, at" in data
