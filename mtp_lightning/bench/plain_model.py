"""The n-head model in plain PyTorch, as one would write it in an afternoon: what `mtp bench train` measures against.

Layers, equations and parameter names are `MTPModel`'s with parallel heads, so weights load both ways. The attention is
torch's `scaled_dot_product_attention`, the loss `F.cross_entropy`; nothing here borrows our own fast paths.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtp_lightning.model.config import BackboneConfig


class PlainAttention(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.head_dim, kv_dim = config.head_size, config.kv_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return self.wo(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split RoPE, cos and sin (T, E)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


class PlainFeedForward(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.ffn, bias=False)
        self.up = nn.Linear(config.dim, config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class PlainBlock(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = PlainAttention(config)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn = PlainFeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.ffn(self.ffn_norm(x))  # type: ignore[no-any-return]


class PlainModel(nn.Module):
    """Trunk of L - n layers, n heads of one layer each, shared norm and unembedding."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: BackboneConfig, n_future: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.trunk = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layers - n_future))
        self.heads = nn.ModuleList(nn.ModuleList([PlainBlock(config)]) for _ in range(n_future))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.unembedding = nn.Linear(config.dim, config.vocab_size, bias=False)
        exponents = torch.arange(0, config.head_size, 2).float() / config.head_size
        angles = torch.arange(context)[:, None] * config.rope_theta**-exponents
        self.register_buffer("cos", torch.cat((angles, angles), 1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angles, angles), 1).sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=config.init_std)

    def run_trunk(self, tokens_BT: Tensor) -> Tensor:
        x = self.embedding(tokens_BT)
        for block in self.trunk:
            x = block(x, self.cos, self.sin)
        return x  # type: ignore[no-any-return]

    def head_loss(self, i: int, z_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy of head i (from 0)."""
        h = self.norm(self.heads[i][0](z_BTD, self.cos, self.sin))  # type: ignore[index]
        return F.cross_entropy(self.unembedding(h).flatten(0, 1).float(), targets_BT.flatten())

    def naive_loss(self, tokens_BT: Tensor, targets_NBT: Tensor) -> Tensor:
        """The sum of all heads' losses with one backward to come, until which every head's logits stay alive."""
        z = self.run_trunk(tokens_BT)
        return torch.stack([self.head_loss(i, z, targets) for i, targets in enumerate(targets_NBT)]).sum()


def paper_step(
    trunk: Callable[[Tensor], Tensor],
    head_loss: Callable[[int, Tensor, Tensor], Tensor],
    tokens_BT: Tensor,
    targets_NBT: Tensor,
    forward: Callable[[], torch.autocast],
) -> Tensor:
    """The paper's memory-efficient loop (section 2, figure 2): one head's logits at a time.

    Trunk forward; then for every head forward and backward down to the trunk's detached output, where the heads'
    gradients add up; then the trunk's backward. Leaves all gradients and returns the summed loss.

    Args:
        forward: makes the autocast context of a forward; backward runs outside of it.
    """
    with forward():
        z = trunk(tokens_BT)
    cut = z.detach().requires_grad_()
    losses = []
    for i, targets in enumerate(targets_NBT):
        with forward():
            loss = head_loss(i, cut, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    z.backward(cut.grad)  # type: ignore[no-untyped-call]
    return torch.stack(losses).sum()
