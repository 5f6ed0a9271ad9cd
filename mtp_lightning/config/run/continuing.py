"""Going on from a checkpoint: whether a run may be given another length, and Lightning's state of a finished run.

A run is one epoch of `trainer.max_steps` steps. What moves with the step (the learning rate, the weights of the losses)
may depend on that length. A run goes on under another length if everything that its steps had so far would have been
the same under the new one; then it is, bit for bit, the run that had the new length from the start.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from mtp_lightning.checkpoints.description import check_settings
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import CHECKPOINT_KEY
from mtp_lightning.module import MTPModule
from mtp_lightning.optimization.schedule import ScheduleConfig, learning_rate_factor

NEEDED = ("loops", "optimizer_states", "lr_schedulers")
"""Entries of a checkpoint, beside those that a model is made of."""


def check_length(path: Path, content: Mapping[str, Any], module: MTPModule, max_steps: int) -> None:
    """Refuse to go on from a checkpoint to a length that its steps would not have had.

    Raises:
        InputError: fewer steps than were made, or other learning rates or weights of losses than theirs.
    """
    made, finished = content["global_step"], is_finished(content)
    if max_steps < made:
        raise InputError(
            f"trainer.max_steps is {max_steps}, and '{path}' has made {made} steps already: give {made} or more, or "
            "start a new run in another folder"
        )
    saved = content[CHECKPOINT_KEY]
    before = saved.get("max_steps", made if finished else max_steps)  # not in checkpoints of earlier versions
    now = module.schedule_config
    schedule = ScheduleConfig(**saved["schedule"]) if "schedule" in saved else now
    if (before, schedule) == (max_steps, now):
        return
    for step in range(made):
        if learning_rate_factor(step, before, schedule) != learning_rate_factor(step, max_steps, now):
            raise InputError(_refusal(path, made, before, max_steps, schedule, now, step))
        if module.head_weights_at(step, before) != module.head_weights_at(step, max_steps):
            raise InputError(
                f"trainer.max_steps is {max_steps}, and '{path}' is of a run of {before} steps whose weights of the "
                f"losses (model.loss.weights) move with its length: those of step {step + 1} would have been others. "
                f"{_instead(before)}"
            )


def check_continues(path: Path, content: Mapping[str, Any], module: MTPModule, trainer: Trainer) -> None:
    """Refuse to go on from a checkpoint as another run than its own.

    Raises:
        InputError: another model, other settings of a step, or another length; names the key.
    """
    check_weights(path, content, module)
    check_settings(content[CHECKPOINT_KEY], module.settings(trainer))
    check_length(path, content, module, trainer.max_steps)


def check_weights(path: Path, content: Mapping[str, Any], module: MTPModule) -> None:
    """
    Raises:
        InputError: the weights of a checkpoint are not those of this model; or it lacks what a run goes on with.
    """
    missing = [key for key in NEEDED if not content.get(key)]  # an empty one Lightning takes for a new optimizer
    if missing:
        raise InputError(f"'{path}' has no '{missing[0]}': no run can go on from it")
    module.on_load_checkpoint(dict(content))
    saved, own = content["state_dict"], module.state_dict()
    have, want = ({name: tuple(weight.shape) for name, weight in weights.items()} for weights in (saved, own))
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise InputError(
                f"'{path}' is damaged, or of another model: its weight '{name}' is of shape {have.get(name)}, and this "
                f"model has {want.get(name)}; give another checkpoint, or a new folder"
            )


def _refusal(
    path: Path, made: int, before: int, max_steps: int, schedule: ScheduleConfig, now: ScheduleConfig, step: int
) -> str:
    if before == max_steps:
        return (
            f"model.schedule is {_described(now)}, and '{path}' was trained with {_described(schedule)}: its learning "
            f"rates would have been others from step {step + 1} on; continue it as it was, or start a new run"
        )
    reason = "depend on its length" if now.kind == "cosine" else f"had begun to fall by step {made}"
    return (
        f"trainer.max_steps is {max_steps}, and '{path}' is of a run of {before} steps whose learning rates {reason} "
        f"(model.schedule.kind: {now.kind}): with {max_steps} steps, that of step {step + 1} would have been another. "
        f"{_instead(before)}"
    )


def _described(schedule: ScheduleConfig) -> str:
    return ", ".join(f"{key}: {value}" for key, value in vars(schedule).items() if value is not None)


def _instead(before: int) -> str:
    return (
        f"Go on with trainer.max_steps: {before}; or begin a new run with the weights of this one, in a new folder, by "
        "model.init.path in place of ckpt_path"
    )


def is_finished(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written at the end of its run: its only epoch is over."""
    return bool(content["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"])


def reopen_epoch(loops: Mapping[str, Any], validated: bool) -> None:
    """Change Lightning's loop state of a finished run into that of the same step inside a longer one.

    At the end of a run the only epoch counts as processed and completed, its last batch as the last of all, and
    Lightning would train nothing more.

    Args:
        loops: `loops` of a checkpoint, changed in place.
        validated: whether the last step ended in a validation. A checkpoint inside a run is saved before Lightning
            counts such a step among `_batches_that_stepped`, and Lightning counts it when it goes on.
    """
    fit = loops["fit_loop"]
    for progress in (fit["epoch_progress"]["total"], fit["epoch_progress"]["current"]):
        progress["processed"] -= 1
        progress["completed"] -= 1
    fit["epoch_loop.batch_progress"]["is_last_batch"] = False
    if validated:
        fit["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
