"""What goes into the sandbox and what comes out."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from mtp_lightning.ranges import Range, check_ranges

Verdict = Literal[
    "passed", "failed", "exited", "timed_out", "out_of_memory", "too_much_output", "no_verdict", "infrastructure"
]
"""`exited`: it ended itself, before its tests. `no_verdict`: it died by a signal, or closed what a verdict is written
to. `infrastructure`: it could not be run; `Sandbox.run` raises then, and nothing may be counted."""


@dataclass(frozen=True)
class Limits:
    """Of one program. CPU time is what counts, so that scores do not depend on what else the machine does.

    Args:
        cpu_seconds: of CPU time, whatever the wall clock says.
        memory_mb: address space in MiB, some 30 of which are the interpreter's.
        output_kb: of standard output, and of standard error, in KiB each; what is more ends the program.
        wall_factor: the wall clock may show this many times `cpu_seconds`; ends programs that sleep. One that works,
            and waits for its turn on a busy machine, goes on.
    """

    cpu_seconds: Annotated[float, Range(above=0, most=86_400)] = 4.0
    memory_mb: Annotated[int, Range(least=64, most=2**20)] = 1024
    output_kb: Annotated[int, Range(least=1, most=2**18)] = 1024
    wall_factor: Annotated[float, Range(least=1, most=1000)] = 5.0

    def __post_init__(self) -> None:
        check_ranges("limits", Limits, asdict(self))


@dataclass(frozen=True)
class Program:
    """A program, in one of three modes.

    - `check`: tests, run after `source` in the same process. All that they call and compare is looked at: a result
      that is equal to everything is found out. For benchmarks, whose models do not know of the tests.
    - `entry` and `inputs`: call a function; its results leave the process as data (`Outcome.result`) and are judged
      outside. Nothing in the process knows what would be right, so this is the mode for rewards.
    - neither: a whole program, which reads `stdin`; it has passed where it ended well, and what it printed is judged
      outside.

    Args:
        canary: a statement that has to raise AssertionError whatever `__other__` is, as `assert __other__ == answer`.
        inputs: `values.encode_all` of the argument lists.
        limits: instead of the sandbox's own.
    """

    source: str
    stdin: str = ""
    check: str | None = None
    canary: str | None = None
    entry: str | None = None
    inputs: str = "[]"
    limits: Limits | None = None

    def request(self, limits: Limits) -> dict[str, Any]:
        return asdict(self) | {"limits": asdict(self.limits or limits)}


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Args:
        stderr: what it wrote there; with `check`, the exception that ended it.
        limit: the limit that ended it: `cpu`, `wall`, `memory`, `output` or none.
        result: with `entry`, what the calls returned; for `values.decode_all`.
    """

    verdict: Verdict
    cpu_seconds: float
    wall_seconds: float
    stdout: str = ""
    stderr: str = ""
    limit: str = ""
    result: str = ""
