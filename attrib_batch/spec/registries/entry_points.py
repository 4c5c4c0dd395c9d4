"""What installed packages offer under a name, in an entry-point group of this package."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from attrib_batch.errors import JobError


def offered(group: str) -> dict[str, list[EntryPoint]]:
    """Return what installed packages offer in a group, by name; more than one entry under a name is a conflict."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, []).append(entry)
    return found


def load_offered(group: str, name: str, what: str) -> tuple[Any, str]:
    """Import what is offered under a name.

    Args:
        group: the entry-point group.
        name: a name that `offered` lists.
        what: what it is to be, for messages: ``metric``, ``method``.

    Returns:
        The object, and where it is, as ``module:attribute``.

    Raises:
        JobError: it cannot be imported, or several packages claim the name.
    """
    values = sorted({entry.value for entry in offered(group)[name]})
    if len(values) > 1:
        raise JobError(f"{what} {name!r} is claimed by {', '.join(values)}")
    try:
        return load_reference(values[0]), values[0]
    except Exception as error:  # importing it runs its author's code, which may raise anything
        raise JobError(f"{what} {name!r} cannot be loaded from {values[0]}: {type(error).__name__}: {error}") from error


def load_reference(reference: str) -> Any:
    """Import the object at ``module:attribute``; whatever the import raises is raised."""
    return EntryPoint(name="", value=reference, group="").load()
