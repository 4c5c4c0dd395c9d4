from __future__ import annotations

from attrib_batch.pairs.making.tutorial import tutorial_pairs

PROMPTS = [
    "When John and Mary went to the shops, John gave the bag to",
    "When John and Mary went to the shops, Mary gave the bag to",
    "When Tom and James went to the park, James gave the ball to",
    "When Tom and James went to the park, Tom gave the ball to",
    "When Dan and Sid went to the shops, Sid gave an apple to",
    "When Dan and Sid went to the shops, Dan gave an apple to",
    "After Martin and Amy went to the park, Amy gave a drink to",
    "After Martin and Amy went to the park, Martin gave a drink to",
]
ANSWERS = [
    (" Mary", " John"),
    (" John", " Mary"),
    (" Tom", " James"),
    (" James", " Tom"),
    (" Dan", " Sid"),
    (" Sid", " Dan"),
    (" Martin", " Amy"),
    (" Amy", " Martin"),
]


def test_prompts_and_answers_are_the_tutorials() -> None:
    pairs = tutorial_pairs()
    assert [pair.clean for pair in pairs] == PROMPTS
    assert [pair.corrupted for pair in pairs] == [PROMPTS[i ^ 1] for i in range(8)]
    assert [(pair.answers, pair.wrong_answers) for pair in pairs] == [((a,), (b,)) for a, b in ANSWERS]
    assert [pair.pair_id for pair in pairs] == list(range(8))
    assert [pair.group for pair in pairs] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_roles_are_those_of_each_clean_prompt() -> None:
    for pair in tutorial_pairs():
        assert pair.clean is not None
        roles = {role.name: pair.clean[role.start : role.end] for role in pair.roles}
        assert pair.answers == (f" {roles['IO']}",)
        assert pair.wrong_answers == (f" {roles['S1']}",)
        assert roles["S2"] == roles["S1"]
        assert roles["S1+1"] in {"and", "went"}
        assert roles["end"] == "to"
