"""What can be said about the arguments of `mtp fit | validate` before Lightning is loaded, which takes seconds."""

from collections.abc import Sequence

from mtp_lightning.config.keys.key_origins import KeyOrigins
from mtp_lightning.config.keys.known_keys import check_keys
from mtp_lightning.errors import InputError

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
    check_keys(KeyOrigins(args))
