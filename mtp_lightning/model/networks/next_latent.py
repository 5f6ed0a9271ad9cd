"""NextLat's network, which estimates a model's next state from its state and the next token (arXiv 2511.05963)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtp_lightning.model.attention import Projection
from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.model.documents import Mask
from mtp_lightning.shapes import Float


class LatentNetwork(nn.Module):
    """h + W_3 gelu(W_2 gelu(W_1 norm([e; h]))), h a state after the final norm, or an estimate of one.

    As in the authors' release (JaydenTeoh/NextLat, `NextLatDynamicsModel` of `models/model_nextlat.py`, at a commit
    that is not known): one RMSNorm over the two together, maps without biases (its `bias: false`), all drawn from
    N(0, 0.02^2), here `init_std`. Its hidden width is rounded to a multiple of 128, and `model.heads.latent_width` not.
    """

    def __init__(self, config: BackboneConfig, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(2 * config.dim, eps=config.norm_eps)
        self.first = Projection(2 * config.dim, width, config.init_std)
        self.second = Projection(width, width, config.init_std)
        self.last = Projection(width, config.dim, config.init_std)

    def forward(
        self,
        h_BTD: Float[Tensor, "B T D"],
        e_BTD: Float[Tensor, "B T D"],
        rotary: tuple[Tensor, Tensor],
        mask: Mask = None,
    ) -> Float[Tensor, "B T D"]:
        """Of each position by itself: `rotary` and `mask` are what other modules of heads are given."""
        x_BTH = F.gelu(self.first(self.norm(torch.cat((e_BTD, h_BTD), dim=-1))))
        return h_BTD + self.last(F.gelu(self.second(x_BTH)))  # type: ignore[no-any-return]
