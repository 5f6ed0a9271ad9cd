"""The checks that every section of a grid file shares: they note each problem with its line and never stop the reading,
so that all problems are reported together."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mtp_lightning.config.keys.linked_keys import SEED_KEY
from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.grid.spec.values import kind
from mtp_lightning.tracking.params import non_semantic
from mtp_lightning.yaml_lines import Lines, place

_T = TypeVar("_T")
_DOTTED_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


class GridFile:
    """The content of a grid file. Every check notes what is wrong in `problems` and returns the good part."""

    def __init__(self, path: Path, raw: Mapping[Any, Any], lines: Lines) -> None:
        self.path, self.raw, self.lines = path, raw, lines
        self.problems: list[str] = []

    def problem(self, *key: str | int, message: str) -> bool:
        """Note it. Always False: "not good"."""
        self.problems.append(f"{place(self.path, self.lines, *key)}: {message}")
        return False

    def mapping(self, section: str) -> Mapping[Any, Any]:
        value = self.raw.get(section, {})
        if isinstance(value, dict):
            return value
        self.problem(section, message=f"must be a mapping, not {kind(value)}")
        return {}

    def items(self, section: str, type_: type | tuple[type, ...], what: str) -> Iterator[tuple[int, Any]]:
        """(index, item) of a section that is a list; nothing where the section is left out."""
        values = self.raw.get(section)
        if section not in self.raw:
            return
        if not isinstance(values, list) or not values:
            self.problem(section, message=f"must be a list of {what}, and not empty")
            return
        for index, value in enumerate(values):
            if isinstance(value, type_) and not isinstance(value, bool):
                yield index, value
            else:
                self.problem(section, index, message=f"must be a list of {what}; {value!r} is {kind(value)}")

    def keep(self, *section: str, indices: Sequence[int]) -> None:
        """Renumber `lines` after the broken items of a list were left out, `indices` being the good ones."""
        size, kept = len(section), {(*section, str(old)): str(new) for new, old in enumerate(indices)}
        self.lines = {
            (*section, kept[key[: size + 1]], *key[size + 1 :]) if key[: size + 1] in kept else key: line
            for key, line in self.lines.items()
            if key[:size] != section or len(key) == size or key[: size + 1] in kept
        }

    def settable(self, *at: str | int, key: object, identity: str | None) -> bool:
        """Whether a key can be set here; `identity`: what it can be only if it is part of a cell's identity."""
        if not isinstance(key, str) or not _DOTTED_KEY.fullmatch(key):
            return self.problem(*at, str(key), message="is not a dotted configuration key such as model.heads.n_future")
        if key == SEED_KEY:
            return self.problem(*at, key, message="seeds are set by the key `seeds`")
        if identity and (reason := non_semantic(key)):
            message = f"cannot be {identity}: it is no part of a cell's identity ({reason})"
            return self.problem(*at, key, message=message)
        return True

    def plain(self, value: object, *key: str | int) -> bool:
        try:
            canonical(value)
        except TypeError as error:
            return self.problem(*key, message=f"{error}; quote it if it is meant as text")
        return True

    def no_duplicates(self, values: Sequence[Any], *key: str | int) -> bool:
        """`values` are plain."""
        seen: set[str] = set()
        for value in values:
            text = canonical(value)
            if text in seen:
                return self.problem(*key, message=f"{value!r} is given twice")
            seen.add(text)
        return True

    def attempt(self, action: Callable[[], _T], *key: str | int) -> _T | None:
        """What `action` returns; None where it raises an InputError, which is noted."""
        try:
            return action()
        except InputError as error:
            self.problem(*key, message=str(error))
            return None
