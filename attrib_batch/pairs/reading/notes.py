"""What a table of pairs says about its contents in the metadata of its file.

Token ids, and texts that a chat template made, mean something to one tokenizer alone. Its name stands in the metadata,
so that a run with another is refused before a pair is read. A tokenizer is the same where its vocabulary is: the hash
of it decides where it is known; otherwise names are compared.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError, ModelError

if TYPE_CHECKING:
    import pyarrow as pa

    from attrib_batch.pairs.encoding.tokens import Tokenizer

_TOKENIZER = b"attrib_batch.tokenizer"
_TEXTS = b"attrib_batch.texts"
_FROM_CHAT = b"chat template"

_FAMILIES = (
    re.compile(r"(distil)?gpt2(-(small|medium|large|xl))?"),
    re.compile(r"pythia-\w+([.]\w+)?(-deduped)?(-v0)?|gpt-neox-20b"),
)
"""Names of models, in lower case and without their owner, that share one tokenizer."""


@dataclass(frozen=True)
class TokenizerNote:
    """The tokenizer that a table was made for."""

    name: str
    vocabulary: str | None = None
    """The hash of its vocabulary, where it was known when the table was made."""

    def is_of(self, name: str, tokenizer: Tokenizer) -> bool:
        """Return whether it is this tokenizer, of a model of this name."""
        if self.vocabulary is not None:
            return self.vocabulary == vocabulary_fingerprint(tokenizer)
        return _same_name(self.name, name) or _same_name(self.name, tokenizer.name_or_path)


@dataclass(frozen=True)
class TableNotes:
    """What a table says about its contents; nothing where it is text for any tokenizer."""

    tokenizer: TokenizerNote | None = None
    from_chat: bool = False
    """Whether the prompts are what a chat template made."""

    @classmethod
    def of(cls, schema: pa.Schema, path: str) -> TableNotes:
        """Read them from a file's schema.

        Raises:
            DatasetError: they are of a form that this release does not know.
        """
        metadata = schema.metadata or {}
        tokenizer = None
        if _TOKENIZER in metadata:
            try:
                tokenizer = TokenizerNote(**json.loads(metadata[_TOKENIZER]))
            except (ValueError, TypeError) as error:
                raise DatasetError(
                    f"{path}: its metadata {_TOKENIZER.decode()} is not readable. Import the table again."
                ) from error
        return cls(tokenizer, metadata.get(_TEXTS) == _FROM_CHAT)

    def metadata(self) -> dict[bytes, bytes]:
        """Return them as a file's schema holds them."""
        found: dict[bytes, bytes] = {}
        if self.tokenizer is not None:
            stated = {"name": self.tokenizer.name, "vocabulary": self.tokenizer.vocabulary}
            found[_TOKENIZER] = json.dumps(stated).encode()
        if self.from_chat:
            found[_TEXTS] = _FROM_CHAT
        return found

    def check(self, path: str, model: str, tokenizer: Tokenizer) -> None:
        """Check that the table can be read with a model's tokenizer.

        Args:
            path: where the table lies, for the message.
            model: the model's id.
            tokenizer: the model's.

        Raises:
            ModelError: the table was made for another one.
        """
        if self.tokenizer is None or self.tokenizer.is_of(model, tokenizer):
            return
        what = "its prompts hold a chat template" if self.from_chat else "its answers are token ids"
        how = "the vocabularies differ" if self.tokenizer.vocabulary else "the names differ"
        raise ModelError(
            f"{path}: {what} of the tokenizer {self.tokenizer.name!r}, and the model {model!r} has another one "
            f"({how}). Use a model of that tokenizer, or import the table again with --tokenizer for this one"
        )


def vocabulary_fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary, in hexadecimal."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _same_name(one: str, other: str) -> bool:
    one, other = _short(one), _short(other)
    return one == other or any(family.fullmatch(one) and family.fullmatch(other) for family in _FAMILIES)


def _short(name: Any) -> str:
    """Return a model's name without its owner or folder, in lower case."""
    return str(name).rstrip("/").rpartition("/")[2].lower()
