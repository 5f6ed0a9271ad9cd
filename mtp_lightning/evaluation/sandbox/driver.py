"""Inside the confined process: run a program, and say what became of it.

The verdict goes out behind a random number that the program was never given. A program that ends the process, prints
"pass" or closes the way out therefore gets no pass; walking the frames to the number cannot be stopped inside one
process, so rewards use `entry`, whose results are judged outside.
"""

import builtins
import math
import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from mtp_lightning.evaluation.sandbox import values

UNSAID = 81
"""Exit status of a child that could not write its verdict."""
SAID = ("passed", "failed", "exited", "out_of_memory")
"""Verdicts of a child; another is one that the program wrote itself."""
_SCALARS = (bool, int, float, complex, str, bytes, type(None))


class PretenceError(AssertionError):
    """A result that is equal to what it cannot be equal to."""


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
    space: dict[str, Any] = {"__name__": "__main__" if whole else "solution", "__builtins__": builtins}
    exec(compile(request["source"], "<program>", "exec", dont_inherit=True), space)
    if request["entry"] is not None:
        return _call(space, request["entry"], request["inputs"])
    if request["check"] is not None:
        restore()
        _check(space, request, restore, [object(), int(nonce, 16), nonce, [nonce], (nonce,), {nonce: nonce}, {nonce}])
    return ""


def _call(space: dict[str, Any], entry: str, inputs: str) -> str:
    results: list[Any] = []
    for arguments in values.decode_all(inputs):
        try:
            results.append(space[entry](*arguments))
        except MemoryError:
            raise
        except Exception as error:
            results.append(values.Raised(_described(error)))
    return values.encode_all(results)


def _check(space: dict[str, Any], request: Mapping[str, Any], restore: Callable[[], None], others: list[Any]) -> None:
    """Run the tests in a copy of the program's names in which its functions are guarded; they themselves still call
    each other as they are."""
    found: list[str] = []
    last: list[Any] = [None]

    def guarded(function: FunctionType) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            value = function(*args, **kwargs)
            restore()
            if _pretends(value, others):
                found.append(function.__name__)
                raise PretenceError(f"{function.__name__} returned what is equal to everything")
            last[0] = value
            return value

        return call

    tests = {
        name: guarded(value) if isinstance(value, FunctionType) and value.__globals__ is space else value
        for name, value in space.items()
    }
    exec(compile(request["check"], "<tests>", "exec", dont_inherit=True), tests)
    if found:
        raise PretenceError(f"{found[0]} returned what is equal to everything")
    tests["__last__"] = last[0]
    for statement in filter(None, ("assert __last__ is __other__", request["canary"])):
        for other in others:  # tests that can fail, fail here
            tests["__other__"] = other
            try:
                exec(compile(statement, "<canary>", "exec", dont_inherit=True), tests)
            except AssertionError:
                continue
            raise PretenceError("the tests would hold for any result")


def _pretends(value: Any, others: list[Any]) -> bool:
    """Whether a value, or one inside it, is equal to something that it cannot know."""
    left, seen = [value], set()
    while left:
        value = left.pop()
        if type(value) in _SCALARS or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += [*dict.keys(value), *dict.values(value)]
        elif isinstance(value, list | tuple | set | frozenset):
            left += value if type(value) in (list, tuple, set, frozenset) else [*value]
        if type(value) not in (dict, list, tuple, set, frozenset):
            for other in others:
                if (value == other) is not False or (value != other) is not True:
                    return True
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
