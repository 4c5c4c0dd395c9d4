"""What ``submit`` refuses before it asks a cluster, and what it tells one; tests/cluster has a real cluster."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attrib_batch.cli.app import app
from attrib_batch.errors import RequestError
from attrib_batch.execution.ray import submit
from attrib_batch.execution.ray.submit import check_paths, passed_on
from attrib_batch.spec import load_spec
from tests.cli.test_bad_requests import refused
from tests.support.jobs import TinyJob
from tests.support.ports import free_ports

NOWHERE = f"http://127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=4)


def test_a_relative_output_is_refused(job: TinyJob) -> None:
    message = refused("submit", job.write(), "--address", NOWHERE, "--out", "runs/mine")
    assert "--out runs/mine is relative" in message
    assert "thrown away" in message
    assert "s3://" in message


def test_an_unknown_scheme_is_refused(job: TinyJob) -> None:
    assert "ftp:// is not known here" in refused("submit", job.write(), "--address", NOWHERE, "--out", "ftp://host/a")


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:8265", "ray://127.0.0.1:10001", "http://"])
def test_an_address_that_is_no_dashboard_is_refused(address: str, job: TinyJob, tmp_path: Path) -> None:
    message = refused("submit", job.write(), "--address", address, "--out", tmp_path / "out")
    assert "name the cluster's dashboard, such as http://127.0.0.1:8265" in message


def test_a_cluster_that_does_not_answer(job: TinyJob, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["submit", str(job.write()), "--address", NOWHERE, "--out", str(tmp_path / "out")])
    assert f"no Ray cluster answers at {NOWHERE}" in str(result.exception)


@pytest.mark.parametrize("shared", [True, False])
def test_paths_of_one_machine_need_a_word(shared: bool, job: TinyJob, tmp_path: Path) -> None:
    absolute = load_spec(job.write())
    inside = load_spec(
        job.write("inside.yaml", datasets=[{"id": "d", "path": "pairs.parquet"}],
                  models=[{"id": "model", "name": "tiny", "prepend_bos": False}])
    )  # fmt: skip

    def check(what: object, out: str) -> str:
        try:
            check_paths(what, out, job.folder, shared=lambda: shared)  # type: ignore[arg-type]  # a stand-in
        except RequestError as error:
            return str(error)
        return ""

    for out in ("s3://bucket/run", "gs://bucket/run"):
        assert check(inside, out) == ""
    said = check(inside, str(tmp_path / "out")), check(absolute, "s3://bucket/run")
    if shared:
        assert said == ("", "")
    else:
        assert "is a path of this machine" in said[0]
        assert f"the job reads {job.pairs}, which is not in this folder" in said[1]
        assert all("--out-is-shared" in message for message in said)


def test_what_a_job_is_told_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDIF_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("NDIF_HOST", "http://ndif.example")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert passed_on(None) == {"NDIF_HOST": "http://ndif.example", "HF_HUB_OFFLINE": "1"}
    assert passed_on("http://other.example")["NDIF_HOST"] == "http://other.example"
    with pytest.raises(RequestError, match="NDIF_HOST holds a password, which Ray would show"):
        passed_on("http://me:secret@other.example")


def test_only_this_machines_addresses_are_its_own() -> None:
    assert submit._is_own_address("127.0.0.1")
    assert not submit._is_own_address("192.0.2.77")
    assert submit._is_loopback("localhost")
    assert submit._is_loopback("127.0.0.1")
    assert not submit._is_loopback("192.0.2.77")
    assert not submit._is_loopback(socket.gethostname() + ".example")


def test_the_help_says_how_a_key_gets_there() -> None:
    shown = " ".join(CliRunner().invoke(app, ["submit", "--help"], env={"COLUMNS": "120"}).output.split())
    assert "NDIF_API_KEY does not travel" in shown
    assert "RAY_AUTH_MODE=token" in shown
