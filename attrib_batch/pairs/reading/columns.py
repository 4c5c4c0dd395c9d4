"""Check the columns and types of a table of pairs: more types are read than are written, so few files need a cast."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import pyarrow as pa

from attrib_batch.errors import DatasetError
from attrib_batch.tables import PAIRS, REQUIRED_PAIR_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

ANSWER_COLUMNS = ("answers", "wrong_answers")

DECODE_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for files and pages that cannot be decoded: its own classes, OSError from a codec or a
checksum, and UnicodeDecodeError for strings that are not UTF-8."""


class AnswerKind(StrEnum):
    """What the answers of a table are."""

    TEXT = "text"
    IDS = "ids"
    """Token ids, as integers."""


def check_columns(schema: pa.Schema, path: str) -> None:
    """Check that a file has the columns of a table of pairs, in types that can be read as theirs.

    Raises:
        DatasetError: naming every missing column, or every column of a wrong type.
    """
    missing = [name for name in REQUIRED_PAIR_COLUMNS if name not in schema.names]
    if missing:
        raise DatasetError(
            f"{path} has no column {_listed(missing)}. A table of pairs has at least "
            f"{_listed(REQUIRED_PAIR_COLUMNS)}; this file has {_listed(schema.names) or 'none'}. Rename its "
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
        empty_optional = pa.types.is_null(found) and name not in (*REQUIRED_PAIR_COLUMNS, "pair_id")
        if not (accepts(found) or empty_optional):
            wrong.append(f"{name} is {found} and should be {expected}")
    if wrong:
        raise DatasetError(f"{path}: {'; '.join(wrong)}. Cast the column and write the file again.")


def id_columns(schema: pa.Schema) -> frozenset[str]:
    """Return those of the columns of answers that hold token ids, as their types say."""
    return frozenset(name for name in ANSWER_COLUMNS if name in schema.names and _is_ids(schema.field(name).type))


def pairs_schema(id_columns: Collection[str]) -> pa.Schema:
    """Return the schema that a table of pairs is written in, with token ids in ``id_columns`` and text elsewhere."""
    schema = PAIRS
    for name in id_columns:
        schema = schema.set(schema.get_field_index(name), pa.field(name, pa.list_(pa.int64())))
    return schema


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
    return (
        _is_text(fields.get("name", pa.null()))
        and _is_integer(fields.get("start", pa.null()))
        and _is_integer(fields.get("end", pa.null()))
    )


_TEXT = ("string", _is_text)
_ANSWERS = ("a list of strings or a string, or of token ids", _is_answers)
_INTEGER = ("an integer", _is_integer)
_EXPECTED: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "pair_id": _INTEGER,
    "clean": _TEXT,
    "corrupted": _TEXT,
    "answers": _ANSWERS,
    "wrong_answers": _ANSWERS,
    "roles": ("a list of structs with name (string), start and end (integers)", _is_roles),
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
