"""What a person says of an import beside which file it is."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from attrib_batch.pairs.reading.columns import AnswerKind
    from attrib_batch.pairs.reading.notes import TokenizerNote


class LeadingSpace(StrEnum):
    """What becomes of answers that do not begin with a space."""

    ADD = "add"
    KEEP = "keep"


class Corrupt(StrEnum):
    """Where the corrupted prompt of a layout comes from that has none."""

    SHUFFLE = "shuffle"
    """Another row of the same length."""


class Positions(StrEnum):
    """What token positions in a file count from."""

    WITH_BOS = "with-bos"
    """The first token of the text is position 1, behind a BOS."""
    WITHOUT_BOS = "without-bos"
    """The first token of the text is position 0."""


@dataclass(frozen=True)
class GivenTokenizer:
    """The tokenizer that a person names, and the tokenizer itself where it was loaded."""

    note: TokenizerNote
    loaded: Any = None
    """A Hugging Face fast tokenizer."""


@dataclass(frozen=True)
class ImportOptions:
    """How a file is to be imported; what is left out is for the layout to say."""

    layout: str | None = None
    """The name of a recipe; by default the one whose columns the file has."""
    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The file's column names to those of a table of pairs."""
    answers: AnswerKind | None = None
    leading_space: LeadingSpace | None = None
    counterfactual: str | None = None
    """Which of several counterfactuals of a row is its corrupted prompt."""
    corrupt: Corrupt | None = None
    join: str | Path | None = None
    """Another file that the layout is made of: that of the corrupted prompts, or of the verbs."""
    positions: Positions | None = None
    tokenizer: GivenTokenizer | None = None
    chat_template: bool = False
    repair: bool = False
    seed: int = 0

    def given(self) -> dict[str, str]:
        """Return the options that a person gave, as the command line calls them, by the names of their fields."""
        defaults = ImportOptions()
        return {
            option.name: FLAGS[option.name]
            for option in fields(self)
            if option.name in FLAGS and getattr(self, option.name) != getattr(defaults, option.name)
        }

    def loaded_tokenizer(self, purpose: str) -> Any:
        """Return the tokenizer itself.

        Raises:
            RequestError: none was given, or its name alone.
        """
        if self.tokenizer is None or self.tokenizer.loaded is None:
            raise RequestError(
                f"{purpose} needs a tokenizer: name a bundled model, a folder or a Hub id, --tokenizer M"
            )
        return self.tokenizer.loaded


FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "columns": "--column",
        "answers": "--answers",
        "leading_space": "--leading-space",
        "counterfactual": "--counterfactual",
        "corrupt": "--corrupt",
        "join": "--join",
        "positions": "--positions",
        "chat_template": "--chat-template",
    }
)
"""The options that some layouts take and others do not, as the command line calls them."""
