"""Verdicts: what passes, what only pretends to, and what was no failure of the program at all."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtp_lightning.evaluation.sandbox import (
    Limits,
    Outcome,
    Program,
    Sandbox,
    SandboxError,
    server,
    values,
)

ROOT = Path(__file__).parents[2]
GOOD = "def f(x):\n    return x + 1\n"
CHECK = "assert f(1) == 2\nassert f(2) == 3\n"
EQUAL = "class E:\n    __eq__ = lambda a, b: True\n    __ne__ = lambda a, b: False\n    __hash__ = object.__hash__\n"
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
FRAMES = """
import os, sys
def f(x):
    frame = sys._getframe()
    while frame:
        if "nonce" in frame.f_locals and "say" in frame.f_locals:
            frame.f_locals["say"]("passed", "")
            os._exit(0)
        frame = frame.f_back
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


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        with Sandbox(Limits(cpu_seconds=5.0, memory_mb=256, output_kb=64)) as opened:
            yield opened
    except SandboxError as error:
        pytest.skip(str(error))


def one(sandbox: Sandbox, program: Program) -> Outcome:
    [(index, outcome)] = sandbox.run([program])
    assert index == 0
    return outcome


def test_a_right_program_passes(sandbox: Sandbox) -> None:
    outcome = one(sandbox, Program(GOOD, check=CHECK))
    assert outcome.verdict == "passed", outcome
    assert 0 < outcome.cpu_seconds < 5
    assert outcome.stderr == ""


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


def test_what_is_reported(sandbox: Sandbox) -> None:
    outcome = one(sandbox, Program("def f(x):\n    return x\n", check=CHECK))
    assert outcome.verdict == "failed"
    assert outcome.stderr.endswith("AssertionError\n")
    assert 'File "<tests>", line 1' in outcome.stderr
    assert "driver.py" not in outcome.stderr


def test_whole_programs_read_and_print(sandbox: Sandbox) -> None:
    program = Program("import sys\nn = int(input())\nprint(n + sum(map(int, sys.stdin.read().split())))", "1\n2 3\n")
    outcome = one(sandbox, program)
    assert (outcome.verdict, outcome.stdout, outcome.stderr) == ("passed", "6\n", "")
    for source, verdict in (
        ("print('a'); exit()", "passed"), ("print('a'); exit(0)", "passed"), ("print('a'); exit(1)", "exited"),
        ("print('a'); 1 / 0", "failed"), ("print('a'); input()", "failed"),
        ("if __name__ == '__main__': print('a')", "passed"),
    ):  # fmt: skip
        outcome = one(sandbox, Program(source))
        assert (outcome.verdict, outcome.stdout) == (verdict, "a\n"), source
    assert one(sandbox, Program("print(chr(233)); print(chr(0xd800))")).stdout == "é\n?\n"
    assert one(sandbox, Program("print(input())", stdin="a\ud800")).stdout == "a?\n"


def test_results_leave_as_data(sandbox: Sandbox) -> None:
    arguments = [[1, 2.5], [[1], ()], [{"a": {1}}, None], [float("nan"), 1j], [b"x", 10**5000], ["é", True]]
    program = Program("def f(*args): return args", entry="f", inputs=values.encode_all(arguments))
    outcome = one(sandbox, program)
    assert outcome.verdict == "passed", outcome
    found = values.decode_all(outcome.result)
    assert repr([list(x) for x in found if x[1] != 10**5000]) == repr([x for x in arguments if x[1] != 10**5000])
    assert found[4] == (b"x", 10**5000)


def test_nothing_inside_says_what_is_right(sandbox: Sandbox) -> None:
    """The mode for rewards: of what is equal to all only its type's name comes out, and exceptions are results."""
    inputs = values.encode_all([[0], [1]])
    for source in (EQUAL + "def f(x): return E()", "def f(x): return 1 / x if x < 1 else object()"):
        results = values.decode_all(one(sandbox, Program(source, entry="f", inputs=inputs)).result)
        assert results[0] != 1
        assert results[1] != 1
    assert one(sandbox, Program(FRAMES.replace('""', '"[1"'), entry="f", inputs=inputs)).result == "[1"
    with pytest.raises(ValueError, match="Expecting"):
        values.decode_all("[1")
    for text in ('[["tuple"]]', '[["int", 1, 2]]', "[7]", '[["dict", [["a"]]]]', "[" * 100_000):
        with pytest.raises(ValueError):
            values.decode_all(text)


