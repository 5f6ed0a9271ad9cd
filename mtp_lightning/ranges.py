"""What a number of a configuration may be, said where it is declared: `lr: Annotated[float, Range(above=0)] = 3e-4`.

`check_ranges` holds the fields of a dataclass, or the arguments of a constructor, against their declarations; every
class of a configuration calls it, and a test walks them all. NaN and infinities are in no range.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mtp_lightning.errors import InputError


@dataclass(frozen=True)
class Range:
    """The numbers from `least` (or above `above`) to `most` (or below `below`), without infinities."""

    least: float | int | None = None
    above: float | int | None = None
    most: float | int | None = None
    below: float | int | None = None

    def holds(self, value: float | int) -> bool:
        return (
            _is_finite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """`at least 1`, `above 0 and at most 10`."""
        parts = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{words} {_shown(bound)}" for words, bound in parts if bound is not None)


TINY = 1e-30
"""What a positive number that is computed with in float32 has to be at least: smaller ones may become 0."""
LARGEST_WEIGHT = 10**6
"""Of a loss."""
Count = Annotated[int, Range(least=1, most=10**9)]
"""Of things that are gone through one by one, or of steps between two events."""
Kept = Annotated[int, Range(least=1, most=10**6)]
"""Of things that are all in memory."""
Steps = Annotated[int, Range(least=0, most=10**9)]
"""Of which there may be none."""
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]
Workers = Annotated[int, Range(least=0, most=256)]
Fraction = Annotated[float, Range(above=0, below=1)]
Seconds = Annotated[float, Range(above=0, most=10**9)]
Weight = Annotated[float, Range(least=0, most=LARGEST_WEIGHT)]


def check_ranges(prefix: str, owner: type, values: Mapping[str, Any]) -> None:
    """
    Args:
        prefix: what goes before a field's name in a message, as `model.backbone`.
        owner: the dataclass, or the class whose constructor has the arguments.
        values: of the fields or arguments; what is not declared is left out.

    Raises:
        InputError: a number outside its range; names its key, and what would be right.
    """
    for name, hint in declared(owner).items():
        if name in values:
            check_value(f"{prefix}.{name}", values[name], hint)


def check_value(key: str, value: Any, hint: Any) -> None:
    """
    Args:
        hint: a type with a `Range` somewhere in it.

    Raises:
        InputError: no part of the type takes the value.
    """
    if not _fits(value, hint):
        raise InputError(f"{key} is {_as_written(value)}: it has to be {_wanted(hint, value)}")


@cache
def declared(owner: type) -> dict[str, Any]:
    """Name of each field, or constructor's argument, that has a range -> its type."""
    hints = get_type_hints(owner if is_dataclass(owner) else owner.__init__, include_extras=True)  # type: ignore[misc]
    return {name: hint for name, hint in hints.items() if next(_ranges(hint), None)}


def _ranges(hint: Any) -> Any:
    """All the ranges in a type."""
    if get_origin(hint) is Annotated:
        yield from (part for part in hint.__metadata__ if isinstance(part, Range))
    for part in get_args(hint):
        yield from _ranges(part)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a type takes the value; of types without a range in them, whether it could."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        wanted = Integral if args[0] is int else Real
        is_number = isinstance(value, wanted) and not isinstance(value, bool)
        return is_number and all(range_.holds(value) for range_ in _ranges(hint))
    if origin is Literal:
        return isinstance(value, str) and value in args
    if next(_ranges(hint), None) is None:
        return value is None if hint in (None, NoneType) else not _is_number(value) or hint in (int, float)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = value.items() if isinstance(value, Mapping) else ()
        return len(pairs) > 0 and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in pairs)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        items = [*args] if origin is tuple and Ellipsis not in args else [args[0]] * len(_items(value))
        return len(items) == len(_items(value)) > 0 and all(map(_fits, _items(value), items))
    return any(_fits(value, part) for part in args)


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _wanted(hint: Any, value: Any) -> str:
    """`at least 1, or null`: without the kind of number where the value is one."""
    parts = [part for part in _parts(hint) if part is not NoneType]
    null = ", or null" if len(parts) < len(_parts(hint)) else ""
    if len(parts) == 1 and get_origin(parts[0]) is Annotated and _is_number(value) and _is_finite(value):
        is_kind = get_args(parts[0])[0] is not int or isinstance(value, Integral)
        return f"{'' if is_kind else 'a whole number, '}{_range_of(parts[0])}{null}"
    return f"{', or '.join(map(_words, parts))}{null}"


def _parts(hint: Any) -> Sequence[Any]:
    """Of a union; of another type, itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _words(hint: Any) -> str:
    args = get_args(hint)
    if hint is str:
        return "text"
    if get_origin(hint) is Annotated:
        return f"{'a whole number' if args[0] is int else 'a finite number'}, {_range_of(hint)}"
    if get_origin(hint) is Literal:
        return " or ".join(repr(arg) for arg in args)
    if hint is str:
        return "text"
    if len(args) == 2 and get_origin(hint) is dict:
        return f"{{key: value}}, each key {_words(args[0])}, each value {_words(args[1])}"
    return f"a list, each item {_words(args[0])}"


def _range_of(hint: Any) -> str:
    return " and ".join(map(str, _ranges(hint)))


def _as_written(value: Any) -> str:
    return "null" if value is None else str([*value]) if isinstance(value, tuple) else str(value)


def _shown(bound: float | int) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _is_finite(value: float | int) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # a whole number may be larger than any float
