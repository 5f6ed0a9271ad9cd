"""Registers (MuToR, arXiv 2505.10518v1): the objective of kind `registers`.

In training a register goes after each token x_t and predicts the token d ahead, x_{t+d}. All registers are one learned
embedding, and go through the same layers, norm and unembedding as text. What tells a register its d is its position,
t + d - 1, where head 1 would predict the same token. No token sees a register; a register sees the text up to x_t and
itself, and no other register. So the next-token model is what it would be without them, and using it needs none.

    total = (1 - a) mean_t nll(x_{t+1} | head 1 at t) + a mean_t nll(x_{t+d} | register at t),   a = 0.3, d_max = 4

d is drawn anew for each window and step, uniformly from 1 .. n_future. The weights are `model.loss.weights`' default
for this kind. Each mean is over its valid targets: in the same document, in the loss mask, not beyond a sentinel.

After the paper's code (github.com/nasosger/MuToR, language_modeling/src/finetune.py and models/llama_mutor.py, where a,
d_max and positions are read) and reviews of the paper, of which the abstract alone was at hand. There d is drawn for
each batch, which is of one text. Ours: registers after all tokens, also of a prompt (they count where their target
does), and not from the prompt's last token on; prompts are causal, and do not see themselves whole; no target is
missing at a window's edge, since windows carry the tokens after them. The text and its registers are two halves of a
row instead of alternating, which under this mask is the same.
"""

import torch
from torch import Tensor

from mtp_lightning.shapes import Int

_WORDS = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The odd constants of splitmix64."""


def draw_offsets(window_BL: Int[Tensor, "B L"], most: int, seed: int, step: int) -> Int[Tensor, "B"]:
    """d of each window, uniform in 1 .. `most`: a hash of the seed, the step and the window's tokens.

    No generator is read or moved, a resumed run draws what it would have drawn, and it does not matter which process,
    in which batch of a step, has the window. Windows of the same tokens have the same d in a step.
    """
    golden = _signed(_WORDS[0])
    place_L = _mix(torch.arange(1, window_BL.shape[1] + 1, device=window_BL.device) * golden)
    key = _mix(_mix(torch.tensor(seed + 1) * golden) + step).item()
    hash_B = _mix(_mix(window_BL.long() * golden + place_L).sum(1) + key)
    return (hash_B >> 32 & 0x7FFFFFFF) % most + 1


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finalizer, of int64 that overflows."""
    for shift, factor in zip((30, 27), _WORDS[1:]):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * _signed(factor)
    return x ^ (x >> 31 & (1 << 33) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
