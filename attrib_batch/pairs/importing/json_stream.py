"""Read a JSON document value by value, so that an array may be larger than memory."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reading.columns import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

_READ_CHARACTERS = 1 << 18
_LONGEST_VALUE = 1 << 26
"""Characters of one element. What is longer is no row, but a document that cannot be read piece by piece."""
_SPACE = re.compile(r"[ \t\r\n]*")
_GOES_ON = ".eE"
"""What may follow digits of a number and is left over where the rest is not there yet; nothing else begins with it."""

JSON_ERRORS = (ValueError, RecursionError)
"""What the json module raises: its own error is a ValueError, and so is that of a number with too many digits."""


class JsonStream:
    """A cursor over a JSON document; at most one element and a buffer are in memory."""

    def __init__(self, file: TextIO, path: str) -> None:
        self._file, self._path = file, path
        self._decode = json.JSONDecoder().raw_decode
        self._buffer, self._at, self._ended = "", 0, False

    def take(self, character: str) -> bool:
        """Go over this character, where it is the next one behind white space; return whether it is."""
        found = self._peek() == character
        self._at += found
        return found

    def members(self) -> Iterator[str]:
        """Yield the keys of an object whose bracket was taken; the caller goes over each value before the next key.

        Raises:
            DatasetError: as for :meth:`value`, or there is no comma between two.
        """
        if self.take("}"):
            return
        while True:
            key = self.value()
            if not isinstance(key, str) or not self.take(":"):
                raise DatasetError(f"{self._path}: the JSON object has no key where one should stand.")
            yield key
            if self.take("}"):
                return
            if not self.take(","):
                raise DatasetError(f"{self._path}: the JSON object is cut off, or a comma is missing in it.")

    def value(self) -> Any:
        """Return the next value.

        Raises:
            DatasetError: it is not JSON, cut off, or too long to be a row.
        """
        self._peek()
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except JSON_ERRORS as error:
                if self._ended or isinstance(error, RecursionError):
                    raise DatasetError(f"{self._path} is not JSON, or it is cut off ({one_line(error)}).") from error
            else:
                # A number at the end of the buffer may go on behind it: 1 as 1.5, 10, or 1e3.
                if self._ended or (end < len(self._buffer) and self._buffer[end] not in _GOES_ON):
                    self._at = end
                    return value
            if len(self._buffer) - self._at > _LONGEST_VALUE:
                raise DatasetError(f"{self._path}: a value is longer than {_LONGEST_VALUE:,} characters, or not JSON.")
            self._read()

    def elements(self) -> Iterator[Any]:
        """Yield the elements of an array whose bracket was taken, and go over the bracket at its end.

        Raises:
            DatasetError: as for :meth:`value`, or there is no comma between two.
        """
        if self.take("]"):
            return
        while True:
            yield self.value()
            if self.take("]"):
                return
            if not self.take(","):
                raise DatasetError(f"{self._path}: the JSON array is cut off, or a comma is missing in it.")

    def _peek(self) -> str:
        while True:
            match = _SPACE.match(self._buffer, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._read()

    def _read(self) -> None:
        # Twice as much each time, so that a long value is not decoded again and again.
        more = self._file.read(max(_READ_CHARACTERS, len(self._buffer) - self._at))
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        self._ended = not more
