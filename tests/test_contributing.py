"""CONTRIBUTING.md and the workflow say what is there."""

from __future__ import annotations

import os
import re
import tomllib

import yaml

from attrib_batch import __version__
from tests.support.jobs import ROOT


def test_the_layers_are_those_that_are_checked() -> None:
    [table] = re.findall(r"\| layer \|.*?\n\n", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    explained = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    [layers] = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    assert [name for name in explained if name in layers] == layers


def test_a_word_has_one_meaning() -> None:
    words = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Words")[2]
    entries = re.findall(r"^\| ([\w -]+) \|", words, re.MULTILINE)
    assert len(entries) == len(set(entries)) > 30


def test_it_is_cited_by_the_version_that_it_is() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert (
        citation["license"]
        == tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["license"]
    )
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_workflow_runs_everything_on_both_kinds_of_processors_without_secrets() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)["jobs"]["ci"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert job["strategy"]["matrix"]["runner"] == ["ubuntu-24.04", "ubuntu-24.04-arm"]
    assert "secrets." not in text
