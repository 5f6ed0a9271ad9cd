"""What a run's configuration has to satisfy as a whole, checked before anything is built or written."""

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from mtp_lightning.config.trainer_ranges import check_seed, check_trainer_ranges
from mtp_lightning.errors import InputError
from mtp_lightning.files import try_writing
from mtp_lightning.optimization.schedule import ScheduleConfig
from mtp_lightning.strategies.check import check_checkpoints, check_optimizer, check_strategy


def check_trainer(config: Any, warn: bool = False, trains: bool = True) -> None:
    """What the configuration says about training as a whole goes together.

    Args:
        config: parsed, not yet instantiated.
        warn: say what is odd and allowed.
        trains: false for a validation, which needs no length.

    Raises:
        InputError: it does not.
    """
    trainer = config.trainer
    check_seed(config.seed_everything)
    check_trainer_ranges(vars(trainer), trains)
    check_strategy(
        trainer.strategy,
        trainer.precision,
        trainer.gradient_clip_algorithm,
        str(trainer.accelerator),
        torch.cuda.is_available(),
    )
    check_optimizer(config.model.optimizer.kind, trainer.strategy)
    check_checkpoints(trainer.callbacks, trainer.strategy)
    check_schedule(config, warn)


def check_schedule(config: Any, warn: bool) -> None:
    """The schedule has to fit into the run's length, and the run has to validate what it has trained.

    Raises:
        InputError: it would not.
    """
    trainer = config.trainer
    steps = trainer.max_steps
    every, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches
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
def lightning_refusals(trainer: Mapping[str, Any], started: Callable[[], bool]) -> Iterator[None]:
    """What Lightning refuses of the trainer's settings only when it runs, as bad input.

    Args:
        trainer: its configuration.
        started: whether the run has begun: what goes wrong after that is a failure.
    """
    try:
        yield
    except Exception as error:
        if started() or not _is_lightnings(error):
            raise
        raise refused_by_trainer(error, trainer) from error


def refused_by_trainer(error: Exception, trainer: Mapping[str, Any]) -> InputError:
    """What Lightning says of a setting, with its key.

    Args:
        trainer: its configuration.
    """
    message = " ".join(str(error).split()) or type(error).__name__
    named = [(at.start(), key) for key in trainer if (at := re.search(rf"\b{key}\b", message))]
    texts = {key: value for key, value in trainer.items() if isinstance(value, str) and len(value) > 2}
    by_value = [(0, key) for key, value in texts.items() if value.replace("-", "_") in message.replace("-", "_")]
    if named or by_value:
        _, key = min(named or by_value)
        return InputError(f"trainer.{key} is {trainer[key]}: {message}")
    hardware = ", ".join(f"trainer.{key} {trainer[key]}" for key in _HARDWARE if trainer[key] is not None)
    return InputError(f"{hardware}: {message}")


_HARDWARE = ("accelerator", "devices", "strategy", "precision", "plugins", "profiler")


def _is_lightnings(error: Exception) -> bool:
    return (
        not isinstance(error, InputError)
        and "lightning" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts
    )
