"""One transformer layer: what the trunk stacks, and what a parallel prediction head is."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtp_lightning.model.attention import Attention, Projection
from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.model.documents import Mask
from mtp_lightning.shapes import Float

Recomputed = Literal["none", "layer", "attention", "head"]
"""What of a layer is run again in the backward pass (`mtp_lightning.model.training.recompute`); `head`: nothing by the
layer itself, its whole head is."""


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020), as in Llama."""

    def __init__(self, config: BackboneConfig, ffn: int, out_std: float) -> None:
        super().__init__()
        self.gate = Projection(config.dim, ffn, config.init_std)
        self.up = Projection(config.dim, ffn, config.init_std)
        self.down = Projection(ffn, config.dim, out_std)

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))  # type: ignore[no-any-return]


class FinalNorm(nn.RMSNorm):
    """RMSNorm before an unembedding. It stands in no layer, so that it is compiled for itself, which torch does not do
    to the `forward` of a class of its own."""

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return super().forward(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x)).

    The two projections into the residual stream start smaller by sqrt(2 n_layers) (GPT-2), so that the stream's
    variance does not grow with depth; n_layers is the n_future = 1 model's, the same for every arm of a grid.

    Args:
        ffn: hidden width of the SwiGLU; by default the configuration's. Parameter matching narrows or widens it.
    """

    def __init__(self, config: BackboneConfig, ffn: int | None = None) -> None:
        super().__init__()
        out_std = config.init_std / (2 * config.n_layers) ** 0.5
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config, out_std)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn = SwiGLU(config, config.ffn if ffn is None else ffn, out_std)
        self.recomputed: Recomputed = "none"

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: tuple[Float[Tensor, "*one T F"], Float[Tensor, "*one T F"]],
        mask: Mask = None,
    ) -> Float[Tensor, "B T D"]:
        recomputed = self.recomputed if torch.is_grad_enabled() else "none"
        if recomputed == "layer":
            return checkpoint(self._run, x_BTD, rotary, mask, use_reentrant=False)  # type: ignore[no-any-return]
        if recomputed == "attention":
            return self._feed(checkpoint(self._attend, x_BTD, rotary, mask, use_reentrant=False))
        return self._run(x_BTD, rotary, mask)

    def _run(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
        return self._feed(self._attend(x_BTD, rotary, mask))

    def _attend(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
        return x_BTD + self.attention(self.attention_norm(x_BTD), rotary, mask)  # type: ignore[no-any-return]

    def _feed(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))  # type: ignore[no-any-return]
