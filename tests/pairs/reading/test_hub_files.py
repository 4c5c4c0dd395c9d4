"""hf:// through huggingface_hub's own client, against a hub on loopback; test_files.py has what needs no server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import huggingface_hub
import pytest

from attrib_batch.errors import DatasetError, ModelError, StorageError
from attrib_batch.models.sources import find_model
from attrib_batch.pairs.making.ioi import generate_ioi
from attrib_batch.pairs.making.writer import serialize_pairs
from attrib_batch.pairs.reading.files import resolve_path
from attrib_batch.pairs.reading.pinned import PinnedTable
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import ModelSpec
from tests.support.hub import Hub, serving
from tests.support.ports import free_ports

COMMIT, LATER = "ab" * 20, "cd" * 20
N_PAIRS = 20
PATH = "data/pairs.parquet"
URL = f"hf://datasets/someone/pairs/{PATH}"
CONTENTS = {commit: serialize_pairs(generate_ioi(N_PAIRS, seed)) for seed, commit in enumerate((COMMIT, LATER))}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub("someone/pairs", {commit: {PATH: data} for commit, data in CONTENTS.items()}, COMMIT)
    with serving(hub) as address:
        # What HF_ENDPOINT and HF_HUB_OFFLINE set when a process starts.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield hub
    huggingface_hub.HfFileSystem.clear_instance_cache()


@pytest.mark.parametrize("lfs", [True, False])
def test_a_file_is_read_at_a_commit_and_known_by_its_content(hub: Hub, *, lfs: bool) -> None:
    hub.lfs = lfs
    url = resolve_path(URL)
    assert url == f"hf://datasets/someone/pairs@{COMMIT}/{PATH}"
    table = PairTable.open(url)
    hub.downloads.clear()
    assert table.fingerprint() == hashlib.sha256(CONTENTS[COMMIT]).hexdigest()
    assert bool(hub.downloads) != lfs, "the hub's own hash spares a download"
    table.check_ids()
    hub.main = LATER
    assert table.rows(0, N_PAIRS) == list(generate_ioi(N_PAIRS, 0))
    assert PinnedTable(url, None, table.pin()).rows(3, 5) == list(generate_ioi(N_PAIRS, 0))[3:5]
    assert PairTable.open(resolve_path(URL)).rows(0, N_PAIRS) == list(generate_ioi(N_PAIRS, 1))
    assert all(asked.startswith("bytes=") for asked in hub.downloads)


@pytest.mark.parametrize(
    "url",
    [
        "hf://datasets/nobody/pairs/p.parquet",
        f"hf://datasets/someone/pairs@absent/{PATH}",
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have(url: str) -> None:
    with pytest.raises(DatasetError, match=r"cannot be read from the Hub: .*404.* Check the name, the revision"):
        resolve_path(url)


def test_a_hub_that_gives_no_answer_is_not_the_datasets_fault(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.fails = True
    with pytest.raises(StorageError, match=r"the Hub gives no answer \(.*500"):
        PairTable.open(f"hf://datasets/someone/pairs@{COMMIT}/{PATH}")
    assert len(hub.downloads) > 5  # huggingface_hub asked again by itself
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(StorageError, match="the Hub gives no answer"):
        resolve_path(URL)


@pytest.mark.usefixtures("hub")
def test_a_model_of_a_hub_that_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(ModelError, match=r"the Hub does not give it \(.*[Cc]onnect"):
        find_model(ModelSpec(id="someone/model", prepend_bos=False))


@pytest.mark.usefixtures("hub")
def test_a_file_that_the_commit_does_not_have() -> None:
    with pytest.raises(DatasetError, match=r"data/absent.parquet cannot be read from the Hub"):
        PairTable.open(f"hf://datasets/someone/pairs@{COMMIT}/data/absent.parquet")
