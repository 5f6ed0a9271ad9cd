"""Where a user's own modules are found: in the working directory, after everything else; and which were asked for."""

import importlib
import os
import sys
from pathlib import Path

from mtp_lightning.errors import InputError

CODE = Path(__file__).resolve().parents[1]
"""The folder that holds this package, and `callbacks` beside it."""
given: list[str] = []
"""The modules that `--import` names. Whoever starts another process that may load a model hands them on."""


def put_working_directory_last() -> None:
    """Make the working directory the last entry of `sys.path`, however Python was started.

    `python -m` puts it first, and a console script leaves it out. First would be wrong: a user's own folder
    `callbacks/` would take the place of ours. Left out, `class_path: my_probe.MyProbe` would not be found.
    """
    here = Path.cwd().resolve()
    if here != CODE:
        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    if os.fspath(here) not in sys.path:
        sys.path.append(os.fspath(here))


def import_own(module: str, said: str = "--import") -> None:
    """
    Args:
        said: where the module was named, for the message.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"{said}: cannot import '{module}': {type(error).__name__}: {error}") from error
