"""Chats: a prompt is a list of messages, which the tokenizer's own template turns into text.

The text keeps the BOS that the template writes. The table says that it is a chat's, so that a run with
``prepend_bos: true`` does not put a second one before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrib_batch.errors import RequestError
from attrib_batch.pairs.importing.counts import RowRefusedError
from attrib_batch.pairs.importing.options import LeadingSpace
from attrib_batch.pairs.importing.values import required_list, spaced
from attrib_batch.pairs.reading.columns import TableForm
from attrib_batch.pairs.reading.notes import TableNotes
from attrib_batch.pairs.reading.reader import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attrib_batch.pairs.importing.options import ImportOptions
    from attrib_batch.pairs.importing.recipe import Look, Reading
    from attrib_batch.pairs.importing.sources import Row

_COLUMNS = ("clean", "corrupted", "answers", "wrong_answers")


def recognise(look: Look) -> bool:
    """Return whether the columns of pairs are there, and a prompt is a list of messages."""
    return look.has(*_COLUMNS) and isinstance(look.first["clean"], list)


def form(options: ImportOptions, look: Look) -> TableForm:  # noqa: ARG001 - as of every recipe
    """Return the form of the table, which says that its prompts are a chat template's.

    Raises:
        RequestError: the template is not asked for, or there is none.
    """
    if not options.chat_template:
        raise RequestError(
            "prompts are lists of chat messages: --chat-template with --tokenizer M turns them into the text that M "
            "was trained on"
        )
    if not options.loaded_tokenizer("--chat-template").chat_template:
        raise RequestError("--chat-template: the tokenizer has no chat template. Name that of a model made for chats")
    return TableForm(notes=TableNotes(from_chat=True))


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs, their prompts as text up to where the assistant answers."""
    tokenizer = reading.options.loaded_tokenizer("--chat-template")
    space = reading.options.leading_space or LeadingSpace.KEEP

    def convert(row: Row) -> Pair:
        clean, corrupted = (_text(tokenizer, row.values, column) for column in ("clean", "corrupted"))
        right, wrong = (
            spaced(_answers(row.values, column), column, space, reading.counts)
            for column in ("answers", "wrong_answers")
        )
        reading.counts.changed["a chat turned into text by the tokenizer's template"] += 2
        return Pair(row.number, clean, corrupted, right, wrong, from_chat=True)

    yield from reading.each(convert, _COLUMNS)


def _answers(row: Mapping[str, Any], column: str) -> list[Any]:
    value = row.get(column)
    return [value] if isinstance(value, str) else required_list(row, column)


def _text(tokenizer: Any, row: Mapping[str, Any], column: str) -> str:
    messages = row.get(column)
    if not _is_chat(messages):
        raise RowRefusedError(f"{column} is no list of messages with role and content")
    assert isinstance(messages, list)  # noqa: S101 - said above
    goes_on = messages[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
        )
    except Exception as error:  # a template is a program of its own, and raises what it likes
        raise RowRefusedError(f"the chat template refuses the messages ({' '.join(str(error).split())})") from error
    return str(text)


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in messages
        )
    )
