"""EAP-IG's files: two prompts, and answers as ids of one tokenizer's tokens.

Several names of columns are in use for the right and the wrong answer. A cell holds one id, or a Python list of them as
text. A third prompt (``corrupted_hard``) takes the corrupted one's place with ``--counterfactual hard``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrib_batch.errors import RequestError
from attrib_batch.pairs.importing.counts import RowRefusedError
from attrib_batch.pairs.importing.values import looks_like_id, required_list, required_text
from attrib_batch.pairs.reading.columns import ANSWER_COLUMNS, TableForm
from attrib_batch.pairs.reading.reader import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attrib_batch.pairs.importing.options import ImportOptions
    from attrib_batch.pairs.importing.recipe import Look, Reading
    from attrib_batch.pairs.importing.sources import Row

ID_COLUMNS = (
    ("correct_idx", "incorrect_idx"),
    ("country_idx", "corrupted_country_idx"),
    ("clean_answer_idx", "corrupted_answer_idx"),
    ("answers_idx", "corrupted_answers_idx"),
)
"""Names of the columns of right and wrong answers."""
_PROMPTS = ("clean", "corrupted")
_PREFIX = "corrupted_"
"""Of the names of further corrupted prompts."""


def recognise(look: Look) -> bool:
    """Return whether there are two prompts and a pair of columns of ids."""
    return look.has(*_PROMPTS) and any(look.has(*columns) for columns in ID_COLUMNS)


def form(options: ImportOptions, look: Look) -> TableForm:  # noqa: ARG001 - as of every recipe
    """Return the form of the table, whose answers are ids.

    Raises:
        RequestError: nobody says whose ids they are.
    """
    if options.tokenizer is None:
        raise RequestError(
            "the answers are token ids, and the file does not say of which tokenizer: name it with --tokenizer, for "
            "example --tokenizer gpt2"
        )
    return TableForm(id_columns=ANSWER_COLUMNS)


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs, their answers taken as ids."""
    named = reading.options.counterfactual
    corrupted = "corrupted" if named is None else _PREFIX + named.removeprefix(_PREFIX)

    def convert(row: Row) -> Pair:
        columns = next((columns for columns in ID_COLUMNS if columns[0] in row.values), ID_COLUMNS[0])
        if corrupted not in row.values:
            found = (name for name in row.values if name.startswith(_PREFIX) and not name.endswith("_idx"))
            others = [name.removeprefix(_PREFIX) for name in found]
            raise reading.error(
                row, f"no column {corrupted}; --counterfactual may be one of {', '.join(others) or 'none'}."
            )
        if row.number == 0:
            reading.counts.use(row.values, {"clean", corrupted, *columns})
        right, wrong = (_ids(row.values, column) for column in columns)
        reading.counts.changed["an answer taken as a token id"] += len(right) + len(wrong)
        clean, other = required_text(row.values, "clean"), required_text(row.values, corrupted)
        return Pair(row.number, clean, other, right, wrong)

    yield from reading.each(convert)


def _ids(row: Mapping[str, Any], column: str) -> tuple[int, ...]:
    value = row.get(column)
    items = [value] if looks_like_id(value) else required_list(row, column)
    if not all(map(looks_like_id, items)):
        raise RowRefusedError(f"{column} holds what is no token id")
    return tuple(map(int, items))
