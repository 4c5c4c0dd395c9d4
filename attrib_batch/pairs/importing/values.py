"""Turn the values of a source into those of a pair, or say what is wrong with them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from attrib_batch.pairs.importing.counts import RowRefusedError
from attrib_batch.pairs.importing.json_stream import JSON_ERRORS
from attrib_batch.pairs.importing.literals import list_from_cell
from attrib_batch.pairs.importing.options import LeadingSpace
from attrib_batch.pairs.reading.columns import ROLE_BOUNDS, AnswerKind
from attrib_batch.pairs.reading.reader import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.pairs.importing.counts import Counts
    from attrib_batch.pairs.reading.reader import Answers

_INT64 = range(-(2**63), 2**63)
_INT32 = range(-(2**31), 2**31)
_TOKEN_IDS = range(2**63)
_WHOLE_NUMBER = re.compile(r"\s*[0-9]{1,19}\s*")


class ValueRefusedError(Exception):
    """A value that can be no pair's; the message says what it is, and the caller adds where it stands."""


def as_text(value: Any, column: str) -> str | None:
    """Return a text, or None for a null.

    Raises:
        ValueRefusedError: it is neither.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueRefusedError(f"{column} is {value!r}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise ValueRefusedError(f"{column} is not valid Unicode ({error.reason})") from error
    return value


def as_answers(value: Any, kind: AnswerKind, column: str) -> Answers:
    """Return answers from a value or a list of values.

    Raises:
        ValueRefusedError: one of them is not of this kind.
    """
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    if kind is AnswerKind.IDS:
        return tuple(as_token_id(item, column) for item in items)
    for item in items:
        if isinstance(item, int) and not isinstance(item, bool):
            raise ValueRefusedError(
                f"{column} is {value!r}: whole numbers are read as token ids only with --answers ids. Write them as "
                "strings where they are texts"
            )
    if isinstance(value, str | list):
        return tuple(as_text(item, column) for item in items)
    raise ValueRefusedError(f"{column} is {value!r}, not a string or a list of strings")


def as_token_id(value: Any, column: str) -> int | None:
    """Return a token id, or None for a null.

    Raises:
        ValueRefusedError: it is neither.
    """
    if value is None:
        return None
    if looks_like_id(value) and int(value) in _TOKEN_IDS:
        return int(value)
    raise ValueRefusedError(
        f"{column} holds {value!r}, which is no token id: with --answers ids every answer is a whole number from 0 on. "
        "Leave the option out where answers are texts"
    )


def looks_like_id(value: Any) -> bool:
    """Return whether a value is a whole number, or a text of one."""
    if isinstance(value, str):
        return _WHOLE_NUMBER.fullmatch(value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def as_integer(value: Any, column: str) -> int | None:
    """Return an integer of 64 bits, or None for a null.

    Raises:
        ValueRefusedError: it is neither.
    """
    if value is None:
        return None
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or number not in _INT64:
        raise ValueRefusedError(f"{column} is {value!r}, not an integer of 64 bits")
    return number


def as_roles(value: Any) -> tuple[Role, ...]:
    """Return roles from a list of objects, or the JSON text of one.

    Raises:
        ValueRefusedError: it is none.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except JSON_ERRORS as error:
            raise ValueRefusedError(f"roles is not JSON ({getattr(error, 'msg', 'nested too deeply')})") from error
    return tuple(map(_as_role, [] if value is None else value if isinstance(value, list) else [value]))


def _as_role(role: Any) -> Role:
    if isinstance(role, dict) and isinstance(role.get("name"), str):
        for (first, stop), by_token in zip(ROLE_BOUNDS, (False, True), strict=True):
            start, end = role.get(first), role.get(stop)
            if isinstance(start, int) and isinstance(end, int) and start in _INT32 and end in _INT32:
                return Role(role["name"], start, end, by_token)
    raise ValueRefusedError(
        f"a role is {role!r}, not an object with name, start and end, or name, start_token and end_token"
    )


def required_text(row: Mapping[str, Any], column: str) -> str:
    """Return a text that a layout's row must have.

    Raises:
        RowRefusedError: it is missing, null or no text.
    """
    value = row.get(column)
    if not isinstance(value, str) or not value:
        raise RowRefusedError(f"no text in {column}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowRefusedError(f"{column} is not valid Unicode") from error
    return value


def required_list(row: Mapping[str, Any], column: str) -> list[Any]:
    """Return a list that a layout's row must have: a list, or the literal of one in a cell.

    Raises:
        RowRefusedError: it is missing, empty or no list.
    """
    value = row.get(column)
    found = list_from_cell(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise RowRefusedError(f"no list in {column}")
    if not found:
        raise RowRefusedError(f"an empty list in {column}")
    return found


def spaced(texts: list[Any], column: str, leading_space: LeadingSpace, counts: Counts) -> tuple[str, ...]:
    """Return answers that are texts, with a space put before those without one if that is asked for.

    Raises:
        RowRefusedError: one of them is no text.
    """
    found = []
    for text in texts:
        answer = required_text({column: text}, column)
        if leading_space is LeadingSpace.ADD and not answer[0].isspace():
            counts.changed["a space put before an answer (--leading-space keep leaves it out)"] += 1
            answer = f" {answer}"
        found.append(answer)
    return tuple(found)
