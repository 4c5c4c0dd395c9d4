"""Every message that ends a command with exit code 1 or 2, found in the code that raises it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import attrib_batch
from attrib_batch import errors
from docs.reference.markdown import cell, table

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(inspect.getfile(attrib_batch)).parent
HOLE = "…"
"""What stands for the parts of a message that differ from case to case."""
_WORD = re.compile(r"[A-Za-z]{2,}")
VALUE_LAYERS = ("spec", "tables", "analysis", "report")
"""Where a ValueError is about what was asked: the command line and the job file's reader pass its text on."""


@dataclass(frozen=True)
class Message:
    """A message as the code writes it."""

    error: str
    """The name of the exception's class."""
    text: str
    """With a hole for what differs; empty where the exception passes on another one's text."""
    module: str
    line: int


def error_classes() -> dict[str, type[errors.AttribBatchError]]:
    """Return every exception of the package that a command turns into an exit code, by name."""
    for path in PACKAGE.rglob("*errors.py"):
        importlib.import_module(_module_name(path))
    found = {}
    waiting = [errors.AttribBatchError]
    while waiting:
        error = waiting.pop()
        found[error.__name__] = error
        waiting += error.__subclasses__()
    return found


@cache
def messages() -> tuple[Message, ...]:
    """Return the message of every place that raises an error of the package, or of a value that was asked for."""
    known = error_classes()
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = _module_name(path)
        layer = path.relative_to(PACKAGE).parts[0]
        for name, call, function in _raised(tree):
            if name in known or (name == "ValueError" and layer in VALUE_LAYERS):
                texts = list(_texts(call.args[0], function, tree)) if call.args else [""]
                found += [Message(name, text if _says(text) else "", module, call.lineno) for text in texts or [""]]
    return tuple(found)


def messages_of(error: str) -> str:
    """Return the table of an error's messages, each once."""
    rows: dict[str, list[str]] = {}
    for message in messages():
        if message.error == error and message.text:
            modules = rows.setdefault(message.text, [])
            if message.module not in modules:
                modules.append(message.module)
    return table(
        ("message", "from"),
        [(_as_text(text), ", ".join(f"`{one.removeprefix('attrib_batch.')}`" for one in rows[text])) for text in rows],
    )


def _says(text: str) -> bool:
    """Whether something of a text is written in the code; otherwise it passes on another one."""
    return len(_WORD.findall(text)) > 1


def _as_text(text: str) -> str:
    """Return a message as Markdown that shows it as it is."""
    return cell(re.sub(r"([\\`*_\[\]{}#])", r"\\\1", escape(text, quote=False)))


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _raised(tree: ast.Module) -> Iterator[tuple[str, ast.Call, ast.AST]]:
    """Yield the name, the call and the function around it of every exception that is made: raised, or returned."""
    around: dict[ast.AST, ast.AST] = {}
    for node in ast.walk(tree):
        for inner in ast.iter_child_nodes(node):
            around[inner] = node
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        if name is None or not name.endswith("Error"):
            continue
        function = node
        while function in around and not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            function = around[function]
        yield name, node, function


def _texts(argument: ast.expr, function: ast.AST, tree: ast.Module) -> Iterator[str]:
    """Yield what an argument may say: literals of its own, or of the variable or the function that it comes from."""
    if text := _literal(argument):
        yield text
        return
    names = {node.id for node in ast.walk(argument) if isinstance(node, ast.Name)}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id in names for target in targets):
                yield from _sentences(node.value)
    for definition in ast.walk(tree):
        if isinstance(definition, ast.FunctionDef) and definition.name in names and definition is not function:
            for node in ast.walk(definition):
                if isinstance(node, ast.Return | ast.Yield | ast.Assign) and node.value is not None:
                    yield from _sentences(node.value)


def _sentences(value: ast.expr) -> Iterator[str]:
    """Yield the literals in an expression that are sentences, the longest there are."""
    text = _literal(value)
    if len(text.replace(HOLE, "").split()) > 1:
        yield text
        return
    for inner in ast.iter_child_nodes(value):
        if isinstance(inner, ast.expr):
            yield from _sentences(inner)


def _literal(value: ast.expr) -> str:
    """Return a text with holes; empty where nothing of it is written in the code."""
    if isinstance(value, ast.Constant):
        return value.value if isinstance(value.value, str) else ""
    if isinstance(value, ast.JoinedStr):
        parts = [_literal(part) if isinstance(part, ast.Constant) else HOLE for part in value.values]
        return "".join(parts) if any(part.strip(f"{HOLE} .:;,") for part in parts) else ""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        left, right = _literal(value.left), _literal(value.right)
        return f"{left or HOLE}{right or HOLE}" if left or right else ""
    return ""
