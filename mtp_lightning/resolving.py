"""The configurations of a grid's cells: resolved as `mtp fit` would, many at a time, and remembered between commands.

Lightning takes seconds to load and a configuration half a second to parse, which a grid of a thousand cells cannot wait
for. So a combination of values is put together from parses that differ in one value each, where that is sure to be
the same (`_Family`), and what came out is kept in the user's cache until code, files or machine are others.
"""

import hashlib
import json
import os
import platform
import re
import socket
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mtp_lightning.files import write_bytes
from mtp_lightning.grid.cost import Size
from mtp_lightning.grid.signature import SEED_KEY, canonical

if TYPE_CHECKING:
    from mtp_lightning.configurations import Parsed

PACKAGE = Path(__file__).resolve().parent
KEPT_SECONDS = 30 * 24 * 3600.0
"""What nobody asked for in so long goes."""
_OURS = ("mtp_lightning.", "callbacks.", "lightning.", "torch.")
"""Packages whose classes' defaults are known to be those of the cached configuration: their versions are in its key."""
_SEEDS = (SEED_KEY, "data.init_args.seed")
"""Keys that no check looks at."""
_ENTANGLED = re.compile(r"\$\{[^}]*(\$\{|:[^}])")
"""Interpolation inside an interpolation, or with arguments: may depend on several keys at once."""
_ABSENT = object()

Plain = dict[str, Any]
Keys = tuple[str, ...]
"""A dotted key, split."""


class Resolver:
    """Calling it is `configurations.resolve_config`; `measure` says how large what it resolved is.

    Args:
        cache: folder to remember configurations in; None remembers nothing.
    """

    def __init__(self, cache: Path | None) -> None:
        self._families: dict[tuple[Path, ...], _Family] = {}
        self._cache = cache
        self._sizes: dict[str, Size] = {}

    def __call__(self, configs: Sequence[Path], overrides: Mapping[str, Any]) -> Plain:
        """
        Raises:
            InputError: what `mtp fit` would refuse.
        """
        files = tuple(configs)
        if files not in self._families:
            self._families[files] = _Family(files, _Store.of(self._cache, files))
        config, size = self._families[files].resolve(overrides)
        self._sizes[_without_seeds(config)] = size
        return config

    def measure(self, config: Mapping[str, Any]) -> Size:
        """Of a configuration that was resolved here."""
        return self._sizes[_without_seeds(config)]

    def remember(self) -> None:
        """Keep what is new for the next command."""
        for family in self._families.values():
            family.store.save()


class _Way(NamedTuple):
    """How a configuration was come by: a parse, and what has to be changed of it."""

    parsed: "Parsed"
    changes: dict[Keys, Any]
    config: Plain


class _Family:
    """Configurations of the same files under different overrides.

    The first is the anchor. What one override changes of it is found by parsing; where the changes of several touch
    different keys, they are put together. That would be wrong where a key depends on several others at once, so the
    first combination of each set of keys is parsed as well, and compared; where they differ, nothing is put together
    any more. Whatever is resolved is checked as a whole, objects made of it on the meta device.
    """

    def __init__(self, files: tuple[Path, ...], store: "_Store") -> None:
        self.files, self.store = files, store
        self.anchor: "Parsed | None" = None
        self.anchored: Mapping[str, Any] = {}
        """The overrides of the anchor."""
        self.leaves: dict[Keys, Any] = {}
        self.changes: dict[str, dict[Keys, Any] | None] = {}
        """(key, its value) as text -> changed keys and their values; None: not to be put together."""
        self.proved: set[frozenset[str]] = set()
        self.composes = not any(_ENTANGLED.search(path.read_text(encoding="utf-8")) for path in files)
        self.checked: dict[str, Size] = {}

    def resolve(self, overrides: Mapping[str, Any]) -> tuple[Plain, Size]:
        found = self.store.get(overrides)
        if found is None:
            way = self._put_together(overrides) or self._parse(overrides)
            name = _without_seeds(way.config)
            if name not in self.checked:
                from mtp_lightning.configurations import check_config

                self.checked[name] = check_config(way.parsed, {".".join(k): v for k, v in way.changes.items()})
            found = way.config, self.checked[name]
            self.store.put(overrides, *found)
        return found

    def _parse(self, overrides: Mapping[str, Any]) -> _Way:
        from mtp_lightning.configurations import parse_config

        parsed = parse_config(self.files, overrides)
        if self.anchor is None:
            self.anchor, self.anchored, self.leaves = parsed, dict(overrides), dict(_leaves(parsed.plain))
        return _Way(parsed, {}, parsed.plain)

    def _put_together(self, overrides: Mapping[str, Any]) -> _Way | None:
        """None where it has to be parsed."""
        if self.anchor is None or not self.composes:
            return None
        keys = frozenset(_differing(self.anchored, overrides))
        changes: dict[Keys, Any] = {}
        for key in keys:
            change = self._change(key, overrides)
            if change is None or any(path in changes for path in change):
                return None
            changes |= change
        config = _changed(self.anchor.plain, changes)
        if len(keys) > 1 and keys not in self.proved:
            way = self._parse(overrides)
            self.composes = canonical(way.config) == canonical(config)
            self.proved.add(keys)
            return way
        return _Way(self.anchor, changes, config)

    def _change(self, key: str, overrides: Mapping[str, Any]) -> dict[Keys, Any] | None:
        """What the value of one key in `overrides`, or its absence, changes of the anchor."""
        name = canonical([key, key in overrides, overrides.get(key)])
        if name not in self.changes:
            alone = {k: v for k, v in self.anchored.items() if k != key}
            if key in overrides:
                alone[key] = overrides[key]
            after = dict(_leaves(self._parse(alone).config))
            different = {path: value for path, value in after.items() if value != self.leaves.get(path, _ABSENT)}
            whole = after.keys() == self.leaves.keys() and not any(map(_holds_objects, different.values()))
            self.changes[name] = different if whole else None
        return self.changes[name]


