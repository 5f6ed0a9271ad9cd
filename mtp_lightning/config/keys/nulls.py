"""A null where a class wants a value: jsonargparse takes it, and the class would fail on it."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pydoc import locate
from types import NoneType
from typing import Any, get_args, get_type_hints

from mtp_lightning.config.keys.help_format import type_name
from mtp_lightning.errors import InputError


def refuse_nulls(config: Mapping[str, Any]) -> None:
    """
    Args:
        config: parsed, as mappings; looked at are `init_args` of classes.

    Raises:
        InputError: an argument is null that cannot be.
    """
    for key, hint in _nulls(config, ""):
        raise InputError(f"{key} is null: it has to be {type_name(hint)}")


def _nulls(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(key, type) of each argument that is null against its type."""
    if isinstance(node, list):
        for item in node:
            yield from _nulls(item, key)
    if not isinstance(node, Mapping):
        return
    if isinstance(node.get("class_path"), str) and isinstance(node.get("init_args"), Mapping):
        cls = locate(node["class_path"])
        yield from _against(getattr(cls, "__init__", None), node["init_args"], f"{key}.init_args")
    for name, value in node.items():
        yield from _nulls(value, f"{key}.{name}".lstrip("."))


def _against(declares: Any, arguments: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    try:
        hints = get_type_hints(declares)
    except (TypeError, NameError):
        return  # its types are not to be had
    for name, value in arguments.items():
        hint = hints.get(name, Any)
        if is_dataclass(hint) and isinstance(value, Mapping):
            yield from _against(hint, value, f"{key}.{name}")
        elif value is None and hint not in (Any, object, NoneType) and NoneType not in get_args(hint):
            yield f"{key}.{name}", hint
