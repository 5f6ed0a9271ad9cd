"""Causal attention: rotary positions, grouped key/value heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.model.documents import (
    Documents,
    Mask,
    WithRegisters,
    attention_by_flex,
    attention_by_spans,
    causal_mask,
)
from mtp_lightning.shapes import Bool, Float

CAUSAL_BLOCK = 128
"""Rows of a block of `block_causal_attention`."""


def draw(weight: Tensor, std: float) -> Tensor:
    """`weight`, from N(0, std^2) in place. One on the meta device holds nothing to draw: asked to, torch would import
    its compiler, which takes longer than everything else in the start of `mtp generate`."""
    with torch.no_grad():
        return weight if weight.is_meta else weight.normal_(std=std)


class Projection(nn.Linear):
    """A linear map whose constructor draws it from N(0, std^2), and its bias, where it has one, as zeros.

    Drawn inside the constructor on purpose: under ZeRO-3 a later `nn.init` would be a silent no-op.
    """

    def __init__(self, in_features: int, out_features: int, std: float, bias: bool = False) -> None:
        self.std = std
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        draw(self.weight, self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def rotate(
    x_BHTE: Float[Tensor, "B H T E"], cos: Float[Tensor, "*one T F"], sin: Float[Tensor, "*one T F"]
) -> Float[Tensor, "B H T E"]:
    """Rotate each pair (x_j, x_{j+E/2}) by its position's angle."""
    cos, sin = cos.to(x_BHTE.dtype), sin.to(x_BHTE.dtype)
    first, second = x_BHTE.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def block_causal_attention(
    q_BHTE: Float[Tensor, "B H T E"], k_BHTE: Float[Tensor, "B H T E"], v_BHTE: Float[Tensor, "B H T E"]
) -> Float[Tensor, "B H T E"]:
    """Causal attention as plain matrix products over blocks of rows, which skips what lies above the diagonal.

    Torch's flash kernel for the CPU gains nothing from bfloat16; matrix products do (a third of the time of a bf16
    training step). Holds B x H x block x T probabilities per block for the backward pass, T^2 in all, so it suits
    contexts up to a few thousand positions.
    """
    B, H, T, E = q_BHTE.shape
    q_GTE, k_GTE, v_GTE = (x.reshape(B * H, T, E) for x in (q_BHTE, k_BHTE, v_BHTE))
    blocks = []
    for start in range(0, T, CAUSAL_BLOCK):
        end = min(start + CAUSAL_BLOCK, T)
        bias = _hiding(causal_mask(end - start, end, q_GTE.device).logical_not_(), q_GTE.dtype)
        scores = torch.baddbmm(bias, q_GTE[:, start:end], k_GTE[:, :end].transpose(-1, -2), alpha=E**-0.5)
        blocks.append(torch.bmm(torch.softmax(scores, dim=-1), v_GTE[:, :end]))
    return torch.cat(blocks, dim=1).view(B, H, T, E)


def _hiding(hidden: Bool[Tensor, "*any"], dtype: torch.dtype) -> Float[Tensor, "*any"]:
    """What is added to scores. A product that begins with it scales and masks at once: passes over all scores, forward
    and backward, took a third of the attention's time. It does not hide a score of +inf or NaN (-inf + inf is NaN, in
    the whole row), which a mask would: only a run that has diverged has such."""
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf"))


def causal_attention(
    q_BHTE: Float[Tensor, "B H T E"],
    k_BKTE: Float[Tensor, "B K T E"],
    v_BKTE: Float[Tensor, "B K T E"],
    mask: Mask = None,
) -> Float[Tensor, "B H T E"]:
    """Attention of every position to itself and before; `mask` (True = may look), where given, replaces that, and
    documents limit it."""
    if isinstance(mask, WithRegisters):
        return attention_with_registers(q_BHTE, k_BKTE, v_BKTE, mask)
    grouped = q_BHTE.shape[1] != k_BKTE.shape[1]
    on_cpu = q_BHTE.device.type == "cpu"
    if isinstance(mask, Documents):
        if not on_cpu:
            return attention_by_flex(q_BHTE, k_BKTE, v_BKTE, mask)
        spread = _repeated(q_BHTE, k_BKTE, v_BKTE)
        return attention_by_spans(q_BHTE, *spread, mask, causal_attention)
    if mask is None and on_cpu and q_BHTE.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):  # autocast would run the softmax, and store it, in float32
            return block_causal_attention(q_BHTE, *_repeated(q_BHTE, k_BKTE, v_BKTE))
    return F.scaled_dot_product_attention(
        q_BHTE, k_BKTE, v_BKTE, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
    )


