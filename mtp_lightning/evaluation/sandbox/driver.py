"""Inside the confined process: run a program, and say what became of it.

The verdict goes out behind a random number that the program was never given. A program that ends the process, prints
"pass" or closes the way out therefore gets no pass; walking the frames to the number cannot be stopped inside one
process, so rewards use `entry`, whose results are judged outside.
"""

import ast
import builtins
import math
import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping
from operator import eq, gt, lt, ne
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from mtp_lightning.evaluation.sandbox import values

UNSAID = 81
"""Exit status of a child that could not write its verdict."""
SAID = ("passed", "failed", "exited", "out_of_memory")
"""Verdicts of a child; another is one that the program wrote itself."""
_PACKAGE = __name__.partition(".")[0]
_SETTRACE = sys.settrace
_PRETENCE = "a result is equal to everything, or says what cannot be"
_SCALARS = (bool, int, float, complex, str, bytes, type(None))


class Tests(NamedTuple):
    """Compiled before the program runs, which may replace what compiles them; and names of what they call."""

    code: CodeType
    guard: str
    untrace: str


class PretenceError(AssertionError):
    """A result that is equal to what it cannot be equal to, or tests that hold for any."""


def run_program(request: Mapping[str, Any], say: Callable[[str, str], None], nonce: str) -> None:
    """Run it and `say(verdict, detail)`; does not return."""
    leave, flush = os._exit, _fresh_streams()
    try:
        detail = _run(request, nonce)
        verdict = "passed"
    except SystemExit as error:
        whole = request["check"] is None and request["entry"] is None
        verdict, detail = ("passed" if whole and error.code in (None, 0) else "exited"), f"SystemExit: {error.code}"
    except MemoryError:
        verdict, detail = "out_of_memory", "MemoryError"
    except BaseException as error:
        verdict, detail = "failed", _described(error)
    try:
        flush(detail if verdict == "failed" else "")
        say(verdict, detail)
        leave(0)
    finally:
        leave(UNSAID)


def _run(request: Mapping[str, Any], nonce: str) -> str:
    """What is reported beside "passed"."""
    random.seed(0)  # of all programs alike, whichever server runs them
    whole = request["check"] is None and request["entry"] is None
    for name in ("exit", "quit"):  # of the module `site`, which is not loaded; programs call them
        setattr(builtins, name, sys.exit)
    restore = _restorer()
    module = ModuleType("__main__" if whole else "solution")
    for name in [name for name in sys.modules if name.startswith(_PACKAGE)]:  # the checks are not there to be replaced
        del sys.modules[name]
    tests = None if request["check"] is None else _guarded(request["check"])
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    space = vars(module)
    exec(compile(request["source"], "<program>", "exec", dont_inherit=True), space)
    if request["entry"] is not None:
        return _call(space, request["entry"], request["inputs"])
    if tests is not None:
        restore()
        number = int(nonce, 16)
        others = [object(), number, float(number), nonce, [nonce], (nonce,), {nonce: nonce}, {nonce}]
        _check(space, tests, request["canary"], restore, others)
    return ""


def _call(space: dict[str, Any], entry: str, inputs: str) -> str:
    """What each call returned. Encoded at once: a later call may change an object that an earlier one returned."""
    results: list[Any] = []
    for arguments in values.decode_all(inputs):
        try:
            result = space[entry](*arguments)
        except MemoryError:
            raise
        except Exception as error:
            result = values.Raised(_described(error))
        results.append(values.encode(result))
    return values.as_text(results)


def _check(
    space: dict[str, Any], tests: Tests, canary: str | None, restore: Callable[[], None], others: list[Any]
) -> None:
    """Run the tests in a copy of the program's names, and look at all that they call and compare."""
    found: list[Any] = []
    last: list[Any] = [None]

    def checked(value: Any, _: None) -> Any:
        restore()
        if _pretends(value, others):
            found.append(value)
            raise PretenceError(_PRETENCE)
        last[0] = value
        return value

    names = {**space, tests.guard: checked, tests.untrace: _SETTRACE}
    exec(tests.code, names)
    if found:
        raise PretenceError(_PRETENCE)
    names["__last__"] = last[0]
    for statement in filter(None, ("assert __last__ is __other__", canary)):
        for other in others:  # tests that can fail, fail here
            names["__other__"] = other
            try:
                exec(compile(statement, "<canary>", "exec", dont_inherit=True), names)
            except AssertionError:
                continue
            raise PretenceError("the tests would hold for any result")


