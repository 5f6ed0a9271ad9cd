"""Files that configurations read their data from, and that are not there: a grid is planned before its corpus is made,
and should not run before."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from mtp_lightning.config.keys.kept_documents import KEY
from mtp_lightning.data.corpora.source import GENERATED

_FILES = ("path", "chat_template", KEY)
_ELSEWHERE = (*GENERATED, "hub")


def said_of_missing(configs: Iterable[Mapping[str, Any]], lists_alone: bool = False) -> str:
    """One line on what is not there; empty where everything is.

    Args:
        configs: of the cells that are to run.
        lists_alone: only lists of kept documents, which signatures depend on; data may lie where the cells will run.
    """
    there = cache(_is_there)
    named = [{one for one in _named(config.get("data")) if one[0] == KEY or not lists_alone} for config in configs]
    missing = [{(key, path) for key, path in files if not there(path)} for files in named]
    if not any(missing):
        return ""
    found: dict[str, list[str]] = {}
    for key, path in sorted(set().union(*missing)):
        found.setdefault(key, []).append(f"'{path}'")
    names = "; ".join(f"data.source.{key} {', '.join(paths)}" for key, paths in found.items())
    changes = "; with a list a cell has another signature, as it is of what the list holds" if KEY in found else ""
    return f"not there: {names}: {sum(map(bool, missing))} of {len(named)} cells to run need them{changes}"


def _named(section: Any) -> Iterator[tuple[str, str]]:
    """(key, path) wherever a source stands (`SourceConfig`)."""
    if isinstance(section, (list, tuple)):
        for item in section:
            yield from _named(item)
    elif isinstance(section, Mapping):
        for item in section.values():
            yield from _named(item)
        if {"kind", *_FILES} <= section.keys():
            local = section["kind"] not in _ELSEWHERE
            yield from ((key, section[key]) for key in _FILES if section[key] and (local or key != "path"))


def _is_there(path: str) -> bool:
    path = os.path.expanduser(path)
    return os.path.exists(path) or any(glob.iglob(path, recursive=True))
