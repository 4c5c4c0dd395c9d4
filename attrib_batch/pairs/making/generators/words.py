"""The words of the generators.

Each is one token, with the space before it, for the tokenizers of GPT-2 and SmolLM2 (of the nouns also the plural in
-s). The order of these tuples is part of what a seed means: append to them, and rows made earlier change.
"""

from __future__ import annotations

EVENTS = tuple(
    """
    siege drought famine occupation campaign reign rebellion project expedition war festival strike trial journey
    construction plague crisis boycott blockade
    """.split()  # noqa: SIM905 - a list of quoted words would be a page
)
"""What goes on for years."""

PEOPLE = tuple(
    """
    teacher farmer doctor nurse lawyer driver writer singer student pilot guard artist actor officer worker soldier
    friend customer manager engineer judge scientist visitor boy girl parent brother sister cousin poet chef hunter
    sailor priest editor owner tourist dancer athlete senator
    """.split()  # noqa: SIM905 - a list of quoted words would be a page
)
"""Nouns whose plural has an -s more."""

PAST_VERBS = tuple(
    """
    admired liked knew met hated helped followed avoided visited thanked trusted feared ignored praised
    """.split()  # noqa: SIM905 - a list of quoted words would be a page
)
"""What people do to people, the same for one and several."""

PREPOSITIONS = ("near", "behind", "beside", "with")

CAPITALS = tuple(
    entry.partition(":")[::2]
    for entry in """
    France:Paris Italy:Rome Spain:Madrid Germany:Berlin Japan:Tokyo Russia:Moscow China:Beijing Egypt:Cairo
    Greece:Athens Cuba:Havana Iran:Tehran Iraq:Baghdad Syria:Damascus Austria:Vienna Sweden:Stockholm Poland:Warsaw
    Ireland:Dublin Portugal:Lisbon Hungary:Budapest Norway:Oslo Denmark:Copenhagen Finland:Helsinki Peru:Lima
    England:London Afghanistan:Kabul Belgium:Brussels Canada:Ottawa Chile:Santiago Philippines:Manila
    Australia:Canberra
    """.split()  # noqa: SIM905 - a list of quoted words would be a page
)
"""Countries with their capitals."""

FUNCTIONS = tuple("update check find build send read write open close move copy merge split sort".split())  # noqa: SIM905

ARGUMENTS = tuple(
    """
    size file text name path mode key value index count limit group level order point shape state style table target
    user width height offset option number model label line list item frame field error event date color code block
    base address
    """.split()  # noqa: SIM905 - a list of quoted words would be a page
)

ADJECTIVES = tuple("old small quiet open last cold dark public second round early green".split())  # noqa: SIM905

SCENES = tuple(
    "river garden winter market letter bridge window forest kitchen mountain story island".split()  # noqa: SIM905
)

COLORED = tuple(
    "box lamp cup door car ball hat chair book bag boat coat wall bird flower stone shirt table clock leaf".split()  # noqa: SIM905
)
"""Things of one color."""

COLORS = tuple("red green blue white black yellow brown pink purple orange gray".split())  # noqa: SIM905
