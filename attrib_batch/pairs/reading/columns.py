"""Check the columns and types of a table of pairs: more types are read than are written, so few files need a cast."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import pyarrow as pa

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reading.notes import TableNotes
from attrib_batch.tables import PAIRS, REQUIRED_PAIR_COLUMNS, ROLE_SPAN

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

ANSWER_COLUMNS = ("answers", "wrong_answers")
ROLE_BOUNDS = (("start", "end"), ("start_token", "end_token"))
"""How a role states its span: by characters of the clean prompt, or by its tokens."""
REPAIRED = "repaired"
"""The column that says which words were exchanged to make a pair's prompts equally long; no reader needs it."""

DECODE_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for files and pages that cannot be decoded: its own classes, OSError from a codec or a
checksum, and UnicodeDecodeError for strings that are not UTF-8."""


class AnswerKind(StrEnum):
    """What the answers of a table are."""

    TEXT = "text"
    IDS = "ids"
    """Token ids, as integers."""
    FIRST_TOKEN = "first-token"  # noqa: S105 - a kind of answer, no secret
    """Texts of any length, of which the first token counts; in a table they are token ids."""


@dataclass(frozen=True)
class TableForm:
    """What a table of pairs has beside the columns that all have; known before its first row is written."""

    id_columns: Collection[str] = ()
    """Those of ``answers`` and ``wrong_answers`` whose entries are token ids."""
    token_roles: bool = False
    """Whether there are roles by token position."""
    repaired: bool = False
    """Whether there is the column of what was exchanged to make prompts equally long."""
    notes: TableNotes = field(default_factory=TableNotes)


def required_columns(*, corrupted: bool) -> tuple[str, ...]:
    """Return the columns that a table of pairs must have, where corrupted prompts are needed or are not."""
    return tuple(name for name in REQUIRED_PAIR_COLUMNS if corrupted or name != "corrupted")


def check_columns(schema: pa.Schema, path: str, *, corrupted: bool = True) -> None:
    """Check that a file has the columns of a table of pairs, in types that can be read as theirs.

    Args:
        schema: the file's.
        path: for messages.
        corrupted: whether corrupted prompts are needed.

    Raises:
        DatasetError: naming every missing column, or every column of a wrong type.
    """
    required = required_columns(corrupted=corrupted)
    missing = [name for name in required if name not in schema.names]
    if missing:
        raise DatasetError(
            f"{path} has no column {_listed(missing)}. A table of pairs has at least "
            f"{_listed(required)}; this file has {_listed(schema.names) or 'none'}. Rename its "
            "columns with `attrib-batch pairs import`."
        )
    wrong: list[str] = []
    for name, (expected, accepts) in _EXPECTED.items():
        if name not in schema.names:
            continue
        if schema.names.count(name) > 1:
            wrong.append(f"{name} stands there {schema.names.count(name)} times")
            continue
        found = schema.field(name).type
        empty_optional = pa.types.is_null(found) and name not in (*required, "pair_id")
        if not (accepts(found) or empty_optional):
            wrong.append(f"{name} is {found} and should be {expected}")
    if wrong:
        raise DatasetError(f"{path}: {'; '.join(wrong)}. Cast the column and write the file again.")


def table_form(schema: pa.Schema, path: str) -> TableForm:
    """Return the form of a table of pairs whose columns were checked.

    Raises:
        DatasetError: its metadata is not readable.
    """
    ids = (name for name in ANSWER_COLUMNS if name in schema.names and _is_ids(schema.field(name).type))
    roles = schema.field("roles").type if "roles" in schema.names else pa.null()
    token_roles = not pa.types.is_null(roles) and roles.value_type.get_field_index(ROLE_BOUNDS[True][0]) >= 0
    return TableForm(id_columns=frozenset(ids), token_roles=token_roles, notes=TableNotes.of(schema, path))


def pairs_schema(form: TableForm) -> pa.Schema:
    """Return the schema that a table of pairs of this form is written in."""
    schema = PAIRS
    for name in sorted(form.id_columns):
        schema = schema.set(schema.get_field_index(name), pa.field(name, pa.list_(pa.int64())))
    if form.token_roles:
        span = pa.struct([*ROLE_SPAN, ("start_token", pa.int32()), ("end_token", pa.int32())])
        schema = schema.set(schema.get_field_index("roles"), pa.field("roles", pa.list_(span)))
    if form.repaired:
        schema = schema.append(pa.field(REPAIRED, pa.string()))
    stated = form.notes.metadata()
    # Empty metadata would be bytes in the file, and tables that say nothing keep the bytes that they always had.
    return schema.with_metadata(stated) if stated else schema


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_ids(kind: pa.DataType) -> bool:
    return _is_integer(kind.value_type if _is_list(kind) else kind)


def _is_answers(kind: pa.DataType) -> bool:
    return _is_ids(kind) or _is_text(kind.value_type if _is_list(kind) else kind)


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind))


def _is_roles(kind: pa.DataType) -> bool:
    if not (_is_list(kind) and pa.types.is_struct(kind.value_type)):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    spans = [[fields[name] for name in span if name in fields] for span in ROLE_BOUNDS]
    return (
        _is_text(fields.get("name", pa.null()))
        and any(len(types) == 2 for types in spans)
        and all(len(types) != 1 and all(map(_is_integer_or_null, types)) for types in spans)
    )


def _is_integer_or_null(kind: pa.DataType) -> bool:
    return _is_integer(kind) or bool(pa.types.is_null(kind))


_TEXT = ("string", _is_text)
_ANSWERS = ("a list of strings or a string, or of token ids", _is_answers)
_INTEGER = ("an integer", _is_integer)
_EXPECTED: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "pair_id": _INTEGER,
    "clean": _TEXT,
    "corrupted": _TEXT,
    "answers": _ANSWERS,
    "wrong_answers": _ANSWERS,
    "roles": (
        "a list of structs with name (string) and start and end, or start_token and end_token (integers)",
        _is_roles,
    ),
    "task": _TEXT,
    "template": _TEXT,
    "group": _INTEGER,
}
if set(_EXPECTED) != set(PAIRS.names):
    raise AssertionError("the columns checked are not those of schema.PAIRS")


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names)


def one_line(error: BaseException) -> str:
    """Return a library's message in one line, short enough to stand inside one of ours."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + "..."
