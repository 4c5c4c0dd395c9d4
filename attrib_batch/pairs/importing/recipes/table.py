"""A table with the columns of pairs, under these or other names.

- Columns are renamed by a mapping; columns that are then none of a table of pairs are left out.
- ``answers`` and ``wrong_answers``: in CSV and TSV one cell, its answers separated by ``|`` and taken as they
  stand, leading space included (``" Mary| Jane"``); in JSON and Parquet a string or a list of strings.
- Answers are texts, also where they look like numbers. They are token ids, written as integers, only where the caller
  says so; integers in JSON and Parquet are refused otherwise.
- ``roles``: a list of objects with ``name``, ``start`` and ``end``, or ``start_token`` and ``end_token``; in CSV and
  TSV the same as JSON in one cell.
- ``pair_id``: the row number where there is no such column.
- An empty cell in CSV and TSV is a null. Their columns without a name are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrib_batch.pairs.importing.values import (
    ValueRefusedError,
    as_answers,
    as_integer,
    as_roles,
    as_text,
)
from attrib_batch.pairs.reading.columns import ANSWER_COLUMNS, AnswerKind, TableForm
from attrib_batch.pairs.reading.reader import Pair
from attrib_batch.tables import PAIRS, REQUIRED_PAIR_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attrib_batch.pairs.importing.options import ImportOptions
    from attrib_batch.pairs.importing.recipe import Look, Reading
    from attrib_batch.pairs.importing.sources import Row

ANSWER_SEPARATOR = "|"


def recognise(look: Look) -> bool:
    """Return whether the columns of pairs are there, and the prompts are texts."""
    return look.has(*REQUIRED_PAIR_COLUMNS) and not isinstance(look.first["clean"], list)


def form(options: ImportOptions, look: Look) -> TableForm:
    """Return the form of the table: any role may be by token, and answers are ids where that is said."""
    ids = ANSWER_COLUMNS if options.answers is AnswerKind.IDS else ()
    roles = {theirs for theirs, ours in options.columns.items() if ours == "roles"} | {"roles"}
    return TableForm(id_columns=ids, token_roles=not roles.isdisjoint(look.first))


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs of a table, its columns renamed."""
    mapping = reading.options.columns
    kind = AnswerKind.IDS if reading.options.answers is AnswerKind.IDS else AnswerKind.TEXT
    columns: tuple[str, ...] = ()
    names: dict[str, str] = {}

    def convert(row: Row) -> Pair:
        nonlocal columns, names
        if tuple(row.values) != columns:
            columns = tuple(row.values)
            names = _renamed(reading, row, columns, mapping)
            reading.counts.use(row.values, names)
        values = {ours: row.values[theirs] for theirs, ours in names.items()}
        if reading.source.kind.has_cells:
            for column in ANSWER_COLUMNS:
                values[column] = values[column] and values[column].split(ANSWER_SEPARATOR)
        try:
            return _pair(values, kind, row.number)
        except ValueRefusedError as refused:
            raise reading.error(row, f"{refused}.") from refused

    yield from reading.each(convert)


def _renamed(reading: Reading, row: Row, columns: tuple[str, ...], mapping: Mapping[str, str]) -> dict[str, str]:
    """Map the source's columns that are used to ours."""
    present = ", ".join(columns)
    for theirs in mapping:
        if theirs not in columns:
            raise reading.error(row, f"no column {theirs!r} to rename; there are {present}.")
    names = {theirs: mapping.get(theirs, theirs) for theirs in columns}
    used = {theirs: ours for theirs, ours in names.items() if ours in PAIRS.names}
    for ours in PAIRS.names:
        sources = [theirs for theirs, name in used.items() if name == ours]
        if len(sources) > 1:
            raise reading.error(row, f"{' and '.join(sources)} would both be {ours}. Rename only one of them.")
        if not sources and ours in REQUIRED_PAIR_COLUMNS:
            raise reading.error(
                row, f"nothing becomes the column {ours}; there are {present}. Say which with a renaming."
            )
    return used


def _pair(values: dict[str, Any], kind: AnswerKind, number: int) -> Pair:
    pair_id = as_integer(values["pair_id"], "pair_id") if "pair_id" in values else number
    if pair_id is None:
        raise ValueRefusedError("pair_id is null. Give every row one, or leave the column out")
    return Pair(
        pair_id=pair_id,
        clean=as_text(values["clean"], "clean"),
        corrupted=as_text(values["corrupted"], "corrupted"),
        answers=as_answers(values["answers"], kind, "answers"),
        wrong_answers=as_answers(values["wrong_answers"], kind, "wrong_answers"),
        roles=as_roles(values.get("roles")),
        task=as_text(values.get("task"), "task"),
        template=as_text(values.get("template"), "template"),
        group=as_integer(values.get("group"), "group"),
    )
