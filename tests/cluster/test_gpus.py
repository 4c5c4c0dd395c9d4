"""Workers on a node that states a GPU: what they are given is what they take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.jobs import TinyJob, attrib_batch, environment
from tests.support.ray_cluster import RayCluster


@pytest.mark.timeout(600)  # two nodes are started
def test_workers_compute_on_what_they_were_given(tmp_path: Path) -> None:
    """The GPU may be stated and not there, as where torch is built for the CPU: nothing falls back on the processor."""
    job = TinyJob.make(tmp_path / "job", n_pairs=8)

    def write(name: str, **workers: object) -> Path:
        entry = {"id": str(job.model), "name": "tiny", "prepend_bos": False, "workers": workers}
        return job.write(f"{name}.yaml", models=[entry])

    with RayCluster(tmp_path) as cluster:
        cluster.add_node(cpus=1, gpus=1)
        to_it = ("--address", cluster.gcs_address)
        env = environment() | cluster.joining
        out = tmp_path / "none"
        ended = attrib_batch("run", write("none", gpus=0), "--out", out, *to_it, env=env)
        assert ended.code == 0, ended.said
        [record] = (json.loads(file.read_text()) for file in (out / "executions").glob("*.json"))
        assert record["arithmetic"]["tiny"][0]["device"] == "cpu"
        ended = attrib_batch("run", write("half", gpus=0.5), "--out", tmp_path / "half", *to_it, env=env)
    if torch.cuda.is_available():
        assert ended.code == 0, ended.said
    else:
        assert ended.code == 2, ended.said
        said = " ".join(ended.said.split())
        assert f"its workers have gpus: 0.5, and torch {torch.__version__} finds no CUDA device on" in said
        assert "`attrib-batch doctor` there says why; for the CPU, set gpus: 0" in said
