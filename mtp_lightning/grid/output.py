"""Where commands say what they found: results on standard output, and in a file for programs; the rest on standard
error."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from mtp_lightning.errors import InputError
from mtp_lightning.files import write_text


def say(what: RenderableType, error: bool = False) -> None:
    """Results go to standard output; what is said about the work goes to standard error."""
    stream = sys.stderr if error else sys.stdout
    console = Console(file=stream, soft_wrap=isinstance(what, str), highlight=False, markup=False)
    if not console.is_terminal and not isinstance(what, str):
        console.width = max(console.width, 200)  # a file has no edge to wrap at
    console.print(what)


def write_table(path: str | None, value: Mapping[str, Any]) -> None:
    """For `--json`."""
    if path is None:
        return
    try:
        write_text(Path(path), json.dumps(value, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def writable(folder: Path) -> Path:
    """The folder, made if need be; an InputError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {error.strerror}") from error
    return folder
