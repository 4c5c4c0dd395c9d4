"""The fixtures that tests of several folders use: a plugin of pytest, see ``conftest``."""

from __future__ import annotations

from tests.support.browser import browser
from tests.support.faulty_runs import runs, undisturbed
from tests.support.google_store import google_conditions, google_store
from tests.support.ndif_server import ndif_server
from tests.support.object_store import object_store, object_store_server
from tests.support.shared_ray import shared_ray
from tests.support.travelling import without_shape_checks
from tests.support.wheel import unpacked_wheel

__all__ = [
    "browser",
    "google_conditions",
    "google_store",
    "ndif_server",
    "object_store",
    "object_store_server",
    "runs",
    "shared_ray",
    "undisturbed",
    "unpacked_wheel",
    "without_shape_checks",
]
