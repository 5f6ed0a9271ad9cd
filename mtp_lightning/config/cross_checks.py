"""What a run's configuration has to satisfy as a whole, checked before anything is built or written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from mtp_lightning.errors import InputError
from mtp_lightning.files import try_writing
from mtp_lightning.optimization.schedule import ScheduleConfig
from mtp_lightning.strategies.check import check_strategy


def check_trainer(config: Any, warn: bool = False) -> None:
    """What the configuration says about training as a whole goes together.

    Args:
        config: parsed, not yet instantiated.
        warn: say what is odd and allowed.

    Raises:
        InputError: it does not.
    """
    trainer = config.trainer
    check_strategy(
        trainer.strategy,
        trainer.precision,
        trainer.gradient_clip_algorithm,
        str(trainer.accelerator),
        torch.cuda.is_available(),
    )
    check_schedule(config, warn)


def check_schedule(config: Any, warn: bool) -> None:
    """The schedule has to fit into the run's length, and the run has to validate what it has trained.

    Raises:
        InputError: it would not.
    """
    trainer = config.trainer
    if trainer.fast_dev_run:
        raise InputError(
            f"trainer.fast_dev_run is {trainer.fast_dev_run}: it leaves out loggers and checkpoints, which a run is "
            "made of; give trainer.max_steps: 3 and a folder of its own, trainer.default_root_dir"
        )
    if isinstance(trainer.val_check_interval, float):
        raise InputError(
            f"trainer.val_check_interval is {trainer.val_check_interval}: a run is one epoch, which has no parts; give "
            "a whole number of batches"
        )
    steps = trainer.max_steps
    every, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches
    if trainer.log_every_n_steps is not None and trainer.log_every_n_steps < 1:
        raise InputError(f"trainer.log_every_n_steps is {trainer.log_every_n_steps}: it has to be at least 1")
    if steps > 0:
        ScheduleConfig(**vars(config.model.schedule)).check_length(steps)
    if isinstance(every, int) and steps > 0:
        if every > steps * accumulated:
            raise InputError(
                f"trainer.val_check_interval is {every} and trainer.max_steps is {steps}: "
                "the run would never validate; give a smaller interval"
            )
        if every % accumulated:
            raise InputError(
                f"trainer.val_check_interval is {every} batches and trainer.accumulate_grad_batches {accumulated}: "
                "a validation, and the checkpoint after it, would fall inside a step; give a multiple"
            )
        if steps * accumulated % every and warn:
            rank_zero_warn(
                f"trainer.max_steps = {steps} is no multiple of trainer.val_check_interval = {every}: "
                "the last steps are not validated"
            )


def check_writable(folder: Path) -> None:
    """The run's folder can be written to, or made; nothing is left, neither the folder nor a file.

    Raises:
        InputError: it cannot.
    """
    try:
        try_writing(folder)
    except OSError as error:
        raise InputError(f"trainer.default_root_dir: '{folder}' cannot be written to: {error.strerror}") from error


@contextmanager
def lightning_refusals() -> Iterator[None]:
    """What Lightning refuses of the trainer's settings only when it runs, as bad input."""
    try:
        yield
    except MisconfigurationException as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error
