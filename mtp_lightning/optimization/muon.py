"""Muon for the matrices inside layers, AdamW for all else, as the one optimizer that Lightning and checkpoints know.

Muon (Jordan 2024) takes the running mean of a matrix's gradient and makes its singular values about equal, by five
Newton-Schulz iterations in bfloat16, before it steps. The step is scaled by 0.2 sqrt(max(rows, columns)), which gives
it the root mean square of AdamW's (Liu et al., arXiv 2502.16982), so one learning rate and one decay are for both.

What it costs: 5 (4 m^2 n + 2 m^3) FLOPs a step for a matrix of m x n, m <= n, whatever the batch: some 20 m to 30 m a
parameter, where the rest of training takes 6 a parameter and token. With 512-wide layers and 8,192 tokens a step that
is a quarter. No count of FLOPs that the platform logs or plans has it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from typing_extensions import override

from mtp_lightning.optimization.adamw import OptimizerConfig, make_adamw

_LAYERS = ("trunk.", "heads.", "mixture.components.")
"""Parts of a model whose matrices map states to states; beside them are those to and from tokens (embedding,
unembeddings, the bigram of `markov`) and the few rows of a mixture's weights."""


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """What `model.optimizer` asks for.

    Args:
        parameters: of an `MTPModel`, with their names.
    """
    named = [(name, p) for name, p in parameters if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and name.startswith(_LAYERS)]
    if config.kind == "adamw" or not matrices:  # of a frozen model there may be none
        return make_adamw((p for _, p in named), config)
    of_layers = {id(p) for p in matrices}
    return MuonWithAdamW(matrices, [p for _, p in named if id(p) not in of_layers], config)


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on its first group, the matrices, and `torch.optim.AdamW` on the others, over one state.

    Of a sharded matrix (FSDP2) the momentum stays sharded, and its update is gathered: every rank orthogonalises the
    whole matrix, since of a part the result would be another.
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], config: OptimizerConfig) -> None:
        self._muon = torch.optim.Muon(
            matrices,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = make_adamw(others, config) if others else None
        groups = [*self._muon.param_groups, *(self._adamw.param_groups if self._adamw else [])]
        super().__init__(groups, {})

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        # A state that was loaded has groups of its own.
        self._muon.param_groups, self._muon.state = self.param_groups[:1], self.state
        if any(isinstance(p, DTensor) for p in self.param_groups[0]["params"]):
            self._step_sharded(self.param_groups[0])
        else:
            self._muon.step()  # type: ignore[no-untyped-call]
        if self._adamw is not None:
            self._adamw.param_groups, self._adamw.state = self.param_groups[1:], self.state
            self._adamw.step()
        return loss

    @torch.no_grad()
    def _step_sharded(self, group: dict[str, Any]) -> None:
        """Muon's step with one gathering a matrix. Torch's own optimizer takes the gathered update as the gradient of a
        matrix of zeros, without momentum and decay, which are done here on the shards."""
        assert group["nesterov"]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p.grad)
            momentum = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(momentum, group["momentum"])
            step = nn.Parameter(torch.zeros(p.shape, dtype=p.dtype, device=p.device))
            step.grad = update.full_tensor()
            settings = {key: group[key] for key in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
            alone = torch.optim.Muon([step], weight_decay=0.0, momentum=0.0, nesterov=False, **settings)
            alone.step()  # type: ignore[no-untyped-call]
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(distribute_tensor(step.detach(), p.device_mesh, p.placements, src_data_rank=None))