def _guarded(text: str) -> Tests:
    """Tests with `guard(x, untrace(None))` in place of each x that is called or compared: `f(1) == y` becomes
    `guard(f(1), untrace(None)) == guard(y, untrace(None))`. What is called, a function, a class, a method, is itself.
    Tracing that a call has set ends in C, before a line that it could skip."""
    guard, untrace = (f"_{os.urandom(8).hex()}" for _ in range(2))  # names that no answer inside the tests can use
    tree = ast.parse(text, "<tests>")

    def wrapped(node: ast.expr) -> ast.expr:
        where = {name: getattr(node, name) for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")}
        names = [ast.Name(name, ast.Load(), **where) for name in (guard, untrace)]
        end = ast.Call(names[1], [ast.Constant(None, **where)], [], **where)
        return ast.Call(names[0], [node, end], [], **where)

    for node in list(ast.walk(tree)):
        for field, value in ast.iter_fields(node):
            kinds = ast.expr if isinstance(node, ast.Compare) else ast.Call
            if isinstance(value, list):
                value[:] = [wrapped(item) if isinstance(item, kinds) else item for item in value]
            elif isinstance(value, kinds):
                setattr(node, field, wrapped(value))
    return Tests(compile(tree, "<tests>", "exec", dont_inherit=True), guard, untrace)


def _pretends(value: Any, others: list[Any]) -> bool:
    """Whether a value, or one inside it, is equal to something that it cannot know, or says what cannot be."""
    left: list[Any] = [value]
    seen: dict[int, Any] = {}  # kept, so that no other one gets their ids
    while left:
        value = left.pop()
        if type(value) in _SCALARS or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, dict):
            left += [*dict.keys(value), *dict.values(value)]
        elif isinstance(value, list | tuple | set | frozenset):
            left += value if type(value) in (list, tuple, set, frozenset) else [*value]
        if type(value) not in (dict, list, tuple, set, frozenset) and _cannot_be(value, others):
            return True
    return False


def _cannot_be(value: Any, others: list[Any]) -> bool:
    """An object that is equal to one of `others`, or both true and false, or beyond the infinities."""
    return (
        any(_denies(eq, value, other, False) or _denies(ne, value, other, True) for other in others)
        or (_denies(eq, value, True, False) and _denies(eq, value, False, False))
        or _denies(lt, value, -math.inf, False)
        or _denies(gt, value, math.inf, False)
    )


def _denies(compare: Callable[[Any, Any], Any], value: Any, other: Any, expected: bool) -> bool:
    """Whether the answer is not the expected one. Where it cannot be compared with what is not of its kind, there is
    none."""
    try:
        return compare(value, other) is not expected
    except Exception:
        return False


def _restorer() -> Callable[[], None]:
    """Puts back what tests rely on and a program may have replaced: builtins, `math`, no tracing."""
    kept = [(vars(module), dict(vars(module))) for module in (builtins, math)]
    settrace, setprofile = sys.settrace, sys.setprofile

    def restore() -> None:
        settrace(None)
        setprofile(None)
        for names, before in kept:
            names.update(before)

    return restore


def _fresh_streams() -> Callable[[str], None]:
    """Standard streams of this process's own; returns what ends them, after a last word on standard error."""
    options = {"encoding": "utf-8", "errors": "replace", "closefd": False}
    streams: list[Any] = [open(i, mode, **options) for i, mode in enumerate("rww")]  # type: ignore[call-overload] # noqa: SIM115
    for name, stream in zip(("stdin", "stdout", "stderr"), streams):
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)

    def flush(last: str) -> None:
        for stream in (sys.stdout, sys.stderr, *streams[1:]):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):  # closed or replaced by the program
                continue
        os.write(2, last.encode(errors="replace"))

    return flush


def _described(error: BaseException) -> str:
    """The end of its traceback, within the program."""
    try:
        inside = error.__traceback__.tb_next if error.__traceback__ else None
        while inside and not inside.tb_frame.f_code.co_filename.startswith("<"):
            inside = inside.tb_next
        return "".join(traceback.format_exception(type(error), error, inside))[-2000:]
    except BaseException as failed:
        return f"{type(error).__name__}, which cannot be shown: {type(failed).__name__}"
