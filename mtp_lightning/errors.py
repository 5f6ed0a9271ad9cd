"""The one exception that means "the input is wrong, not the program": the command line prints it and exits with 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message says what is wrong, where (file and key), and what would be right."""


class UnavailableError(RuntimeError):
    """Another program or a server cannot be reached, or refuses: the command line prints it and exits with 1."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """`"; did you mean 'n_future'?"` for the nearest of `candidates`, or an empty string if none is near."""
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def printable(text: str) -> str:
    """Text for a terminal: what would move its cursor, change its colours or turn its direction is written as an
    escape; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


PREEMPTED = 75
"""Exit status of a run that was asked to stop and has saved what it goes on from (EX_TEMPFAIL of sysexits.h)."""


class Preempted(SystemExit):
    """Ends such a run: no failure, and nothing for a traceback.

    Args:
        why: `SIGTERM: saved step 120`.
    """

    def __init__(self, status: int, why: str | None = None) -> None:
        super().__init__(status)
        self.why = why


class Paused(Preempted):
    """Ends a run at the gate of its grid, where it waits to be judged."""


class DivergedError(RuntimeError):
    """A run's loss or weights are no longer finite: the command line prints it and exits with 1."""


class UnprovenError(RuntimeError):
    """What was made is not what it should equal: the command line prints it and exits with 1."""
