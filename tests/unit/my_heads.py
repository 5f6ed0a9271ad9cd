"""Head kinds as a user would write them, for the tests: they are imported by their path."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.heads import Heads, Join, ParallelHeads, RotaryAndMask, SequentialHeads, Stack


class Gated(Heads):
    """h_i = h_1 + A_i z."""

    def __init__(self, backbone: BackboneConfig, heads: HeadsConfig) -> None:
        maps = [nn.Linear(backbone.dim, backbone.dim) for _ in range(heads.n_future - 1)]
        super().__init__([Stack(backbone, heads.layers), *maps])

    def further(self, h_BTD: Tensor, z_BTD: Tensor, where: RotaryAndMask, e_MBTD: Tensor | None) -> Sequence[Tensor]:
        return [h_BTD + gate(z_BTD) for gate in self[1:]]


class LikeParallel(Heads):
    def __init__(self, backbone: BackboneConfig, heads: HeadsConfig) -> None:
        super().__init__(Stack(backbone, heads.layers) for _ in range(heads.n_future))

    def further(self, h_BTD: Tensor, z_BTD: Tensor, where: RotaryAndMask, e_MBTD: Tensor | None) -> Sequence[Tensor]:
        return [head(z_BTD, *where) for head in self[1:]]


class LikeRecurrent(SequentialHeads):
    def __init__(self, backbone: BackboneConfig, heads: HeadsConfig) -> None:
        joins = [Join(backbone, heads.layers)] if heads.n_future > 1 else []
        super().__init__([Stack(backbone, heads.layers), *joins])


class FromTokens(SequentialHeads):
    """h_i = h_1 + the embeddings of all tokens from the position's own to the one before the target."""

    reads_current = True

    def __init__(self, backbone: BackboneConfig, heads: HeadsConfig) -> None:
        super().__init__([Stack(backbone, heads.layers)])

    def further(self, h_BTD: Tensor, z_BTD: Tensor, where: RotaryAndMask, e_MBTD: Tensor | None) -> Sequence[Tensor]:
        return [] if e_MBTD is None else list(h_BTD + e_MBTD.cumsum(0)[1:])


class OneShort(LikeParallel):
    def further(self, h_BTD: Tensor, z_BTD: Tensor, where: RotaryAndMask, e_MBTD: Tensor | None) -> Sequence[Tensor]:
        return [head(z_BTD, *where) for head in self[2:]]


class WrongShape(LikeParallel):
    def further(self, h_BTD: Tensor, z_BTD: Tensor, where: RotaryAndMask, e_MBTD: Tensor | None) -> Sequence[Tensor]:
        return [z_BTD[..., :1] for _ in self[1:]]


class NoStack(Heads):
    def __init__(self, backbone: BackboneConfig, heads: HeadsConfig) -> None:
        super().__init__([nn.Linear(backbone.dim, backbone.dim)])


class OwnStates(ParallelHeads):
    """Head 1 might be anything."""


class OwnForward(LikeParallel):
    """Head 1 is trained as something else than what decodes."""

    def forward(self, z_BTD: Tensor, *where: Any, norm: nn.Module, **more: Any) -> Tensor:
        found: Tensor = norm(z_BTD.expand(len(self), *z_BTD.shape))
        return found


class NoHeads(nn.Module):
    pass
