"""Names that are folders of the tables, ``model=NAME``, from which readers of Parquet take a column."""

from __future__ import annotations

import re

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")

_READ_AS_SOMETHING_ELSE = re.compile(
    r"[0-9._-]+|[0-9.]+e-?[0-9]+|0[xb][0-9a-f_]+|[0-9._-]+t[0-9.]+z?|nan|inf|infinity|true|false|null|epoch",
    re.IGNORECASE,
)
"""Names that Polars, pyarrow or DuckDB take for a number, a date or a truth value.

A little more than they do today: whatever has no letter, and numbers with an exponent, hexadecimal and binary ones,
times and words in any case. Found by trying some 14,000 names with each of them.
"""


def check_name(value: str) -> str:
    """Return a name that can be a folder's.

    Raises:
        ValueError: it has other characters.
    """
    if not _NAME.match(value):
        raise ValueError(f"{value!r} cannot name a folder: use letters, digits, '.', '_' and '-'")
    return value


def reads_as_text(name: str) -> bool:
    """Return whether readers take a partition's name for the text that it is."""
    return _READ_AS_SOMETHING_ELSE.fullmatch(name) is None


def check_partition_name(value: str) -> str:
    """Return a name that readers take for text.

    Raises:
        ValueError: they would not; with one that they do.
    """
    if not reads_as_text(value):
        raise ValueError(
            "Polars, pyarrow or DuckDB read this back from a folder's name as a number, a date or a truth value; "
            f"expected a name that stays text, such as 'id-{value}'"
        )
    return value
