"""A table of pairs that must hold what it held when the run was planned, however long the run takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reader import PairTable

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.pairs.reader import Pair


class PinnedTable:
    """Reads rows of a file whose content is known by its fingerprint.

    The whole file is hashed when it is opened, and again only when it looks touched: rows of two versions of a dataset
    must never meet in one run's tables.
    """

    def __init__(self, path: str, limit: int | None, fingerprint: str) -> None:
        """Open a table.

        Raises:
            DatasetError: it cannot be read as one, or its content is not the one that was planned.
        """
        self._arguments = path, limit
        self._fingerprint = fingerprint
        self._open()

    def rows(self, start: int, stop: int) -> list[Pair]:
        """The pairs of the rows [start, stop).

        Raises:
            DatasetError: they cannot be read, or the file has changed.
        """
        while True:
            try:
                pairs = self._table.rows(start, stop)
            except DatasetError:
                if self._untouched():
                    raise
            else:
                if self._untouched():
                    return pairs
            self._open()

    def _open(self) -> None:
        self._table = PairTable.open(*self._arguments)
        self._stamp = _stamp(self._table.path)
        if self._table.fingerprint() != self._fingerprint:
            raise DatasetError(
                f"{self._table.path} has changed since the run began: its rows are not the ones that were planned. "
                "Put the file back as it was and run the same command again, or choose another --out."
            )

    def _untouched(self) -> bool:
        return self._stamp is not None and _stamp(self._table.path) == self._stamp


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
