"""Import large libraries in less time."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def collector_paused(*, keep: bool = False) -> Iterator[None]:
    """Pause the garbage collector while torch and transformers are imported.

    The hundreds of thousands of objects that an import makes all stay; to look through them again and again takes a
    fifth of its time.

    Args:
        keep: never look through what is there at the end. For processes that do nothing but this.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if keep:
            gc.freeze()
        if enabled:
            gc.enable()
