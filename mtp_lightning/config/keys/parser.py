"""The parser behind `mtp fit`, and what it says of bad input: which key, where it was set, what was meant."""

import argparse
import inspect
import re
import textwrap
import traceback
from argparse import SUPPRESS
from dataclasses import fields
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from mtp_lightning.config.keys.help_format import HelpFormatter, is_noise
from mtp_lightning.config.keys.help_format import description as docs_of
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.tasks.datamodule import TaskDataModule
from mtp_lightning.data.tokens.datamodule import TokenDataModule
from mtp_lightning.errors import InputError, did_you_mean

DATA_MODULES = (TaskDataModule, TokenDataModule)
"""Loaded here, so that their names alone can be given for their paths."""
_CLASS_HELP = re.compile(r"Help for --[\w.]+=(?P<path>[\w.]+)")
"""How jsonargparse describes the parser that it makes for the help of one class."""


class Parser(LightningArgumentParser):
    """Turns every complaint into an `InputError`, with the nearest valid key where one is unknown."""

    def __init__(self, *args: Any, description: str = "", **kwargs: Any) -> None:
        shows_class = _CLASS_HELP.match(description)
        if shows_class:
            cls: Any = locate(shows_class["path"])
            description = f"{shows_class['path']}, whose init_args are below.\n\n{docs_of(cls)}"
            kwargs["usage"] = SUPPRESS
        super().__init__(*args, description=description, formatter_class=HelpFormatter, **kwargs)

    @override
    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Ours before Lightning's, every group under its key."""
        groups = {_group_key(group): group for group in self._action_groups if group.title != "Linked arguments"}
        for key, group in groups.items():
            short = "" if self.usage == SUPPRESS else (group.title or "").removeprefix(f"{key}: ").strip().rstrip(":.")
            group.title = ": ".join(filter(None, [key, short]))
        order = ["", *sorted(key for key in groups if key.startswith("model")), "data", "trainer"]
        self._action_groups = [groups.pop(key) for key in order if key in groups] + [*groups.values()]
        return str(super().format_help(*([] if formatter is None else [formatter])))

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """jsonargparse has a parser for each class: what an inner one says of its key is put below the outer's."""
        value = _VALUE.match(message)
        refused = input_error_behind(ex)
        if isinstance(refused, KeyRefusedError) and value:
            raise KeyRefusedError(f"{value['key']}.{refused.key}", refused.text) from ex
        if refused is not None:
            raise refused
        if value:
            raise KeyRefusedError(value["key"], _expected(value["rest"])) from ex
        if missing := _MISSING.search(message):
            raise KeyRefusedError(missing[1], "{key} is missing") from ex
        unknown = _UNKNOWN_KEY.search(message)
        if unknown is None:
            raise InputError(message.strip()) from ex
        key = unknown["argument"] if unknown["option"] is None else unknown["option"]
        if unknown["group"] and not key.startswith(unknown["group"]):
            key = f"{unknown['group']}.{key}"
        raise KeyRefusedError(key, f"there is no key '{{key}}'{did_you_mean_key(key, self)}") from ex


def _group_key(group: argparse._ArgumentGroup) -> str:
    keys = [action.dest.rpartition(".")[0] or action.dest for action in group._group_actions if not is_noise(action)]
    return keys[0] if group.title != "options" and keys else ""


def input_error_behind(error: BaseException | None) -> InputError | None:
    """The refusal that jsonargparse wrapped into one of its own errors, if that is what happened."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def refused_by_class(error: BaseException) -> InputError | None:
    """What a class of somebody else's says of its arguments; None where the error is not jsonargparse's, which tells of
    it when it makes the objects."""
    if "jsonargparse" not in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts:
        return None
    kind = _ROOM.search(str(error))
    key = f"trainer.{_ROOMS[kind[1]]}" if kind else "the configuration"
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return InputError(f"{key}: {' '.join(str(error).split())}")


_ROOM = re.compile(r"lightning\.pytorch\.(callbacks|loggers|strategies|profilers)\.")
_ROOMS = {"callbacks": "callbacks", "loggers": "logger", "strategies": "strategy", "profilers": "profiler"}


class KeyRefusedError(InputError):
    """One key is wrong.

    Args:
        text: what is wrong, with `{key}` where the key's name goes.
    """

    def __init__(self, key: str, text: str) -> None:
        key = key.removeprefix("config.")  # which jsonargparse puts before what stands in a file
        super().__init__(text.replace("{key}", key))
        self.key, self.text = key, text


_VALUE = re.compile(r'Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)', re.DOTALL)
"""How jsonargparse says that a key's value is wrong."""
_TYPES = {
    "object": "a class_path with its init_args",
    "NoneType": "null",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}


def _expected(rest: str) -> str:
    """What jsonargparse says of a value, without its tree of types."""
    wrong_class = re.search(r"Problem with given class_path '(.*)':\s*(.*)", rest)
    if wrong_class and "has no attribute 'keys'" in wrong_class[2]:
        return "{key}.init_args has to be keys with their values"
    if wrong_class:
        return f"{{key}}.class_path is '{wrong_class[1]}': {wrong_class[2]}"
    loaded = re.search(r"Unable to load config ['\"](.*?)['\"]", rest)
    if loaded:
        return f"{{key}} is {loaded[1]}: it has to be keys with their values"
    nested = re.search(r"NestedArg\(key='(\w+)', val='(.*?)'\)", rest)
    if nested:
        return f"{{key}}.{nested[1]} is {nested[2]}: its class does not take that"
    types = dict.fromkeys(re.findall(r"Expected an? <class '(\w+)'>", rest))
    if [*types] == ["NoneType"]:
        types = {"object": None, **types}
    given = re.search(r"(?:Got|Given) value: (.*)", rest)
    if not types or not given or not set(types) <= set(_TYPES):
        return "{key}: " + textwrap.dedent(rest).strip()
    value = "null" if given[1] == "None" else given[1]
    return f"{{key}} is {value}: it has to be {', or '.join(_TYPES[name] for name in types)}"


_UNKNOWN_KEY = re.compile(
    r"(Group '(?P<group>[^']*)' does not accept option|Option) '(?P<option>[^']*)'|"
    r"[Uu]nrecognized arguments: --(?P<argument>[\w.]+)"
)
"""How jsonargparse says that a key is unknown."""


_MISSING = re.compile(r"the following arguments are required: ([\w.]+)")


def did_you_mean_key(key: str, parser: LightningArgumentParser) -> str:
    """The nearest key of the configuration, or the nearest parameter of what `class_path` may name."""
    known = [action.dest for action in parser._actions]
    found = did_you_mean(key, known)
    if found:
        return found
    parameters = {name for cls in _subclasses(MTPDataModule) for name in inspect.signature(cls).parameters}
    parameters |= {field.name for field in fields(SourceConfig)} | {name.split(".")[-1] for name in known}
    return did_you_mean(key.split(".")[-1], sorted(parameters))


def _subclasses(cls: type) -> set[type]:
    below: list[type] = cls.__subclasses__()
    return {cls}.union(*map(_subclasses, below))
