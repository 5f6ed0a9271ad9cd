"""Where the configurations are: the checkout's `conf/` first, else the copy that the wheel carries."""

import os
import re
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.secrets import each_text

_PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT: Path | None = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None
"""The root of the checkout this package runs from, or None where it is installed."""
CONF_DIR = CHECKOUT / "conf" if CHECKOUT else _PACKAGE / "conf"
FOLDERS = ("conf", "experiments") if CHECKOUT else ("conf",)
"""Folders whose files are found from anywhere, beside `CONF_DIR`."""


def literal(config: Any) -> Any:
    """A resolved configuration as it is written into a file: what looks like an interpolation is text, such as a folder
    called `${x}`. omegaconf takes a backslash before it away, and reads two as one."""
    return each_text(config, lambda text: re.sub(r"(?<!\\)(\\*)(?=\$\{)", r"\1\1\\", text))


def find_config(name: str, relative_to: Path | None = None) -> Path:
    """The configuration file `name`: as given, beside `relative_to`, or among the shipped ones (`conf/base.yaml`).

    Raises:
        InputError: it is in none of these places; names the nearest shipped file.
    """
    given = Path(name)
    tries = [given if relative_to is None else relative_to / given, given]
    if not given.is_absolute():
        tries.append(CONF_DIR.parent / given)
    for path in tries:
        if os.path.isfile(path):  # False too for a name that no file can have, where `is_file` raises
            return path.resolve()
    root = CONF_DIR.parent
    shipped = [p.relative_to(root).as_posix() for room in FOLDERS for p in sorted((root / room).rglob("*.yaml"))]
    places = ", ".join(str(p.parent.resolve()) for p in dict.fromkeys(tries))
    raise InputError(f"configuration file '{name}' is not there (looked in {places}){did_you_mean(name, shipped)}")


def in_checkout(path: Path) -> Path:
    """`path`; or, where that is no file, the one of this name in the checkout: `experiments/001_head_count/grid.yaml`
    is found from any folder, as `conf/base.yaml` is."""
    inside = CONF_DIR.parent / path
    return inside if not path.is_file() and inside.is_file() else path
