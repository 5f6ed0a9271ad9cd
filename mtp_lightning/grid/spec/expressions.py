"""Conditions on a setting, such as `n_future > 4 and dim == 64`: parsed by Python's grammar, evaluated by the few rules
below and by nothing else.

Names are dotted keys, or any ending of one that no other key shares; `seed` is the seed. Equality is that of the grid
file: 1 is 1.0, true is not 1, a list is its items, and a configuration file is its text as written or its stem.
"""

import ast
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.grid.spec.signature import same
from mtp_lightning.grid.spec.values import SEED, endings, is_file, is_number, kind

Values = Mapping[str, Any]
_Node = Callable[[Values], Any]
_Test = Callable[[Any, Any], bool]

_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ORDER: Mapping[type[ast.cmpop], _Test] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_WORDS = {"true": True, "false": False, "null": None}
"""YAML's spelling, beside Python's."""


class Expression:
    """Raises an InputError that names the expression: when it is made, for grammar and unknown names; in `holds`, for
    what a value does not allow."""

    def __init__(self, text: str, keys: Collection[str], stages: Sequence[str] = ()) -> None:
        self.text = text
        self.keys: set[str] = set()
        """The keys that it names; `seed` may be among them."""
        self._known = [*keys, SEED]
        self._owners = endings(self._known, stages)
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError) as error:
            problem = error.msg if isinstance(error, SyntaxError) else error
            raise self._error(f"is not an expression such as n_future > 4: {problem}") from error
        self._root = self._node(tree.body)

    def holds(self, values: Values) -> bool:
        """Whether it is true of `values`: key -> value, also of `seed`; they have every one of `keys`."""
        return self._truth(self._root(values))

    def _error(self, message: str) -> InputError:
        return InputError(f"'{self.text}': {message}")

    def _node(self, node: ast.expr) -> _Node:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return lambda _: value
            case ast.Name() | ast.Attribute():
                return self._name(node)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                parts = list(map(self._node, items))
                return lambda values: [part(values) for part in parts]
            case ast.BoolOp(op=op, values=operands):
                parts, decide = list(map(self._node, operands)), all if isinstance(op, ast.And) else any
                return lambda values: decide(self._truth(part(values)) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                negated = self._node(operand)
                return lambda values: not self._truth(negated(values))
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
                part, sign = self._node(operand), -1 if isinstance(op, ast.USub) else 1
                return lambda values: sign * self._number(part(values))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return partial(self._arithmetic, _ARITHMETIC[type(op)], self._node(left), self._node(right))
            case ast.Compare(left=left, ops=ops, comparators=others):
                parts = [self._node(part) for part in (left, *others)]
                return partial(self._compare, parts, list(map(self._test, ops)))
        raise self._error(
            f"'{ast.unparse(node)}' is not understood; there are comparisons, in, and, or, not, + - * / // %, "
            "numbers, text in quotes, lists, and the keys of the axes"
        )

    def _name(self, node: ast.expr) -> _Node:
        name = ast.unparse(node)
        owners = [name] if name in self._known else self._owners.get(name, [])
        if not owners and name in _WORDS:
            return lambda _: _WORDS[name]
        if len(owners) > 1:
            raise self._error(f"'{name}' may be {' or '.join(owners)}")
        if not owners:
            known = did_you_mean(name, self._owners) or f"; there are {', '.join(self._known)}"
            raise self._error(f"unknown name '{name}'{known} (text goes in quotes)")
        key = owners[0]
        self.keys.add(key)
        return lambda values: values[key]

    def _arithmetic(self, operation: Callable[[Any, Any], Any], left: _Node, right: _Node, values: Values) -> Any:
        try:
            return operation(self._number(left(values)), self._number(right(values)))
        except ArithmeticError as error:
            raise self._error(str(error)) from error

    def _compare(self, parts: Sequence[_Node], tests: Sequence[_Test], values: Values) -> bool:
        """`1 < x <= 4`, from left to right, up to the first comparison that is false."""
        left = parts[0](values)
        for test, part in zip(tests, parts[1:]):
            right = part(values)
            if not test(left, right):
                return False
            left = right
        return True

    def _test(self, op: ast.cmpop) -> _Test:
        match op:
            case ast.Eq():
                return _same
            case ast.NotEq():
                return lambda left, right: not _same(left, right)
            case ast.In():
                return self._contains
            case ast.NotIn():
                return lambda left, right: not self._contains(left, right)
        if type(op) not in _ORDER:
            raise self._error("'is' is not understood; write == or !=")
        return partial(self._ordered, _ORDER[type(op)])

    def _ordered(self, compare: _Test, left: Any, right: Any) -> bool:
        numbers = is_number(left) and is_number(right)
        if not numbers and not (isinstance(left, str) and isinstance(right, str)):
            raise self._error(f"{left!r} ({kind(left)}) and {right!r} ({kind(right)}) have no order")
        return compare(left, right)

    def _contains(self, item: Any, whole: Any) -> bool:
        if isinstance(whole, list):
            return any(_same(item, part) for part in whole)
        if isinstance(whole, str) and isinstance(item, str):
            return item in whole
        raise self._error(f"nothing is in {whole!r}, which is {kind(whole)}; give a list")

    def _number(self, value: Any) -> int | float:
        if not is_number(value):
            raise self._error(f"{value!r} is {kind(value)}, and not a number")
        return value

    def _truth(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._error(f"{value!r} is {kind(value)}, and neither true nor false; compare it with something")
        return value


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return left == right or right == _stem(left) or left == _stem(right)
    return same(left, right)


def _stem(text: str) -> str | None:
    return Path(text).stem if is_file(text) else None
