"""What jsonargparse takes and a class would fail on: a value where a group of keys belongs, null where a class wants a
value."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from pydoc import locate
from types import NoneType
from typing import Any, get_args, get_type_hints

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
        hint = hints.get(name, Any)
        if is_dataclass(hint) and isinstance(value, Mapping):
            yield from _against(hint, value, f"{key}.{name}")
        elif is_dataclass(hint):
            yield f"{key}.{name}", value, "keys with their values"
        elif value is None and hint not in (Any, object, NoneType) and NoneType not in get_args(hint):
            yield f"{key}.{name}", None, type_name(hint)
