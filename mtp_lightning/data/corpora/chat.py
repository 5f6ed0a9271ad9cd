"""Conversations as one text, by a tokenizer's chat template: Jinja in a sandbox, set up as `transformers` does it, but
for the date of today: the same rows give the same text on every day.

A template is found in `chat_template.jinja` or `tokenizer_config.json` beside the tokenizer.json, or is a file that
`data.source.chat_template` names. It comes from outside: the sandbox lets it change nothing and reach no attribute that
Python keeps private.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.errors import InputError

TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")
"""What is looked for beside a tokenizer.json, first name first."""
_CONFIG = TEMPLATE_FILES[1]
_DEFAULT = "default"
"""Which of several named templates is taken."""
_TODAY = "strftime_now"

Message = Mapping[str, str]
"""`role` and `content`."""


class TemplateRefusedError(Exception):
    """A template does not take these messages; says why."""


class Rendered(NamedTuple):
    """A conversation as the template writes it."""

    prompt: str
    """Up to where the last answer begins, the template's opening of an answer included."""
    answer: str
    """The rest, which the model is to write."""


def find_template(tokenizer: str) -> Path | None:
    """The file beside a tokenizer.json (or in its folder) that carries a chat template; None where none does."""
    folder = Path(tokenizer).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    paths = [folder / name for name in TEMPLATE_FILES] if tokenizer != "bytes" else []
    return next((path for path in paths if path.is_file() and (path.name != _CONFIG or _named(_config(path)))), None)


def with_template(source: SourceConfig, tokenizer: str) -> SourceConfig:
    """The source of pairs with the template that lies beside the tokenizer, unless it names one itself."""
    if source.kind != "pairs" or source.chat_template is not None:
        return source
    found = find_template(tokenizer)
    return source if found is None else replace(source, chat_template=str(found))


def render(path: Path, messages: Sequence[Message]) -> Rendered:
    """
    Args:
        messages: the last one is the answer.

    Raises:
        InputError: the file is no template, or one that writes the date of today.
        TemplateRefusedError: it does not take these messages, or it writes something else before an answer that it
            knows than before one that is still to come.
    """
    import jinja2

    template, tokens = _compiled(path)
    given = {"tools": None, "documents": None, **tokens}
    try:
        prompt = template.render(messages=list(messages[:-1]), add_generation_prompt=True, **given)
        whole = template.render(messages=list(messages), add_generation_prompt=False, **given)
    except TemplateRefusedError:
        raise
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        if isinstance(error, jinja2.UndefinedError) and _TODAY in str(error):
            raise InputError(
                f"data.source.chat_template: '{path}' writes the date of today ({_TODAY}), and the same rows have to "
                "give the same text on every day: write a date in its place into a copy of the file"
            ) from error
        raise TemplateRefusedError(f"{type(error).__name__}: {error}") from error
    if not whole.startswith(prompt):
        raise TemplateRefusedError("the text with the answer does not begin with the text before it")
    return Rendered(prompt, whole[len(prompt) :])


def template_hash(path: Path) -> str:
    """Of all that what it writes depends on.

    Raises:
        InputError: the file is no template.
    """
    return hashlib.sha256(json.dumps(_read(path), sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> tuple[str, dict[str, str]]:
    """(the template's text, the special tokens that it may write by name: `bos_token`, ...)."""
    config_file = path if path.name == _CONFIG else path.with_name(_CONFIG)
    config = _config(config_file) if config_file.is_file() else {}
    text = _named(config) if path.name == _CONFIG else _text(path)
    if not text:
        raise InputError(f"data.source.chat_template: '{path}' holds no chat template")
    return text, _special_tokens(config)


@cache
def _compiled(path: Path) -> tuple[Any, dict[str, str]]:
    """The template, and the special tokens."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """What stands between generation and endgeneration, which say for other trainers what an answer is."""

        tags = {"generation"}  # noqa: RUF012 (so it is in the base class)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    text, tokens = _read(path)
    try:
        return environment.from_string(text), tokens
    except jinja2.TemplateError as error:
        raise InputError(f"data.source.chat_template: '{path}' is no Jinja template: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"data.source.chat_template: there is no file '{path}'") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.source.chat_template: cannot read '{path}': {error}") from error


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"data.source.chat_template: '{path}' is not JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _named(config: Mapping[str, Any]) -> str | None:
    """The template of a tokenizer_config.json: a text, or of a list of named ones the one called `default`."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get(_DEFAULT)
    return found if isinstance(found, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, token in config.items():
        content = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(content, str):
            found[name] = content
    return found


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateRefusedError(message)
