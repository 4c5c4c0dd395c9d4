"""Which tests are fast, and which need a system package: by the fixtures that they use, and the folders they lie in.

``slow`` is whatever starts a process, a Ray or a server, uses a network or the real model, or takes long. ``system`` is
what needs a package of the operating system: a browser, or the Redis of a real NDIF server. Everything else is fast,
which is checked: a fast test that starts a process fails. Of the tests over all architectures those of one or two are
fast.
"""

from __future__ import annotations

import subprocess
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

SYSTEM_FIXTURES = {"browser", "ndif_server"}
SLOW_FIXTURES = {
    "google_store",
    "object_store",
    "object_store_server",
    "ranks",
    "runs",
    "shared_ray",
    "smollm2",
    "smollm2_tokenizer",
    "undisturbed",
    "unpacked_wheel",
}
FAST_ARCHITECTURES = {
    "tests/attribution/test_more_families.py": {"falcon", "gpt_oss"},
    "tests/attribution/methods/": {"gpt2"},
    "tests/attribution/": {"gpt2", "llama"},
    "tests/test_near.py": {"gpt2"},
}
"""By folder. GPT-2 has learned positions and layer norms, Llama rotary ones and root mean squares; Falcon computes its
attention itself, and GPT-OSS has sinks, windows and experts."""
SLOW_FOLDERS = (
    "tests/attribution/test_rotary_variants.py",
    "tests/cluster/",
    "tests/ndif/test_request.py",
    "tests/oracle/",
    # Whole pages, again and again; `test_page` has what every edit should be checked by.
    "tests/report/test_states.py",
    # Whole sweeps in this process, again and again.
    "tests/api/test_attribute.py",
    "tests/api/test_measured.py",
    "tests/execution/test_growth.py",
    "tests/execution/test_reference.py",
    # What scores are defined as, against plain hooks; the tests of each method have their own.
    "tests/attribution/test_references.py",
    "tests/attribution/test_whole_answers.py",
    # Large files.
    "tests/pairs/importing/test_sources.py",
)


def mark_by_needs(item: pytest.Item) -> None:
    """Mark a test as ``slow`` or ``system`` where it is."""
    fixtures: Iterable[str] = getattr(item, "fixturenames", ())
    if SYSTEM_FIXTURES & set(fixtures) or item.get_closest_marker("browser"):
        item.add_marker(pytest.mark.system)
        item.add_marker(pytest.mark.slow)
    elif SLOW_FIXTURES & set(fixtures) or item.nodeid.startswith(SLOW_FOLDERS) or _is_of_another_architecture(item):
        item.add_marker(pytest.mark.slow)


def _is_of_another_architecture(item: pytest.Item) -> bool:
    """Whether a test runs a model, of an architecture that is not among the fast ones."""
    from tests.support.tiny_models import EVERY_ARCHITECTURE  # here, since it imports torch

    fast = next((names for folder, names in FAST_ARCHITECTURES.items() if item.nodeid.startswith(folder)), None)
    callspec = getattr(item, "callspec", None)
    if fast is None or callspec is None:
        return False
    return any(
        isinstance(value, str) and value in EVERY_ARCHITECTURE.keys() - fast for value in callspec.params.values()
    )


def starts_no_process(item: pytest.Item, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a fast test fail that starts a process."""
    if item.get_closest_marker("slow"):
        return

    def refuse(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"{item.nodeid} starts a process: mark it as slow ({arguments[1:2]})")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(BaseProcess, "start", refuse)
