"""What a recipe is: how a published layout is recognised, and how its rows become pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing.counts import RowRefusedError
from attrib_batch.pairs.reading.columns import AnswerKind

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping

    from attrib_batch.pairs.importing.counts import Counts
    from attrib_batch.pairs.importing.options import ImportOptions
    from attrib_batch.pairs.importing.sources import Row, Source
    from attrib_batch.pairs.reading.columns import TableForm
    from attrib_batch.pairs.reading.reader import Pair


@dataclass(frozen=True)
class Look:
    """What a recipe sees of a file before it is chosen."""

    first: Mapping[str, Any]
    """The first row."""
    head: frozenset[str]
    """The keys beside the list of rows, of a JSON object."""

    def has(self, *columns: str) -> bool:
        """Return whether the first row has all these columns."""
        return all(column in self.first for column in columns)


@dataclass(frozen=True)
class Reading:
    """A file that is being imported."""

    source: Source
    options: ImportOptions
    counts: Counts

    def each(self, convert: Callable[[Row], Pair], uses: Container[str] | None = None) -> Iterator[Pair]:
        """Yield what ``convert`` makes of each row; those that it refuses are counted.

        Args:
            convert: makes a pair of a row, whose ``pair_id`` is the row's number or one that the row has.
            uses: the columns that it takes anything from; not counted where absent.

        Raises:
            DatasetError: as the source's rows do, or as ``convert`` does.
        """
        for row in self.source.rows():
            if uses is not None and row.number == 0:
                self.counts.use(row.values, uses)
            self.counts.read += 1
            try:
                pair = convert(row)
            except RowRefusedError as refused:
                self.counts.refuse(row.where, str(refused))
                continue
            self.counts.add(row.where, pair)
            yield pair

    def error(self, row: Row, message: str) -> DatasetError:
        """Return the error of a value that can be no pair's."""
        return DatasetError(f"{self.source.path}, {row.where}: {message}")


@dataclass(frozen=True)
class Recipe:
    """One layout in which pairs are published."""

    name: str
    """What ``--format`` calls it."""
    explanation: str
    """What it holds, in a sentence."""
    columns: str
    """The columns that it is recognised by."""
    published: str
    """Where files of it are."""
    recognise: Callable[[Look], bool]
    """Whether a file is of this layout."""
    read: Callable[[Reading], Iterator[Pair]]
    """Yields the pairs of a file, in order and one at a time."""
    takes: frozenset[str] = frozenset()
    """Those of ``options.FLAGS`` that mean something to it."""
    form: Callable[[ImportOptions, Look], TableForm] | None = None
    """The form of the table that it makes, or an error where an option is missing; a table of texts where absent."""
    answers: frozenset[AnswerKind] = frozenset({AnswerKind.TEXT, AnswerKind.FIRST_TOKEN})
    """What its answers may be imported as."""
