"""Questions with their answers, for fine-tuning: JSON rows with `prompt` and `completion`, or with `messages`.

A pair is one document. The model is trained on its answer and on the end of the document after it, never on what comes
before. Of a conversation only the last answer counts: what is kept of a document is one number, where its answer
begins. (To train on every answer of a conversation, give a row for each of them, cut off after it.)
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mtp_lightning.data.corpora.account import Account
from mtp_lightning.data.corpora.chat import Message, TemplateRefusedError, render
from mtp_lightning.data.corpora.rows import json_values, refuse_twice
from mtp_lightning.errors import InputError

PROMPT, COMPLETION, MESSAGES = "prompt", "completion", "messages"
_COLUMNS = (PROMPT, COMPLETION, MESSAGES)
_OF_MESSAGES = ("role", "content")


class Pair(NamedTuple):
    """A question and its answer, neither of them empty."""

    number: int
    """Of the row in its file, from 0."""
    prompt: str
    answer: str
    rendered: bool
    """Whether a chat template wrote them: then the names of special tokens in them mean these tokens."""


def pairs(path: Path, template: Path | None, name: str, account: Account) -> Iterator[Pair]:
    """The pairs of a file; rows that are none are counted in the account.

    Args:
        template: of conversations.
        name: what the account calls the file.

    Raises:
        InputError: not JSON; a row that has a column twice; conversations, and no template for them.
    """
    for number, (row, line) in enumerate(json_values(path)):
        refuse_twice(path, row, line, _COLUMNS)
        messages = row.get(MESSAGES) if isinstance(row, Mapping) else None
        for message in messages if isinstance(messages, list) else ():
            refuse_twice(path, message, line, _OF_MESSAGES)
        if template is None and isinstance(row, dict) and MESSAGES in row and PROMPT not in row:
            raise InputError(
                f"data.source.chat_template is missing: '{path}', line {line}, has '{MESSAGES}', and the tokenizer "
                "brings no chat template along (in a tokenizer_config.json or chat_template.jinja beside its "
                f"tokenizer.json); give one as a file, or rows with '{PROMPT}' and '{COMPLETION}'"
            )
        try:
            found: Pair | str = _pair(number, row, template)
        except TemplateRefusedError as error:
            found, line_and_why = "rows that the chat template refuses", f"line {line}: {_shortened(error)}"
        else:
            line_and_why = f"line {line}"
        if isinstance(found, Pair):
            yield found
            continue
        account.leave_out(found, f"{name}, {line_and_why}")
        account.refusal = account.refusal or (
            f"data.source.path: '{path}' has no pair in it: a row needs '{PROMPT}' and '{COMPLETION}', or "
            f"'{MESSAGES}' ({found}: {line_and_why})"
        )


def _pair(number: int, row: Any, template: Path | None) -> Pair | str:
    """The pair, or what rows like this one are called.

    Raises:
        TemplateRefusedError: the template does not take it.
    """
    if not isinstance(row, Mapping):
        return "rows that are no objects"
    if PROMPT in row or COMPLETION in row:
        prompt, answer = row.get(PROMPT), row.get(COMPLETION)
        if not isinstance(prompt, str) or not isinstance(answer, str):
            return f"rows whose {PROMPT} or {COMPLETION} is missing or no text"
        if not prompt or not answer:
            return f"rows with an empty {PROMPT} or {COMPLETION}"
        return Pair(number, prompt, answer, rendered=False)
    if MESSAGES not in row:
        return f"rows without {PROMPT}, {COMPLETION} and {MESSAGES}"
    assert template is not None
    messages = _messages(row[MESSAGES])
    if isinstance(messages, str):
        return messages
    prompt, answer = render(template, messages)
    return Pair(number, prompt, answer, rendered=True) if prompt and answer else "rows that the template leaves empty"


def _messages(value: Any) -> list[Message] | str:
    if not isinstance(value, list) or len(value) < 2:
        return "rows with fewer than two messages"
    for message in value:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in _OF_MESSAGES):
            return "rows with a message whose role or content is no text"
        if any(message[key] is not None for key in message if key not in _OF_MESSAGES):
            return "rows with a message that has more than a role and a content"
    if value[-1]["role"] != "assistant":
        return "rows whose last message is not the assistant's"
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