def test_the_verdicts_number_is_another_each_time(sandbox: Sandbox) -> None:
    source = (
        FRAMES.replace('frame.f_locals["say"]("passed", "")', 'print(frame.f_locals["nonce"], flush=True)') + "\nf(0)"
    )
    numbers = {outcome.stdout for _, outcome in sandbox.run([Program(source)] * 3)}
    assert len(numbers) == 3
    assert {len(number) for number in numbers} == {33}


def test_limits_and_their_names(sandbox: Sandbox) -> None:
    short = Limits(cpu_seconds=1.0, wall_factor=30.0)
    spin = one(sandbox, Program("while True: pass", check="", limits=short))
    assert (spin.verdict, spin.limit) == ("timed_out", "cpu")
    assert 0.75 < spin.cpu_seconds < 2.5
    sleep = one(sandbox, Program("import time; time.sleep(99)", limits=Limits(cpu_seconds=0.3, wall_factor=1.0)))
    assert (sleep.verdict, sleep.limit) == ("timed_out", "wall")
    brief = Limits(cpu_seconds=0.2, wall_factor=100.0)
    late = one(sandbox, Program("while __import__('time').process_time() < .5: pass", limits=brief))
    assert (late.verdict, late.limit) == ("timed_out", "cpu")  # whole seconds are the kernel's; the rest is ours
    assert one(sandbox, Program("x = 'x' * (1 << 30)", check="")).verdict == "out_of_memory"
    loud = one(sandbox, Program("print('x' * (1 << 20))"))
    assert (loud.verdict, loud.limit, len(loud.stdout)) == ("too_much_output", "output", 64 << 10)
    assert one(sandbox, Program("print('x' * (1 << 20))\n" + GOOD, check=CHECK)).verdict == "passed"


def test_a_program_that_waits_for_its_turn_goes_on() -> None:
    """On a core that it has half of, past the wall limit, up to its CPU time."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    busy = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        with Sandbox(Limits(cpu_seconds=0.5, wall_factor=1.0)) as sandbox:
            outcome = one(sandbox, Program("while __import__('time').process_time() < .4: pass"))
        assert (outcome.verdict, outcome.limit) == ("passed", "")
        assert outcome.wall_seconds > 0.5
    finally:
        busy.kill()
        busy.wait()
        os.sched_setaffinity(0, cores)


def test_programs_know_nothing_of_each_other(sandbox: Sandbox) -> None:
    programs = [Program("import math, random\nmath.pi = 3\nprint(random.random(), hash('a'))") for _ in range(3)]
    programs += [Program("import math, os; print(math.pi > 3, os.environ.get('HOME'), os.getuid(), os.getgroups())")]
    outcomes = dict(sandbox.run(programs * 2))
    assert len(outcomes) == 8
    assert {outcomes[i].stdout for i in (0, 1, 2, 4, 5, 6)} == {outcomes[0].stdout}
    seen = {outcomes[i].stdout for i in (3, 7)}
    assert all(text.startswith("True None ") for text in seen)
    if os.getuid() == 0:
        assert len(seen) == 2, "a user id of its own for each"
        assert all(int(text.split()[2]) >= 200_000 and text.endswith("[]\n") for text in seen)


# What is no failure of a program


@pytest.mark.parametrize(
    ("report", "status", "cpu", "limit", "verdict"),
    [
        (b"", 9, 0.1, "", "infrastructure"), (b"", 256, 0.1, "", "infrastructure"),
        (b"N ready\n", 9, 0.1, "", "infrastructure"), (b"N infrastructure\nOSError", 256, 0.0, "", "infrastructure"),
        (b"N ready\n", 9, 4.1, "", "timed_out"), (b"N ready\n", 24, 3.9, "", "timed_out"),
        (b"N ready\nN passed\n", 0, 4.1, "", "timed_out"), (b"N ready\n", 9, 0.1, "wall", "timed_out"),
        (b"N ready\nN passed\n", 0, 0.1, "", "passed"), (b"N ready\n passed\n", 0, 0.1, "", "exited"),
        (b"N ready\n", 40, 0.1, "", "no_verdict"), (b"N ready\nN infrastructure\n", 0, 0.1, "", "exited"),
        (b"N ready\nN x\n", 0, 0.1, "", "exited"), (b"N ready\n", 11, 0.1, "", "no_verdict"),
        (b"N ready\nN passed\nN passed\n", 0, 0.1, "", "exited"),
    ],
)  # fmt: skip
def test_how_an_end_is_judged(report: bytes, status: int, cpu: float, limit: str, verdict: str) -> None:
    assert server.judge(report, "N", status, cpu, 4.0, limit)[0] == verdict
