"""FSDP2 (torch's `fully_shard`) through Lightning's ModelParallelStrategy, data parallel only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from typing_extensions import override

from mtp_lightning.checkpoints.sharded import STATES, WEIGHTS, fill, read_sharded
from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.training.sharding import shard_layer, shard_model
from mtp_lightning.strategies.states import Names, by_index, by_name, group_names, settings

PIECES = StateDictOptions()
GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True)
SCATTER = StateDictOptions(full_state_dict=True)


class FSDP2Strategy(ModelParallelStrategy):
    """Parameters, gradients and optimizer states sharded over all processes; runs on CPU with gloo too.

    Checkpoints are the same single file that one process writes: weights and states are gathered on rank zero, which
    needs about 12 bytes of memory per parameter there. Of sharded ones every rank writes and reads its own pieces.
    (Lightning's own numbers the optimizer's states in the order of the module, any other strategy in the order of the
    optimizer's groups: loaded elsewhere they would go to the wrong parameters, silently where shapes agree.)

    Args:
        process_group_backend: `nccl`, `gloo` or another backend of torch.distributed; by default what suits the device.
    """

    is_sharded = True
    """Weights in full are to be had from `lightning_module_state_dict` alone."""
    gives_pieces = False
    """Whether states are asked for as each rank has them, for a sharded checkpoint, and not whole on rank zero."""

    def __init__(self, process_group_backend: str | None = None) -> None:
        known = torch.distributed.Backend.backend_list
        for part in process_group_backend.split(",") if process_group_backend else ():
            if part.rpartition(":")[2] not in known:
                raise InputError(
                    f"trainer.strategy.process_group_backend is '{process_group_backend}': there are {', '.join(known)}"
                )
        self._pieces_in: Path | None = None
        """The sharded checkpoint that is being read."""
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, part: nn.Module) -> None:
        """Leave this process its part of a layer, or of a model whose layers are sharded."""
        mesh = self.device_mesh["data_parallel"]
        if isinstance(part, MTPModel):
            shard_model(part, mesh)
        else:
            shard_layer(part, mesh)

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """A sharded one without its tensors: each rank reads its pieces when their places are there."""
        path = Path(checkpoint_path)
        self._pieces_in = path if path.is_dir() else None
        return read_sharded(path, lazy=True) if path.is_dir() else Strategy.load_checkpoint(self, path, weights_only)

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Full weights on rank zero, nothing elsewhere; or every rank's pieces."""
        assert self.lightning_module is not None
        return dict(get_model_state_dict(self.lightning_module, options=PIECES if self.gives_pieces else GATHER))

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        if self._pieces_in is None:
            set_model_state_dict(self.lightning_module, dict(checkpoint["state_dict"]), options=SCATTER)
            return
        own: dict[str, Any] = get_model_state_dict(self.lightning_module, options=PIECES)
        fill(self._pieces_in, {f"{WEIGHTS}/{name}": weight.detach() for name, weight in own.items()})

    @override
    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert self.lightning_module is not None
        options = PIECES if self.gives_pieces else GATHER
        gathered: dict[str, Any] = get_optimizer_state_dict(self.lightning_module, optimizer, options=options)
        if not (self.is_global_zero or self.gives_pieces):
            return {}
        names = group_names(self.lightning_module, optimizer)
        return by_index(names, gathered["state"], optimizer.param_groups)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.lightning_module is not None
        for g, (optimizer, saved) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"])):
            names = group_names(self.lightning_module, optimizer)
            if self._pieces_in is not None:
                self._fill_states(self._pieces_in, optimizer, names, saved, g)
                continue
            groups = [{**own, "params": members} for own, members in zip(settings(saved), names)]
            whole: dict[str, Any] = {"state": by_name(names, saved), "param_groups": groups}
            set_optimizer_state_dict(self.lightning_module, optimizer, whole, options=SCATTER)

    def _fill_states(self, folder: Path, optimizer: Any, names: Names, saved: Mapping[str, Any], g: int) -> None:
        """Read this rank's pieces of the states in place; numbers of steps are in `saved`."""
        for group, own in zip(optimizer.param_groups, settings(saved)):
            group.update(own)
        if not saved["state"]:
            return
        made: dict[str, Any] = get_optimizer_state_dict(self.lightning_module, optimizer, options=PIECES)  # type: ignore[arg-type]
        pieces = {}
        for i, name in enumerate(name for group in names for name in group):
            for key, value in made["state"][name].items():
                if key in saved["state"][i] and not saved["state"][i][key].is_meta:
                    value.copy_(saved["state"][i][key])
                else:
                    pieces[f"{STATES}/{g}/{i}/{key}"] = value
        fill(folder, pieces)
