"""The positions of a prompt that a method is asked for: the parameter ``at``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainValidator

from attrib_batch.spec.base import Strict

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL, LAST = "all", "last"


def check_at(value: Any) -> str | tuple[str, ...]:
    """Return which positions are meant: ``all``, ``last``, or names of roles, each once and in alphabetical order.

    Raises:
        ValueError: it is none of these.
    """
    if value in (ALL, LAST):
        return str(value)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"expected {LAST}, {ALL}, the name of a role, or a list of names of roles")
    if reserved := sorted({ALL, LAST} & set(names)):
        raise ValueError(f"a list holds names of roles; {' and '.join(reserved)} stands alone")
    return tuple(sorted(set(names)))


class AtPositions(Strict):
    """The parameter of a method that can be asked for some positions only; its scores have no rows at others."""

    at: Annotated[Any, PlainValidator(check_at)] = Field(
        ALL, description=f"the positions that are scored: {ALL}, {LAST}, a role, or a list of roles"
    )


def positions_asked(at: str | Sequence[str], roles: Sequence[str | None]) -> list[int]:
    """Return the positions of a prompt that ``at`` means, in order.

    Args:
        at: as `check_at` returns it.
        roles: the role of each token of the prompt, None where it has none.
    """
    n_tokens = len(roles)
    if at == ALL:
        return list(range(n_tokens))
    if at == LAST:
        return [n_tokens - 1]
    return [position for position, role in enumerate(roles) if role in at]
