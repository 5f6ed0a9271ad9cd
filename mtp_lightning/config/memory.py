"""Whether a run can fit into the memory there is, by its configuration alone: only what clearly cannot is refused."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from mtp_lightning.errors import InputError
from mtp_lightning.machine import machine_memory
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import count_parameters
from mtp_lightning.model.memory import state_memory, training_memory
from mtp_lightning.model.own_kind import import_kind
from mtp_lightning.objective.chunked import default_chunk_rows
from mtp_lightning.units import quantity, size

_SHARDED = ("FSDP2Strategy", "ZeroStrategy")


class MemorySettings(NamedTuple):
    """What `training_memory` asks for beside the model and the batch, by its names."""

    width: int
    on_gpu: bool
    optimizer: str
    accumulates: bool
    chunk_rows: int

    @classmethod
    def of(
        cls, precision: object, on_gpu: bool, optimizer: str, accumulated: int, chunk_rows: int | None, vocab_size: int
    ) -> "MemorySettings":
        """
        Args:
            accumulated: `trainer.accumulate_grad_batches`.
            chunk_rows: `model.loss.chunk_rows`.
        """
        device = torch.device("cuda" if on_gpu else "cpu")
        half = "16" in str(precision)
        rows = chunk_rows or default_chunk_rows(vocab_size, device, torch.bfloat16 if half else torch.float32)
        return cls(2 if half else 4, on_gpu, optimizer, accumulated > 1, rows)


def check_memory(config: Mapping[str, Any], memory: int | None = None, gpus: int = 0) -> None:
    """
    Args:
        config: of the whole run, with its defaults.
        memory: bytes of a node, or of a GPU; None: of this machine, or of its GPU where the run takes that.
        gpus: on all nodes, where `memory` is of one of them.

    Raises:
        InputError: weights, optimizer and batch need more; says how much.
    """
    trainer, data = config["trainer"], config["data"].get("init_args") or {}
    backbone, heads = BackboneConfig.from_dict(config["model"]["backbone"]), HeadsConfig(**config["model"]["heads"])
    strategy = trainer["strategy"] if isinstance(trainer["strategy"], Mapping) else {}
    if (strategy.get("init_args") or {}).get("offload"):
        return
    on_gpu = memory is None and trainer["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    where = "the GPU" if on_gpu else "this machine" if memory is None else "its node (resources.memory_gb)"
    where = "each GPU (resources.gpu_memory_gb)" if gpus else where
    if on_gpu:
        memory = torch.cuda.get_device_properties(0).total_memory
    memory = machine_memory() if memory is None else memory
    if memory is None:
        return
    processes = _number(trainer["devices"], on_gpu)
    world = gpus or processes * trainer["num_nodes"]
    import_kind(heads)  # the user's own configuration names it
    model = config["model"]
    freeze, optimizer = model.get("freeze", "none"), model.get("optimizer", {}).get("kind", "adamw")
    weights = state_memory(backbone, heads, freeze, optimizer)
    rows, context = data.get("batch_size"), data.get("context")
    shards = world if str(strategy.get("class_path")).endswith(_SHARDED) else 1
    here = 1 if on_gpu or gpus else processes
    held, batch = here * weights // shards, ""
    if isinstance(rows, int) and isinstance(context, int):
        settings = MemorySettings.of(
            trainer["precision"], bool(on_gpu or gpus), optimizer, trainer.get("accumulate_grad_batches", 1),
            model.get("loss", {}).get("chunk_rows"), backbone.vocab_size,
        )  # fmt: skip
        held = here * training_memory(
            backbone, heads, -(-rows // world), context, freeze=freeze, recompute=model.get("recompute", "none"),
            shards=shards, **settings._asdict(),
        )  # fmt: skip
        batch = f" and a batch (data.batch_size {rows:,}, data.context {context:,}) the rest"
    if held <= memory:
        return
    parameters = count_parameters(backbone, heads).total
    raise InputError(
        f"model.backbone (dim {backbone.dim:,}, n_layers {backbone.n_layers:,}, ffn_dim {backbone.ffn:,}, vocab_size "
        f"{backbone.vocab_size:,}), model.heads (n_future {heads.n_future}, layers {heads.layers}): the run needs "
        f"about {size(held)}, and {where} has {size(memory)}: {quantity(parameters)} parameters take "
        f"{size(weights)} with gradients and optimizer{batch}"
    )


def _number(devices: Any, on_gpu: bool) -> int:
    """Processes on a node: a number, GPUs by their numbers (a list, or `0,1,2`), or all of them (`auto`, -1)."""
    if isinstance(devices, list):
        return max(1, len(devices))
    text = str(devices).strip()
    if "," in text:
        return len([number for number in text.split(",") if number.strip()])
    if text in ("auto", "-1"):
        return torch.cuda.device_count() if on_gpu else 1
    return max(1, int(text)) if text.isdigit() else 1
