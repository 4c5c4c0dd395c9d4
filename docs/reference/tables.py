"""The tables of a run, from the schemas that read and write them, with the comment of each column."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import itertools
import re
import tokenize
from typing import TYPE_CHECKING, Any

from docs.reference.markdown import code, plain, table

if TYPE_CHECKING:
    from types import ModuleType

TABLES: dict[str, tuple[str, str]] = {
    "A table of pairs": ("attrib_batch.tables.schema", "PAIRS"),
    "scores": ("attrib_batch.tables.schema", "SCORES"),
    "baselines": ("attrib_batch.tables.schema", "BASELINES"),
    "prompts": ("attrib_batch.tables.schema", "PROMPTS"),
    "failures": ("attrib_batch.tables.schema", "FAILURES"),
    "measured": ("attrib_batch.tables.schema", "MEASURED"),
    "means": ("attrib_batch.tables.schema", "MEANS"),
    "moments": ("attrib_batch.tables.moments", "MOMENTS"),
    "strata": ("attrib_batch.tables.moments", "STRATA"),
    "summary/heads.parquet": ("attrib_batch.analysis.summary", "HEADS"),
    "summary/positions.parquet": ("attrib_batch.analysis.summary", "POSITIONS"),
    "summary/strata.parquet": ("attrib_batch.analysis.summary", "STRATA"),
    "summary/stability.parquet": ("attrib_batch.analysis.summary", "STABILITY"),
    "summary/baselines.parquet": ("attrib_batch.analysis.summary", "BASELINES"),
    "summary/failures.parquet": ("attrib_batch.analysis.summary", "FAILURES"),
    "verification/agreement.parquet": ("attrib_batch.analysis.verification.agreement", "AGREEMENT"),
    "What run.examples returns": ("attrib_batch.analysis.examples", "EXAMPLES"),
    "What run.compare returns": ("attrib_batch.analysis.comparison.compare", "COMPARISON"),
}
"""The module and the name of each table's schema, by where the table lies or how one gets it."""

_COLUMN = re.compile(r"""^\s*(?:pa\.field\()?["'](\w+)["']""")


def tables_page() -> str:
    """Return the page: the columns of every table with their types and comments."""
    parts = [
        "# Tables",
        (
            "Tables of a run that have partitions also have the columns `model`, `dataset` and `method` where they are "
            "read with `hive_partitioning=True`. How to read them: [Read what a run leaves](../how-to/results.md)."
        ),
    ]
    for title, (module_name, name) in TABLES.items():
        module = importlib.import_module(module_name)
        schema = getattr(module, name)
        comments = column_comments(module, name)
        rows = [(code(column), code(_type(kind)), comments.get(column, "")) for column, kind in _columns(schema)]
        parts += [
            f"## {title}",
            plain(attribute_docstrings(ast.parse(inspect.getsource(module)).body).get(name, "")),
            table(("column", "type", "meaning"), rows),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _columns(schema: Any) -> list[tuple[str, Any]]:
    """Return names and types of the columns of an Arrow or a Polars schema."""
    if hasattr(schema, "items"):
        return list(schema.items())
    return [(field.name, field.type) for field in schema]


def attribute_docstrings(body: list[ast.stmt]) -> dict[str, str]:
    """Return the text that stands below each name that a module or a class defines."""
    found = {}
    for statement, following in itertools.pairwise(body):
        if not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)):
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                found[target.id] = inspect.cleandoc(str(following.value.value))
    return found


def column_comments(module: ModuleType, name: str) -> dict[str, str]:
    """Return the comment of each column of a schema: behind it, or in the lines above it.

    What the schema takes from other names of its module (``**_STATISTICS``) has the comments that it has there.
    """
    source = inspect.getsource(module)
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa")
    }
    found: dict[str, str] = {}
    for number in _lines_of(ast.parse(source), name):
        column = _COLUMN.match(lines[number - 1])
        if column is None or column[1] in found:
            continue
        above: list[str] = []
        before = number - 1
        while lines[before - 1].strip().startswith("#"):
            above.insert(0, comments[before])
            before -= 1
        if text := comments.get(number) or " ".join(above):
            found[column[1]] = text
    for other, imported in _imported(ast.parse(source), name):
        found = column_comments(importlib.import_module(other), imported) | found
    return found


def _imported(tree: ast.Module, name: str) -> list[tuple[str, str]]:
    """Return the names of this package's other modules that a name is made of, each with its module."""
    lines = set(_lines_of(tree, name))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.lineno in lines}
    return [
        (statement.module, one.name)
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("attrib_batch.")
        for one in statement.names
        if one.name.isupper() and one.name in used
    ]


def _lines_of(tree: ast.Module, name: str) -> list[int]:
    """Return the lines that define a name, followed by those of the names that it is made of."""
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            own = list(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
            used = [node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name) and node.id != name]
            return own + [line for other in dict.fromkeys(used) for line in _lines_of(tree, other)]
    return []


def _type(kind: Any) -> str:
    """Return a column's type; that texts of a dictionary are numbers in the file is no concern of a reader's."""
    return "string" if str(kind).startswith("dictionary<values=string") else str(kind)