def attention_with_registers(
    q_BHSE: Float[Tensor, "B H S E"],
    k_BKSE: Float[Tensor, "B K S E"],
    v_BKSE: Float[Tensor, "B K S E"],
    mask: WithRegisters,
) -> Float[Tensor, "B H S E"]:
    """S = 2 T positions, the text and then its registers: the text's attention is what it is without them; a register
    attends to the text up to the token that it stands after, in its own document, and to itself.

    On a CPU a register's attention is matrix products over blocks of rows, as `block_causal_attention` (whose costs it
    has), with one column more, for itself. Elsewhere it is torch's kernel, under a mask of all pairs.
    """
    q, k, v = (x.chunk(2, dim=2) for x in (q_BHSE, k_BKSE, v_BKSE))
    text = causal_attention(q[0], k[0], v[0], mask.text)
    k_BHSE, v_BHSE = _repeated(q_BHSE, k_BKSE, v_BKSE)
    if mask.of_registers is not None:
        registers = F.scaled_dot_product_attention(q[1], k_BHSE, v_BHSE, attn_mask=mask.of_registers)
    else:
        with torch.autocast("cpu", enabled=False):
            registers = _block_register_attention(q[1], k_BHSE.chunk(2, dim=2), v_BHSE.chunk(2, dim=2), mask)
    return torch.cat((text, registers), dim=2)


def _block_register_attention(
    q_BHTE: Tensor, k: Sequence[Tensor], v: Sequence[Tensor], mask: WithRegisters
) -> Float[Tensor, "B H T E"]:
    """
    Args:
        k, v: of the text and of the registers.
    """
    T, scale = q_BHTE.shape[2], q_BHTE.shape[3] ** -0.5
    blocks = []
    for start in range(0, T, CAUSAL_BLOCK):
        rows = slice(start, min(start + CAUSAL_BLOCK, T))
        scaled = q_BHTE[:, :, rows] * scale
        scores = scaled @ k[0][:, :, : rows.stop].transpose(-1, -2)
        scores = scores + _hiding(mask.sees_text(rows, scores.device).logical_not(), scores.dtype)
        itself = (scaled * k[1][:, :, rows]).sum(-1, keepdim=True)
        p = torch.softmax(torch.cat((scores, itself), dim=-1), dim=-1)
        blocks.append(p[..., :-1] @ v[0][:, :, : rows.stop] + p[..., -1:] * v[1][:, :, rows])
    return torch.cat(blocks, dim=2)


def _repeated(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, once for each query head."""
    repeats = q_BHTE.shape[1] // k_BKTE.shape[1]
    return tuple(x if repeats == 1 else x.repeat_interleave(repeats, dim=1) for x in (k_BKTE, v_BKTE))  # type: ignore[return-value]


def normed(norm: nn.RMSNorm, x: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
    """`norm(x)` computed in float32 at least and returned in x's precision: under autocast, x is in half precision and
    the norm's weight is not."""
    wide = torch.promote_types(x.dtype, norm.weight.dtype)
    return norm(x.to(wide)).to(x.dtype)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head or grouped-query causal self-attention with RoPE.

    `config.attention_bias` adds biases to queries, keys and values (Qwen2), `config.qk_norm` an RMSNorm over each
    attention head's query and key, before they are rotated (Qwen3).
    """

    def __init__(self, config: BackboneConfig, out_std: float) -> None:
        super().__init__()
        self.head_dim = config.head_size
        bias = config.attention_bias == "qkv"
        self.wq = Projection(config.dim, config.q_dim, config.init_std, bias)
        self.wk = Projection(config.dim, config.kv_dim, config.init_std, bias)
        self.wv = Projection(config.dim, config.kv_dim, config.init_std, bias)
        self.wo = Projection(config.q_dim, config.dim, out_std)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None for _ in range(2)
        )

    def queries_keys(
        self, x_BTD: Float[Tensor, "B T D"], rotary: tuple[Float[Tensor, "*one T F"], Float[Tensor, "*one T F"]]
    ) -> tuple[Float[Tensor, "B H T E"], Float[Tensor, "B K T E"]]:
        """As they are multiplied with each other."""
        q, k = (w(x_BTD).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = normed(self.q_norm, q), normed(self.k_norm, k)
        return rotate(q.transpose(1, 2), *rotary), rotate(k.transpose(1, 2), *rotary)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: tuple[Float[Tensor, "*one T F"], Float[Tensor, "*one T F"]],
        mask: Mask = None,
    ) -> Float[Tensor, "B T D"]:
        q, k = self.queries_keys(x_BTD, rotary)
        v = self.wv(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return self.wo(causal_attention(q, k, v, mask).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
