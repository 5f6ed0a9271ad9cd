"""Rotary positions (Su et al. 2021), plain or scaled for texts longer than those a model was first trained on."""

import math

import torch
from torch import Tensor, nn

from mtp_lightning.model.config import BackboneConfig, RopeScaling
from mtp_lightning.shapes import Float, Int


def rope_frequencies(config: BackboneConfig, device: torch.device) -> Float[Tensor, "F"]:
    """Radians per position of each rotating pair, E/2 of them, in float32; the first turns fastest."""
    E, theta, scaling = config.head_size, config.rope_theta, config.rope_scaling
    exponents = torch.arange(0, E, 2, device=device, dtype=torch.float32) / E
    frequencies = theta**-exponents
    if scaling.kind == "default":
        return frequencies
    slowed = frequencies / scaling.factor
    kept = _kept_share(scaling, frequencies, theta, E)
    return slowed * (1 - kept) + frequencies * kept


def _kept_share(scaling: RopeScaling, frequencies: Tensor, theta: float, E: int) -> Tensor:
    """Of each pair, 1 where it turns as before and 0 where it is slowed by the factor: between the two for pairs whose
    turns in the original context are neither many nor few."""
    if scaling.kind == "linear":
        return torch.zeros_like(frequencies)
    context = scaling.original_context
    assert context is not None
    if scaling.kind == "llama3":
        turns = context * frequencies / (2 * math.pi)
        width = scaling.high_freq_factor - scaling.low_freq_factor
        return ((turns - scaling.low_freq_factor) / width).clamp(0, 1)

    def pair_of(turns: float) -> float:
        """The pair, as a fraction of one, that makes so many turns in the original context."""
        return E * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, E - 1)
    pairs = torch.arange(E // 2, device=frequencies.device, dtype=torch.float32)
    return 1 - ((pairs - first) / (last - first or 0.001)).clamp(0, 1)


class Rotary(nn.Module):
    """Cosines and sines of RoPE in the half-split convention of Hugging Face's Llama.

    Coordinate j and j + E/2 of a head are one rotating pair, so weights move to and from Hugging Face unpermuted.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, positions: Int[Tensor, "*B T"]) -> tuple[Float[Tensor, "*B T F"], Float[Tensor, "*B T F"]]:
        """(cos, sin), each (T, E/2), or of rows of their own positions (B, T, E/2), in float32, times the attention
        factor of scaled positions. Made afresh: a table would be a length limit."""
        angles = positions[..., None].float() * rope_frequencies(self.config, positions.device)
        cos, sin, factor = angles.cos(), angles.sin(), self.config.rope_scaling.attention
        return (cos, sin) if factor == 1 else (cos * factor, sin * factor)
