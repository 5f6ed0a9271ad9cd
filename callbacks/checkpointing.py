"""Checkpoints that a killed or preempted run continues from without a gap or a repeat."""

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from mtp_lightning.checkpoints.lightning_files import CheckpointFiles
from mtp_lightning.checkpoints.select import is_good
from mtp_lightning.checkpoints.sharded import remove, write_sharded
from mtp_lightning.errors import PREEMPTED, Paused, Preempted
from mtp_lightning.files import to_disk
from mtp_lightning.ranges import Count, Seconds, check_ranges
from mtp_lightning.strategies.saving import checkpoint_content, snapshot

STOPPING = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""What Slurm, its users' scripts, submitit, launchers and terminals send to a run that has to go."""
ASK_SECONDS = 2.0
"""How often processes of one run agree on whether to save or stop; each time costs a collective."""
GO_ON, SAVE, STOP = 0, 1, 2
_NAME = re.compile(r"step-(\d+)\.ckpt")


class PeriodicCheckpoint(Checkpoint):
    """Saves every `every_n_steps` steps or `every_n_seconds`, whichever comes first, and at the end of training.

    Files are `<default_root_dir>/checkpoints/step-00000200.ckpt`, named so only when they are whole; those of the
    latest `keep` steps stay. Where a step ends in a validation, the checkpoint waits for it: saved before it, a resumed
    run would never log that validation.

    A signal that asks the run to stop sets a flag. The step under way is finished, a checkpoint written, and the run
    ended by `Preempted`: exit status 75, or 130 for SIGINT. Any process of several may be the one that gets it. A
    second SIGINT ends the run at once. Signals get lost, so it is the period that bounds what a run can lose.

    Args:
        every_n_steps: steps from one checkpoint to the next, at most.
        every_n_seconds: seconds from one checkpoint to the next, at most.
        keep: how many of the newest stay.
        kind: `single`, a file that rank zero gathers and writes, or `sharded`, a folder in which every rank writes its
            part, so that none holds the whole. Either is read under any strategy and number of processes.
        background: training waits for a copy in memory alone, which is written while it goes on. What is saved is the
            step that was asked for; there is one at a time, and a run ends after its last is written.
        pause_at: a step at which the run saves and ends by `Paused`, exit status 75: a gate of its grid. Resumed at
            that step or a later one it goes on.

    Raises:
        InputError: a period or `keep` below 1.
    """

    def __init__(
        self,
        every_n_steps: Count = 1000,
        every_n_seconds: Seconds = 600.0,
        keep: Count = 2,
        kind: Literal["single", "sharded"] = "single",
        background: bool = False,
        pause_at: Count | None = None,
    ) -> None:
        check_ranges("PeriodicCheckpoint", PeriodicCheckpoint, locals())
        self.every_n_steps = every_n_steps
        self.every_n_seconds = every_n_seconds
        self.keep = keep
        self.kind = kind
        self.background = background
        self.pause_at = pause_at
        self._group: Any = None
        """Of all processes, for the writing of shards: its collectives are not those of training."""
        self._writing: Future[None] | None = None
        self._saved_step = -1
        self._saved_at = 0.0
        self._ask_at = 0
        """Step at which the processes ask each other next."""
        self._asked_by: signal.Signals | None = None
        self._interrupts = 0
        self._before: dict[signal.Signals, Any] = {}

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._ask_at, self._asked_by, self._interrupts = 0, None, 0
        if self.kind == "sharded" and trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        # In place of Lightning's own handlers, which broadcast from inside a handler and save nothing.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOPPING}

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        inside_a_step = (batch_idx + 1) % trainer.accumulate_grad_batches
        if not inside_a_step and not _validation_follows(trainer, batch_idx):
            self._save_if_due(trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save_if_due(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer)
        self._finish(trainer)
        self._restore_handlers()  # now: after this Lightning puts back what it found, before any `teardown`

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._writing is not None:
            wait([self._writing])  # what goes wrong with it now is not what ended the run
        self._restore_handlers()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts == 2:
                raise KeyboardInterrupt
        self._asked_by = self._asked_by or signal.Signals(number)

    def _restore_handlers(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if step == self._saved_step or trainer.sanity_checking:
            return
        if step >= trainer.max_steps > 0:
            return  # the last one comes after what other callbacks still measure, or a resumed run would lack that
        if step == self.pause_at:
            self._save(trainer)
            self._finish(trainer)
            raise Paused(PREEMPTED, f"the gate: saved step {step}")
        wish = self._agreed(trainer, STOP if self._asked_by else SAVE if self._is_late() else GO_ON)
        if wish != GO_ON or step % self.every_n_steps == 0:
            self._save(trainer)
        if wish == STOP:
            self._stop(trainer)

    def _is_late(self) -> bool:
        return time.monotonic() - self._saved_at >= self.every_n_seconds

    def _agreed(self, trainer: pl.Trainer, wish: int) -> int:
        """The strongest wish of all processes, since saving is collective, and clocks and signals differ between them.
        They ask each other about every `ASK_SECONDS`: at a step that all of them know beforehand."""
        if trainer.world_size == 1:
            return wish
        if trainer.global_step < self._ask_at:
            return GO_ON
        seconds = (time.monotonic() - self._saved_at) / max(1, trainer.global_step - self._saved_step)
        steps = max(1, min(1000, int(ASK_SECONDS / max(seconds, 1e-6))))
        answer = torch.tensor([wish, steps], device=trainer.strategy.root_device)
        agreed, steps = trainer.strategy.reduce(answer, reduce_op="max").tolist()
        self._ask_at = trainer.global_step + int(steps)
        return int(agreed)

    def _stop(self, trainer: pl.Trainer) -> None:
        self._finish(trainer)
        name = self._asked_by.name if self._asked_by else "another process was asked to stop"
        why = f"{name}: saved step {trainer.global_step}"
        if trainer.is_global_zero:
            print(f"{why}, stopping", file=sys.stderr, flush=True)
        raise Preempted(128 + signal.SIGINT if self._asked_by is signal.SIGINT else PREEMPTED, why)

    def _save(self, trainer: pl.Trainer) -> None:
        self._finish(trainer)
        step, zero = trainer.global_step, trainer.is_global_zero
        path = Path(trainer.default_root_dir) / "checkpoints" / f"step-{step:08d}.ckpt"
        if self.kind == "single" and not self.background:
            with _named(path):
                if zero:
                    remove(_partial(path))  # a folder, if a killed run was saving in shards
                trainer.save_checkpoint(_partial(path), weights_only=False)
            if zero:
                put_in_place(path, step, self.keep)
        else:
            content = checkpoint_content(trainer, pieces=self.kind == "sharded")
            if self.background:  # of a single file the other processes write nothing
                content = snapshot(content) if zero or self.kind == "sharded" else {}
            if self.background:
                writer = ThreadPoolExecutor(1, "checkpoint")
                self._writing = writer.submit(self._write, content, path, step, zero)
                writer.shutdown(wait=False)
            else:
                self._write(content, path, step, zero)
        self._saved_step, self._saved_at = step, time.monotonic()

    def _write(self, content: dict[str, Any], path: Path, step: int, zero: bool) -> None:
        """On this process or in its background: every process's part."""
        with _named(path):
            if self.kind == "sharded":
                write_sharded(content, _partial(path), self._group)
            elif zero:
                remove(_partial(path))
                CheckpointFiles().save_checkpoint(content, _partial(path))
        if zero:
            put_in_place(path, step, self.keep)

    def _finish(self, trainer: pl.Trainer) -> None:
        """Wait for what is being written.

        Raises:
            Exception: what went wrong with it.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
        if self.kind == "sharded":
            trainer.strategy.barrier("checkpoint")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the system refuses, with the name that the checkpoint would have had; the part that is there is removed."""
    try:
        yield
    except OSError as error:
        remove(_partial(path))
        raise OSError(error.errno, error.strerror, str(path)) from error


def _partial(path: Path) -> Path:
    """The name of one that is being written."""
    return path.with_suffix(".partial")


def put_in_place(path: Path, step: int, keep: int) -> None:
    """Give a whole checkpoint its name, and delete those that it supersedes."""
    partial, folder = _partial(path), path.parent
    to_disk(partial)
    if path.is_dir() or partial.is_dir():
        remove(path)  # one that was passed over when the run was resumed: a folder neither replaces nor is replaced
    partial.replace(path)
    for old in (*folder.glob("step-*.partial"), *superseded(folder, step, keep)):
        remove(old)


def superseded(folder: Path, step: int, keep: int) -> list[Path]:
    """The checkpoints to delete after that of `step` was saved: all but the latest `keep` up to `step`, and those of
    later steps.

    A file of a later step is one that could not be read when the run was resumed from an earlier one (torn by a full
    disk or a kill). Were it counted among the latest, it would push out a good one; were it left, and good after all,
    the next resume would jump ahead and leave a gap in the run's record. Nor does one count that was damaged since it
    was written: those that stay besides the newest are read again, 1.5 s for a GB.
    """
    steps = {path: int(found[1]) for path in folder.glob("step-*.ckpt") if (found := _NAME.fullmatch(path.name))}
    up_to_now = sorted((path for path in steps if steps[path] <= step), key=lambda path: steps[path])
    kept = [path for path in up_to_now if steps[path] == step]  # just written
    for path in reversed(up_to_now[: len(up_to_now) - len(kept)]):
        if len(kept) < keep and is_good(path):
            kept.append(path)
    return [path for path in steps if path not in kept]


def _validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates right after this batch: `val_check_interval` counts batches in our one epoch."""
    every = trainer.val_check_batch
    return trainer.enable_validation and every is not None and (batch_idx + 1) % every == 0
