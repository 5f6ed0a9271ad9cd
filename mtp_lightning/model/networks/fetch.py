"""JTP's fetch, which predicts later tokens from one state and the tokens in between (arXiv 2503.21801)."""

import torch
from torch import Tensor, nn

from mtp_lightning.model.attention import Projection
from mtp_lightning.model.block import FinalNorm
from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.model.documents import causal_mask
from mtp_lightning.shapes import Float


class Fetch(nn.Module):
    """h_i = norm(h_1 + A(s_1 .. s_i)), s_k = LN(e_k + c h_1): e_k is the embedding of the token k - 1 ahead, the first
    of the token that h_1 stands at; A is what the i-th slot gets of causal attention over the slots alone.

    So h_1 is the only way to the past. As in the code that NextLat's authors published of it (JaydenTeoh/NextLat,
    `models/model_mtp_jtp.py`, at a commit that is not known): one layer of attention without a SwiGLU, of at most four
    attention heads, c = 0.1 at first, a learned bias for each pair of slots instead of positions, a LayerNorm of the
    slots, maps without biases. There head 1 is the first slot's result, without h_1 beside it; here it is h_1 itself,
    so that using the model asks for nothing new. Norms after the fetch are RMSNorms, as everywhere here, there
    LayerNorms.
    """

    def __init__(self, config: BackboneConfig, n_future: int) -> None:
        super().__init__()
        d, std = config.dim, config.init_std
        self.n_heads = fetch_heads(config)
        self.gain = nn.Parameter(torch.full((1,), 0.1))
        self.slot_norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.wq, self.wk, self.wv, self.wo = (Projection(d, d, std) for _ in range(4))
        self.pair_bias = nn.Parameter(torch.zeros(self.n_heads * (n_future - 1) * n_future))
        """Of (attention heads, further heads, slots), in one dimension: biases do not decay."""
        self.norm = FinalNorm(d, eps=config.norm_eps)

    def forward(self, h_BTD: Float[Tensor, "B T D"], e_NBTD: Float[Tensor, "N B T D"]) -> Float[Tensor, "M B T D"]:
        """Normed states of heads 2 .. N, M = N - 1.

        Args:
            h_BTD: head 1's, after its norm.
            e_NBTD: embeddings of the position's own token and of the M after it.
        """
        s_NBTD = self.slot_norm(e_NBTD + self.gain * h_BTD)
        q_MBTHE = self.wq(s_NBTD[1:]).unflatten(-1, (self.n_heads, -1))
        k_NBTHE, v_NBTHE = (w(s_NBTD).unflatten(-1, (self.n_heads, -1)) for w in (self.wk, self.wv))
        scores_BTHMN = torch.einsum("mbthe,nbthe->bthmn", q_MBTHE * q_MBTHE.shape[-1] ** -0.5, k_NBTHE)
        M, N = scores_BTHMN.shape[-2:]
        unseen_MN = ~causal_mask(M, N, scores_BTHMN.device)
        scores_BTHMN = (scores_BTHMN + self.pair_bias.view(-1, M, N)).masked_fill(unseen_MN, float("-inf"))
        mixed_MBTHE = torch.einsum("bthmn,nbthe->mbthe", scores_BTHMN.softmax(-1).to(v_NBTHE.dtype), v_NBTHE)
        return self.norm(h_BTD + self.wo(mixed_MBTHE.flatten(-2)))  # type: ignore[no-any-return]


def fetch_heads(config: BackboneConfig) -> int:
    """Attention heads of the fetch: the model's, but no more than four, and as many as divide its width."""
    return next(n for n in range(min(4, config.n_heads), 0, -1) if config.dim % n == 0)
