"""What jsonargparse takes and a class would fail on: a value where a group of keys belongs, null where a class wants a
value."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pydoc import locate
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from mtp_lightning.config.keys.help_format import type_name
from mtp_lightning.errors import InputError


def refuse_wrong_groups(config: Mapping[str, Any], keys: Iterable[str], classes: Mapping[str, type]) -> None:
    """
    Args:
        config: parsed, as mappings.
        keys: dotted, all that there are outside of classes' `init_args`.
        classes: whose arguments a group of the top level has, where it has no `class_path`.

    Raises:
        InputError: names the key.
    """
    groups = {".".join(parts[:i]) for parts in (key.split(".") for key in keys) for i in range(1, len(parts))}
    for group in sorted(groups):
        value: Any = config
        for part in group.split("."):
            value = value.get(part, {}) if isinstance(value, Mapping) else {}
        if not isinstance(value, Mapping):
            raise InputError(f"{group} is {value!r}: it has to be keys with their values")
    named = (_against(cls.__init__, config.get(group, {}), group) for group, cls in classes.items())  # type: ignore[misc]
    for key, value, wanted in itertools.chain(_wrong(config, ""), *named):
        raise InputError(f"{key} is {'null' if value is None else repr(value)}: it has to be {wanted}")


def _wrong(node: Any, key: str) -> Iterator[tuple[str, Any, str]]:
    """(key, value, what it has to be) of arguments of classes."""
    if isinstance(node, list):
        for item in node:
            yield from _wrong(item, key)
    if not isinstance(node, Mapping):
        return
    if isinstance(node.get("class_path"), str) and isinstance(node.get("init_args"), Mapping):
        cls = locate(node["class_path"])
        yield from _against(getattr(cls, "__init__", None), node["init_args"], f"{key}.init_args")
    for name, value in node.items():
        yield from _wrong(value, f"{key}.{name}".lstrip("."))


def _against(declares: Any, arguments: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any, str]]:
    try:
        hints = get_type_hints(declares)
    except (TypeError, NameError):
        return  # its types are not to be had
    for name, value in arguments.items():
        yield from _value_against(hints.get(name, Any), value, f"{key}.{name}")


def _value_against(hint: Any, value: Any, key: str) -> Iterator[tuple[str, Any, str]]:
    parts = [
        part for part in (get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)) if part != NoneType
    ]
    if value is None:
        if hint not in (Any, object, NoneType) and NoneType not in get_args(hint):
            yield key, None, "keys with their values" if is_dataclass(hint) else type_name(hint)
    elif len(parts) != 1:
        return  # jsonargparse tries one after the other
    elif is_dataclass(parts[0]):
        if isinstance(value, Mapping):
            yield from _against(parts[0], value, key)
        else:
            yield key, value, "keys with their values"
    elif get_origin(parts[0]) in (list, Sequence) and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _value_against(get_args(parts[0])[0], item, f"{key}[{number}]")
