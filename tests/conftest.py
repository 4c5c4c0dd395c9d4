"""What all tests have in common: marks, order, threads, and the bundled model, loaded once."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any

import beartype  # noqa: F401 - it cannot be imported any more once nnsight is, which gives every object a method
import pytest
from hypothesis import settings

from tests.support.groups import Groups, sort_long_first
from tests.support.marks import mark_by_needs, starts_no_process

if TYPE_CHECKING:
    from attrib_batch.models.load import LoadedModel

# Until all tests are collected: what is imported for them stays.
gc.disable()

# Set before transformers is imported anywhere: no test may depend on the model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
THREADS = os.environ.setdefault("ATTRIB_BATCH_TEST_THREADS", "1")
"""The threads of every process. Those of tiny models that wait for each other cost far more than they bring."""
# For what tests start too: several test processes share the processors.
os.environ["OMP_NUM_THREADS"] = THREADS

# A busy machine may hold up any example.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

SMOLLM2 = "smollm2-135m"


def pytest_configure(config: pytest.Config) -> None:
    """Import the shared fixtures, and with them torch, unless this process only hands tests out to others."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("tests.support.fixtures")


@pytest.hookimpl(optionalhook=True)  # xdist may be switched off
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups | None:
    """Files go to processes as `Groups` says where whole files are asked for."""
    return Groups(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by what they need; only with several processes does their order matter."""
    for item in items:
        mark_by_needs(item)
    if hasattr(config, "workerinput"):
        sort_long_first(items)


def pytest_collection_finish() -> None:
    """Look for garbage again, but not in what was imported."""
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how near the comparisons of scores came to their tolerance; with several processes nobody knows."""
    near = sys.modules.get("tests.support.near")
    if near and (line := near.most_used()):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _fast_is_fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to start a process in a test that is not marked as slow."""
    starts_no_process(request.node, monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    import torch

    torch.set_num_threads(int(THREADS))


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The bundled model, in float32 without a BOS."""
    from attrib_batch.models.load import load_model
    from attrib_batch.spec import ModelSpec

    return load_model(ModelSpec(id=SMOLLM2, prepend_bos=False))


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> object:
    """The bundled model's own tokenizer."""
    from attrib_batch.models.load import load_tokenizer
    from attrib_batch.spec import ModelSpec

    return load_tokenizer(ModelSpec(id=SMOLLM2, prepend_bos=False))
