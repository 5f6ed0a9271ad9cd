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


def test_a_result_is_what_it_was_when_the_call_ended(sandbox: Sandbox) -> None:
    source = "kept = []\ndef f(x):\n    kept.append(x)\n    return kept"
    outcome = one(sandbox, Program(source, entry="f", inputs=values.encode_all([[1], [2], [3]])))
    assert values.decode_all(outcome.result) == [[1], [1, 2], [1, 2, 3]]


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
    deaf = "import resource, signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nkernel = resource.getrlimit(0)[1]\n"
    deaf += "print(kernel < 0 or kernel > 30 * (1 + 1 / 0.02) or kernel, flush=True)\nwhile True: pass"
    ended = one(sandbox, Program(deaf, limits=short))
    assert (ended.verdict, ended.limit, ended.stdout) == ("timed_out", "cpu", "True\n"), "by us, not by the kernel"
    assert 1.0 < ended.cpu_seconds < 2.5
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
        (b"N ready\n", 9, 1.1, "cpu", "timed_out"), (b"N ready\n", 9, 0.1, "output", "too_much_output"),
        (b"N ready\nN passed\n", 0, 0.1, "", "passed"), (b"N ready\n passed\n", 0, 0.1, "", "exited"),
        (b"N ready\n", 40, 0.1, "", "no_verdict"), (b"N ready\nN infrastructure\n", 0, 0.1, "", "exited"),
        (b"N ready\nN x\n", 0, 0.1, "", "exited"), (b"N ready\n", 11, 0.1, "", "no_verdict"),
        (b"N ready\nN passed\nN passed\n", 0, 0.1, "", "exited"),
    ],
)  # fmt: skip
def test_how_an_end_is_judged(report: bytes, status: int, cpu: float, limit: str, verdict: str) -> None:
    assert server.judge(report, "N", status, cpu, 4.0, limit)[0] == verdict
