"""A table of pairs that must hold what it held when the run was planned, however long the run takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reader import PairTable

if TYPE_CHECKING:
    from attrib_batch.pairs.reader import Pair

Stamp = tuple[int, int, int]


class PinnedTable:
    """Reads rows of a file whose content is known by its fingerprint.

    The whole file is hashed at the first read, and again only when it looks touched: rows of two versions of a dataset
    must never meet in one run's tables.
    """

    def __init__(self, path: str, limit: int | None, fingerprint: str) -> None:
        self._path, self._limit, self._fingerprint = Path(path), limit, fingerprint
        self._table: PairTable | None = None
        self._stamp: Stamp | None = None
        """The file as it was when it was opened."""
        self._refused: Stamp | None = None
        """The file as it was when it held something else."""

    def rows(self, start: int, stop: int) -> list[Pair]:
        """The pairs of the rows [start, stop).

        Raises:
            DatasetError: they cannot be read, or the file does not hold what was planned.
        """
        while True:
            if self._table is None or self._touched():
                self._table = self._open()
            try:
                pairs = self._table.rows(start, stop)
            except DatasetError:
                if not self._touched():
                    raise
            else:
                if not self._touched():
                    return pairs

    def _open(self) -> PairTable:
        stamp = _stamp(self._path)
        table = PairTable.open(self._path, self._limit)
        if stamp is None or stamp == self._refused or table.fingerprint() != self._fingerprint:
            self._table, self._refused = None, stamp
            raise DatasetError(
                f"{self._path} has changed since the run began: its rows are not the ones that were planned. "
                "Put the file back as it was and run the same command again, or choose another --out."
            )
        self._stamp = stamp
        return table

    def _touched(self) -> bool:
        return _stamp(self._path) != self._stamp


def _stamp(path: Path) -> Stamp | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
