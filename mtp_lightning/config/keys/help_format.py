"""How `--help` looks: what an option takes, what it means, its default; all else that argparse prints is left out."""

import inspect
import re
import shutil
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from jsonargparse import DefaultHelpFormatter
from typing_extensions import override

WIDEST = 110
_NAMES: Mapping[Any, str] = {bool: "true|false", int: "INT", float: "NUMBER", str: "TEXT", NoneType: "", Any: "VALUE"}
_LISTS = (list, tuple, set, Sequence, Iterable, Collection)
_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
"""A cross-reference of Sphinx, as in Lightning's texts."""
_DEFAULT = re.compile(r"\s*Default: ``[^`]*``\.?$")


class HelpFormatter(DefaultHelpFormatter):
    """Names what an option takes by its type: `--lines INT`, `--tree [INT, ...]`, `--watch`."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, WIDEST) - 2
        super().__init__(prog, max_help_position=28, width=width)  # type: ignore[no-untyped-call]

    @override
    def add_argument(self, action: Action) -> None:
        if not is_noise(action):
            super().add_argument(action)

    @override
    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return action.dest
        names = ", ".join(name for name in action.option_strings if not name.endswith("+"))
        hint = getattr(action, "_typehint", None)
        if hint is bool and action.default is False and "." not in action.dest:
            return names
        takes = "FILE" if action.dest == "config" else "" if action.nargs == 0 else type_name(hint)
        return f"{names} {takes}".rstrip()

    @override
    def _get_help_string(self, action: Action) -> str:
        if getattr(action, "_jsonargparse_preexpanded_help", False):  # without a text, the default alone
            return action.help or ""
        text = _ROLE.sub(r"`\1`", action.help or "").strip()
        if not getattr(action, "_typehint", None):
            return text
        text = _DEFAULT.sub("", text).replace("``", "`")
        if action.extra_help():  # type: ignore[attr-defined]
            text += f" `--{action.dest}.help CLASS` shows what a class takes."
        default = action.default
        if not action.option_strings or default is None or default is False or default == SUPPRESS:
            return text
        return f"{text} (default: {'true' if default is True else '%(default)s'})"

    @override
    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in _paragraphs(text) for line in textwrap.wrap(part, width)]

    @override
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = [
            textwrap.fill(part, width, subsequent_indent="  " * part.startswith("- ")) for part in _paragraphs(text)
        ]
        return re.sub(r"\n\n(?=- )", "\n", "\n\n".join(parts))


def is_noise(action: Action) -> bool:
    """Keys of whole groups, help of classes (which the text of their key mentions), keys that follow from others."""
    return type(action).__name__ in ("_ActionConfigLoad", "_ActionHelpClassPath", "ActionLink") or (
        action.dest.startswith("print_")
    )


def type_name(hint: Any) -> str:
    """What a value of the type looks like, or what it is."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return "|".join(map(str, args))
    if hint in _NAMES:
        return _NAMES[hint]
    if origin in _LISTS:
        return f"[{type_name(args[0])}, ...]"
    if origin in (dict, Mapping):
        return f"{{KEY: {type_name(args[1])}}}"
    if args:  # a union
        names = dict.fromkeys(name for name in map(type_name, args) if name)
        whole = "|".join(names)
        return whole if len(whole) <= 40 else "VALUE"
    return "TEXT" if getattr(hint, "__name__", "").startswith(("Path", "str")) else "CLASS" if hint else "VALUE"


def description(function: Callable[..., Any]) -> str:
    """The docstring as far as users need it."""
    text = inspect.getdoc(function) or ""
    return re.split(r"\n\s*(?:Args|Returns|Raises|Yields):\n", text)[0].strip()


def _paragraphs(text: str) -> list[str]:
    """Parts of a text between empty lines, each on one line; an item of a list is a part of its own."""
    parts = re.split(r"\n\s*\n|\n(?=\s*- )", text)
    return [re.sub(r"\s*\n\s*", " ", part.strip()) for part in parts]
