"""The registry of recipes: one entry for each layout in which pairs are published."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError, RequestError
from attrib_batch.pairs.importing.options import FLAGS, ImportOptions
from attrib_batch.pairs.importing.recipe import Look, Recipe
from attrib_batch.pairs.importing.recipes import (
    agreement,
    auto_circuit,
    blimp,
    chat,
    eap_ig,
    feature_circuits,
    greater_than,
    hypernymy,
    mib,
    peap,
    table,
)
from attrib_batch.pairs.reading.columns import AnswerKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.pairs.importing.sources import Source

_RECIPES = (
    Recipe(
        name="table",
        explanation="one row a pair, with the columns of a table of pairs or others that --column renames",
        columns="clean, corrupted, answers, wrong_answers",
        published="this project's own",
        recognise=table.recognise,
        read=table.read,
        form=table.form,
        takes=frozenset({"columns"}),
        answers=frozenset(AnswerKind),
    ),
    Recipe(
        name="eap_ig",
        explanation="answers are token ids of one tokenizer, which --tokenizer names",
        columns="clean, corrupted, and correct_idx, incorrect_idx (or "
        + "; ".join(", ".join(names) for names in eap_ig.ID_COLUMNS[1:])
        + ")",
        published="github.com/hannamw/EAP-IG (Hanna et al. 2024, arXiv 2403.17806)",
        recognise=eap_ig.recognise,
        read=eap_ig.read,
        form=eap_ig.form,
        takes=frozenset({"counterfactual"}),
        answers=frozenset({AnswerKind.IDS}),
    ),
    Recipe(
        name="greater_than",
        explanation="a span of years; right are all two-digit endings above the label, wrong all others",
        columns="clean, corrupted, label (two digits)",
        published="github.com/hannamw/EAP-IG (Hanna et al. 2023, arXiv 2305.00586)",
        recognise=greater_than.recognise,
        read=greater_than.read,
    ),
    Recipe(
        name="agreement",
        explanation="the number of a subject; right are the verbs that agree with it, of a few or of those in --join",
        columns="clean, corrupted, plural (0 or 1)",
        published="github.com/hannamw/eap-ig-faithfulness (Hanna et al. 2024, arXiv 2403.17806), as sva",
        recognise=agreement.recognise,
        read=agreement.read,
        takes=frozenset({"join"}),
    ),
    Recipe(
        name="hypernymy",
        explanation="answers of both prompts are Python lists in cells, without the space before a word",
        columns="clean, corrupted, answers, corrupted_answers",
        published="github.com/hannamw/EAP-IG (Hanna et al. 2024, arXiv 2403.17806)",
        recognise=hypernymy.recognise,
        read=hypernymy.read,
        takes=frozenset({"leading_space"}),
    ),
    Recipe(
        name="auto_circuit",
        explanation="one JSON object: a list of prompts, and token positions (word_idxs) that become roles",
        columns="prompts: clean, corrupt, answers, wrong_answers",
        published="github.com/UFO-101/auto-circuit (Miller et al. 2024, arXiv 2407.08734)",
        recognise=auto_circuit.recognise,
        read=auto_circuit.read,
        form=auto_circuit.form,
        takes=frozenset({"leading_space", "positions"}),
    ),
    Recipe(
        name="feature_circuits",
        explanation="a prefix and its patch with an answer each; JSON lines, though the files end in .json",
        columns="clean_prefix, patch_prefix, clean_answer, patch_answer",
        published="github.com/saprmarks/feature-circuits (Marks et al. 2024, arXiv 2403.19647)",
        recognise=feature_circuits.recognise,
        read=feature_circuits.read,
        takes=frozenset({"leading_space"}),
    ),
    Recipe(
        name="mib",
        explanation="a prompt with choices and several counterfactuals, of which --counterfactual names one",
        columns="prompt, choices and answerKey (or label), NAME_counterfactual",
        published="huggingface.co/mib-bench (Mueller et al. 2025, arXiv 2504.13151)",
        recognise=mib.recognise,
        read=mib.read,
        takes=frozenset({"counterfactual", "leading_space"}),
    ),
    Recipe(
        name="peap",
        explanation="clean prompts in one file, counterfactual ones in that of --join; roles as token positions",
        columns="prompt, correct_token, wrong_token; prompt_id, NAME_start, NAME_end",
        published="github.com/technion-cs-nlp/PEAP (Haklay et al. 2025, arXiv 2502.04577)",
        recognise=peap.recognise,
        read=peap.read,
        form=peap.form,
        takes=frozenset({"join", "positions", "leading_space"}),
    ),
    Recipe(
        name="blimp",
        explanation="a prefix with a good and a bad word; --corrupt shuffle takes another row's prefix",
        columns="one_prefix_prefix, one_prefix_word_good, one_prefix_word_bad",
        published="github.com/alexwarstadt/blimp (Warstadt et al. 2020, arXiv 1912.00582)",
        recognise=blimp.recognise,
        read=blimp.read,
        form=blimp.form,
        takes=frozenset({"corrupt", "leading_space"}),
    ),
    Recipe(
        name="chat",
        explanation="prompts are lists of messages, which --chat-template turns into text",
        columns="clean and corrupted (lists of role and content), answers, wrong_answers",
        published="the form that chat templates of transformers read",
        recognise=chat.recognise,
        read=chat.read,
        form=chat.form,
        takes=frozenset({"chat_template", "leading_space"}),
    ),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _RECIPES})
"""By name, in the order in which they are listed."""


def look_at(source: Source) -> Look:
    """Return the first row of a file, and what stands beside its rows.

    Raises:
        DatasetError: there is no row, or it cannot be read.
    """
    return Look(first=next(source.rows()).values, head=frozenset(source.head))


def find_recipe(source: Source, look: Look, options: ImportOptions) -> Recipe:
    """Return the recipe of a file: the one that is asked for, or the one whose columns it has.

    Raises:
        RequestError: there is none of that name, or it takes none of an option that is given.
        DatasetError: the file is of no layout, or of several.
    """
    recipe = _named(source, look, options) if options.layout is not None else _recognised(source, look, options)
    for option, flag in options.given().items():
        if option == "answers" or option in recipe.takes:
            continue
        others = [other.name for other in RECIPES.values() if option in other.takes]
        raise RequestError(
            f"{flag} means nothing to the layout {recipe.name} that {source.path} has; it is for {', '.join(others)}"
        )
    if options.answers is not None and options.answers not in recipe.answers:
        raise RequestError(
            f"--answers {options.answers}: the answers of the layout {recipe.name} are "
            f"{' or '.join(kind for kind in AnswerKind if kind in recipe.answers)}"
        )
    return recipe


def _named(source: Source, look: Look, options: ImportOptions) -> Recipe:
    recipe = RECIPES.get(options.layout or "")
    if recipe is None:
        raise RequestError(f"--format {options.layout}: no such layout; there are {', '.join(RECIPES)}")
    # Of a table columns may be renamed; what is missing then is said by name.
    if recipe.name != "table" and not recipe.recognise(look):
        raise DatasetError(
            f"{source.path} is not of the layout {recipe.name}, which has {recipe.columns}. This file has "
            f"{', '.join(look.first)}."
        )
    return recipe


def _recognised(source: Source, look: Look, options: ImportOptions) -> Recipe:
    if options.columns:
        return RECIPES["table"]
    found = [recipe for recipe in RECIPES.values() if recipe.recognise(look)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DatasetError(
            f"{source.path} may be of several layouts: name one with --format, {' or '.join(r.name for r in found)}."
        )
    layouts = "\n".join(f"  {recipe.name}: {recipe.columns}" for recipe in RECIPES.values())
    raise DatasetError(
        f"{source.path}: its columns are {', '.join(look.first)}, and no known layout has these. Rename them with "
        f"--column OURS=THEIRS, or see which layouts there are:\n{layouts}"
    )


if any(not recipe.takes <= set(FLAGS) for recipe in _RECIPES):
    raise AssertionError("a recipe takes an option that there is not")
