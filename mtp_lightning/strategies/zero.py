"""DeepSpeed's ZeRO-1, 2 and 3, corrected (`ZeroStrategy`)."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mtp_lightning.errors import InputError
from mtp_lightning.strategies.check import check_zero
from mtp_lightning.strategies.states import Names, by_index, by_name, group_names, settings


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO (Rajbhandari et al. 2020) through Lightning's DeepSpeedStrategy, with these differences:

    - the loss is divided by `accumulate_grad_batches` once: Lightning's closure and DeepSpeed's engine both do it, so
      that gradients, and the norm that is clipped and logged, come out that many times too small;
    - checkpoints are the same single file that one process writes, gathered on rank zero a parameter at a time
      (12 bytes of its memory per parameter): they go on under any other strategy, stage and number of processes;
    - without CUDA it runs on CPU processes, with gloo and nothing compiled;
    - states offloaded to the CPU are updated there by torch's fused AdamW, not by an operator compiled at first use.

    Args:
        stage: 1 shards the optimizer's states, 2 the gradients too, 3 the parameters too.
        offload: `optimizer`: the optimizer's states live on the CPU; `parameters`: parameters as well (stage 3).

    Raises:
        InputError: DeepSpeed is not installed, or offloading that the stage does not have.
    """

    def __init__(self, stage: Literal[1, 2, 3] = 2, offload: Literal["optimizer", "parameters"] | None = None) -> None:
        check_zero(stage, offload)
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for one and warn
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its imports, about what its own dependencies deprecate
            super().__init__(
                stage=stage,
                offload_optimizer=offload is not None,
                offload_parameters=offload == "parameters",
                logging_batch_size_per_gpu=1,  # for its throughput log, which is off; "auto" wants a sampler
            )
        self.stage = stage
        self.is_sharded = True
        """Weights in full, and in float32, are to be had from `lightning_module_state_dict` alone."""
        self.gives_pieces = False
        """Whether whole weights and moments are dealt out to all ranks, for a sharded checkpoint, and not kept on rank
        zero. They are gathered one at a time either way."""
        assert isinstance(self.config, dict)
        self.config["zero_force_ds_cpu_optimizer"] = False
        self._names: Names = []
        self._frozen: dict[str, Tensor] = {}
        """Weights that do not train, on rank zero's CPU: the engine keeps them in the precision that it computes in."""

    # -- running without CUDA --------------------------------------------------------------------------------------

    @property
    def _on_cpu(self) -> bool:
        return not isinstance(self.accelerator, CUDAAccelerator)

    @property
    @override
    def root_device(self) -> torch.device:
        if self._on_cpu:
            return torch.device("cpu", self.local_rank)  # DeepSpeed wants an index
        return super().root_device

    @override
    def setup_environment(self) -> None:
        if self._on_cpu:
            super(DeepSpeedStrategy, self).setup_environment()  # past the refusal of anything but CUDA
        else:
            super().setup_environment()

    @override
    def setup_distributed(self) -> None:
        if not self._on_cpu:
            super().setup_distributed()
            return
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled at first use, for a minute
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @override
    def init_deepspeed(self) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*DeepSpeed handles gradient clipping internally.*")  # known, and wanted
            super().init_deepspeed()

    # -- weights -----------------------------------------------------------------------------------------------------

    @override
    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Nothing is made within DeepSpeed's own context: it draws on the device that trains, so other weights."""
        yield

    def shard(self, part: nn.Module) -> None:
        """Leave this process its part of a layer, or of a model whose layers are sharded; stage 3 alone."""
        import deepspeed

        self._init_config_if_needed()
        assert isinstance(self.config, dict)
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            if self.config.get(name, {}).get("enabled"):
                part.to(dtype)  # what the engine does with whole weights
        deepspeed.zero.Init(module=part, config_dict_or_path=self.config, remote_device=self.remote_device)

    # -- gradients ---------------------------------------------------------------------------------------------------

    @override
    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def gradient_norm(self) -> float:
        """Of the step just made, before clipping: parameters have no gradients of their own to look at."""
        norm = self.deepspeed_engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @override
    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> Any:
        if optimizer is not None:
            self._names = group_names(model, optimizer)  # DeepSpeed is about to replace them by flat partitions
            named = model.named_parameters(remove_duplicate=False)
            frozen = {name: parameter.detach() for name, parameter in named if not parameter.requires_grad}
            zero = self.is_global_zero
            self._frozen = {n: w.to("cpu", copy=True) if zero else w.new_empty(0) for n, w in frozen.items()}
        return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Full weights, float32 where the engine keeps them so, on rank zero, or this rank's share of them."""
        from deepspeed.utils import safe_get_full_fp32_param

        assert self.lightning_module is not None
        trains = self._optimizer is not None
        state = {}
        for i, (name, parameter) in enumerate(self.lightning_module.named_parameters(remove_duplicate=False)):
            if name in self._frozen:
                if self.is_global_zero:
                    state[name] = self._frozen[name]
                continue
            with self._gathered(parameter):
                whole = safe_get_full_fp32_param(parameter) if trains else parameter.data
                if self._keeps(i):
                    state[name] = whole.detach().to("cpu", copy=True)
        whole_here = self.is_global_zero and not self.gives_pieces
        buffers = self.lightning_module.state_dict().keys() - state.keys() if whole_here else ()
        assert not buffers, f"state that is no parameter would be lost: {sorted(buffers)}"
        return state

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        saved = checkpoint["state_dict"]
        own = dict(self.lightning_module.named_parameters(remove_duplicate=False))
        if own.keys() != saved.keys():
            raise InputError(f"ckpt_path: the checkpoint and the model differ in {sorted(own.keys() ^ saved.keys())}")
        for name, parameter in own.items():
            with self._gathered(parameter, modified=True):
                parameter.data.copy_(saved[name])
            if name in self._frozen:
                self._frozen[name].copy_(saved[name] if self.is_global_zero else self._frozen[name])
            elif self._optimizer is not None:
                self._set_whole(parameter, saved[name])

    @override
    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        steps = [state["step"] for state in self._optimizer.optimizer.state.values() if "step" in state]
        if steps:
            self._link_states()
        state: dict[str, Any] = {}
        for i, name in enumerate(name for group in self._names for name in group):
            if not steps:
                break
            moments = {key: safe_get_full_optimizer_state(parameters[name], key) for key in ("exp_avg", "exp_avg_sq")}
            kept = {key: moment.to("cpu", copy=True) for key, moment in moments.items()} if self._keeps(i) else {}
            if self.is_global_zero or self.gives_pieces:
                state[name] = {"step": steps[0].detach().cpu().clone(), **kept}
        if not (self.is_global_zero or self.gives_pieces):
            return {}
        return by_index(self._names, state, self._optimizer.optimizer.param_groups)

    def _keeps(self, i: int) -> bool:
        """Whether this rank keeps the i-th thing that was gathered."""
        return i % self.world_size == self.global_rank if self.gives_pieces else self.is_global_zero

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.lightning_module is not None
        (saved,) = checkpoint["optimizer_states"]
        inner = self._optimizer.optimizer
        for group, own in zip(inner.param_groups, settings(saved)):
            group.update(own)
        states = by_name(self._names, saved)
        if not states:
            return
        step = next(iter(states.values()))["step"]
        for flat in self._flat_partitions():
            inner.state[flat] = {
                "step": torch.as_tensor(step, dtype=torch.float32).clone().to(flat.device),
                "exp_avg": torch.zeros_like(flat.data),
                "exp_avg_sq": torch.zeros_like(flat.data),
            }
        self._link_states()
        parameters = dict(self.lightning_module.named_parameters())
        for name, state in states.items():
            for key in ("exp_avg", "exp_avg_sq"):
                self._set_whole(parameters[name], state[key], key)

    def _set_whole(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """This rank's part of the float32 weight, or of a moment, out of the whole."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        whole = value.to(self.root_device)
        if self.stage == 3:  # DeepSpeed's own setter fails where ranks do not divide the weight: parts are padded
            part, _ = self._optimizer._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=False, optim_state_key=key
            )
            padded = F.pad(whole.flatten(), (0, part.numel() * self.world_size - whole.numel()))
            part.data.copy_(padded[part.numel() * self.global_rank :][: part.numel()])
        elif key is None:
            safe_set_full_fp32_param(parameter, whole)
        else:
            safe_set_full_optimizer_state(parameter, whole, key)

    @property
    def _optimizer(self) -> Any:
        """DeepSpeed's ZeRO optimizer around torch's; None in evaluation."""
        return getattr(self.deepspeed_engine, "optimizer", None) if self._names else None

    def _flat_partitions(self) -> list[Tensor]:
        """This rank's parts of the float32 weights, which torch's optimizer works on."""
        optimizer = self._optimizer
        flat = optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        return list(flat)

    def _link_states(self) -> None:
        """Let parameters find their parts of the optimizer's states. DeepSpeed does so after the first group's first
        step, when the second group has no states yet."""
        if self.stage != 3:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _gathered(self, parameter: nn.Parameter, modified: bool = False) -> Any:
        import deepspeed

        if self.stage != 3:
            return torch.no_grad()
        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if modified else None)
