"""`mtp completion bash | zsh`: a script that holds all commands and flags, so that Tab starts no Python."""

import argparse
import inspect
from collections.abc import Iterable
from typing import Literal, get_args, get_origin

import shtab

from mtp_lightning.cli import COMMANDS, FROM_YAML, load
from mtp_lightning.config.keys.command_parser import class_of


def completion_command(shell: Literal["bash", "zsh"]) -> None:
    """Print a completion script: commands, flags, files. Print it again after an update.

    Args:
        shell: `bash` or `zsh`.
    """
    print(shtab.complete(_all_commands(), shell))


def _all_commands() -> argparse.ArgumentParser:
    """A parser of all commands, of which only names are looked at."""
    root = argparse.ArgumentParser(prog="mtp")
    groups = {"": root.add_subparsers()}
    for name, (target, text) in COMMANDS.items():
        *group, word = name.split()
        if group and group[0] not in groups:
            groups[group[0]] = groups[""].add_parser(group[0], help=f"mtp {group[0]} ...").add_subparsers()
        parser = groups["".join(group)].add_parser(word, help=text.replace("`", "'"))
        if name in FROM_YAML:
            _add_flags(parser, _flags_of_a_configuration())
        else:
            _add_parameters(parser, target)
    return root


def _add_parameters(parser: argparse.ArgumentParser, target: str) -> None:
    function = load(target)
    owner = class_of(function)  # a method shares the arguments of its class
    shared = inspect.signature(owner).parameters if owner else {}
    for name, parameter in {**shared, **inspect.signature(function).parameters}.items():
        kind = parameter.annotation
        choices = [str(one) for one in get_args(kind)] if get_origin(kind) is Literal else None
        if name == "self":
            continue
        if parameter.default is parameter.empty:
            action = parser.add_argument(name, choices=choices, nargs="*" if kind == list[str] else None)
        else:
            action = parser.add_argument(f"--{name}", choices=choices)
        if choices is None:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    _add_flags(parser, ["--debug", "--import"])


def _add_flags(parser: argparse.ArgumentParser, flags: Iterable[str]) -> None:
    for flag in sorted(set(flags) - {"-h", "--help"}):
        parser.add_argument(flag).complete = shtab.FILE  # type: ignore[attr-defined]


def _flags_of_a_configuration() -> list[str]:
    """Every key of it, and those of text, which `--data` alone would not show."""
    from dataclasses import fields

    from mtp_lightning.config.lightning_cli import MTPCLI
    from mtp_lightning.data import SourceConfig, TokenDataModule

    parser = MTPCLI(["-c", "conf/base.yaml", "-c", "conf/data/text.yaml"], parse_only=True).parser
    flags = [flag for action in parser._actions for flag in action.option_strings]
    flags += [f"--data.{name}" for name in inspect.signature(TokenDataModule).parameters]
    return flags + [f"--data.source.{field.name}" for field in fields(SourceConfig)]
