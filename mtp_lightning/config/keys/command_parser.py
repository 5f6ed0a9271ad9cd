"""Commands that are plain functions: their flags from their signatures, and calling them with what was typed."""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from docstring_parser import parse
from jsonargparse import ArgumentParser

from mtp_lightning.config.keys.help_format import HelpFormatter, description
from mtp_lightning.errors import InputError, did_you_mean


def call(function: Callable[..., Any], args: Sequence[str], prog: str) -> int:
    """Parse `args` by the function's signature (parameters without a default are positional) and call it.

    The arguments of a method are those of its class, which it shares with the other methods, and its own.
    """
    parser = command_parser(function, prog)
    values = parser.instantiate(parser.parse_args(joined(args, parser))).as_dict()
    owner = class_of(function)
    if owner:
        shared = {name: values.pop(name) for name in inspect.signature(owner).parameters}
        function = getattr(owner(**shared), function.__name__)
    return function(**values) or 0


def class_of(function: Callable[..., Any]) -> type | None:
    """The class of a method; None for a plain function."""
    name = function.__qualname__.rpartition(".")[0]
    return getattr(sys.modules[function.__module__], name) if name and not name.endswith("<locals>") else None


def command_parser(function: Callable[..., Any], prog: str) -> ArgumentParser:
    """The parser of a command, made from its function's signature and docstring; of a method, from its class's too."""

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            unknown = re.search(r"[Uu]nrecognized arguments: (--[^\s=]+)", message)
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            near = did_you_mean(unknown[1], known) if unknown else ""
            raise InputError(f"{prog}: {message.strip()}{near} (see `{prog} --help`)") from ex

    owner = class_of(function)
    shared = dict(inspect.signature(owner).parameters) if owner else {}
    own = {name: p for name, p in inspect.signature(function).parameters.items() if name != "self"}
    lists = [name for name, p in own.items() if p.annotation == list[str] and p.default is p.empty]
    needed = [name for name, p in {**shared, **own}.items() if p.default is p.empty]
    usage = " ".join([prog, *(f"[{name} ...]" if name in lists else name for name in needed), "[options]"])
    parser = Parser(
        prog=prog,
        usage=usage,
        description=description(function),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    if owner:
        parser.add_class_arguments(owner, as_positional=True)
        parser.add_method_arguments(owner, function.__name__, as_positional=True, skip={*lists})
    else:
        parser.add_function_arguments(function, as_positional=True, skip={*lists})
    group, *others = parser._action_groups[2:]  # after argparse's own two
    group.title = "arguments and options"
    for other in others:
        group._group_actions += other._group_actions
        parser._action_groups.remove(other)  # type: ignore[attr-defined]
    for name in lists:
        group.add_argument(name, nargs="*", type=str, default=[], help=_text_of(function, name))
    for action in parser._actions:
        if getattr(action, "_typehint", None) == str | None:
            action._typehint = str  # type: ignore[attr-defined]  # as typed: `# x`, `null` and `---` are no YAML
    return parser


def _text_of(function: Callable[..., Any], parameter: str) -> str:
    return next((p.description or "" for p in parse(function.__doc__ or "").params if p.arg_name == parameter), "")


def joined(args: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Every option in one piece with its value, whatever that looks like: `--prompt ---` is `--prompt=---`, and
    `--watch` is `--watch=true`. `--max-new-tokens` is `--max_new_tokens`."""
    options = {name: action for action in parser._actions for name in action.option_strings}
    joined, rest = [], list(args)
    while rest:
        arg = _underscored(rest.pop(0))
        takes = options[arg].nargs != 0 if arg in options else False
        if takes and getattr(options[arg], "_typehint", None) is bool:
            given = rest.pop(0) if rest and rest[0] in ("true", "false") else "true"
            arg = f"{arg}={given}"
        elif takes and rest and _underscored(rest[0]).partition("=")[0] not in options:
            arg = f"{arg}={rest.pop(0)}"
        joined.append(arg)
    return joined


def _underscored(arg: str) -> str:
    """`--max-new-tokens` is `--max_new_tokens`."""
    flag, equals, value = arg.partition("=")
    return flag.replace("-", "_").replace("__", "--", 1) + equals + value if arg.startswith("--") else arg
