"""Do several reads at once, and hand their results out in order.

From an object store, waiting for every answer in turn is what takes time; from a disk, decoding.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")
U = TypeVar("U")

READS_AT_ONCE = 16
"""Of small tables."""
LARGE_READS_AT_ONCE = 3
"""Of score tables, which are what memory holds."""


def read_ahead(read: Callable[[T], U], items: Iterable[T], at_once: int = READS_AT_ONCE) -> Iterator[U]:
    """Yield what ``read`` returns for each item, in order; at most ``at_once`` results are under way or waiting.

    What a read raises is raised in its turn.
    """
    with ThreadPoolExecutor(at_once, thread_name_prefix="reader") as threads:
        waiting: deque[Future[U]] = deque()
        try:
            for item in items:
                waiting.append(threads.submit(read, item))
                if len(waiting) == at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