class _Store:
    """What was resolved from the same files by the same code on this machine, in one compressed file of the cache."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.new = file, False
        self.known: dict[str, tuple[Plain, Size]] = {}
        if file is not None and file.is_file():
            try:
                raw = json.loads(zlib.decompress(file.read_bytes()))
            except (zlib.error, ValueError):
                return  # torn: made anew
            self.known = {name: (config, Size(**size)) for name, (config, size) in raw.items()}

    @classmethod
    def of(cls, folder: Path | None, files: Sequence[Path]) -> "_Store":
        texts = [path.read_text(encoding="utf-8") for path in files]
        if folder is None or any("oc.env" in text for text in texts):  # the environment is in no key
            return cls(None)
        key = canonical([_code(), socket.gethostname(), platform.processor(), os.getcwd(), *map(str, files), *texts])
        return cls(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json.z")

    def get(self, overrides: Mapping[str, Any]) -> tuple[Plain, Size] | None:
        return self.known.get(canonical(overrides))

    def put(self, overrides: Mapping[str, Any], config: Plain, size: Size) -> None:
        if all(path.startswith(_OURS) for path in _class_paths(config)):
            self.known[canonical(overrides)] = config, size
            self.new = True

    def save(self) -> None:
        if self.file is None or not self.new:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        raw = {name: (config, asdict(size)) for name, (config, size) in self.known.items()}
        write_bytes(self.file, zlib.compress(json.dumps(raw).encode(), 1))
        for old in self.file.parent.glob("*.json.z"):
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                old.unlink(missing_ok=True)


def cache_folder() -> Path:
    """`~/.cache/mtp_lightning/configurations`, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mtp_lightning" / "configurations"


def _code() -> str:
    """Everything that defaults and checks come from, as of now."""
    sources = [path for folder in (PACKAGE, PACKAGE.parent / "callbacks") for path in sorted(folder.rglob("*.py"))]
    stats = [f"{path} {stat.st_mtime_ns} {stat.st_size}" for path in sources for stat in [path.stat()]]
    versions = [f"{name} {version(name)}" for name in ("lightning", "jsonargparse", "omegaconf", "torch")]
    return "\n".join([*stats, *versions])


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for key in {**one, **other}:
        if (key in one) != (key in other) or canonical(one[key]) != canonical(other[key]):
            yield key


def _leaves(node: Mapping[str, Any], at: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """(path, value) of everything that is no mapping; an empty mapping is a leaf."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*at, key))
        else:
            yield (*at, key), value


def _changed(config: Plain, changes: Mapping[Keys, Any]) -> Plain:
    """A copy with other values; what was not changed is shared with the original."""
    copy = dict(config)
    for path, value in changes.items():
        node = copy
        for part in path[:-1]:
            node[part] = node = dict(node[part])
        node[path[-1]] = value
    return copy


def _holds_objects(value: Any) -> bool:
    return isinstance(value, (list, Mapping)) and "class_path" in json.dumps(value)


def _class_paths(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"]
        for value in node.values():
            yield from _class_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from _class_paths(value)


def _without_seeds(config: Mapping[str, Any]) -> str:
    """What checks and sizes depend on."""
    return canonical([value for path, value in _leaves(config) if ".".join(path) not in _SEEDS])
