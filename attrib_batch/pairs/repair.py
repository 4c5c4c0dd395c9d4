"""Make prompts equally long by exchanging single words for others of the same table.

What a table varies between clean and corrupted prompts, such as names, is its pool of words. A word that is too long
gives way to one of the pool that has the length its partner has, everywhere in the pair: in both prompts and in the
answers. Words of the pool are drawn from the seed and the pair's id alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from attrib_batch.pairs.encoding.encode import EncodedPair, PairProblem, encode_pairs
from attrib_batch.pairs.encoding.tokens import tokenize
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from attrib_batch.pairs.encoding.encode import Tokenizer
    from attrib_batch.pairs.reading.reader import Answers, Pair, Role

MENDABLE = frozenset({FailureReason.UNEQUAL_LENGTH, FailureReason.MULTI_TOKEN_ANSWER})
"""What an exchange of words may mend: a long name makes prompts unequal, and is no answer."""
_WORD = re.compile(r"\w+")
_MOST_WORDS = 10_000
"""Of a pool: what is remembered of a table must not grow with it."""
_MOST_EXCHANGES = 4
_BATCH_ROWS = 500


class WordCollector:
    """The words that a table varies, while its pairs go by."""

    def __init__(self) -> None:
        self._words: dict[str, None] = {}

    def add(self, pair: Pair) -> None:
        """Take the words in which a pair's prompts differ."""
        if len(self._words) < _MOST_WORDS:
            for words in _differences(pair):
                self._words.update(dict.fromkeys(words))

    def pool(self, tokenizer: Tokenizer) -> WordPool:
        """Return the words by their length in tokens."""
        return WordPool(tokenizer, list(self._words))


class WordPool:
    """Words by how many tokens they are behind a space, and by whether they begin with a capital letter."""

    def __init__(self, tokenizer: Tokenizer, words: list[str]) -> None:
        self._tokenizer = tokenizer
        self._lengths: dict[str, int] = {}
        self._words: defaultdict[tuple[bool, int], list[str]] = defaultdict(list)
        self._measure(words)
        for word in words:
            self._words[word[0].isupper(), self._lengths[word]].append(word)

    @classmethod
    def of(cls, pairs: Iterable[Pair], tokenizer: Tokenizer) -> WordPool:
        """Return the words in which the prompts of pairs differ."""
        words = WordCollector()
        for pair in pairs:
            words.add(pair)
        return words.pool(tokenizer)

    def mend(self, pair: Pair, seed: int) -> Pair | None:
        """Return the pair with words exchanged so that it can be scored; None where none of the pool does it."""
        if any(role.by_token for role in pair.roles):
            return None  # a longer or shorter word moves the tokens behind it
        words: list[tuple[str, str]] = []
        for turn in range(_MOST_EXCHANGES):
            found = self._culprit(pair)
            if found is None:
                return None
            old, n_tokens = found
            new = self._draw(pair, old, n_tokens, f"{seed}:{pair.pair_id}:{turn}")
            exchanged = None if new is None else _exchange(pair, old, new)
            if new is None or exchanged is None:
                return None
            words.append((old, new))
            pair = exchanged
            if isinstance(encode_pairs([pair], self._tokenizer, prepend_bos=False)[0], EncodedPair):
                said = ", ".join(f"{gone} -> {come}" for gone, come in words)
                return replace(pair, repaired=said)
        return None

    def _culprit(self, pair: Pair) -> tuple[str, int] | None:
        """Return a word that is too long, and how many tokens it may be."""
        differences = _differences(pair)
        answers = [word for text in (*(pair.answers or ()), *(pair.wrong_answers or ())) for word in _words(str(text))]
        self._measure([*(word for words in differences for word in words), *answers])
        in_prompts = {word for words in differences for word in words}
        for word in answers:
            if word in in_prompts and self._lengths[word] > 1:
                return word, 1
        for words in differences:
            shorter, longer = sorted(words, key=self._lengths.__getitem__)
            if self._lengths[shorter] != self._lengths[longer]:
                return longer, self._lengths[shorter]
        return None

    def _draw(self, pair: Pair, old: str, n_tokens: int, key: str) -> str | None:
        words = self._words.get((old[0].isupper(), n_tokens), [])
        taken = set(_words(f"{pair.clean} {pair.corrupted}"))
        if not words:
            return None
        first = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % len(words)
        return next((word for word in words[first:] + words[:first] if word not in taken), None)

    def _measure(self, words: Iterable[str]) -> None:
        unknown = sorted(set(words) - self._lengths.keys())
        if unknown:
            ids = tokenize(self._tokenizer, [f" {word}" for word in unknown])["input_ids"]
            self._lengths.update(zip(unknown, map(len, ids), strict=True))


def repaired(pairs: Iterable[Pair], pool: WordPool, tokenizer: Any, seed: int) -> Iterator[tuple[Pair, bool]]:
    """Yield every pair, mended where it has to be and can be, and whether it is still one that has to be."""
    rows = iter(pairs)
    while batch := list(islice(rows, _BATCH_ROWS)):
        for pair, result in zip(batch, encode_pairs(batch, tokenizer, prepend_bos=False), strict=True):
            if not (isinstance(result, PairProblem) and result.reason in MENDABLE):
                yield pair, False
                continue
            mended = pool.mend(pair, seed)
            yield (pair, True) if mended is None else (mended, False)


def _differences(pair: Pair) -> list[tuple[str, str]]:
    """Return the words in which two prompts differ that are otherwise equal; none where more than words differ."""
    clean, corrupted = pair.clean or "", pair.corrupted or ""
    if _WORD.split(clean) != _WORD.split(corrupted):
        return []
    both = zip(_words(clean), _words(corrupted), strict=True)
    return [(ours, theirs) for ours, theirs in both if ours != theirs]


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _exchange(pair: Pair, old: str, new: str) -> Pair | None:
    """Put a word in another's place everywhere in a pair; None where a role begins or ends inside of it."""
    whole = re.compile(rf"\b{re.escape(old)}\b")

    def put(text: str) -> str:
        return whole.sub(new, text)

    def put_all(answers: Answers) -> Answers:
        return answers and tuple(put(text) if isinstance(text, str) else text for text in answers)

    clean, corrupted = pair.clean or "", pair.corrupted or ""
    places = [found.span() for found in whole.finditer(clean)]
    roles = [_moved(role, places, len(new) - len(old)) for role in pair.roles]
    if None in roles:
        return None
    return replace(
        pair,
        clean=put(clean),
        corrupted=put(corrupted),
        answers=put_all(pair.answers),
        wrong_answers=put_all(pair.wrong_answers),
        roles=tuple(role for role in roles if role is not None),
    )


def _moved(role: Role, places: list[tuple[int, int]], longer_by: int) -> Role | None:
    bounds = []
    for bound in (role.start, role.end):
        if any(start < bound < end for start, end in places):
            return None
        bounds.append(bound + longer_by * sum(end <= bound for _, end in places))
    return replace(role, start=bounds[0], end=bounds[1])
