"""The command line, from the commands themselves."""

from __future__ import annotations

import ast
import inspect
from enum import Enum
from typing import TYPE_CHECKING, Any

import typer

from attrib_batch import errors
from attrib_batch.cli.app import app
from attrib_batch.cli.examples import PREFIX
from attrib_batch.errors import ExitCode
from docs.reference.markdown import code, plain, table
from docs.reference.tables import attribute_docstrings

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = "attrib-batch"


def command_line_page() -> str:
    """Return the page: every command with what it does, an example, its arguments and its options."""
    parts = ["# Command line", "Every command, from the program itself. `-h` and `--help` show the same in a terminal."]
    for path, command in commands():
        parts += [f"## {code(' '.join(path))}", plain(inspect.cleandoc(command.help or ""))]
        if command.epilog:
            parts.append(f"{PREFIX}{code(command.epilog.removeprefix(PREFIX))}")
        if rows := [_row(parameter) for parameter in command.params]:
            parts.append(table(("argument or option", "value", "default", "meaning"), rows))
    parts += ["## Exit codes", exit_codes()]
    return "\n\n".join(parts) + "\n"


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that does something, with the words by which it is called."""
    yield from _below((PROGRAM,), typer.main.get_command(app))


def _below(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, inner in below.items():
        yield from _below((*path, name), inner)


def _row(parameter: Any) -> tuple[str, str, str, str]:
    if parameter.param_type_name == "argument":
        return code(parameter.metavar or parameter.name.upper()), "", _default(parameter), parameter.help or ""
    names = ", ".join(code(name) for name in [*parameter.opts, *parameter.secondary_opts])
    return names, code(_value(parameter)), _default(parameter), parameter.help or ""


def _value(parameter: Any) -> str:
    """Return what follows an option, as the help writes it."""
    if parameter.is_flag:
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    annotation = parameter.type_descriptor.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(str(one.value) for one in annotation)
    return {int: "N", float: "NUMBER"}.get(annotation, "TEXT")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "**required**"
    value = parameter.default
    if value is None or value is False or value == []:
        return ""
    return code(str(value.value if isinstance(value, Enum) else value))


def exit_codes() -> str:
    """Return the table of exit codes, with what the class that defines them says of each."""
    [definition] = [
        node for node in ast.parse(inspect.getsource(errors)).body if getattr(node, "name", "") == ExitCode.__name__
    ]
    meanings = attribute_docstrings(definition.body)
    return table(("code", "meaning"), [(str(int(one)), meanings[one.name]) for one in ExitCode])
