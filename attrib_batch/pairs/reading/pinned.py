"""A table of pairs that must hold what it held when the run was planned, however long the run takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reading.files import find_file
from attrib_batch.pairs.reading.reader import PairTable

if TYPE_CHECKING:
    from attrib_batch.pairs.reading.reader import Pair


class PinnedTable:
    """A table whose content is known, for reading rows of it.

    It is compared at the first read (a local file by its hash), and again only when it looks touched: rows of two
    versions of a dataset must never meet in one run's tables.
    """

    def __init__(self, path: str, limit: int | None, pin: str) -> None:
        """Name a table; nothing is read yet.

        Args:
            path: the file.
            limit: read only the first so many rows.
            pin: what `PairTable.pin` said when the run was planned.
        """
        self._path, self._limit, self._pin = path, limit, pin
        self._table: PairTable | None = None
        self._stamp: object = None
        """The file as it was when it was opened."""
        self._refused: object = None
        """The file as it was when it held something else."""

    def rows(self, start: int, stop: int) -> list[Pair]:
        """Return the pairs of the rows [start, stop).

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
        # Taken first: what changes while the file is opened and compared is noticed when rows are read.
        stamp = find_file(self._path).stamp()
        table = PairTable.open(self._path, self._limit, corrupted=False)
        if stamp is None or stamp == self._refused or table.pin() != self._pin:
            self._table, self._refused = None, stamp
            raise DatasetError(
                f"{self._path} has changed since the run began: its rows are not the ones that were planned. "
                "Put the file back as it was and run the same command again, or choose another --out."
            )
        self._stamp = stamp
        return table

    def _touched(self) -> bool:
        return find_file(self._path).stamp() != self._stamp
