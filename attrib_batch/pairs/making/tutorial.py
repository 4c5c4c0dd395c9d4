"""The eight prompts of the nnsight attribution patching tutorial, as pairs.

Each prompt is clean once, with its neighbour as the corrupted prompt: two pairs of one ``group`` are each
other's mirror. On GPT-2 small, without a BOS token, the mean logit difference of the clean prompts is
+2.8138.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.pairs.making.ioi import Order, fill, ioi_pair

if TYPE_CHECKING:
    from attrib_batch.pairs.reading.reader import Pair

_SENTENCES = (
    ("When {first} and {second} went to the shops, {third} gave the bag to", ("John", "Mary")),
    ("When {first} and {second} went to the park, {third} gave the ball to", ("Tom", "James")),
    ("When {first} and {second} went to the shops, {third} gave an apple to", ("Dan", "Sid")),
    ("After {first} and {second} went to the park, {third} gave a drink to", ("Martin", "Amy")),
)
# Which of the two names the even prompt of each couple repeats.
_FIRST_SUBJECTS = ("John", "James", "Sid", "Amy")


def tutorial_pairs() -> list[Pair]:
    """Return the eight pairs in the tutorial's order; rows 2g and 2g + 1 are group g."""
    pairs: list[Pair] = []
    for group, ((frame, names), subject) in enumerate(zip(_SENTENCES, _FIRST_SUBJECTS, strict=True)):
        other = names[1] if subject == names[0] else names[0]
        even, odd = (fill(frame, (*names, third)) for third in (subject, other))
        for prompts, answers in (((even, odd), (other, subject)), ((odd, even), (subject, other))):
            order = Order.ABBA if names[0] == answers[0] else Order.BABA
            template = f"tutorial-{order}-{group}"
            pairs.append(ioi_pair(len(pairs), prompts, answers, order=order, template=template, group=group))
    return pairs
