"""README.md is one screen, and what pages and notebooks show is there and is right."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from attrib_batch.spec import parse_spec
from docs.check import from_elsewhere, not_found_by_search
from docs.notebooks import NOTEBOOKS, notebook_page
from tests.support.jobs import ROOT

PAGES = sorted((ROOT / "docs/pages").rglob("*.md"))
LINES_OF_README = 150


def blocks(path: Path, language: str) -> list[str]:
    """The blocks of code of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_readme_is_one_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_OF_README
    assert text.splitlines()[2:5] == ["```sh", *text.splitlines()[3:5]]
    assert [line.split("#")[0].strip() for line in text.splitlines()[3:5]] == ["make demo", "make test"]


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_what_it_links_to_exists(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_code_that_it_shows_can_be_read(path: Path) -> None:
    for code in blocks(path, "python"):
        ast.parse(code)
    for text in blocks(path, "yaml"):
        job = yaml.safe_load(text)
        if {"models", "datasets", "methods"} <= job.keys():
            parse_spec(job, source=path.name)


def test_every_page_is_in_the_navigation() -> None:
    settings = (ROOT / "docs/mkdocs.yml").read_text(encoding="utf-8")
    for path in PAGES:
        assert str(path.relative_to(ROOT / "docs/pages")) in settings
    for notebook in NOTEBOOKS:
        assert f"examples/{notebook.stem}.md" in settings


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_with_what_they_print_and_nothing_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in cells)
    assert all(cell["execution_count"] for cell in cells), "run: make examples NOTEBOOKS=--write"
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert len(text) < 200_000
    page = notebook_page(path)
    assert page.count("```python") == len(cells)
    assert ("plotly.min.js" in page) == ("application/vnd.plotly" in text)


def test_the_check_of_the_site_finds_what_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="https://fonts.example/a.css"><link rel="canonical" href="https://own.example/">'
        '<a href="https://own.example/">own</a><script src="//cdn.example/b.js"></script><script src="c.js"></script>'
    )
    (tmp_path / "d.css").write_text("@import url(https://fonts.example/e.css); a { background: url(f.png) }")
    assert from_elsewhere(tmp_path) == [
        "a.html: https://fonts.example/a.css",
        "a.html: //cdn.example/b.js",
        "d.css: https://fonts.example/e.css",
    ]


def test_the_check_of_the_site_finds_a_message_that_is_not_in_the_search(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    entry = {"text": "<td>cannot read the job file …: …</td>"}
    (tmp_path / "search/search_index.json").write_text(json.dumps({"docs": [entry]}))
    missing = not_found_by_search(tmp_path)
    assert len(missing) > 100
    assert not any("cannot read the job file" in one for one in missing)
