"""Runs whose model an NDIF server of the tests holds: jobs, and what is compared."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib_batch.pairs.making.writer import write_pairs
from tests.support.demo_pairs import random_pairs
from tests.support.faulty_proxy import BUCKET, FaultyProxy
from tests.support.jobs import TinyJob, in_words
from tests.support.same_tables import Tables, assert_same_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.ndif_server import NdifServer


def served_job(server: NdifServer, name: str, folder: Path, *, n_pairs: int) -> TinyJob:
    """A job folder for a model that the server has."""
    half = n_pairs // 2
    rows = in_words(random_pairs(half, 9, 4) + random_pairs(n_pairs - half, 11, 5, seed=1))
    write_pairs(folder / "pairs.parquet", rows)
    return TinyJob(folder, server.model_folder(name), folder / "pairs.parquet")


def model(job: TinyJob, url: str | None = None, *, name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A model's entry in the job file; with ``url`` it is the server's, and changes are of its workers."""
    workers = {"kind": "ndif", "host": url, "cpus": 0.5} if url else {}
    return {"id": str(job.model), "name": name, "prepend_bos": False, "workers": workers | changes}


@contextmanager
def proxy_of(server: NdifServer) -> Iterator[FaultyProxy]:
    """A proxy in front of the server."""
    with FaultyProxy(server.url, server.object_store_url) as proxy:
        yield proxy


def execution(out: Path) -> dict[str, Any]:
    """The record of the run's last execution."""
    found: dict[str, Any] = json.loads(max((out / "executions").glob("*.json")).read_text())
    return found


def jobs_of(out: Path) -> list[dict[str, Any]]:
    """The jobs that a run has on servers, from its files."""
    found = []
    for path in out.glob("ndif/*.json"):
        try:
            found.append(json.loads(path.read_text()))
        except FileNotFoundError:  # fetched in between
            continue
    return found


def most_at_once(proxy: FaultyProxy) -> int:
    """The most jobs that were submitted and not fetched at a time."""
    at_once = most = 0
    for exchange in proxy.exchanges():
        if exchange.status != 200:
            continue
        if exchange.method == "POST":
            at_once += 1
        elif exchange.path.startswith(BUCKET):
            at_once -= 1
        most = max(most, at_once)
    return most


def assert_same(out: Path, model: str, expected: Path, expected_model: str) -> None:
    """The same rows of scores and baselines under two models' names, and the same numbers but for rounding."""
    assert_same_numbers(Tables.read(out, model=model), Tables.read(expected, model=expected_model))
