"""The notebooks of ``examples/``: executed by ``python -m docs.notebooks``, and shown as pages of the site.

With ``--write`` what they print is stored in them, which is what the site shows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SECONDS = 600
"""How long a cell may take on a busy machine; on a quiet one with two cores a notebook takes less than two minutes."""
_PLOTLY = "application/vnd.plotly.v1+json"


def index_page() -> str:
    """Return the page that lists the notebooks by their titles."""
    lines = [f"- [{_title(path)}]({path.stem}.md) (`examples/{path.name}`)" for path in NOTEBOOKS]
    return "\n".join(
        [
            "# Notebooks",
            "",
            "Each runs on the bundled model, without a hub and without a GPU, in under two minutes on two cores.",
            "`make examples` runs them all.",
            "",
            *lines,
            "",
        ]
    )


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown, with what its cells printed when it was stored."""
    cells = _read(path)["cells"]
    has_map = any(_PLOTLY in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    parts: list[str] = []
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            if has_map and number == 0:  # below the title, which mkdocs takes from the first line
                parts.append('<script src="../assets/plotly.min.js"></script>')
            continue
        parts.append(f"```python\n{source}\n```")
        for place, output in enumerate(cell["outputs"]):
            parts += _output(output, f"map-{number}-{place}")
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any], name: str) -> Iterator[str]:
    """Yield the Markdown of one output: a map, HTML without a line break, or text."""
    data = output.get("data", {})
    if _PLOTLY in data:
        figure = json.dumps(data[_PLOTLY], separators=(",", ":")).replace("</", "<\\/")
        yield f'<div id="{name}"></div>\n<script>Plotly.newPlot("{name}", {figure})</script>'
    elif "text/html" in data:
        yield "<div>" + " ".join("".join(data["text/html"]).split("\n")) + "</div>"
    elif text := "".join(output.get("text", data.get("text/plain", []))):
        yield f"<pre>{escape(text)}</pre>"


def _title(path: Path) -> str:
    first = "".join(_read(path)["cells"][0]["source"]).splitlines()[0]
    return first.removeprefix("# ")


def _read(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def main() -> None:
    """Execute notebooks, each in an empty folder beside the tables; what one raises is raised."""
    import nbformat
    from nbclient import NotebookClient

    parser = argparse.ArgumentParser(prog="python -m docs.notebooks", description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    parser.add_argument("--write", action="store_true", help="store what they print")
    given = parser.parse_args()
    # Maps are stored as data, which the site draws; nothing asks a model hub.
    os.environ |= {"PLOTLY_RENDERER": "plotly_mimetype", "HF_HUB_OFFLINE": "1"}
    for path in given.notebooks:
        notebook = nbformat.read(path, as_version=4)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="attrib-batch-example-") as folder:
            (Path(folder) / "datasets").symlink_to(ROOT / "datasets")
            client = NotebookClient(
                notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}
            )
            client.execute()
            _tidy(notebook, folder)
        seconds = time.monotonic() - began
        sys.stdout.write(f"{path.name}: {seconds:.0f} s\n")
        if given.write:
            nbformat.write(notebook, path)


def _tidy(notebook: Any, folder: str) -> None:
    """Leave out of a notebook what differs from machine to machine: times, folders, and what goes to stderr."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            for kind, text in output.get("data", {}).items():
                if isinstance(text, str):
                    output.data[kind] = text.replace(f"{folder}/", "")


if __name__ == "__main__":
    main()
