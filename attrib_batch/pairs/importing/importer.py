"""Import pairs from a file of any known layout into a table of pairs: row by row, in bounded memory.

The layout is that of `attrib_batch.pairs.importing.registry` whose columns the file has. A row that cannot become a
pair is counted with its reason, and nothing of a file is ever executed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing.counts import Counts
from attrib_batch.pairs.importing.first_tokens import with_first_tokens
from attrib_batch.pairs.importing.options import ImportOptions
from attrib_batch.pairs.importing.recipe import Reading
from attrib_batch.pairs.importing.registry import find_recipe, look_at
from attrib_batch.pairs.importing.remote import is_url
from attrib_batch.pairs.importing.sources import Source
from attrib_batch.pairs.importing.values import looks_like_id
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.columns import ANSWER_COLUMNS, AnswerKind, TableForm
from attrib_batch.pairs.repair import WordPool, repaired
from attrib_batch.tables import PAIRS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from attrib_batch.pairs.importing.recipe import Recipe
    from attrib_batch.pairs.reading.reader import Pair

_DEFAULTS = ImportOptions()


@dataclass(frozen=True)
class Imported:
    """What was imported."""

    recipe: Recipe
    n_pairs: int
    counts: Counts
    answers_look_like_ids: bool
    """Whether all answers were cells of whole numbers that were taken as text."""


def import_pairs(source: str | Path, target: str | Path, options: ImportOptions = _DEFAULTS) -> Imported:
    """Write a table of pairs from a file of another kind.

    Args:
        source: CSV, TSV, JSON (lines, an array, or an object with ``prompts``) or Parquet; text is UTF-8, and may be
            compressed with gzip or zstd. A path, or a URL: ``s3://``, ``gs://``, ``hf://datasets/`` or ``https://``.
        target: the Parquet file to write, or the URL of an object; appears when it is complete.
        options: what the file itself does not say.

    Raises:
        RequestError: an option is missing, or means nothing to the file's layout.
        DatasetError: the source cannot be read, is of no known layout, or no row of it becomes a pair.
        OutputError: the target cannot be written.
    """
    unknown = [ours for ours in options.columns.values() if ours not in PAIRS.names]
    if unknown:
        raise DatasetError(f"{unknown[0]!r} is no column of a table of pairs; those are {', '.join(PAIRS.names)}.")
    found = Source.find(source)
    here = [Path(path) for path in (source, options.join) if path is not None and not is_url(path)]
    for path in here:
        if Path(target).exists() and path.exists() and path.samefile(target):
            raise DatasetError(f"{path} is both source and target: name another file to write.")
    look = look_at(found)
    recipe = find_recipe(found, look, options)
    form = recipe.form(options, look) if recipe.form else TableForm()
    form = _noted(form, options)

    def pairs(counts: Counts) -> Iterator[Pair]:
        rows = recipe.read(Reading(found, options, counts))
        if options.answers is AnswerKind.FIRST_TOKEN:
            rows = with_first_tokens(rows, options.loaded_tokenizer("--answers first-token"), counts)
        return rows

    counts = Counts()
    rows = pairs(counts)
    if options.repair:
        rows = _repaired(rows, pairs(Counts()), options, counts)
    like_ids: Counter[bool] = Counter()
    n_pairs = write_pairs(target, _watched(found, rows, counts, like_ids), form=form)
    in_cells = found.kind.has_cells and recipe.name == "table" and not form.id_columns
    looks = in_cells and like_ids[True] > 0 and not like_ids[False]
    return Imported(recipe, n_pairs, counts, answers_look_like_ids=looks)


def _noted(form: TableForm, options: ImportOptions) -> TableForm:
    """Return the form with what the options add: answers as first tokens, and the tokenizer that it all is of."""
    if options.answers is AnswerKind.FIRST_TOKEN:
        form = replace(form, id_columns=ANSWER_COLUMNS)
    if options.tokenizer is not None and (form.id_columns or form.notes.from_chat):
        form = replace(form, notes=replace(form.notes, tokenizer=options.tokenizer.note))
    return replace(form, repaired=options.repair)


def _repaired(
    pairs: Iterable[Pair], same_pairs: Iterable[Pair], options: ImportOptions, counts: Counts
) -> Iterator[Pair]:
    """Pass pairs on, those mended that can be; the words come from a pass of their own over the same pairs."""
    tokenizer = options.loaded_tokenizer("--repair")
    pool = WordPool.of(same_pairs, tokenizer)
    for pair, is_left in repaired(pairs, pool, tokenizer, options.seed):
        if pair.repaired is not None:
            counts.changed["a pair made equally long (see the column repaired)"] += 1
        if is_left:
            counts.left["pairs of unequal length or with a long answer, which no word of the table mends"] += 1
        yield pair


def _watched(source: Source, pairs: Iterable[Pair], counts: Counts, like_ids: Counter[bool]) -> Iterator[Pair]:
    """Pass pairs on, count whether their answers are whole numbers, and fail at the end if there was none."""
    none = True
    for pair in pairs:
        none = False
        for answer in (*(pair.answers or ()), *(pair.wrong_answers or ())):
            if answer is not None:
                like_ids[looks_like_id(answer)] += 1
        yield pair
    if none:
        reasons = "; ".join(f"{count:,} rows: {reason}" for reason, count in counts.refused.most_common())
        raise DatasetError(f"{source.path}: no row became a pair ({reasons}).")
