"""Resolved configurations kept in the user's cache: until code, files or machine are others."""

import hashlib
import json
import os
import platform
import re
import socket
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtp_lightning.config.run_size import Size
from mtp_lightning.files import write_bytes
from mtp_lightning.secrets import masked

PACKAGE = Path(__file__).resolve().parents[1]
KEPT_SECONDS = 30 * 24 * 3600.0
"""What nobody asked for in so long goes."""
_OURS = ("mtp_lightning.", "callbacks.", "lightning.", "torch.")
"""Packages whose classes' defaults are known to be those of the cached configuration: their versions are in its key."""

Plain = dict[str, Any]
Keys = tuple[str, ...]
"""A dotted key, split."""


class Store:
    """What was resolved from the same files by the same code on this machine, in one compressed file of the cache.

    Not kept is what depends on more: on the environment, on other people's classes. Files that a configuration names
    (a tokenizer, another configuration) are looked at each time.
    """

    def __init__(self, file: Path | None) -> None:
        self.file, self.new = file, False
        self.named: list[str] = []
        """Files that the texts of the family name, besides themselves."""
        self.known: dict[str, tuple[Plain, Size, dict[str, str]]] = {}
        """Overrides -> configuration, size, files named and their states."""
        if file is not None and file.is_file():
            try:
                raw = json.loads(zlib.decompress(file.read_bytes()))
                self.known = {name: (config, Size(**size), files) for name, (config, size, files) in raw.items()}
            except (OSError, zlib.error, ValueError, TypeError, AttributeError, RecursionError):
                return  # torn, or of another kind: made anew

    @classmethod
    def of(cls, folder: Path | None, files: Sequence[Path]) -> "Store":
        texts = [path.read_text(encoding="utf-8") for path in files]
        if folder is None or any("oc.env" in text for text in texts):
            return cls(None)
        key = exactly([_code(), _machine(), os.getcwd(), *map(str, files), *texts])
        store = cls(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json.z")
        words = {word.strip("'\"") for text in texts for word in re.split(r"[\s,\[\]{}]+", text)}
        beside = [str(path.parent / word) for path in files for word in words if word]
        store.named = [word for word in (*words, *beside) if word and os.path.isfile(word)]
        return store

    def get(self, overrides: Mapping[str, Any]) -> tuple[Plain, Size] | None:
        config, size, files = self.known.get(exactly(overrides), (None, None, {}))
        if config is None or size is None or any(_state(file) != state for file, state in files.items()):
            return None
        return config, size

    def put(self, overrides: Mapping[str, Any], config: Plain, size: Size) -> None:
        ours = all(path.startswith(_OURS) for path in (*_class_paths(config), *_own_kind(config)))
        if self.file is None or not ours or "oc.env" in exactly(overrides):
            return
        if masked([overrides, config]) != [overrides, config]:
            return  # no secret is written
        texts = [value for _, value in (*leaves(config), *leaves(overrides)) if isinstance(value, str)]
        files = {file: _state(file) for file in (*self.named, *texts) if file and os.path.isfile(file)}
        self.known[exactly(overrides)] = config, size, files
        self.new = True

    def save(self) -> None:
        if self.file is None or not self.new:
            return
        raw = {name: (config, asdict(size), files) for name, (config, size, files) in self.known.items()}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.file, zlib.compress(json.dumps(raw).encode(), 1))
            for old in self.file.parent.glob("*.json.z"):
                if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                    old.unlink(missing_ok=True)
        except OSError as error:  # what only makes the next command quicker does not end this one
            print(f"warning: {self.file.parent}: {error.strerror}; nothing is remembered", file=sys.stderr)


def _code() -> str:
    """Everything that defaults and checks come from, as of now."""
    sources = [path for folder in (PACKAGE, PACKAGE.parent / "callbacks") for path in sorted(folder.rglob("*.py"))]
    stats = [f"{path} {stat.st_mtime_ns} {stat.st_size}" for path in sources for stat in [path.stat()]]
    versions = [f"{name} {version(name)}" for name in ("lightning", "jsonargparse", "omegaconf", "torch")]
    return "\n".join([*stats, *versions])


def _machine() -> list[str]:
    """What defaults follow from: processors and GPUs that can be seen."""
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia*"))
    return [socket.gethostname(), platform.machine(), os.environ.get("CUDA_VISIBLE_DEVICES", "all"), *gpus]


def _state(file: str) -> str:
    try:
        found = os.stat(file)
    except OSError:
        return "gone"
    return f"{found.st_mtime_ns} {found.st_size}"


def exactly(value: Any) -> str:
    """As text that keeps the order of keys, which on a command line matters, and 1 apart from 1.0."""
    return json.dumps(value)


def leaves(node: Mapping[str, Any], at: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """(path, value) of everything that is no mapping; an empty mapping is a leaf."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key), value


def _own_kind(config: Plain) -> Iterator[str]:
    """The import path of the user's own heads: what they cost may change while the configuration does not."""
    kind = config.get("model", {}).get("heads", {}).get("kind", "")
    if "." in kind:
        yield kind


def _class_paths(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"]
        for value in node.values():
            yield from _class_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from _class_paths(value)
