"""Which file holds the strata of a chunk: its own, or one that holds those of several chunks together.

With few pairs of each of many templates, strata take more bytes than they are worth in every chunk. So once a stage is
at its end, those of chunks that follow each other are added up in one file, ``part-<start of the first>-<stop of the
last>``, and their own files removed. Whatever interrupts that, or computes a chunk again later, a reader can tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Range = tuple[int, int]
"""The pairs [start, stop) that a file's name states."""


def strata_files(chunks: Collection[Range], written: Mapping[Range, int]) -> dict[Range, Range]:
    """Say of chunks which file holds their strata.

    A file of several chunks holds theirs if they are all there, from its start to its stop, and none has a file of its
    own that is newer: such a chunk was computed again.

    Args:
        chunks: the committed chunks of a cell that have moments.
        written: the files of strata, and when each was written.

    Returns:
        By chunk, its file. A chunk that is not in it has no strata: they follow from its scores.
    """
    found = {chunk: chunk for chunk in chunks if chunk in written}
    ordered = sorted(chunks)
    for joined in sorted(written.keys() - set(chunks)):
        inside = [chunk for chunk in ordered if joined[0] <= chunk[0] and chunk[1] <= joined[1]]
        edges = [joined[0], *(stop for _, stop in inside)]
        whole = edges == [*(start for start, _ in inside), joined[1]]
        if whole and all(written.get(chunk, 0) <= written[joined] for chunk in inside):
            found |= dict.fromkeys(inside, joined)
    return found
