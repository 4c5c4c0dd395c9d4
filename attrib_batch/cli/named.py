"""Options that name something and give it a value, and may be given often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable


def named_values(option: str, form: str, given: Iterable[str]) -> list[tuple[str, str]]:
    """Split options of the form NAME=VALUE at their first equals sign.

    Raises:
        RequestError: one is not of the ``form``.
    """
    values = []
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise RequestError(f"{option} {text!r}: write {form}")
        values.append((name, value))
    return values
