"""Which settings go with which strategy, checked on the configuration before anything is built."""

import importlib.util
from typing import Any

from mtp_lightning.errors import InputError

_INSTEAD = {
    "deepspeed_stage_1": "zero1",
    "deepspeed_stage_2": "zero2",
    "deepspeed_stage_2_offload": "zero2",
    "deepspeed_stage_3": "zero3",
    "deepspeed_stage_3_offload": "zero3_offload",
    "deepspeed": "zero2",
    "fsdp": "fsdp2",
    "fsdp_cpu_offload": "fsdp2",
}
_STOCK = {"DeepSpeedStrategy": "zero2", "FSDPStrategy": "fsdp2", "ModelParallelStrategy": "fsdp2"}
_OURS = ("mtp_lightning.strategies.zero.ZeroStrategy", "mtp_lightning.strategies.fsdp2.FSDP2Strategy")


def check_strategy(strategy: Any, precision: Any, clip_algorithm: Any, accelerator: str, cuda: bool) -> None:
    """
    Args:
        strategy: `trainer.strategy` as configured: a name, or something with a `class_path`.
        cuda: whether this machine has it.

    Raises:
        InputError: a strategy that computes something else without a word, or what a strategy cannot do.
    """
    path = strategy if isinstance(strategy, str) else getattr(strategy, "class_path", "")
    name = path.rsplit(".", 1)[-1]
    instead = _INSTEAD.get(path) or (_STOCK.get(name) if path.startswith("lightning") else None)
    if path.startswith("deepspeed"):
        instead = instead or "zero2"
    if instead:
        why = (
            "Lightning's own divides the loss twice under accumulation"
            if "zero" in instead
            else "it is neither tested with these heads nor compatible in its checkpoints"
        )
        raise InputError(f"trainer.strategy is '{path}': {why}; use -c conf/strategy/{instead}.yaml")
    if path not in _OURS:
        return
    if str(clip_algorithm).endswith("value"):
        raise InputError(
            f"trainer.gradient_clip_algorithm is '{clip_algorithm}': {name} clips by the norm of all gradients; "
            "leave it out, or use conf/strategy/ddp.yaml"
        )
    if path == _OURS[0]:
        settings = getattr(strategy, "init_args", None)
        check_zero(getattr(settings, "stage", 2), getattr(settings, "offload", None))
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not cuda)
    if on_cpu and str(precision) in ("16", "16-mixed", "16-true"):
        raise InputError(f"trainer.precision is '{precision}': {name} on a CPU computes in 32-true or bf16-mixed")


def shards_as_made(strategy: Any, begun: bool, frozen: bool) -> bool:
    """Whether a run's weights are sharded as they are made, so that no process has them whole.

    Args:
        strategy: `trainer.strategy` as configured.
        begun: with the weights of another model (`model.init.path`); frozen: some of them (`model.freeze`). Under
            ZeRO-3 those are made whole: they are needed so where the engine rounds them.
    """
    path = strategy if isinstance(strategy, str) else getattr(strategy, "class_path", "")
    if path == _OURS[0]:
        stage = getattr(getattr(strategy, "init_args", None), "stage", 2)
        return stage == 3 and not (begun or frozen)
    return path == _OURS[1]


def check_optimizer(kind: str, strategy: Any) -> None:
    """
    Args:
        kind: `model.optimizer.kind`.
        strategy: `trainer.strategy` as configured.

    Raises:
        InputError: Muon, and a strategy under which it cannot have its matrices.
    """
    path = strategy if isinstance(strategy, str) else getattr(strategy, "class_path", "")
    if kind == "muon" and path == _OURS[0]:
        raise InputError(
            "model.optimizer.kind is 'muon': ZeroStrategy cuts weights and optimizer states into flat pieces, and Muon "
            "needs whole matrices; use -c conf/strategy/fsdp2.yaml or conf/strategy/ddp.yaml, or kind 'adamw'"
        )


def check_checkpoints(callbacks: Any, strategy: Any) -> None:
    """
    Args:
        callbacks: `trainer.callbacks` as configured.
        strategy: as above.

    Raises:
        InputError: checkpoints that are written in parts, or in the background, of a run whose strategy is not known to
            give its states so.
    """
    path = strategy if isinstance(strategy, str) else getattr(strategy, "class_path", "")
    name = path.rsplit(".", 1)[-1]
    if path in _OURS or path == "auto" or path.startswith("ddp") or name in ("DDPStrategy", "SingleDeviceStrategy"):
        return
    for callback in callbacks or ():
        settings = getattr(callback, "init_args", None)
        if getattr(callback, "class_path", "").endswith("checkpointing.PeriodicCheckpoint"):
            for key, plain in (("background", False), ("kind", "single")):
                value = getattr(settings, key, plain)
                if value != plain:
                    raise InputError(
                        f"PeriodicCheckpoint.{key} is '{value}', and trainer.strategy '{path}': that goes with "
                        "conf/strategy/ single, ddp, fsdp2 and zero1 to zero3; leave it out, or take one of them"
                    )


def check_zero(stage: int, offload: str | None) -> None:
    """
    Raises:
        InputError: DeepSpeed is not installed, or offloading that the stage does not have.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            "trainer.strategy: ZeroStrategy needs DeepSpeed, which is not installed: "
            "pip install 'mtp-lightning[deepspeed]', or take another file of conf/strategy/"
        )
    if offload == "parameters" and stage != 3:
        raise InputError(
            f"trainer.strategy.offload is 'parameters' and .stage is {stage}: only stage 3 shards parameters"
        )
