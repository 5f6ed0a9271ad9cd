"""Programs that only pretend to pass their tests, and right ones that look like it."""

import pytest
from test_evaluation_verdicts import CHECK, EQUAL, FRAMES, GOOD, one, sandbox

from mtp_lightning.evaluation.sandbox import Program, Sandbox

__all__ = ["sandbox"]

SKIP = """
import sys
def tracer(frame, event, arg):
    return tracer
def f(x):
    caller = sys._getframe(DEPTH)
    sys.settrace(tracer)
    def skip(frame, event, arg):
        if event == "line":
            frame.f_lineno = 2
        return skip
    caller.f_trace = skip
    return 0
"""
SKIPPED_CHECK = """
import sys
def f(x):
    def jump(frame, event, arg):
        if event == "line" and "driver" in frame.f_code.co_filename:
            frame.f_lineno = max(line for *_, line in frame.f_code.co_lines() if line)
        return jump
    sys.settrace(jump)
    return E()
"""
NO_CHECKS = """
import sys
driver = sys.modules.get("mtp_lightning.evaluation.sandbox.driver")
names = vars(driver) if driver else sys.modules["__main__"].main.__globals__["run_program"].__globals__
for name in ("_check", "_guarded", "_pretends"):
    names[name] = lambda *a: None
def f(x): return E()
"""
TRICKS = {
    "exit 0": ("import sys; sys.exit(0)", "exited"),
    "os._exit(0)": ("import os; os._exit(0)", "exited"),
    "raise SystemExit": ("raise SystemExit", "exited"),
    "abort": ("import os; os.abort()", "no_verdict"),
    "print": ("print('pass'); print('passed')", "failed"),
    "writes to all that is open": (
        "import os\nfor i in range(64):\n  try: os.write(i, b' passed\\n')\n  except OSError: pass\ndef f(x): return 0",
        "failed",
    ),
    "writes there and exits": (
        "import os\nfor i in range(64):\n  try: os.write(i, b' passed\\n')\n  except OSError: pass\nos._exit(0)",
        "exited",
    ),
    "closes all that is open": ("import os; os.closerange(0, 64)\n" + GOOD, "no_verdict"),
    "equal to all": (EQUAL + "def f(x): return E()", "failed"),
    "equal to all, inside": (EQUAL + "def f(x): return [E()]", "failed"),
    "equal to numbers alone": (
        "class E:\n  __eq__ = lambda a, b: isinstance(b, int)\n  __hash__ = None\ndef f(x): return E()", "failed",
    ),
    "an int that is equal to all": (
        "class E(int):\n  __eq__ = lambda a, b: True\n  __ne__ = lambda a, b: False\ndef f(x): return E()", "failed",
    ),
    "another AssertionError": (
        "import builtins\nclass A(BaseException): pass\nbuiltins.AssertionError = A\ndef f(x): return 0", "failed",
    ),
    "other builtins": ("import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 7", "failed"),
    "skipped lines": (SKIP.replace("DEPTH", "2"), "failed"),
    "skipped lines of the tests": (SKIP.replace("DEPTH", "1"), "failed"),
    "a skipped check": (EQUAL + SKIPPED_CHECK, "failed"),
    "equal to all, from a cache": (EQUAL + "import functools\n@functools.lru_cache\ndef f(x): return E()", "failed"),
    "equal to all, from a class": (EQUAL + "class f:\n  __new__ = lambda cls, x: E()", "failed"),
    "a class that is equal to all": (EQUAL + "class f(E):\n  def __init__(self, x): pass", "failed"),
    "equal to all, from an object": (EQUAL + "class F:\n  __call__ = lambda self, x: E()\nf = F()", "failed"),
    "equal to all, from a part": (EQUAL + "import functools\nf = functools.partial(lambda x: E())", "failed"),
    "equal to all, from other names": (
        EQUAL + "import types\nf = types.FunctionType((lambda x: E()).__code__, {'E': E})", "failed",
    ),
    "equal to floats alone": (
        "class E:\n  __eq__ = lambda a, b: isinstance(b, float) or b in (2, 3)\ndef f(x): return E()", "failed",
    ),
    "equal to small numbers alone": ("class E:\n  __eq__ = lambda a, b: b in range(9)\ndef f(x): return E()", "failed"),
    "other tests": (EQUAL + "import ast\nast.walk = lambda tree: []\ndef f(x): return E()", "failed"),
    "other checks": (EQUAL + NO_CHECKS, "failed"),
    "no function": ("", "failed"),
    "no program": ("def f(x:", "failed"),
    "endless recursion": ("def f(x): return f(x)", "failed"),
    "an exception that cannot be shown": (
        "class B(Exception):\n  def __str__(self): raise SystemExit\ndef f(x): raise B", "failed",
    ),
    "walking the frames": (FRAMES, "passed"),  # cannot be stopped inside one process: rewards use `entry`
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_is_no_pass(sandbox: Sandbox, trick: str) -> None:
    source, expected = TRICKS[trick]
    check = "assert abs(f(1) - 2) < 1e-6\n" if trick == "other builtins" else CHECK
    outcome = one(sandbox, Program(source, check=check))
    assert outcome.verdict == expected, outcome


@pytest.mark.parametrize(
    ("check", "body"),
    [
        ("assert [x for x in f(1)] == [1, 2]", "iter([E(), E()])"), ("for x in f(1):\n  assert x == 2", "iter([E()])"),
        ("assert abs(f(1) - 2) < 1e-6", "N()"), ("assert f(1) > 1", "N()"), ("assert list(map(f, [1])) == [2]", "E()"),
        ("g = f\nassert g(1) == 2", "E()"), ("assert f(1).value == 2", "type('', (), {'value': E()})()"),
    ],
)  # fmt: skip
def test_whatever_tests_call_and_compare_is_looked_at(sandbox: Sandbox, check: str, body: str) -> None:
    number = "class N:\n  __lt__ = __gt__ = lambda a, b: True\n  __sub__ = __abs__ = lambda a, *b: a\n"
    assert one(sandbox, Program(f"{EQUAL}{number}def f(x): return {body}", check=check)).verdict == "failed"


def test_classes_stay_what_they_are(sandbox: Sandbox) -> None:
    """Also one that cannot be compared with others."""
    source = """
from __future__ import annotations
import dataclasses, functools, sys
@dataclasses.dataclass(order=True)
class Point:
    x: int
    y: "int" = 0
class Own:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
    def twice(self): return Own(2 * self.x)
@functools.lru_cache
def f(x): return Point(x)
"""
    check = """
assert f(1) == Point(1) != Point(2) and Point(1) < Point(2) and isinstance(f(1), Point)
assert Own(2) == Own(1).twice() and [Own(2)] == [Own(1).twice()] and Own.twice(Own(1)).x == 2
class More(Point):
    def z(self): return super().__repr__()
assert More(1, 2).z() == 'More(x=1, y=2)', More(1, 2).z()
assert f.cache_info().hits == 1
"""
    outcome = one(sandbox, Program(source, check=check))
    assert outcome.verdict == "passed", outcome


def test_tests_that_cannot_fail_are_no_tests(sandbox: Sandbox) -> None:
    """The answer is part of the statement: `assert 5 == 1 or True`."""
    for answer, verdict in (("f(4)", "passed"), ("1 or True", "failed"), ("f(4) or 1", "failed"), ("6", "failed")):
        program = Program(GOOD, check=f"assert 5 == {answer}", canary=f"assert __other__ == {answer}")
        assert one(sandbox, program).verdict == verdict, answer
