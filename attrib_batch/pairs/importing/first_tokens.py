"""Take the first token of each answer, for answers that are longer than one."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from attrib_batch.pairs.encoding.answers import continuations
from attrib_batch.pairs.encoding.tokens import tokenize_prompts
from attrib_batch.pairs.importing.counts import RowRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from attrib_batch.pairs.encoding.answers import Continuation
    from attrib_batch.pairs.importing.counts import Counts
    from attrib_batch.pairs.reading.reader import Answers, Pair

_BATCH_ROWS = 1000


def with_first_tokens(pairs: Iterable[Pair], tokenizer: Any, counts: Counts) -> Iterator[Pair]:
    """Yield pairs whose answers are the ids of the tokens that follow the clean prompt first.

    A pair whose prompt's own tokens change when an answer follows is refused: its first token is no continuation.
    """
    rows = iter(pairs)
    while batch := list(islice(rows, _BATCH_ROWS)):
        found = continuations(batch, tokenize_prompts(batch, tokenizer), tokenizer)
        for pair in batch:
            try:
                right, wrong = (
                    _first(pair.clean, texts, found, counts) for texts in (pair.answers, pair.wrong_answers)
                )
            except RowRefusedError as refused:
                counts.refuse(f"pair_id {pair.pair_id}", str(refused))
                continue
            yield replace(pair, answers=right, wrong_answers=wrong)


def _first(clean: str | None, texts: Answers, found: Mapping[tuple[str, str], Continuation], counts: Counts) -> Answers:
    if texts is None:
        return None
    tokens: list[str | int | None] = []
    for text in texts:
        follows = found.get((clean or "", str(text)))
        if follows is None or follows.replaced or not follows.tokens:
            raise RowRefusedError("the prompt's own tokens change when an answer follows, or an answer is empty")
        counts.changed["an answer cut to its first token"] += len(follows.tokens) > 1
        tokens.append(follows.tokens[0])
    return tuple(tokens)
