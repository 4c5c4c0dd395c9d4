"""EAP-IG's subject-verb agreement (``sva``): two prompts, and whether the subject of the clean one is plural.

The file names no answers. Right are the verbs in the subject's number and wrong those in the other: by default the
auxiliaries below, which tokenizers know as single words. ``--join`` names a list of verbs instead, with the columns
``sing`` and ``plur``; then a verb counts where both of its forms are one token of ``--tokenizer``.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.encoding.tokens import tokenize
from attrib_batch.pairs.importing.counts import RowRefusedError
from attrib_batch.pairs.importing.sources import Source
from attrib_batch.pairs.importing.values import required_text
from attrib_batch.pairs.reading.reader import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.pairs.importing.options import ImportOptions
    from attrib_batch.pairs.importing.recipe import Look, Reading
    from attrib_batch.pairs.importing.sources import Row

AUXILIARIES = ((" is", " are"), (" was", " were"), (" has", " have"), (" does", " do"))
"""Singular and plural."""
_PLURAL = {"1": True, "0": False, "true": True, "false": False, "1.0": True, "0.0": False}
_VERBS = ("sing", "plur")


def recognise(look: Look) -> bool:
    """Return whether there are two prompts and a number."""
    return look.has("clean", "corrupted", "plural") and str(look.first["plural"]).lower() in _PLURAL


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs."""
    singular, plural = zip(*_verbs(reading.options), strict=True)

    def convert(row: Row) -> Pair:
        clean, corrupted = required_text(row.values, "clean"), required_text(row.values, "corrupted")
        is_plural = _PLURAL.get(str(row.values.get("plural")).lower())
        if is_plural is None:
            raise RowRefusedError("plural is neither 0 nor 1")
        right, wrong = (plural, singular) if is_plural else (singular, plural)
        reading.counts.changed[f"a number turned into {len(singular):,} verbs that agree and as many that do not"] += 1
        template = row.values.get("group")
        return Pair(
            row.number,
            clean,
            corrupted,
            right,
            wrong,
            task="subject_verb",
            template=template if isinstance(template, str) else None,
        )

    yield from reading.each(convert, ("clean", "corrupted", "plural", "group"))


def _verbs(options: ImportOptions) -> list[tuple[str, str]]:
    """Return the verbs, each as it follows a word: in the singular and in the plural.

    Raises:
        DatasetError: the list of verbs has other columns, or none of its verbs is a token.
        RequestError: there is a list, and no tokenizer.
    """
    if options.join is None:
        return list(AUXILIARIES)
    tokenizer = options.loaded_tokenizer("--join with a list of verbs")
    source = Source.find(options.join)
    found: dict[tuple[str, str], None] = {}
    for row in source.rows():
        forms = [row.values.get(column) for column in _VERBS]
        if not all(column in row.values for column in _VERBS):
            raise DatasetError(f"{source.path}: a list of verbs has the columns {' and '.join(_VERBS)}.")
        if all(isinstance(form, str) and form.strip() for form in forms):
            found[f" {str(forms[0]).strip()}", f" {str(forms[1]).strip()}"] = None
    texts = [form for verb in found for form in verb]
    lengths = dict(zip(texts, map(len, tokenize(tokenizer, texts)["input_ids"]), strict=True)) if texts else {}
    kept = [verb for verb in found if all(lengths[form] == 1 for form in verb)]
    uses = Counter(form for verb in kept for form in verb)
    # A form that is singular of one verb and plural of another says nothing.
    kept = [verb for verb in kept if all(uses[form] == 1 for form in verb)]
    if not kept:
        raise DatasetError(f"{source.path}: no verb of it is one token in both of its forms.")
    return kept
