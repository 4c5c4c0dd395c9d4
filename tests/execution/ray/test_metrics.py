"""A real run under a real Ray: Prometheus finds what it counted, and nobody misses an agent that is not there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from attrib_batch.tables import MANIFEST
from tests.support.jobs import TinyJob, environment, run_script, with_forked_workers
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

RUN = """
import json, sys, tempfile, time, urllib.request
from pathlib import Path

import ray
import attrib_batch as ab

if __name__ == "__main__":
    job, out, port, system, wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short: the paths of sockets have to be
        ray.init(
            address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False, num_cpus=1,
            object_store_memory=100 << 20, _node_ip_address="127.0.0.1", _metrics_export_port=int(port),
            _temp_dir=folder, _system_config=json.loads(system),
        )
        result = ab.load_job(job).run(out, executor=ab.RayExecutor()).result
        def served():
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
            except OSError:
                return "nobody answers"

        deadline = time.monotonic() + 20
        while wanted and served().count(wanted) < 2 and time.monotonic() < deadline:
            time.sleep(0.3)
        time.sleep(2)  # the driver reports twice a second; what came just before may be half of it
        text = served()
        ray.shutdown()
    print(text)
    sys.exit(result.exit_code)
"""
PREFIX = "ray_attrib_batch_"


def run(job: TinyJob, path: Path, out: Path, *, system: dict[str, object], wanted: str) -> str:
    """Run a job in a Ray with metrics exported on a port of loopback; returns what is served there at the end."""
    script = job.folder / "run.py"
    script.write_text(RUN)
    [port] = free_ports(1)
    ended = run_script(
        script, path, out, str(port), json.dumps(system), wanted,
        env=with_forked_workers(
            {**environment(), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        ),
    )  # fmt: skip
    assert ended.code == 3, ended.said
    return ended.output


@pytest.fixture
def job(tmp_path: Path) -> TinyJob:
    return TinyJob.make(tmp_path, n_pairs=16)


def with_a_bad_pair(job: TinyJob) -> None:
    """Give one pair an answer that is no token."""
    import polars as pl

    pairs = pl.read_parquet(job.pairs)
    bad = pl.when(pl.col("pair_id") == 3).then(pl.lit([" no such word"])).otherwise(pl.col("answers"))
    pairs.with_columns(bad.alias("answers")).write_parquet(job.pairs)


@pytest.mark.slow
def test_prometheus_finds_what_was_committed(job: TinyJob, tmp_path: Path) -> None:
    with_a_bad_pair(job)
    models = [{"id": str(job.model), "name": name, "prepend_bos": False} for name in ("first", "second")]
    text = run(
        job, job.write(models=models), tmp_path / "out", system={"metrics_report_interval_ms": 500},
        wanted=f"{PREFIX}chunk_seconds_count{{",
    )  # fmt: skip
    run_id = json.loads((tmp_path / "out" / MANIFEST).read_text())["run_id"]
    counts: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX) and "le" not in sample.labels:
                assert sample.labels["run"] == run_id
                assert sample.labels["worker"].isdigit()
                key = sample.name.removeprefix(PREFIX), sample.labels["model"]
                counts[key] = counts.get(key, 0.0) + sample.value
    for model in ("first", "second"):
        assert counts["pairs_scored_total", model] == 15
        assert counts["pairs_failed_total", model] == 1
        assert counts["chunk_seconds_count", model] == 2
        assert counts["chunk_seconds_sum", model] > 0
        assert counts["tokens_total", model] == 2 * (7 * 9 + 8 * 11)


@pytest.mark.slow
def test_a_run_needs_no_metrics(job: TinyJob, tmp_path: Path) -> None:
    with_a_bad_pair(job)
    text = run(job, job.write(), tmp_path / "out", system={"enable_metrics_collection": False}, wanted="")
    assert text == "nobody answers\n"
