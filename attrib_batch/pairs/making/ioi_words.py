"""The material of the IOI generator: names, places, objects and the wording of the prompts.

Every name, place and object is one token with its leading space for the tokenizers of GPT-2 and SmolLM2, so
that exchanging names never changes a prompt's length. The order of these tuples is part of what a seed means:
append to them, and rows made earlier change.
"""

from __future__ import annotations

FIRST_NAMES = tuple(
    """
    Aaron Adam Adrian Alan Albert Andrew Anthony Arthur Benjamin Brian Bruce Carl Charles Daniel David
    Dennis Douglas Edward Eric Ethan Felix Gabriel George Gerald Gregory Harold Henry Hugo Jacob Jason
    Jeremy Joseph Joshua Justin Keith Kenneth Kevin Larry Leon Luke Martin Matthew Nathan Nicholas Oliver
    Oscar Patrick Peter Philip Robert Ryan Samuel Simon Stephen Thomas Timothy Victor Vincent Walter Alice
    Amanda Amy Andrea Angela Anna Barbara Carol Catherine Charlotte Christine Claire Clara Deborah Diana
    Diane Dorothy Elizabeth Ellen Emily Emma Hannah Heather Helen Jane Janet Jennifer Jessica Joan Judith
    Julia Karen Kate Laura Lauren Linda Lisa Lucy Margaret Maria Martha Mary Melissa Michelle Molly Monica
    Nancy Nicole Nina Olivia Patricia Rachel Rebecca Ruth Samantha Sandra Sarah Sharon Sophia Stephanie
    Susan Victoria
    """.split()  # noqa: SIM905 - a list of quoted words would be a page
)

PLACES = tuple(
    """
    airport bakery bank bar barn cabin castle chapel church cinema clinic club cottage factory farm
    gallery garden gym hospital hotel kitchen lab library mall market museum office palace park pub
    restaurant school shop stadium station store studio supermarket temple theater warehouse zoo
    """.split()  # noqa: SIM905 - a list of quoted words would be a page
)
"""Each can follow 'the' or 'the little', and can be left, entered and cleaned."""

OBJECTS = tuple(
    """
    bag ball basket blanket book bottle bowl box cake camera candle card clock coat coin cookie cup doll
    drink flower gift guitar hat helmet jacket key knife lamp laptop letter magazine map necklace
    newspaper notebook painting pen pencil phone photo pillow poster present radio ring rose sandwich
    shirt snack tablet ticket towel toy violin wallet watch
    """.split()  # noqa: SIM905 - a list of quoted words would be a page
)
"""Each is carried in the hand and follows 'a', never 'an'."""

FRAMES = (
    "Outside, {first} and {second} shook hands and {third} gave the {object} to",
    "Since {first} and {second} share a desk, {third} passed the {object} to",
    "As {first} and {second} walked past the {place}, {third} offered a {object} to",
    "Near the {place}, {first} and {second} stopped for a rest, and {third} lent a {object} to",
    "The day before {first} and {second} left the {place}, {third} sold a {object} to",
    "Once {first} and {second} had looked around the whole {place}, {third} handed the {object} over to",
    ("On the way home from the {place}, {first} and {second} talked for hours, and {third} gave the {object} to"),
    ("The rain kept {first} and {second} inside the {place} until the evening, and then {third} showed a {object} to"),
    ("Nobody at the {place} paid attention to {first} and {second} until {third} held up a {object} and gave it to"),
    (
        "There was only one {object} left at the {place} when {first} and {second} arrived, but {third} "
        "kindly gave it to"
    ),
    (
        "Everyone else had gone home early, so {first} and {second} cleaned the {place} alone, and "
        "afterwards {third} brought a {object} to"
    ),
    (
        "It was already getting dark by the time {first} and {second} reached the {place}, which is why "
        "{third} quickly gave the only {object} to"
    ),
    (
        "Last summer {first} and {second} spent nearly every weekend at the little {place}, and on the "
        "very last day {third} sent a {object} to"
    ),
    (
        "The teacher had asked {first} and {second} to carry all of the chairs into the {place}, and as "
        "soon as the work was done {third} gave a {object} to"
    ),
    (
        "Although {first} and {second} had never spoken before, they sat down side by side in front of the "
        "{place}, and only a few minutes later {third} offered the {object} to"
    ),
    (
        "For many years {first} and {second} had looked after the little {place} together, so before "
        "moving away to another town in the north {third} left the {object} and a long letter to"
    ),
    (
        "People in the town still like to tell how {first} and {second} once got lost on the road to the "
        "{place}, how they shared the last of the food in the cold, and how in the end {third} gave the "
        "{object} to"
    ),
)
"""The prompts' wording. ABBA and BABA are one frame in two orders: in ABBA the indirect object is named
first and the subject second, in BABA the other way round; the third name repeats the subject. A frame
therefore compares the orders with every other word held equal, and its position says nothing about which of
the names is right."""
