"""What can be said about the arguments of `mtp fit | validate` before Lightning is loaded, which takes seconds."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtp_lightning.config.keys.key_origins import KeyOrigins
from mtp_lightning.config.keys.known_keys import check_keys
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.optimization.schedule import ScheduleConfig
from mtp_lightning.ranges import check_value, declared

_LIGHT = {"model.backbone": BackboneConfig, "model.heads": HeadsConfig, "model.schedule": ScheduleConfig}
"""Configurations whose modules are quick to load."""
EXAMPLE = "mtp fit -c conf/base.yaml -c conf/model/tiny.yaml -c conf/data/python_stdlib.yaml"


def check_arguments(command: str, args: Sequence[str]) -> None:
    """
    Raises:
        InputError: nothing given, a file that is missing or no YAML, a key that no configuration has.
    """
    if not args and command == "validate":
        raise InputError(
            "mtp validate: which run? Its folder or a checkpoint in it, for example:\n  mtp validate runs/fit\n"
            "or its configuration with -c and the checkpoint with --ckpt_path (`mtp validate --help`)"
        )
    if not args:
        raise InputError(
            f"mtp {command}: which configuration? For example:\n  {EXAMPLE.replace('fit', command, 1)}\n"
            f"(`mtp {command} --help` describes every key)"
        )
    if any(arg in ("-h", "--help") or arg.partition("=")[0].endswith(".help") for arg in args):
        return
    origins = KeyOrigins(args)
    check_keys(origins)
    try:
        check_numbers({origin.dotted: origin.value for origin in origins.all})
    except InputError as error:
        raise InputError(f"{error}{origins.where(str(error))}") from error


def check_numbers(values: Mapping[str, Any]) -> None:
    """
    Args:
        values: of dotted keys.

    Raises:
        InputError: a number outside the range of its key.
    """
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        hint = declared(_LIGHT[group]).get(name) if group in _LIGHT else None
        if hint is not None and isinstance(value, int | float) and not isinstance(value, bool):
            check_value(key, value, hint)
