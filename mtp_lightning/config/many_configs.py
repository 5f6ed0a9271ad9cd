"""The configurations of a grid's cells: resolved as `mtp fit` would, many at a time, and remembered between commands.

Lightning takes seconds to load, and a grid of a thousand cells cannot wait for a thousand parses. So a combination of
values is put together from parses that differ in one value each, where that is sure to be the same (`_Family`), and
what came out is kept in the user's cache until code, files or machine are others.

Why so much code: a grid of 1,000 cells (two seeds each) takes 57 s of CPU the first time and 6 from the cache, on a
machine twice as slow as an idle one for its other work, and no part can go: without putting together it would be 260 s
more (1,000 parses of 0.27 s for 35), with a parser for each parse 10, with weights drawn for each check 33, with a
check for each seed 10, and without the cache 57 each time. What else stands here keeps that from being wrong: a parse
to prove each first combination (4 of the 35), and what a remembered configuration also depends on (files that are
named, the environment, other people's classes, GPUs).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mtp_lightning.config.config_cache import Keys, Plain, Store, exactly, leaves
from mtp_lightning.config.keys.early_checks import check_numbers
from mtp_lightning.config.keys.key_origins import KeyOrigins, arguments
from mtp_lightning.config.keys.known_keys import check_keys
from mtp_lightning.config.keys.linked_keys import SEED_KEY
from mtp_lightning.config.run_size import Size
from mtp_lightning.errors import InputError
from mtp_lightning.model.initial import CELL

if TYPE_CHECKING:
    from mtp_lightning.config.one_config import Parsed

_SEEDS = (SEED_KEY, "data.init_args.seed")
"""Keys that no check looks at."""
_ENTANGLED = re.compile(r"\$\{[^}]*(\$\{|:[^}])")
"""Interpolation inside an interpolation, or with arguments: may depend on several keys at once."""
_ABSENT = object()


class Resolver:
    """Calling it is `one_config.resolve_config`; `measure` says how large what it resolved is.

    Args:
        cache: folder to remember configurations in; None remembers nothing.
    """

    def __init__(self, cache: Path | None) -> None:
        self._families: dict[tuple[Path, ...], _Family] = {}
        self._cache = cache
        self._sizes: dict[str, Size] = {}
        self._keys_checked: dict[str, InputError | None] = {}
        """Files and overrides without their numbers -> what is wrong with their keys."""
        self._refused: set[str] | None = None
        """Key and value of each override of the last combination that had a wrong key."""

    def __call__(self, configs: Sequence[Path], overrides: Mapping[str, Any]) -> Plain:
        """
        Raises:
            InputError: what `mtp fit` would refuse.
        """
        files = tuple(configs)
        if files not in self._families:
            self._families[files] = _Family(files, Store.of(self._cache, files))
        self.check_keys(files, overrides)
        given = {exactly(pair) for pair in overrides.items() if pair[0] != SEED_KEY}
        if self._refused is not None and given <= self._refused:
            # Whoever looks for the culprit among the parts of what was refused does not wait for Lightning.
            raise InputError(f"{exactly(overrides)}: not resolved, since a key beside these is wrong")
        config, size = self._families[files].resolve(overrides)
        self._sizes[_without_seeds(config)] = size
        return config

    def check_keys(self, configs: Sequence[Path], overrides: Mapping[str, Any]) -> None:
        """
        Raises:
            InputError: keys that no configuration has, numbers out of their range; known without Lightning.
        """
        numbers = {key: None for key, value in overrides.items() if isinstance(value, (int, float))}
        name = exactly([[str(path) for path in configs], {**overrides, **numbers}])
        if name not in self._keys_checked:
            try:
                check_keys(KeyOrigins(arguments(configs, overrides), flags=""))
            except InputError as error:
                self._keys_checked[name] = error
            else:
                self._keys_checked[name] = None
        refused = self._keys_checked[name]
        if refused is not None:
            self._refused = {exactly(pair) for pair in overrides.items()}
            raise InputError(str(refused))
        check_numbers(overrides)

    def measure(self, config: Mapping[str, Any]) -> Size:
        """Of a configuration that was resolved here."""
        return self._sizes[_without_seeds(config)]

    def remember(self) -> None:
        """Keep what is new for the next command."""
        for family in self._families.values():
            family.store.save()


class _Way(NamedTuple):
    """How a configuration was obtained: a parse, and what has to be changed of it."""

    parsed: "Parsed"
    changes: dict[Keys, Any]
    config: Plain


class _Family:
    """Configurations of the same files under different overrides.

    The first is the anchor. What one override changes of it is found by parsing; where the changes of several touch
    different keys, they are put together. That would be wrong where a key depends on several others at once. So what
    interpolates, and what sets a key and another below it, is always parsed, and of the rest the first combination of
    each set of keys is parsed as well, and compared; where they differ, nothing is put together any more. Whatever is
    resolved is checked as a whole, objects made of it on the meta device.
    """

    def __init__(self, files: tuple[Path, ...], store: Store) -> None:
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
                from mtp_lightning.config.one_config import check_config

                self.checked[name] = check_config(way.parsed, {".".join(k): v for k, v in way.changes.items()})
            found = way.config, self.checked[name]
            self.store.put(overrides, *found)
        return found

    def _parse(self, overrides: Mapping[str, Any]) -> _Way:
        from mtp_lightning.config.one_config import parse_config

        parsed = parse_config(self.files, overrides, self.anchor)
        if self.anchor is None:
            self.anchor, self.anchored, self.leaves = parsed, dict(overrides), dict(leaves(parsed.plain))
        return _Way(parsed, {}, parsed.plain)

    def _put_together(self, overrides: Mapping[str, Any]) -> _Way | None:
        """None where it has to be parsed."""
        if self.anchor is None or not self.composes or not _stands_alone({**self.anchored, **overrides}):
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
            self.composes = way.config == config
            self.proved.add(keys)
            return way
        return _Way(self.anchor, changes, config)

    def _change(self, key: str, overrides: Mapping[str, Any]) -> dict[Keys, Any] | None:
        """What the value of one key in `overrides`, or its absence, changes of the anchor."""
        name = exactly([key, key in overrides, overrides.get(key)])
        if name not in self.changes:
            alone = {k: v for k, v in self.anchored.items() if k != key}
            if key in overrides:
                alone[key] = overrides[key]
            try:
                after = dict(leaves(self._parse(alone).config))
            except InputError:  # it needs one of the others
                self.changes[name] = None
                return None
            different = {path: value for path, value in after.items() if value != self.leaves.get(path, _ABSENT)}
            whole = after.keys() == self.leaves.keys() and not any(map(_holds_objects, different.values()))
            self.changes[name] = different if whole else None
        return self.changes[name]


def _stands_alone(overrides: Mapping[str, Any]) -> bool:
    """Neither interpolates nor sets a key and another below it."""
    keys = sorted(overrides)
    below = any(b.startswith(f"{a}.") for a, b in pairwise(keys))
    return not below and "${" not in exactly(overrides)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for key in {**one, **other}:
        if (key in one) != (key in other) or exactly(one[key]) != exactly(other[key]):
            yield key


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
    return isinstance(value, (list, Mapping)) and "class_path" in exactly(value)


def _without_seeds(config: Mapping[str, Any]) -> str:
    """What checks and sizes depend on."""
    found = [(".".join(path), value) for path, value in leaves(config)]
    return exactly([[key, CELL if _is_cell(key, value) else value] for key, value in found if key not in _SEEDS])


def _is_cell(key: str, value: Any) -> bool:
    """A cell of the same grid to begin from, which is not looked into."""
    return key == "model.init.path" and isinstance(value, str) and value.startswith(CELL)
