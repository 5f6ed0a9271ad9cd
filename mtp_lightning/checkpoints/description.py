"""What a checkpoint says of its run, and whether a run may go on from it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mtp_lightning.checkpoints.files import describe_model
from mtp_lightning.checkpoints.initial import Parent
from mtp_lightning.errors import InputError
from mtp_lightning.model.initial import InitConfig
from mtp_lightning.model.mtp import MTPModel

NO_RESUME = (
    "ckpt_path continues a run as it was; to begin a new one with its weights, in a new folder, give model.init.path "
    "in place of ckpt_path"
)


def describe(model: MTPModel, datamodule: Any, freeze: str, parent: Parent | None) -> dict[str, Any]:
    """What `load_model` needs beside the weights, and what a run goes on as."""
    tokenizer, task = getattr(datamodule, "tokenizer", None), getattr(datamodule, "task", None)
    begin = begin_ids(datamodule, parent)
    return describe_model(
        model.config,
        model.heads_config,
        tokenizer.state() if tokenizer is not None else None,
        getattr(datamodule, "context", None),
        task.state() if task is not None else None,
        freeze=freeze,
        parent=None if parent is None else {"name": parent.name, "weights": parent.weights},
        **({"begin_ids": begin} if begin else {}),
    )


def begin_ids(datamodule: Any, parent: Parent | None) -> list[int]:
    """Tokens that every text of a run's model begins with."""
    return list((parent.begin_ids if parent else ()) or getattr(datamodule, "begin_ids", ()))


def settings(optimizer: Any, loss: Any, weights: Any, trainer: Any) -> dict[str, Any]:
    """What a step of a run does, by keys of its configuration: all of it but the schedule, and how a loss is computed.

    Args:
        weights: of the losses, with nothing left out.
    """
    parts = {"model.optimizer": asdict(optimizer), "model.loss": asdict(loss), "model.loss.weights": asdict(weights)}
    for key in ("implementation", "chunk_rows", "weights"):
        del parts["model.loss"][key]
    found = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    found |= {f"trainer.{key}": getattr(trainer, key) for key in ("accumulate_grad_batches", "gradient_clip_val")}
    algorithm = trainer.gradient_clip_algorithm
    return found | {"trainer.gradient_clip_algorithm": "norm" if algorithm is None else str(algorithm.value)}


def check_settings(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """
    Args:
        saved: what a checkpoint says of its run.
        mine: `settings` now.

    Raises:
        InputError: a run would go on under other settings than its checkpoint's; names the key.
    """
    before = saved.get("settings", {})  # none in checkpoints of earlier versions
    for key in sorted(before.keys() & mine.keys()):
        if before[key] != mine[key]:
            raise InputError(
                f"ckpt_path: the checkpoint was trained with {key} = {before[key]!r}, and this configuration says "
                f"{mine[key]!r}; {NO_RESUME}"
            )


def check_same_run(saved: Mapping[str, Any], model: MTPModel, freeze: str, init: InitConfig) -> Parent | None:
    """What the run of a checkpoint was begun from.

    Raises:
        InputError: its model, or what trains of it, is another; names the key.
    """
    for part, config in (("backbone", model.config), ("heads", model.heads_config)):
        mine = asdict(config)
        before = asdict(type(config)()) | saved.get(part, mine)  # earlier versions had fewer keys
        for key, value in before.items():
            if mine[key] != value:
                raise InputError(
                    f"ckpt_path: the checkpoint was made with model.{part}.{key} = {value!r}, "
                    f"and this configuration says {mine[key]!r}; {NO_RESUME}"
                )
    frozen, parent = saved.get("freeze", "none"), saved.get("parent")  # neither in checkpoints of earlier versions
    if frozen != freeze:
        raise InputError(
            f"ckpt_path: the checkpoint was made with model.freeze = {frozen!r}, and this configuration says "
            f"{freeze!r}: its optimizer has states of other weights; {NO_RESUME}"
        )
    if parent is None and init.path is not None:
        raise InputError(
            f"ckpt_path and model.init.path: the checkpoint's run was not begun with the weights of '{init.path}', and "
            f"is to go on as it was: leave one of the two out ({NO_RESUME})"
        )
    return None if parent is None else Parent(**parent, begin_ids=tuple(saved.get("begin_ids", ())))
