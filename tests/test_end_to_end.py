"""The demo on the real model, from a wheel in an empty folder: the tutorial's maps, the report, and it in a browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from attrib_batch.analysis import heatmap, read_summary
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.making.tutorial import tutorial_pairs
from attrib_batch.spec import Component, load_spec
from tests.support.browser import assert_quiet, open_page
from tests.support.jobs import ROOT, attrib_batch, read_scores
from tests.support.near import assert_near, estimated_terms
from tests.support.terms import terms_of
from tests.support.wheel import wheel_environment

DEMO_SECONDS = 900
"""A bound for a very busy machine; a quiet one with two processors takes a minute or two."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(DEMO_SECONDS + 60)]


OTHER_OF_TWO = [1, 0, 3, 2, 5, 4, 7, 6]
"""The tutorial's prompts come in twos: the corrupted prompt of a pair is the clean one of the other."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, unpacked_wheel: Path) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    ended = attrib_batch("demo", cwd=folder, env=wheel_environment(unpacked_wheel), seconds=DEMO_SECONDS)
    assert ended.code == 0, ended.said
    assert ended.output.rstrip().endswith("report: runs/demo/report.html")
    assert "Warning" not in ended.said
    assert "follow activation patching" in ended.output
    assert re.search(r"^  L23H3 +\+0\.\d\d  \(", ended.output, re.MULTILINE)
    return folder / "runs/demo"


def test_all_pairs_are_scored(demo: Path) -> None:
    scores = read_scores(demo)
    counts = scores.group_by("dataset").agg(pl.col("pair_id").n_unique()).sort("dataset")
    assert dict(counts.iter_rows()) == {"ioi": 64, "tutorial": 8}
    assert scores["score"].is_finite().all()
    assert scores["score"].null_count() == 0


def test_the_model_solves_the_tutorials_prompts(demo: Path, smollm2) -> None:
    baselines = pl.read_parquet(demo / "baselines/**/*.parquet", hive_partitioning=True)
    tutorial = baselines.filter(pl.col("dataset") == "tutorial").sort("pair_id")
    assert tutorial["clean_metric"].min() > 3.0  # type: ignore[operator]  # a number here
    assert tutorial["clean_metric"].max() < 12.0  # type: ignore[operator]  # a number here
    # Every prompt is clean once and corrupted once, with right and wrong exchanged.
    clean, corrupted = (tutorial[metric].to_numpy() for metric in ("clean_metric", "corrupted_metric"))
    assert_near(corrupted[OTHER_OF_TWO], -clean, estimated_terms(clean, width=smollm2.dimensions.d_model))


def test_the_tutorials_two_maps_by_its_own_formula(demo: Path, smollm2) -> None:
    """One batch of 8, the mean of the normalised metric differentiated, features summed as the tutorial sums them."""
    import torch

    pairs, tokenizer, model = tutorial_pairs(), smollm2.tokenizer, smollm2.module
    clean_ids = tokenizer([pair.clean for pair in pairs], return_tensors="pt")["input_ids"]
    corrupted_ids = clean_ids[OTHER_OF_TWO]
    answers = torch.tensor(
        [[tokenizer(text)["input_ids"][0] for text in (pair.answers[0], pair.wrong_answers[0])] for pair in pairs]
    )

    def logit_diff(logits: torch.Tensor) -> torch.Tensor:
        right, wrong = (logits[:, -1].gather(1, answers[:, i : i + 1]) for i in (0, 1))
        return (right - wrong).mean()

    def run(ids: torch.Tensor, *, grad: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        seen: list[torch.Tensor] = []

        def hook(_module: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            z = args[0].requires_grad_() if grad and not args[0].requires_grad else args[0]
            seen.append(z)
            return (z,)

        handles = [layer.self_attn.o_proj.register_forward_pre_hook(hook) for layer in model.model.layers]
        with torch.set_grad_enabled(grad):
            logits = model(ids, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return logits, seen

    clean_logits, clean = run(clean_ids, grad=False)
    corrupted_logits, corrupted = run(corrupted_ids, grad=True)
    high, low = logit_diff(clean_logits), logit_diff(corrupted_logits)
    gradients = torch.autograd.grad((logit_diff(corrupted_logits) - low.detach()) / (high - low.detach()), corrupted)
    products = torch.stack([g * (a - b) for g, a, b in zip(gradients, clean, corrupted, strict=True)]).detach()
    n_heads = smollm2.dimensions.n_heads
    by_head = products[:, :, -1].unflatten(-1, (n_heads, -1)).sum((1, 3)).numpy()
    by_position = products.sum((1, 3)).numpy()
    # Of every pair: means over pairs have no more, and a position's heads together are one activation.
    gap = (high - low).item()
    encoded = [pair for pair in encode_pairs(pairs, tokenizer, prepend_bos=False) if isinstance(pair, EncodedPair)]
    terms = max(terms_of(model, pair) for pair in encoded) / gap

    summary = read_summary(demo)
    ours = {"dataset": "tutorial"}
    heads = summary.heads.filter(**ours, component="z", scope="last").sort("layer", "head")
    positions = summary.positions.filter(**ours, component="z", scope="position").sort("layer", "position")
    assert_near(heads["mean_normalized"].to_numpy().reshape(by_head.shape), by_head, terms)
    assert_near(positions["mean_normalized"].to_numpy().reshape(by_position.shape), by_position, terms)
    assert_near(heatmap(summary.heads.filter(**ours), component=Component.Z, scope="last"), by_head, terms)


def test_report_works_on_a_copy_of_the_tables_alone(demo: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "scores", "baselines"):
        source = demo / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    assert attrib_batch("report", tmp_path).code == 0
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


def test_the_estimates_are_measured_and_agree(demo: Path) -> None:
    agreement = pl.read_parquet(demo / "verification/agreement.parquet")
    pearson = agreement.filter(dataset="ioi", component="z", statistic="pearson@end")["value"].item()
    assert pearson > 0.9


@pytest.mark.browser
def test_the_report_in_a_browser(demo: Path, browser) -> None:
    open_page(browser, demo / "report.html")
    drawn = browser.execute_script(
        "figures.charts.forEach(figures.draw); return figures.charts.map("
        "(div) => [div.id, div.querySelectorAll('.heatmaplayer image, .scatterlayer .trace').length])"
    )
    assert len(drawn) > 16
    assert [name for name, layers in drawn if layers == 0] == []
    assert "Can these scores be trusted?" in browser.page_source
    assert_quiet(browser)


JOBS = sorted(path for path in (ROOT / "jobs").glob("*.yaml") if path.name not in {"cluster_local.yaml", "rayjob.yaml"})
"""The folder also holds manifests of clusters, which have tests of their own."""


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_job_files_are_valid(path: Path) -> None:
    job = load_spec(path)
    assert all((ROOT / dataset.path).is_file() for dataset in job.datasets)
