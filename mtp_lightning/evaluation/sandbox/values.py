"""Python values as JSON text and back, without loss and without running anything: what a function in the sandbox
returned. Of other types only the name is kept, and such a value is equal to nothing."""

import json
from typing import Any


class Other:
    """A value of a type that is not carried over."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class Raised(Other):
    """The call ended with an exception, which `kind` describes."""


def encode_all(values: list[Any]) -> str:
    return as_text([encode(value) for value in values])


def as_text(encoded: list[Any]) -> str:
    """Of values that `encode` has encoded."""
    return json.dumps(encoded)


def decode_all(text: str) -> list[Any]:
    """
    Raises:
        ValueError: not text of `encode_all`, as of a hostile program; nested too deeply.
    """
    try:
        return [decode(value) for value in json.loads(text)]
    except (RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not encoded values: {type(error).__name__}") from error


def encode(value: Any) -> Any:
    """A str, bool or None as it is; of others `[name of the type, content]`."""
    if value is None or type(value) in (bool, str):
        return value
    if isinstance(value, Other):
        return ["raised" if isinstance(value, Raised) else "other", value.kind]
    if isinstance(value, bool | int):
        return ["int", hex(value)]  # decimal digits have a limit
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", [float.hex(value.real), float.hex(value.imag)]]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(item)] for key, item in value.items()]]
    for kind, types in (("list", list), ("tuple", tuple), ("set", (set, frozenset))):
        if isinstance(value, types):
            return [kind, [encode(item) for item in value]]
    return ["other", type(value).__name__]


def decode(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    kind, content = value
    if kind in ("other", "raised"):
        return (Raised if kind == "raised" else Other)(str(content))
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float.fromhex(content)
    if kind == "complex":
        return complex(*map(float.fromhex, content))
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {_hashable(decode(key)): decode(item) for key, item in content}
    items = map(decode, content)
    if kind == "set":
        return {_hashable(item) for item in items}
    return tuple(items) if kind == "tuple" else [*items]


def _hashable(value: Any) -> Any:
    """A set inside a set was frozen."""
    return frozenset(value) if isinstance(value, set) else value
