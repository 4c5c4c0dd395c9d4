"""The tree of the prefixes of many prompts: what several of them begin with is one stretch of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from attrib_batch.attribution.batches import Tokens

DEEPEST = 3
"""Most stretches that follow each other in a prompt: each is a pass of its own, and a product in every layer."""


@dataclass(frozen=True, eq=False)
class Node:
    """A stretch of tokens that prompts have in common, after what its parent ends with."""

    parent: Node | None
    tokens: Tokens
    first: int
    """The position of its first token."""

    @property
    def path(self) -> tuple[Node, ...]:
        """The stretches from the first position on, this one last."""
        above = () if self.parent is None else self.parent.path
        return (*above, self)


def prefix_tree(prefixes: Iterable[Tokens], *, least_saved: int) -> dict[Tokens, Node | None]:
    """Arrange prefixes in a tree.

    Args:
        prefixes: of any lengths; one may begin with another.
        least_saved: how many token positions a stretch of its own must save to be worth a pass.

    Returns:
        For each prefix the node that it ends with; None for the empty one.
    """
    found: dict[Tokens, Node | None] = {}
    todo: list[tuple[list[Tokens], Node | None]] = [(sorted(set(prefixes)), None)]
    while todo:
        members, above = todo.pop()
        start = _end(above)
        if members and len(members[0]) == start:
            found[members.pop(0)] = above
        if len(members) == 1:
            found[members[0]] = Node(above, members[0][start:], start)
            continue
        if not members:
            continue
        shared = _common_start(members[0], members[-1])
        deep = 0 if above is None else len(above.path)
        if (shared - start) * (len(members) - 1) >= least_saved and deep < DEEPEST - 1:
            todo.append((members, Node(above, members[0][start:shared], start)))
        else:
            next_token = itemgetter(slice(shared, shared + 1))
            todo += [(list(part), above) for _, part in groupby(members, next_token)]
    return found


def _end(node: Node | None) -> int:
    return 0 if node is None else node.first + len(node.tokens)


def _common_start(first: Tokens, last: Tokens) -> int:
    """Length of the start that all of a sorted list share, from its first and last."""
    for index, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return index
    return min(len(first), len(last))


def in_depth_order(nodes: Iterable[Node | None]) -> list[list[Node]]:
    """Return all nodes on the paths to ``nodes``, each once: those without a parent first, then their children, ..."""
    by_depth: dict[int, dict[Node, None]] = {}
    for node in nodes:
        for depth, stretch in enumerate(node.path if node else ()):
            by_depth.setdefault(depth, {})[stretch] = None
    return [list(by_depth[depth]) for depth in sorted(by_depth)]
