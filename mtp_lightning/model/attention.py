"""Causal attention: rotary positions, grouped key/value heads."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.shapes import Bool, Float, Int

CAUSAL_BLOCK = 128
"""Rows of a block of `block_causal_attention`."""


class Projection(nn.Linear):
    """A linear map without bias whose constructor draws it from N(0, std^2).

    Drawn inside the constructor on purpose: under ZeRO-3 a later `nn.init` would be a silent no-op.
    """

    def __init__(self, in_features: int, out_features: int, std: float) -> None:
        self.std = std
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)


class Rotary(nn.Module):
    """Cosines and sines of RoPE (Su et al. 2021) in the half-split convention of Hugging Face's Llama.

    Coordinate j and j + E/2 of a head are one rotating pair, so weights move to and from Hugging Face unpermuted.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta

    def forward(self, positions: Int[Tensor, "T"]) -> tuple[Float[Tensor, "T F"], Float[Tensor, "T F"]]:
        """(cos, sin), each (T, E/2), in float32. Made afresh: a table would be a length limit."""
        exponents = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32)
        frequencies = self.theta ** (-exponents / self.head_dim)
        angles = positions[:, None].float() * frequencies
        return angles.cos(), angles.sin()


def rotate(
    x_BHTE: Float[Tensor, "B H T E"], cos: Float[Tensor, "T F"], sin: Float[Tensor, "T F"]
) -> Float[Tensor, "B H T E"]:
    """Rotate each pair (x_j, x_{j+E/2}) by its position's angle."""
    cos, sin = cos.to(x_BHTE.dtype), sin.to(x_BHTE.dtype)
    first, second = x_BHTE.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def causal_mask(n_new: int, n_total: int, device: torch.device) -> Bool[Tensor, "T S"]:
    """True where the i-th of the last `n_new` of `n_total` positions may look: at itself and before."""
    return torch.ones(n_new, n_total, dtype=torch.bool, device=device).tril(n_total - n_new)


def block_causal_attention(
    q_BHTE: Float[Tensor, "B H T E"], k_BHTE: Float[Tensor, "B H T E"], v_BHTE: Float[Tensor, "B H T E"]
) -> Float[Tensor, "B H T E"]:
    """Causal attention as plain matrix products over blocks of rows, which skips what lies above the diagonal.

    Torch's flash kernel for the CPU gains nothing from bfloat16; matrix products do (a third of the time of a bf16
    training step). Holds B x H x block x T probabilities per block for the backward pass, T^2 in all, so it suits
    contexts up to a few thousand positions.
    """
    T, scale = q_BHTE.shape[2], q_BHTE.shape[3] ** -0.5
    blocks = []
    for start in range(0, T, CAUSAL_BLOCK):
        end = min(start + CAUSAL_BLOCK, T)
        scores = (q_BHTE[:, :, start:end] * scale) @ k_BHTE[:, :, :end].transpose(-1, -2)
        hidden = causal_mask(end - start, end, scores.device).logical_not_()
        blocks.append(torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1) @ v_BHTE[:, :, :end])
    return torch.cat(blocks, dim=2)


def causal_attention(
    q_BHTE: Float[Tensor, "B H T E"],
    k_BKTE: Float[Tensor, "B K T E"],
    v_BKTE: Float[Tensor, "B K T E"],
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "B H T E"]:
    """Attention of every position to itself and before; `mask` (True = may look), where given, replaces that."""
    grouped = q_BHTE.shape[1] != k_BKTE.shape[1]
    if mask is None and q_BHTE.device.type == "cpu" and q_BHTE.dtype == torch.bfloat16:
        repeats = q_BHTE.shape[1] // k_BKTE.shape[1]
        k, v = (x.repeat_interleave(repeats, dim=1) if grouped else x for x in (k_BKTE, v_BKTE))
        with torch.autocast("cpu", enabled=False):  # autocast would run the softmax, and store it, in float32
            return block_causal_attention(q_BHTE, k, v)
    return F.scaled_dot_product_attention(
        q_BHTE, k_BKTE, v_BKTE, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
    )


class Attention(nn.Module):
    """Multi-head or grouped-query causal self-attention with RoPE, without biases."""

    def __init__(self, config: BackboneConfig, out_std: float) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_dim = config.kv_heads * config.head_dim
        self.wq = Projection(config.dim, config.dim, config.init_std)
        self.wk = Projection(config.dim, kv_dim, config.init_std)
        self.wv = Projection(config.dim, kv_dim, config.init_std)
        self.wo = Projection(config.dim, config.dim, out_std)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: tuple[Float[Tensor, "T F"], Float[Tensor, "T F"]],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "B T D"]:
        q, k, v = (w(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        return self.wo(causal_attention(q, k, v, mask).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
