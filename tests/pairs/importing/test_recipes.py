"""Every layout, from a small file of it to the pairs that are in it, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attrib_batch.errors import DatasetError, RequestError
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.importing.importer import Imported, import_pairs
from attrib_batch.pairs.importing.options import (
    Corrupt,
    GivenTokenizer,
    ImportOptions,
    LeadingSpace,
    Positions,
)
from attrib_batch.pairs.importing.recipes import blimp
from attrib_batch.pairs.importing.registry import RECIPES
from attrib_batch.pairs.reading.columns import AnswerKind
from attrib_batch.pairs.reading.notes import TokenizerNote
from attrib_batch.pairs.reading.reader import Pair, PairTable, Role

if TYPE_CHECKING:
    from collections.abc import Iterable

FILES = Path(__file__).parent / "files"
GPT2 = GivenTokenizer(TokenizerNote("gpt2"))
SHUFFLE = ImportOptions(corrupt=Corrupt.SHUFFLE)


def pairs_of(source: Path, folder: Path, options: ImportOptions | None = None) -> tuple[list[Pair], Imported]:
    target = folder / "imported.parquet"
    imported = import_pairs(source, target, options or ImportOptions())
    return PairTable.open(target).rows(0, imported.n_pairs), imported


def lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def cells(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_token_ids_are_taken_as_ids_of_a_tokenizer_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"does not say of which tokenizer: name it with --tokenizer"):
        pairs_of(FILES / "ids_ioi.csv", tmp_path)
    pairs, imported = pairs_of(FILES / "ids_ioi.csv", tmp_path, ImportOptions(tokenizer=GPT2))
    assert (imported.recipe.name, imported.n_pairs, imported.counts.read) == ("eap_ig", 12, 12)
    assert pairs[0] == Pair(
        0,
        "While Simon and Karen were waiting at the library, Simon handed the letter to",
        "While Simon and Karen were waiting at the library, Julia handed the letter to",
        (25511,),
        (15399,),
    )
    assert imported.counts.unused == ("corrupted_hard",)
    notes = PairTable.open(tmp_path / "imported.parquet").form.notes
    assert notes.tokenizer == TokenizerNote("gpt2")
    hard, _ = pairs_of(FILES / "ids_ioi.csv", tmp_path, ImportOptions(tokenizer=GPT2, counterfactual="hard"))
    assert hard[0].corrupted == "While Simon and Karen were waiting at the library, Karen handed the letter to"
    with pytest.raises(DatasetError, match=r"no column corrupted_soft; --counterfactual may be one of hard"):
        pairs_of(FILES / "ids_ioi.csv", tmp_path, ImportOptions(tokenizer=GPT2, counterfactual="soft"))


@pytest.mark.parametrize(
    ("header", "row", "right", "wrong"),
    [
        ("clean,corrupted,country_idx,corrupted_country_idx", "a,b,5,6", (5,), (6,)),
        ("clean,corrupted,clean_answer_idx,corrupted_answer_idx,label", "a,b,5,6,1", (5,), (6,)),
        (",clean,corrupted,answers_idx,corrupted_answers_idx", '0,a,b,"[5, 7]","[6]"', (5, 7), (6,)),
    ],
)
def test_token_ids_have_several_names(
    tmp_path: Path, header: str, row: str, right: tuple[int, ...], wrong: tuple[int, ...]
) -> None:
    pairs, _ = pairs_of(cells(tmp_path / "p.csv", header, row), tmp_path, ImportOptions(tokenizer=GPT2))
    assert pairs == [Pair(0, "a", "b", right, wrong)]


def test_what_is_no_token_id_is_refused_and_counted(tmp_path: Path) -> None:
    source = cells(tmp_path / "p.csv", "clean,corrupted,correct_idx,incorrect_idx", "a,b,5,6", "a,b,x,6", "a,,5,6")
    pairs, imported = pairs_of(source, tmp_path, ImportOptions(tokenizer=GPT2))
    assert [pair.pair_id for pair in pairs] == [0]
    assert imported.counts.refused == {"no list in correct_idx": 1, "no text in corrupted": 1}
    assert imported.counts.first_refused == {"no list in correct_idx": "line 3", "no text in corrupted": "line 4"}


def test_a_year_is_right_where_it_is_larger(tmp_path: Path) -> None:
    pairs, imported = pairs_of(FILES / "year_label.csv", tmp_path)
    assert (imported.recipe.name, imported.n_pairs) == ("greater_than", 12)
    assert pairs[0].clean == "The siege went on from the year 1141 to the year 11"
    assert pairs[0].corrupted == "The siege went on from the year 1101 to the year 11"
    assert pairs[2].answers == ("96", "97", "98", "99")
    assert pairs[2].wrong_answers is not None
    assert (len(pairs[2].wrong_answers), pairs[2].wrong_answers[:2], pairs[2].wrong_answers[-1]) == (
        96,
        ("00", "01"),
        "95",
    )
    source = cells(
        tmp_path / "p.csv",
        "clean,corrupted,label",
        "from 1705 to 17,from 1701 to 17,5",
        "from 1799 to 17,from 1701 to 17,99",
        "from 1742 to 17,from 1701 to 17,43",
        "from 1742 to 17,from 1701 to 17,x",
    )
    pairs, imported = pairs_of(source, tmp_path)
    assert [(pair.pair_id, pair.answers and pair.answers[0]) for pair in pairs] == [(0, "06")]
    assert imported.counts.refused == {
        "label is 99, and no larger ending exists": 1,
        "label is not the ending of a year in clean": 1,
        "label is no number of two digits": 1,
    }


def test_lists_in_cells_get_the_space_before_a_word(tmp_path: Path) -> None:
    pairs, imported = pairs_of(FILES / "list_cells_bom.csv", tmp_path)
    assert imported.recipe.name == "hypernymy"
    assert pairs == [
        Pair(0, ", tulips and other", ", hammers and other", (" flowers", " plants"), (" tools",)),
        Pair(1, ", trout and other", ", violins and other", (" fish",), (" instruments", " musical")),
        Pair(2, ", sedans and other", ", oaks and other", (" cars", " vehicles"), (" trees",)),
    ]
    assert list(imported.counts.changed.values()) == [9]
    keep = ImportOptions(leading_space=LeadingSpace.KEEP)
    pairs, imported = pairs_of(FILES / "list_cells_bom.csv", tmp_path, keep)
    assert (pairs[1].answers, sum(imported.counts.changed.values())) == (("fish",), 0)
    marker = tmp_path / "executed"
    evil = f"\"__import__('pathlib').Path('{marker}').touch() or ['a']\""
    source = cells(tmp_path / "p.csv", "clean,corrupted,answers,corrupted_answers", f"a,b,{evil},['c']", "a,b,['d'],[]")
    with pytest.raises(DatasetError, match=r"no row became a pair \(1 rows: no list in answers; 1 rows: an empty list"):
        pairs_of(source, tmp_path)
    assert not marker.exists()


def test_an_object_of_prompts_states_its_roles_once(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    pairs, imported = pairs_of(FILES / "object_prompts.json", tmp_path)
    assert (imported.recipe.name, imported.n_pairs) == ("auto_circuit", 3)
    assert pairs[0].answers is not None
    assert pairs[0].answers[:2] == ("24", "25")
    assert pairs[0].corrupted == "The strike lasted from 1401 to 14"
    assert pairs[2].roles == (Role("subject", 1, 2, by_token=True), Role("end", -1, 0, by_token=True))
    assert imported.counts.unused == ("seq_labels",)
    prompts = {"clean": "When Mary met Anna", "corrupt": "When Jane met Anna"}
    rows = [{**prompts, "answers": [" Jo"], "wrong_answers": [" Jane"]}]
    source = tmp_path / "p.json"
    source.write_text(json.dumps({"word_idxs": {"name": 1, "end": -1}, "prompts": rows}), encoding="utf-8")
    for options, names in (
        (ImportOptions(), (None, "name", None, "end")),
        (ImportOptions(positions=Positions.WITH_BOS), ("name", None, None, "end")),
    ):
        (encoded,) = encode_pairs(pairs_of(source, tmp_path, options)[0], words, prepend_bos=False)
        assert isinstance(encoded, EncodedPair)
        assert encoded.roles == names
    source.write_text(json.dumps({"word_idxs": {"name": "one"}, "prompts": rows}), encoding="utf-8")
    with pytest.raises(DatasetError, match="not an object from names to token positions"):
        pairs_of(source, tmp_path)


def test_prefixes_with_their_patches_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    pairs, imported = pairs_of(FILES / "lines_named.json", tmp_path)
    assert imported.recipe.name == "feature_circuits"
    assert pairs[1] == Pair(1, "The pilot", "The pilots", (" is",), (" are",), template="singular")
    assert len(pairs) == 4
    assert (imported.counts.repeated, imported.counts.first_repeated) == (1, "line 4")


NESTED = [
    {
        "prompt": "Alice and Robert went to the harbour. Alice sold a boat to",
        "choices": ["Alice", "Robert"],
        "answerKey": 1,
        "metadata": {"subject": "Alice"},
        "flip_counterfactual": {
            "prompt": "Alice and Robert went to the harbour. Robert sold a boat to",
            "choices": ["Alice", "Robert"],
            "answerKey": 0,
        },
        "abc_counterfactual": {
            "prompt": "Alice and Robert went to the harbour. Karen sold a boat to",
            "choices": ["Alice", "Robert"],
            "answerKey": -1,
        },
    },
    {
        "prompt": "Laura and Simon left. Laura sold a boat to",
        "choices": ["Laura", "Simon"],
        "answerKey": 1,
        "metadata": {"subject": "Laura"},
        "flip_counterfactual": None,
        "abc_counterfactual": {"prompt": "Laura and Simon left. Julia sold a boat to", "choices": [], "answerKey": -1},
    },
]


def test_one_of_several_counterfactuals_is_chosen(tmp_path: Path) -> None:
    source = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist(NESTED), source)
    with pytest.raises(DatasetError, match=r"several counterfactuals\. Choose one with --counterfactual: flip, abc"):
        pairs_of(source, tmp_path)
    with pytest.raises(DatasetError, match=r"no counterfactual 'x'\. .* flip, abc"):
        pairs_of(source, tmp_path, ImportOptions(counterfactual="x"))
    pairs, imported = pairs_of(source, tmp_path, ImportOptions(counterfactual="flip"))
    flip = NESTED[0]["flip_counterfactual"]
    assert isinstance(flip, dict)
    assert pairs == [
        Pair(0, str(NESTED[0]["prompt"]), flip["prompt"], (" Robert",), (" Alice",), template="flip")
    ]  # fmt: skip
    assert imported.recipe.name == "mib"
    assert imported.counts.refused == {"no flip_counterfactual": 1}
    pairs, imported = pairs_of(source, tmp_path, ImportOptions(counterfactual="abc_counterfactual"))
    assert [pair.wrong_answers for pair in pairs] == [(" Alice",), (" Laura",)]
    assert imported.counts.unused == ("metadata", "flip_counterfactual")


def test_labels_of_choices_and_plain_labels_are_answers(tmp_path: Path) -> None:
    choices = {"label": ["A", "B"], "text": ["red", "blue"]}
    question = {
        "prompt": "q",
        "choices": choices,
        "answerKey": 0,
        "answerPosition_counterfactual": {"prompt": "r", "choices": choices, "answerKey": 1},
    }
    pairs, _ = pairs_of(lines(tmp_path / "p.jsonl", [question]), tmp_path)
    assert pairs == [Pair(0, "q", "r", (" A",), (" B",), template="answerPosition")]
    sum_ = {"prompt": "3 + 4 =", "label": 7, "random_counterfactual": {"prompt": "3 + 5 =", "label": 8}}
    same = {"prompt": "3 + 4 =", "label": 7, "random_counterfactual": {"prompt": "4 + 3 =", "label": 7}}
    keep = ImportOptions(leading_space=LeadingSpace.KEEP)
    pairs, imported = pairs_of(lines(tmp_path / "p.jsonl", [sum_, same]), tmp_path, keep)
    assert pairs == [Pair(0, "3 + 4 =", "3 + 5 =", ("7",), ("8",), template="random")]
    assert imported.counts.refused == {"the counterfactual has the same answer, and there is no other choice": 1}


def test_two_files_are_joined_and_their_spans_are_tokens(tmp_path: Path) -> None:
    join = ImportOptions(join=FILES / "joined_counter.csv")
    with pytest.raises(RequestError, match="name the file of the counterfactual prompts with --join"):
        pairs_of(FILES / "joined_clean.csv", tmp_path)
    pairs, imported = pairs_of(FILES / "joined_clean.csv", tmp_path, join)
    assert imported.recipe.name == "peap"
    assert pairs == [
        Pair(
            0,
            "Julia and Simon left early because Simon was tired. Julia",
            "Julia and Simon left early because Karen was tired. Julia",
            (" Simon",),
            (" Julia",),
            # Counted with a BOS, the first name is token 1.
            (Role("first_name", 0, 1, by_token=True),),
        )
    ]


JOINED = "prompt_id,prompt,correct_token,wrong_token,name_start,name_end"


def test_files_are_joined_by_id_in_any_order_and_by_row_without(tmp_path: Path) -> None:
    clean = cells(tmp_path / "a.csv", JOINED, "1,a,x,y,1,2", "2,b,x,y,0,1", "3,c,x,y,,", "4,d,x,y,2,3")
    other = cells(tmp_path / "b.csv", JOINED, "3,C,x,y,,", "5,E,x,y,1,2", "1,A,x,y,1,2", "2,B,x,y,0,2")
    without = Positions.WITHOUT_BOS
    pairs, imported = pairs_of(clean, tmp_path, ImportOptions(join=other, positions=without))
    assert {(pair.pair_id, pair.clean, pair.corrupted, pair.roles) for pair in pairs} == {
        (0, "a", "A", (Role("name", 1, 2, by_token=True),)),
        (2, "c", "C", ()),
    }
    assert imported.counts.read == 4
    assert imported.counts.refused == {
        "name has another position in the counterfactual file": 1,
        "no row of the same prompt_id in b.csv": 1,
    }
    bare = JOINED.removeprefix("prompt_id,")
    clean = cells(tmp_path / "a.csv", bare, "a,x,y,1,2", "b,x,y,1,2")
    other = cells(tmp_path / "b.csv", bare, "A,x,y,1,2", "B,x,y,1,2")
    pairs, _ = pairs_of(clean, tmp_path, ImportOptions(join=other))
    assert [(pair.clean, pair.corrupted) for pair in pairs] == [("a", "A"), ("b", "B")]
    other = cells(tmp_path / "b.csv", bare, "A,x,y,1,2")
    with pytest.raises(DatasetError, match=r"b\.csv has fewer rows than .*a\.csv"):
        pairs_of(clean, tmp_path, ImportOptions(join=other))
    twice = cells(tmp_path / "c.csv", JOINED, "1,A,x,y,1,2", "1,B,x,y,1,2")
    with pytest.raises(DatasetError, match="line 3: prompt_id '1' stands there twice"):
        pairs_of(cells(tmp_path / "d.csv", JOINED, "2,a,x,y,1,2", "3,b,x,y,1,2"), tmp_path, ImportOptions(join=twice))


def test_a_minimal_pair_gets_the_prefix_of_another_row(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--corrupt shuffle"):
        pairs_of(FILES / "minimal_pairs.jsonl", tmp_path)
    pairs, imported = pairs_of(FILES / "minimal_pairs.jsonl", tmp_path, SHUFFLE)
    assert imported.recipe.name == "blimp"
    # All prefixes have four words; partners ask for the other pronoun.
    by_answer = {pair.clean: pair.answers for pair in pairs}
    assert [(pair.pair_id, pair.answers, pair.wrong_answers) for pair in pairs] == [
        (0, (" herself",), (" himself",)),
        (1, (" himself",), (" herself",)),
        (2, (" himself",), (" herself",)),
        (3, (" herself",), (" himself",)),
    ]
    assert all(by_answer[pair.corrupted] == pair.wrong_answers for pair in pairs)
    assert {pair.template for pair in pairs} == {"reflexive_gender"}
    assert imported.counts.notes
    again, _ = pairs_of(FILES / "minimal_pairs.jsonl", tmp_path, SHUFFLE)
    assert again == pairs
    rows = [
        {"one_prefix_prefix": text, "one_prefix_word_good": good, "one_prefix_word_bad": bad}
        for text, good, bad in (("a b", "x", "y"), ("a c", "x", "y"), ("a b c", "x", "y"), ("a b", "x", "y"))
    ]
    pairs, imported = pairs_of(lines(tmp_path / "p.jsonl", rows), tmp_path, SHUFFLE)
    assert [(pair.pair_id, pair.clean, pair.corrupted) for pair in pairs] == [
        (0, "a b", "a c"),
        (1, "a c", "a b"),
        (3, "a b", "a c"),
    ]
    assert imported.counts.refused == {"no other prefix of the same length": 1}
    assert imported.counts.changed[blimp.SAME_ANSWER] == 3


def test_seeds_draw_other_partners_and_a_window_bounds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"one_prefix_prefix": f"w{n} z", "one_prefix_word_good": "ab"[n % 2], "one_prefix_word_bad": "ba"[n % 2]}
        for n in range(40)
    ]
    source = lines(tmp_path / "p.jsonl", rows)
    drawn = [pairs_of(source, tmp_path, replace(SHUFFLE, seed=seed))[0] for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    monkeypatch.setattr("attrib_batch.pairs.importing.recipes.blimp.WINDOW_ROWS", 10)
    pairs, _ = pairs_of(source, tmp_path, SHUFFLE)
    assert [pair.pair_id for pair in pairs] == list(range(40))
    for pair in pairs:
        assert pair.corrupted is not None
        partner = int(pair.corrupted.split()[0][1:])
        assert partner // 10 == pair.pair_id // 10
        assert partner % 2 != pair.pair_id % 2


UNKNOWN, BEGIN = "<unk>", "<s>"
CHAT_WORDS = [UNKNOWN, BEGIN, "<user>", "<assistant>", "Alice", "Robert", "gave"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} <{{ m.role }}> {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(CHAT_WORDS)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, unk_token=UNKNOWN)
    made.chat_template = TEMPLATE
    return made


def test_a_chat_becomes_text_and_its_bos_is_not_doubled(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--chat-template with --tokenizer M"):
        pairs_of(FILES / "chat.jsonl", tmp_path)
    with pytest.raises(RequestError, match=r"--chat-template needs a tokenizer: .*--tokenizer M"):
        pairs_of(FILES / "chat.jsonl", tmp_path, ImportOptions(chat_template=True))
    tokenizer = chat_tokenizer()
    chat = ImportOptions(chat_template=True, tokenizer=GivenTokenizer(TokenizerNote("m"), tokenizer))
    pairs, imported = pairs_of(FILES / "chat.jsonl", tmp_path, chat)
    assert (imported.recipe.name, imported.n_pairs) == ("chat", 2)
    assert pairs[0].clean == "<s> <user> Alice gave Robert a pen. Who has the pen? One word. <assistant>"
    assert (pairs[0].answers, pairs[0].from_chat) == (("Robert",), True)

    def says(*contents: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]

    rows: list[dict[str, Any]] = [
        {
            "clean": says("Alice gave"),
            "corrupted": says("Robert gave"),
            "answers": " Robert",
            "wrong_answers": [" Alice"],
        },
        {"clean": [{"role": "user"}], "corrupted": says("x"), "answers": "a", "wrong_answers": ["b"]},
        {"clean": says("x", "y"), "corrupted": says("x", "z"), "answers": ["a"], "wrong_answers": ["b"]},
    ]
    pairs, imported = pairs_of(lines(tmp_path / "p.jsonl", rows), tmp_path, chat)
    assert imported.counts.refused == {"clean is no list of messages with role and content": 1}
    # What the assistant has begun goes on.
    assert pairs[1].clean == "<s> <user> x <assistant> y"
    expected = [CHAT_WORDS.index(word) for word in ("<s>", "<user>", "Alice", "gave", "<assistant>")]
    for prepend_bos in (False, True):
        (encoded,) = encode_pairs(pairs[:1], tokenizer, prepend_bos=prepend_bos)
        assert isinstance(encoded, EncodedPair)
        assert list(encoded.clean) == expected
        assert (encoded.first_difference, len(encoded.roles)) == (2, 5)
    tokenizer.chat_template = None
    with pytest.raises(RequestError, match="the tokenizer has no chat template"):
        pairs_of(FILES / "chat.jsonl", tmp_path, chat)


def test_the_first_token_counts_where_it_is_asked_for(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    rows = [
        {"clean": "When Mary met", "corrupted": "When Jane met", "answers": " Jo and Anna", "wrong_answers": [" Anna"]},
        {"clean": "When Mary met", "corrupted": "When Jane met", "answers": "Jo", "wrong_answers": [" Anna"]},
    ]
    source = lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(RequestError, match=r"--answers first-token needs a tokenizer"):
        pairs_of(source, tmp_path, ImportOptions(answers=AnswerKind.FIRST_TOKEN))
    given = GivenTokenizer(TokenizerNote("words"), words)
    options = ImportOptions(answers=AnswerKind.FIRST_TOKEN, tokenizer=given)
    pairs, imported = pairs_of(source, tmp_path, options)
    jo, anna = words.convert_tokens_to_ids(["Jo", "Anna"])
    assert [(pair.answers, pair.wrong_answers) for pair in pairs] == [((jo,), (anna,))]
    assert imported.counts.changed["an answer cut to its first token"] == 1
    # Without its space the answer joins the prompt's last word.
    assert list(imported.counts.refused.values()) == [1]
    assert PairTable.open(tmp_path / "imported.parquet").form.notes.tokenizer == TokenizerNote("words")


def test_roles_may_be_stated_by_token(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    row = {"clean": "When Mary met Anna", "corrupted": "When Jane met Anna", "answers": " Jo", "wrong_answers": " Jane"}
    roles = [
        {"name": "when", "start": 0, "end": 4},
        {"name": "name", "start_token": 1, "end_token": 2},
        {"name": "end", "start_token": -2, "end_token": 0},
    ]
    source = lines(
        tmp_path / "p.jsonl",
        [row | {"roles": roles}, row | {"roles": [{"name": "x", "start_token": 4, "end_token": 5}]}],
    )
    pairs, _ = pairs_of(source, tmp_path)
    assert pairs[0].roles == (Role("when", 0, 4), Role("name", 1, 2, by_token=True), Role("end", -2, 0, by_token=True))
    good, bad = encode_pairs(pairs, words, prepend_bos=True)
    assert isinstance(good, EncodedPair)
    assert good.roles == (None, "when", "name", "end", "end")
    assert not isinstance(bad, EncodedPair)
    assert (bad.reason, bad.message) == (
        "role_off_tokens",
        "role x: [4, 5) is no span of clean's tokens, of which it has 4",
    )
    for wrong in (
        {"name": "x", "start_token": 1},
        {"name": "x"},
        {"start": 1, "end": 2},
        {"name": "x", "start": 1.5, "end": 2},
    ):
        with pytest.raises(DatasetError, match=r"a role is .* not an object with name, start and end, or"):
            pairs_of(lines(tmp_path / "p.jsonl", [row | {"roles": [wrong]}]), tmp_path)


def test_a_layout_is_recognised_by_its_columns_or_named(tmp_path: Path) -> None:
    source = FILES / "year_label.csv"
    assert pairs_of(source, tmp_path, ImportOptions(layout="greater_than"))[1].recipe.name == "greater_than"
    with pytest.raises(RequestError, match=r"--format x: no such layout; there are table, eap_ig"):
        pairs_of(source, tmp_path, ImportOptions(layout="x"))
    with pytest.raises(DatasetError, match=r"is not of the layout mib, which has prompt, .* This file has clean, corr"):
        pairs_of(source, tmp_path, ImportOptions(layout="mib"))
    with pytest.raises(DatasetError, match=r"no known layout has these.*--column(.|\n)*  chat: clean and corrupted"):
        pairs_of(cells(tmp_path / "p.csv", "a,b", "1,2"), tmp_path)
    both = "clean,corrupted,answers,wrong_answers,corrupted_answers"
    source = cells(tmp_path / "p.csv", both, "a,b,['c'],d,['e']")
    with pytest.raises(DatasetError, match=r"several layouts: name one with --format, table or hypernymy"):
        pairs_of(source, tmp_path)
    assert pairs_of(source, tmp_path, ImportOptions(layout="hypernymy"))[0][0].answers == (" c",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ImportOptions(counterfactual="x"),
            r"--counterfactual means nothing to the layout greater_than .* eap_ig, mib",
        ),
        (ImportOptions(join=Path("x")), r"--join means nothing to .*; it is for peap"),
        (ImportOptions(chat_template=True), r"--chat-template means nothing .*; it is for chat"),
        (
            ImportOptions(answers=AnswerKind.IDS),
            r"--answers ids: the answers of .* greater_than are text or first-token",
        ),
        (ImportOptions(repair=True), r"--repair needs a tokenizer"),
    ],
)
def test_an_option_that_means_nothing_is_refused(tmp_path: Path, options: ImportOptions, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pairs_of(FILES / "year_label.csv", tmp_path, options)
    assert not list(tmp_path.iterdir())


def test_every_recipe_says_what_it_is_for() -> None:
    published = ["eap_ig", "greater_than", "hypernymy", "auto_circuit", "feature_circuits", "mib", "peap", "blimp"]
    assert list(RECIPES) == ["table", *published, "chat"]
    for recipe in RECIPES.values():
        assert recipe.explanation
        assert recipe.columns
        assert recipe.published


def test_the_files_joined_are_not_written_over(tmp_path: Path) -> None:
    other = cells(tmp_path / "imported.parquet", JOINED, "1,A,x,y,1,2")
    with pytest.raises(DatasetError, match="both source and target"):
        pairs_of(FILES / "joined_clean.csv", tmp_path, ImportOptions(join=other))
