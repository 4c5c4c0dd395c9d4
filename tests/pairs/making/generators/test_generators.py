"""What the generators make: worked out by hand where it can be, and on the bundled model."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from attrib_batch.cli.app import app
from attrib_batch.errors import DatasetError
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.making.generator import generate
from attrib_batch.pairs.making.generators import words
from attrib_batch.pairs.making.generators.registry import GENERATORS
from attrib_batch.pairs.making.ioi_words import FIRST_NAMES
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.reader import Pair, PairTable
from attrib_batch.pairs.validate import validate
from tests.support.scored import method, score

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.models.load import LoadedModel

KINDS = [
    pytest.param(name, variant, counterfactual, id=f"{name}-{variant}-{counterfactual}".replace("--", "-"))
    for name, generator in GENERATORS.items()
    for variant in generator.variants
    for counterfactual in generator.counterfactuals
]


def made(name: str, count: int = 60, seed: int = 0, **options: Any) -> list[Pair]:
    return list(generate(GENERATORS[name], count, seed, **options))


def role_texts(pair: Pair) -> dict[str, str]:
    assert pair.clean is not None
    return {role.name: pair.clean[role.start : role.end] for role in pair.roles}


def only_difference(pair: Pair) -> list[tuple[str, str]]:
    """The words in which the two prompts differ."""
    assert pair.clean is not None
    assert pair.corrupted is not None
    clean, corrupted = (re.findall(r"\w+|[^\w\s]", text) for text in (pair.clean, pair.corrupted))
    assert len(clean) == len(corrupted)
    return [(a, b) for a, b in zip(clean, corrupted, strict=True) if a != b]


@pytest.mark.parametrize(("name", "variant", "counterfactual"), KINDS)
def test_one_seed_gives_one_file(tmp_path: Path, name: str, variant: str, counterfactual: str) -> None:
    options = {"variant": variant, "counterfactual": counterfactual}
    contents = []
    for path, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_pairs(tmp_path / path, made(name, seed=seed, **options))
        contents.append((tmp_path / path).read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize(("name", "variant", "counterfactual"), KINDS)
def test_rows_are_numbered_and_differ_where_they_should(name: str, variant: str, counterfactual: str) -> None:
    pairs = made(name, variant=variant, counterfactual=counterfactual)
    assert [pair.pair_id for pair in pairs] == list(range(60))
    generator = GENERATORS[name]
    mirrored = counterfactual in generator.mirrored
    for pair in pairs:
        assert pair.task == name
        assert only_difference(pair)
        assert not set(pair.answers or ()) & set(pair.wrong_answers or ())
        assert {role.name for role in pair.roles} <= {*generator.roles, "end"}
        assert pair.group == (pair.pair_id // 2 if mirrored else None)
    if mirrored:
        for pair, mirror in zip(pairs[::2], pairs[1::2], strict=True):
            assert (pair.clean, pair.corrupted) == (mirror.corrupted, mirror.clean)
            assert (pair.answers, pair.wrong_answers) == (mirror.wrong_answers, mirror.answers)
        without = made(name, 30, variant=variant, counterfactual=counterfactual, mirror=False)
        assert [pair.clean for pair in without] == [pair.clean for pair in pairs[::2]]
        assert {pair.group for pair in without} == {None}
    else:
        with pytest.raises(DatasetError, match=f"{counterfactual} has no right answer of its own"):
            generate(generator, 2, 0, counterfactual, mirror=True)


ROWS = {
    "greater_than": "2e514e52daf3ffa7",
    "gender_agreement": "5360b37b487df9d5",
    "subject_verb": "be1bc33efe2614b1",
    "capitals": "beee1060729cd194",
    "docstring": "2eb5b99cbd545c0c",
    "mcqa": "3d80c597c9794a71",
}
"""By task: the beginning of a hash of its first rows."""


@pytest.mark.parametrize("name", ROWS)
def test_a_seed_means_these_rows(name: str) -> None:
    # Changing words, wordings or the order of draws changes what published seeds mean: do it knowingly.
    content = repr([(pair.clean, pair.corrupted, pair.answers, pair.template) for pair in made(name, 20)])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == ROWS[name]


@pytest.mark.parametrize("digits", ["one", "two"])
def test_larger_endings_are_right(digits: str) -> None:
    for pair in made("greater_than", 200, variant=digits):
        century, year = role_texts(pair)["XX"], role_texts(pair)["YY"]
        assert only_difference(pair) == [(century + year, century + "01")]
        assert pair.clean is not None
        assert pair.clean.endswith(f" {century}")
        every = [f"{n:02d}" for n in range(1, 100)] if digits == "two" else [str(n) for n in range(10)]
        limit = year if digits == "two" else year[0]
        right = [ending for ending in every if ending > limit]
        wrong = [ending for ending in every if ending < limit or (digits == "two" and ending == limit)]
        assert (list(pair.answers or ()), list(pair.wrong_answers or ())) == (right, wrong)
        assert right
        assert wrong


def test_pronouns_follow_the_name() -> None:
    first_woman = FIRST_NAMES.index("Alice")
    for pair in made("gender_agreement", 200):
        [(name, other)] = only_difference(pair)
        assert role_texts(pair)["name"] == name
        woman = FIRST_NAMES.index(name) >= first_woman
        assert (FIRST_NAMES.index(other) >= first_woman) is not woman
        assert (pair.answers, pair.wrong_answers) == (((" she",), (" he",)) if woman else ((" he",), (" she",)))


@pytest.mark.parametrize("structure", ["simple", "relative_clause", "prepositional_phrase"])
def test_verbs_follow_the_subject(structure: str) -> None:
    attractors = set()
    for pair in made("subject_verb", 200, variant=structure):
        texts = role_texts(pair)
        [(subject, other)] = only_difference(pair)
        assert texts["subject"] == subject
        several = subject not in words.PEOPLE
        assert {subject, other} == {subject.removesuffix("s"), subject.removesuffix("s") + "s"}
        assert (" are" in (pair.answers or ())) is several
        assert (" is" in (pair.answers or ())) is not several
        attractors.add((several, texts.get("attractor", "").endswith("s")))
        assert pair.clean is not None
        last = pair.clean.split()[-1]
        assert last == {"simple": subject, "relative_clause": texts.get("verb")}.get(structure, texts.get("attractor"))
        assert ("that" in texts) is (structure == "relative_clause")
        assert ("preposition" in texts) is (structure == "prepositional_phrase")
    # A noun in between has the subject's number as often as the other.
    assert len(attractors) == (2 if structure == "simple" else 4)


def test_capitals_are_those_of_the_countries() -> None:
    known = dict(words.CAPITALS)
    assert len(known) == len(set(known.values())) >= 25
    assert (known["France"], known["Japan"], known["Australia"]) == ("Paris", "Tokyo", "Canberra")
    for pair in made("capitals", 200):
        [(country, other)] = only_difference(pair)
        assert role_texts(pair)["country"] == country
        assert (pair.answers, pair.wrong_answers) == ((f" {known[country]}",), (f" {known[other]}",))


def test_the_next_argument_of_a_docstring_is_right() -> None:
    changed = {
        "random_answer": {"C_def"},
        "random_doc": {"A_doc", "B_doc"},
        "random_def": {"A_def", "B_def", "C_def"},
        "random_random": {"A_def", "B_def", "C_def", "A_doc", "B_doc"},
    }
    for counterfactual, roles in changed.items():
        for pair in made("docstring", 50, counterfactual=counterfactual):
            texts = role_texts(pair)
            assert pair.clean is not None
            head = re.search(r"self, (\w+), (\w+), (\w+), (\w+)\)", pair.clean)
            assert head is not None
            assert (texts["A_def"], texts["B_def"], texts["C_def"]) == head.groups()[:3]
            assert re.findall(r":param (\w+):", pair.clean) == list(head.groups()[:2])
            assert pair.answers == (f" {head[3]}",)
            assert {texts[name] for name in roles} == {before for before, _ in only_difference(pair)}
            if counterfactual == "random_answer":
                assert pair.wrong_answers == (f" {only_difference(pair)[0][1]}",)
            else:
                assert pair.wrong_answers == tuple(f" {head[n]}" for n in (1, 2, 4))


def right_letter(prompt: str | None) -> str:
    """The letter of the colour that the last question states."""
    question = (prompt or "").split("Question: ")[-1]
    color = re.match(r"The \w+ is (\w+)\.", question)
    assert color is not None
    [letter] = re.findall(rf"^([A-Z])\. {color[1]}$", question, re.MULTILINE)
    return f" {letter}"


def test_the_letter_of_the_color_is_right() -> None:
    for counterfactual, n_changes in (("answer_position", 2), ("color", 1), ("random_letter", 4)):
        pairs = made("mcqa", 40, counterfactual=counterfactual)
        for pair in pairs:
            assert pair.answers == (right_letter(pair.clean),)
            assert pair.wrong_answers == (right_letter(pair.corrupted),)
            assert len(only_difference(pair)) == n_changes
            texts = role_texts(pair)
            assert (f" {texts['right_letter']}", texts["right_choice"]) == (right_letter(pair.clean), texts["color"])
        # All prompts of a table begin with the same worked examples, whose answers are right.
        [shots] = {(pair.clean or "").rpartition("Question: ")[0] for pair in pairs}
        for question in filter(None, shots.split("Question: ")):
            assert question.strip().endswith(f"Answer:{right_letter(question.rpartition('Answer')[0])}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"counterfactual": "x"}, "unknown counterfactual 'x': choose one of number"),
        ({"variant": "x"}, "unknown structure 'x': choose one of simple, relative_clause, prepositional_phrase"),
    ],
)
def test_what_there_is_not_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        made("subject_verb", **options)


def test_the_command_line_makes_every_kind(tmp_path: Path) -> None:
    def invoke(*arguments: str) -> Any:
        out = str(tmp_path / "p.parquet")
        return CliRunner().invoke(
            app, ["pairs", "make", *arguments, "--count", "4", "--out", out], standalone_mode=False
        )

    for name, generator in GENERATORS.items():
        result = invoke(name)
        assert (result.exception, result.stdout) == (None, f"4 pairs -> {tmp_path / 'p.parquet'}\n")
        assert PairTable.open(tmp_path / "p.parquet").rows(0, 4) == made(name, 4)
        assert CliRunner().invoke(app, ["pairs", "make", name, "--help"]).exit_code == 0
        assert generator.paper
    invoke("subject_verb", "--structure", "relative_clause", "--seed", "5", "--no-mirror")
    expected = made("subject_verb", 4, 5, variant="relative_clause", mirror=False)
    assert PairTable.open(tmp_path / "p.parquet").rows(0, 4) == expected
    assert isinstance(invoke("greater_than", "--mirror").exception, DatasetError)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant", "counterfactual"), KINDS)
def test_every_pair_can_be_scored_with_the_bundled_model(
    tmp_path: Path, smollm2_tokenizer: Any, name: str, variant: str, counterfactual: str
) -> None:
    write_pairs(tmp_path / "p.parquet", made(name, 200, variant=variant, counterfactual=counterfactual))
    report = validate(PairTable.open(tmp_path / "p.parquet"), smollm2_tokenizer, prepend_bos=False)
    if variant == "two":
        # As the datasheet says: SmolLM2 has no tokens of two digits.
        assert report.counts == {"multi_token_answer": 200}
    else:
        assert report.ok, report.examples
        assert not report.warnings, report.warning_examples


TOO_HARD = {"answer_position", "color"}
"""Counterfactuals of multiple choice at which the bundled model is no better than chance, as the datasheet says."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant", "counterfactual"), [kind for kind in KINDS if "two" not in kind.values])
def test_the_bundled_model_does_it(smollm2: LoadedModel, name: str, variant: str, counterfactual: str) -> None:
    """In at least 80 % of pairs the clean metric is above the corrupted one."""
    n_pairs = 12 if name in {"mcqa", "docstring"} else 20  # their prompts are long
    pairs = made(name, n_pairs, 1, counterfactual=counterfactual, variant=variant)
    results = encode_pairs(pairs, smollm2.tokenizer, prepend_bos=False)
    encoded = [result for result in results if isinstance(result, EncodedPair)]
    assert len(encoded) == n_pairs
    # With its metrics come scores, which nothing here is about; they cost less than prompts one by one.
    scored = score(smollm2, encoded, method(id="atp", components=["resid_post"]))
    above = sum(pair.clean_metric > pair.corrupted_metric for pair in scored.values())
    assert (above >= 0.8 * n_pairs) is not (name == "mcqa" and counterfactual in TOO_HARD), above
