"""What may lie in the place of a file that the platform keeps."""

import os
from collections.abc import Callable
from pathlib import Path

from mtp_lightning.files import MOST_BYTES


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "loop": link_to_itself,
    "dangling": lambda path: path.symlink_to("nothing"),
    "pipe": lambda path: os.mkfifo(path),
    "deep": lambda path: path.write_text("[" * 100_000),
    "latin": lambda path: path.write_bytes(b'{"state": "fini\xe9"}'),
    "torn": lambda path: path.write_text('{"state": "runn'),
    "list": lambda path: path.write_text("[1, 2]"),
    "wrong types": lambda path: path.write_text('{"state": 1, "step": [], "error": {}, "point": [1]}'),
    "number": lambda path: path.write_text("1" * 5000),
    "zeros": lambda path: path.write_bytes(bytes(64)),
    "huge": huge,
}
