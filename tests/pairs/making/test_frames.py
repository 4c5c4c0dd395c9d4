from __future__ import annotations

import pytest

from attrib_batch.pairs.making.frames import Filled, fill_slots
from attrib_batch.pairs.reading.reader import Role


def test_slots_are_filled_and_known_by_their_first_place() -> None:
    filled = fill_slots("{a} and {bb}, {a}.", {"a": "xyz", "bb": "w"})
    assert (filled.text, filled.spans) == ("xyz and w, xyz.", {"a": (0, 3), "bb": (8, 9)})


@pytest.mark.parametrize(
    ("text", "spans", "roles"),
    [
        ("to be or", {"b": (3, 5)}, (Role("b", 3, 5), Role("end", 6, 8))),
        ("Answer:", {}, (Role("end", 6, 7),)),
        # What ends the prompt and is a role already stays that role.
        ("the dogs", {"b": (4, 8)}, (Role("b", 4, 8),)),
        ("to be", {"c": (0, 2)}, (Role("end", 3, 5),)),
    ],
)
def test_roles_are_the_slots_asked_for_and_the_end(
    text: str, spans: dict[str, tuple[int, int]], roles: tuple[Role, ...]
) -> None:
    assert Filled(text, spans).roles(["b"]) == roles


def test_a_prompt_without_a_word_has_no_end() -> None:
    with pytest.raises(ValueError, match="no word"):
        Filled("  ", {}).roles([])
