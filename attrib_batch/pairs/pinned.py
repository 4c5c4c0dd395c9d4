"""A table of pairs that must hold what it held when the run was planned, however long the run takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.files import find_file
from attrib_batch.pairs.reader import PairTable

if TYPE_CHECKING:
    from attrib_batch.pairs.reader import Pair


class PinnedTable:
    """Reads rows of a file whose content is known.

    It is compared when it is opened (a local file by its hash), and again only when it looks touched: rows of two
    versions of a dataset must never meet in one run's tables.
    """

    def __init__(self, path: str, limit: int | None, pin: str) -> None:
        """Open a table.

        Args:
            path: the file.
            limit: read only the first so many rows.
            pin: what `PairTable.pin` said when the run was planned.

        Raises:
            DatasetError: it cannot be read as one, or its content is not the one that was planned.
        """
        self._arguments = path, limit
        self._pin = pin
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
        # Taken first: what changes while the file is opened and compared is noticed when rows are read.
        self._stamp = find_file(self._arguments[0]).stamp()
        self._table = PairTable.open(*self._arguments)
        if self._table.pin() != self._pin:
            raise DatasetError(
                f"{self._table.path} has changed since the run began: its rows are not the ones that were planned. "
                "Put the file back as it was and run the same command again, or choose another --out."
            )

    def _untouched(self) -> bool:
        return self._stamp is not None and self._table.stamp() == self._stamp
