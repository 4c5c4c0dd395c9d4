"""What mkdocs calls while it builds the site: pages from the code, from the notebooks and from CONTRIBUTING.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import plotly
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs knows the folder of this file alone

from docs.messages import messages_of  # noqa: E402
from docs.notebooks import NOTEBOOKS, index_page, notebook_page  # noqa: E402
from docs.reference import GENERATED  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

PICTURE = "attrib_batch/report/example.png"
MESSAGES = re.compile(r"<!-- messages: (\w+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made from the code."""
    for path, page in GENERATED.items():
        files.append(File.generated(config, path, content=page()))
    files.append(File.generated(config, "concepts/words.md", content=_words()))
    files.append(File.generated(config, "assets/report.png", content=(ROOT / PICTURE).read_bytes()))
    files.append(File.generated(config, "assets/plotly.min.js", content=_plotly()))
    files.append(File.generated(config, "examples/index.md", content=index_page()))
    for notebook in NOTEBOOKS:
        files.append(File.generated(config, f"examples/{notebook.stem}.md", content=notebook_page(notebook)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs names them
    """Put the messages of an exception where a page asks for them."""
    return MESSAGES.sub(lambda found: messages_of(found[1]), markdown)


def _words() -> str:
    """Return the glossary of CONTRIBUTING.md as a page."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return "# Words\n" + text.partition("\n## Words\n")[2]


def _plotly() -> bytes:
    """Return plotly's own script, which the maps of the notebooks are drawn with."""
    return (Path(plotly.__file__).parent / "package_data/plotly.min.js").read_bytes()
