"""The tokenizer that a person names to ``pairs import``."""

from __future__ import annotations

from pathlib import Path

from attrib_batch.pairs.importing.options import GivenTokenizer
from attrib_batch.pairs.reading.notes import TokenizerNote, vocabulary_fingerprint


def given_tokenizer(name: str, *, needed: bool) -> GivenTokenizer:
    """Return a tokenizer by the name of its model.

    Args:
        name: a bundled name, a local folder, or a Hub id.
        needed: whether the tokenizer itself is needed. Otherwise what is on this machine is loaded, so that its
            vocabulary is noted, and of a Hub id the name alone.

    Raises:
        ModelError: it cannot be loaded.
    """
    from attrib_batch.models.load import load_tokenizer
    from attrib_batch.models.sources import BUNDLED
    from attrib_batch.spec import ModelSpec

    if not (needed or name in BUNDLED or Path(name).expanduser().is_dir()):
        return GivenTokenizer(TokenizerNote(name))
    tokenizer = load_tokenizer(ModelSpec(id=name, name="tokenizer", prepend_bos=False))
    return GivenTokenizer(TokenizerNote(name, vocabulary_fingerprint(tokenizer)), tokenizer)
