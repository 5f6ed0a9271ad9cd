"""AdamW with decoupled parameter groups: the paper's recipe (table S13)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from mtp_lightning.ranges import TINY, Range, check_ranges

Decay = Annotated[float, Range(least=0, below=1)]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon beside it. Defaults are the paper's; epsilon is not stated there."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`adamw` for all weights; `muon`: Muon for the matrices that map states to states, AdamW for embedding,
    unembeddings, norms and biases. Muon's steps are scaled to the size of AdamW's: `lr`, its schedule and
    `weight_decay` are for both."""
    lr: Annotated[float, Range(least=TINY, most=100)] = 3e-4
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the running means of the gradient and of its square."""
    eps: Annotated[float, Range(least=TINY, most=1)] = 1e-8
    """Added to the root of the mean square."""
    weight_decay: Annotated[float, Range(least=0, most=1000)] = 0.1
    """Decoupled, on matrices only: norms' gains are not decayed."""
    momentum: Decay = 0.95
    """Of Muon alone: decay of the running mean of the gradient (Nesterov's)."""

    def __post_init__(self) -> None:
        check_ranges("model.optimizer", OptimizerConfig, vars(self))


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether it is one as a whole: what a process holds of it under ZeRO-3 is flat, or nothing."""
    return len(getattr(parameter, "ds_shape", parameter.shape)) >= 2


def make_adamw(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over two groups, matrices (decayed) and vectors (not); fused: 3 to 9 times quicker than the loops."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if is_matrix(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if not is_matrix(p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # of frozen models one may be empty
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    # Fused optimizers offer to undo float16 loss scaling themselves; Lightning then refuses to clip gradients, in
    # bfloat16 too, where nothing is scaled. Declining the offer leaves scaling to the scaler, before clipping.
    optimizer._step_supports_amp_scaling = False
    return optimizer
