"""SIGKILL before each write of a run, one after the other: each file that it opens to write, renames or removes, each
statement and each commit of its MLflow store. What is left must go on as if nothing had been.

    python tests/fuzz/kills_at_writes.py [--first 1] [--every 1]

Where `kills.py` looks at random moments, this looks at all moments that can matter, of one short run. The libraries are
loaded once and every attempt is a fork, so that it takes about three seconds a write.
"""

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("e2e", "unit", "fuzz")]

from kills import compare  # noqa: E402
from small_runs import make_folder  # noqa: E402
from sqlalchemy import event  # noqa: E402
from sqlalchemy.engine import Engine  # noqa: E402

from mtp_lightning.cli import main as mtp  # noqa: E402

FIT = ["fit", "-c", "conf/base.yaml", "-c", "small.yaml", "--trainer.max_steps", "9", "--trainer.val_check_interval",
       "3", "--trainer.callbacks.every_n_steps=2", "--ckpt_path", "auto"]  # fmt: skip
LOADED = ("mtp_lightning.config.commands", "mlflow.store.tracking.sqlalchemy_store", "lightning.pytorch.cli",
          "callbacks.checkpointing", "callbacks.heartbeat", "callbacks.throughput", "matplotlib")  # fmt: skip
RUN = "runs/fit"
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate", "os.rmdir", "shutil.rmtree")


def watch_writes(folder: Path, before_write: Callable[[str], None]) -> None:
    """Call `before_write` before every change of a file below `folder`, and of any database, in this process."""

    def is_inside(path: Any) -> bool:
        is_path = isinstance(path, (str, bytes, os.PathLike))
        return is_path and os.path.abspath(os.fsdecode(path)).startswith(str(folder))

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == "open":
            path, mode, flags = args
            if is_inside(path) and (set(mode or "") & set("wax+") or (flags or 0) & WRITES):
                before_write(f"open {path}")
        elif name in CHANGES and is_inside(args[0]):
            before_write(f"{name} {args[0]}")

    def statement(connection: Any, cursor: Any, text: str, *rest: Any) -> None:
        if not text.lstrip().upper().startswith(("SELECT", "PRAGMA")):
            before_write(text[:60])

    sys.addaudithook(hook)
    event.listen(Engine, "before_cursor_execute", statement)
    event.listen(Engine, "commit", lambda connection: before_write("commit"))


def attempt(folder: Path, kill_at: int | None = None) -> int:
    """A fit into `folder`/runs/fit, in a fork of this process, killed before its `kill_at`-th write (from 1); its exit
    status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.chdir(folder)
    log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    writes: list[str] = []

    def before_write(what: str) -> None:
        writes.append(what)
        if len(writes) == kill_at:
            os.write(2, f"killed before write {kill_at}: {what}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    watch_writes(folder, before_write)
    status = 1
    try:
        status = mtp([*FIT, "--trainer.default_root_dir", RUN])
    except BaseException:
        traceback.print_exc()
    if kill_at is None:
        Path("writes").write_text(str(len(writes)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def fresh(folder: Path) -> Path:
    folder.mkdir()
    make_folder(folder)
    return folder


def killed_and_continued(folder: Path, whole: Path, number: int) -> list[str]:
    """What differs in a run that was killed before its write `number`, and then left alone; a line each."""
    assert attempt(fresh(folder), kill_at=number) == -signal.SIGKILL
    if attempt(folder) != 0:
        return [f"write {number}: the next attempt failed: {(folder / 'log').read_text(errors='replace')[-2000:]}"]
    return [f"write {number}: {line}" for line in compare(whole / RUN, folder / RUN)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=1, help="write to begin with, from 1")
    parser.add_argument("--every", type=int, default=1, help="1: all writes; 10: every tenth")
    args = parser.parse_args()
    for module in LOADED:
        importlib.import_module(module)
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        whole = fresh(Path(name) / "whole")
        assert attempt(whole) == 0, (whole / "log").read_text()
        n_writes = int((whole / "writes").read_text())
        for number in range(args.first, n_writes + 1, args.every):
            found = killed_and_continued(Path(name) / str(number), whole, number)
            print(*found, sep="\n", end="\n" if found else "", flush=True)
            wrong += found
            shutil.rmtree(Path(name) / str(number))
    print(f"{n_writes} writes, {len(range(args.first, n_writes + 1, args.every))} kills, {len(wrong)} differences")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
