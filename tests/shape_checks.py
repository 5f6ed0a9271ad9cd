"""Types and shapes of signatures, checked by beartype; in one of jaxtyping's contexts where a signature has shapes.

jaxtyping's own decorator binds every call's arguments and checks them twice, also where a function has no shape: a
sixth of the time of all tests.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """For packages that are imported with jaxtyping's hook from now on: it decorates all that they define."""
    jaxtyping.jaxtyped = lambda *, typechecker: checked


def checked(defined: Any) -> Any:
    """A function whose calls are checked; a dataclass whose `__init__` is; what else may be decorated."""
    if not inspect.isfunction(defined) or inspect.isgeneratorfunction(defined):
        return _jaxtyped(defined, typechecker=beartype)
    hints = {name: _resolved(hint, defined.__globals__) for name, hint in defined.__annotations__.items()}
    shapes = [shape for hint in hints.values() for shape in _shapes(hint)]
    if any("{" in shape for shape in shapes):  # of an argument's value, which it alone knows
        return _jaxtyped(defined, typechecker=beartype)
    return _checked(defined, hints, bool(shapes))


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """Without strings; one that names what is not imported while the program runs may be anything."""

    def holder() -> None: ...

    holder.__annotations__ = {"it": hint}
    try:
        return get_type_hints(holder, names, include_extras=True)["it"]
    except NameError:
        return Any


def _shapes(hint: Any) -> list[str]:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return [hint.dim_str]
    return [shape for part in get_args(hint) for shape in _shapes(part)]


def _checked(function: Callable[..., Any], hints: dict[str, Any], shaped: bool) -> Callable[..., Any]:
    own, function.__annotations__ = function.__annotations__, hints
    strict, settings = beartype(function), jaxtyping.config
    function.__annotations__ = own

    @functools.wraps(function)
    def by_type(*args: Any, **kwargs: Any) -> Any:
        return (function if settings.jaxtyping_disable else strict)(*args, **kwargs)

    @functools.wraps(function)
    def by_shape(*args: Any, **kwargs: Any) -> Any:
        if settings.jaxtyping_disable:
            return function(*args, **kwargs)
        with _jaxtyped("context"):
            return strict(*args, **kwargs)

    return by_shape if shaped else by_type
