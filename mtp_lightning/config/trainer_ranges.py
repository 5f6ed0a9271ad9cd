"""What the numbers of Lightning's Trainer may be, and its settings that a run here cannot have: those that end it
before its last step, after which it would count as finished."""

import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Count, Range, Seed, Steps, check_value

Batches = Annotated[int, Range(least=0, most=10**9)] | Annotated[float, Range(least=0, most=1)] | None
"""So many, or this share of them."""
RANGES: Mapping[str, Any] = {
    "num_nodes": Annotated[int, Range(least=1, most=100_000)],
    "min_epochs": Steps | None,
    "min_steps": Steps | None,
    "limit_val_batches": Batches,
    "limit_test_batches": Batches,
    "limit_predict_batches": Batches,
    "val_check_interval": Count | None,
    "num_sanity_val_steps": Annotated[int, Range(least=-1, most=10**9)] | None,
    "log_every_n_steps": Count | None,
    "accumulate_grad_batches": Annotated[int, Range(least=1, most=10**6)],
    "gradient_clip_val": Annotated[float, Range(least=0, most=10**12)] | None,
    "reload_dataloaders_every_n_epochs": Steps,
}
"""Key below `trainer` -> its type with its range."""
_EARLY = "it would end the run before its last step; its length is trainer.max_steps alone"
_WHOLE: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "fast_dev_run": (
        lambda value: value is False,
        "it leaves out loggers and checkpoints, which a run is made of; give trainer.max_steps: 3 and a folder of its "
        "own, trainer.default_root_dir",
    ),
    "barebones": (lambda value: value is False, "it leaves out loggers and checkpoints, which a run is made of"),
    "limit_train_batches": (lambda value: value is None or (isinstance(value, float) and value == 1), _EARLY),
    "overfit_batches": (lambda value: value == 0, _EARLY),
    "max_time": (lambda value: value is None, f"{_EARLY} (a SIGTERM stops one that can go on later)"),
    "max_epochs": (lambda value: value in (None, -1) or value >= 1, f"{_EARLY}; a run is one epoch, max_epochs: 1"),
    "check_val_every_n_epoch": (lambda value: value in (None, 1), "a run is one epoch; leave it null"),
    "val_check_interval": (
        lambda value: value is None or not isinstance(value, float | str | Mapping),
        "a run is one epoch, which has no parts; give a whole number of batches",
    ),
}
"""Key -> whether a run can have a value, and what to say where it cannot."""
_COUNTS_OTHERWISE = ("GradientAccumulationScheduler", "Timer", "BatchSizeFinder", "EarlyStopping")
"""Callbacks of Lightning's that end a run before its last step."""
MOST_PROCESSES_A_CORE = 4


def check_trainer_ranges(trainer: Mapping[str, Any], trains: bool = True) -> None:
    """
    Args:
        trains: false for a validation, which needs no number of steps.

    Raises:
        InputError: a value that cannot be; names its key.
    """
    for key, (allowed, why) in _WHOLE.items():
        if not allowed(trainer[key]):
            raise InputError(f"trainer.{key} is {trainer[key]}: {why}")
    for key, hint in RANGES.items():
        check_value(f"trainer.{key}", trainer[key], hint)
    callbacks = trainer["callbacks"] or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        path = callback.get("class_path", "")
        if trains and path.startswith("lightning") and path.endswith(_COUNTS_OTHERWISE):
            raise InputError(f"trainer.callbacks has {path}: {_EARLY}")
    _check_devices(trainer["devices"], str(trainer["accelerator"]))
    check_value("trainer.max_steps", trainer["max_steps"], Annotated[int, Range(least=-1, most=10**9)])
    if trains and trainer["max_steps"] < 1:
        raise InputError(
            f"trainer.max_steps is {trainer['max_steps']}: say for how many steps to train, as in trainer.max_steps: "
            "1000 (the length of a run is counted in steps, not in epochs)"
        )


def check_seed(seed: Any) -> None:
    """
    Raises:
        InputError: no seed that every library takes.
    """
    check_value("seed_everything", seed, Seed)


def _check_devices(devices: Any, accelerator: str) -> None:
    """A number as Lightning reads it: text is one too."""
    text = str(devices).strip()
    number = int(text) if text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() else None
    if number is not None and number < 1 and number != -1:
        raise InputError(f"trainer.devices is {devices}: it has to be at least 1 (or -1 or auto, for all GPUs)")
    cores = os.cpu_count() or 1
    if number is not None and accelerator in ("cpu", "auto") and number > max(8, MOST_PROCESSES_A_CORE * cores):
        raise InputError(
            f"trainer.devices is {devices}: this machine has {cores} cores, and {MOST_PROCESSES_A_CORE} processes a "
            "core are the most that make sense"
        )
