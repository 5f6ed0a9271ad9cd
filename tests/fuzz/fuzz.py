"""Mutated input, thousands of times: never a traceback, a hang, a change that nobody hears of, or a file elsewhere.

    python tests/fuzz/fuzz.py [KIND ...] [--mutations 2000] [--seconds 600] [--seed 0]

Each kind of input (`targets.py`, `kept_files.py`) is set up once, in a folder of its own, and then mutated and used,
in a process that is started again where one dies. What may come of it: it is accepted, or refused by an `InputError`
(exit 2), or it fails with an exit status and a message. A finding is printed with its number; `--only N` runs that
mutation alone.
"""

import argparse
import contextlib
import io
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "unit")]

from kept_files import KEPT  # noqa: E402
from targets import TARGETS, SilentChangeError, Target  # noqa: E402

KINDS = {target.name: target for target in (*TARGETS, *KEPT)}
HANG_SECONDS = 10
"""Of the processor, so that a busy machine makes no hangs; and twelve times as long by the clock."""


class HangError(BaseException):
    """Longer than `HANG_SECONDS`."""


def outcome(target: Target, number: int, seed: int) -> str:
    """`accepted`, `refused`, or a finding: its first word says of which sort, the rest is for a reader."""
    chance = random.Random(f"{seed} {target.name} {number}")
    before = files_outside(target)
    written = io.StringIO()
    try:
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            found = target.use(chance)
    except SilentChangeError as error:
        found = f"silent {error}"
    except HangError:
        found = f"hang longer than {HANG_SECONDS} s"
    except BaseException:  # a panic of a Rust library is no Exception, and is a finding all the same
        found = f"traceback {traceback.format_exc()}"
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    if "Traceback (most recent call last)" in written.getvalue():
        found = f"traceback {written.getvalue()}"
    more = files_outside(target) - before
    return f"elsewhere {sorted(more)}" if more else found


def _hang(*_: object) -> None:
    raise HangError


def files_outside(target: Target) -> set[str]:
    """Files beside the target's folder, where a name with `..` would get to, and what a shell would have made."""
    return {str(path) for path in (*target.folder.parent.iterdir(), *target.folder.rglob("owned"))}


def work(kind: str, numbers: range, seed: int, sender: Connection) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "target"
        folder.mkdir()
        target = KINDS[kind](folder)
        for number in numbers:
            sender.send((number, None))
            signal.signal(signal.SIGALRM, _hang)
            signal.signal(signal.SIGPROF, _hang)
            signal.alarm(12 * HANG_SECONDS)
            signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
            sender.send((number, outcome(target, number, seed)))


def outcomes(kind: str, numbers: range, seed: int, seconds: float) -> Iterator[tuple[int, str]]:
    """(number, outcome), by processes that may die of it; the time counts from the first mutation on."""
    context, until = multiprocessing.get_context("fork"), float("inf")
    while numbers and time.monotonic() < until:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(kind, numbers, seed, sender))
        process.start()
        sender.close()
        at = numbers.start
        while True:
            try:
                number, found = receiver.recv() if receiver.poll(20 * HANG_SECONDS) else (at, "hang beyond its alarm")
            except EOFError:
                process.join()
                found = f"death with status {process.exitcode}"
                number = at
            at, until = number, min(until, time.monotonic() + seconds)
            if found is None:
                continue
            yield number, found
            if found.startswith(("death", "hang beyond")) or number == numbers[-1] or time.monotonic() > until:
                break
        process.kill()
        process.join()
        numbers = range(at + 1, numbers.stop)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--mutations", type=int, default=2000, help="of each kind, at most")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each kind, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this mutation alone")
    args = parser.parse_args()
    bad = 0
    for kind in args.kinds or KINDS:
        numbers = range(args.mutations) if args.only is None else range(args.only, args.only + 1)
        counts: Counter[str] = Counter()
        began = time.monotonic()
        for number, found in outcomes(kind, numbers, args.seed, args.seconds):
            word, _, rest = found.partition(" ")
            counts[word] += 1
            if word not in ("accepted", "refused", "failed"):
                bad += 1
                print(f"{kind} {number}: {word}: {rest}", flush=True)
        if counts.total() >= 100 and not counts["accepted"]:
            bad += 1
            print(f"{kind}: nothing was accepted, so nothing was tried: is the input right before it is mutated?")
        counted = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        print(
            f"{kind}: seed {args.seed}, {counts.total()} mutations in {time.monotonic() - began:.0f} s: {counted}",
            flush=True,
        )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
