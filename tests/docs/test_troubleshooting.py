"""Every message that ends a command with exit code 1 or 2 has a line in troubleshooting."""

from __future__ import annotations

import re
from html import unescape

import pytest

from attrib_batch.errors import AttribBatchError, ExitCode
from docs.messages import HOLE, error_classes, messages, messages_of
from tests.support.jobs import ROOT

PAGE = (ROOT / "docs/pages/troubleshooting.md").read_text(encoding="utf-8")
PASSED_ON = 15
"""How many places hand on the text of another error, which is listed where it is made."""
ABOVE = {"AttribBatchError"}
"""Raised by nobody."""


@pytest.mark.parametrize("name", sorted(error_classes().keys() - ABOVE))
def test_every_exception_has_a_section_that_says_its_exit_code(name: str) -> None:
    sections = [section for section in PAGE.split("\n## ")[1:] if name in section]
    assert sections, f"{name} is in no section of troubleshooting.md"
    code = int(error_classes()[name].exit_code)
    assert any(f"exit code {code}" in section.splitlines()[0] for section in sections)


def test_every_class_that_is_raised_has_its_messages_listed() -> None:
    listed = set(re.findall(r"<!-- messages: (\w+) -->", PAGE))
    assert listed == {message.error for message in messages()}


def test_hardly_a_place_that_raises_has_no_text_of_its_own() -> None:
    without = [f"{message.module}:{message.line}" for message in messages() if not message.text]
    assert len(messages()) > 250
    assert len(without) <= PASSED_ON, without


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("JobError", "cannot read the job file"),  # in the place that raises it
        ("JobError", "unknown key; known here:"),  # returned by a function
        ("ValueError", "shards: into how many the model is split"),  # passed on by the job file's reader
        ("DatasetError", "hf://datasets/<owner>/<name>"),  # with signs that Markdown would take for its own
        ("StoppedError", "The same command goes on from there."),
    ],
)
def test_messages_are_found_wherever_they_are_written(error: str, said: str) -> None:
    assert said in unescape(re.sub(r"\\(.)", r"\1", messages_of(error)))


def test_an_error_that_is_raised_has_a_message_of_the_list() -> None:
    from attrib_batch.spec import parse_spec

    with pytest.raises(AttribBatchError) as raised:
        parse_spec({"name": "x", "colour": "red"}, source="job.yaml")
    assert raised.value.exit_code is ExitCode.BAD_REQUEST
    texts = [message.text for message in messages() if message.error == "JobError" and message.text]
    patterns = [text.strip(HOLE).split(HOLE) for text in texts]
    assert any(all(part in str(raised.value) for part in parts) for parts in patterns)
