"""The prediction heads: z (B, T, D) of the trunk -> one hidden state per head, (S, B, T, D), S = N or 1.

One class per way to connect heads; `make_heads` picks it by `model.heads.kind`, where the equations are. Hidden states
leave here after the final norm, which all heads share unless they have their own (`NormedHeads`), as they share the
unembedding unless it is replicated.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtp_lightning.model.attention import Projection
from mtp_lightning.model.block import Block, FinalNorm
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.documents import Mask
from mtp_lightning.model.networks.fetch import Fetch
from mtp_lightning.model.networks.next_latent import LatentNetwork
from mtp_lightning.model.training.first_run import first_run
from mtp_lightning.shapes import Float

RotaryAngles = tuple[Tensor, Tensor]
RotaryAndMask = tuple[RotaryAngles, Mask]
"""What every layer needs besides its input: rotary angles and, where it is not plainly causal, a mask."""

Scored = TypeVar("Scored")
Score = Callable[[int, Tensor], Scored]
"""`score(i, h)` of the normed state (1, B, T, D) of head i + 1."""


class Stack(nn.ModuleList):
    """The transformer layers of one head."""

    def __init__(self, config: BackboneConfig, layers: int) -> None:
        super().__init__(Block(config) for _ in range(layers))

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: RotaryAngles,
        mask: Mask = None,
    ) -> Float[Tensor, "B T D"]:
        for block in self:
            x_BTD = block(x_BTD, rotary, mask)
        return x_BTD


class LinearHead(nn.Module):
    """A z: a single matrix, no non-linearity (paper, appendix B)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.projection = Projection(config.dim, config.dim, config.init_std)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: RotaryAngles,
        mask: Mask = None,
    ) -> Float[Tensor, "B T D"]:
        return self.projection(x_BTD).to(x_BTD.dtype)  # type: ignore[no-any-return]


class Join(nn.Module):
    """H(M [norm(h); norm(e)]): a hidden state joined with the embedding of a later token (DeepSeek-V3, equation 21).

    Args:
        normed: end with a final norm of its own.
    """

    def __init__(self, config: BackboneConfig, layers: int, normed: bool = False) -> None:
        super().__init__()
        self.hidden_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.embedding_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.projection = Projection(2 * config.dim, config.dim, config.init_std)
        self.stack = Stack(config, layers)
        self.norm = FinalNorm(config.dim, eps=config.norm_eps) if normed else None

    def forward(
        self,
        h_BTD: Float[Tensor, "B T D"],
        e_BTD: Float[Tensor, "B T D"],
        rotary: RotaryAngles,
        mask: Mask = None,
    ) -> Float[Tensor, "B T D"]:
        joined = torch.cat((self.hidden_norm(h_BTD), self.embedding_norm(e_BTD)), dim=-1)
        x_BTD = self.projection(joined).to(h_BTD.dtype)  # autocast would leave the residual stream in half precision
        x_BTD = self.stack(x_BTD, rotary, mask)
        return x_BTD if self.norm is None else self.norm(x_BTD)  # type: ignore[no-any-return]


class Heads(nn.ModuleList):
    """The base of all kinds; `self[i]` is head i + 1, or the module that several heads share.

    A kind says what its `further` heads are, or, where head 1 is not `self[0]` on z, all `states`.
    """

    teacher_forced = False
    """Whether the further heads read the true tokens between their position and their target."""
    reads_current = False
    """Whether, where they do, they read the token at their position, too."""
    run_again = False
    """Whether a loss runs each head again in its backward (`mtp_lightning.model.training.recompute`)."""

    def __getitem__(self, index: int | slice) -> Any:
        """A slice is a plain ModuleList: torch would make another of this class, whose arguments may differ."""
        return nn.ModuleList(list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    def forward(
        self,
        z_BTD: Float[Tensor, "B T D"],
        rotary: RotaryAngles,
        mask: Mask = None,
        e_MBTD: Float[Tensor, "M B T D"] | None = None,
        detach: bool = False,
        *,
        norm: nn.Module,
    ) -> Float[Tensor, "S B T D"]:
        """Hidden states of all heads, after their norm.

        Args:
            norm: the model's final norm.
            e_MBTD: embeddings of the true tokens that heads 2 .. N may see, M = N - 1: for head i, of the token that
                head i - 1 predicts. For kinds that are `teacher_forced` alone. Of those that are `reads_current` M = N,
                the first of the token at the position.
            detach: keep the further heads' gradient out of the trunk (and of head 1, where they read its output).
        """
        return norm(torch.stack(self.states(z_BTD, (rotary, mask), e_MBTD, detach)))  # type: ignore[no-any-return]

    def states(self, z_BTD: Tensor, rotary_mask: RotaryAndMask, e_MBTD: Tensor | None, detach: bool) -> list[Tensor]:
        h_BTD = self[0](z_BTD, *rotary_mask)
        if not detach:
            return [h_BTD, *self.further(h_BTD, z_BTD, rotary_mask, e_MBTD)]
        e_MBTD = None if e_MBTD is None else e_MBTD.detach()
        return [h_BTD, *self.further(h_BTD.detach(), z_BTD.detach(), rotary_mask, e_MBTD)]

    def further(
        self, h_BTD: Tensor, z_BTD: Tensor, rotary_mask: RotaryAndMask, e_MBTD: Tensor | None
    ) -> Sequence[Tensor]:
        """Hidden states of heads 2 .. N, given the trunk's output z and head 1's state h."""
        raise NotImplementedError

    def first(self, z_BTD: Tensor, rotary_mask: RotaryAndMask) -> Tensor:
        """Head 1's hidden state alone, (B, T, D): all that using the model needs."""
        return self[0](z_BTD, *rotary_mask)  # type: ignore[no-any-return]


class ParallelHeads(Heads):
    """h_i = H_i(z): every head reads the trunk's output (paper, section 2; linear heads: appendix B)."""

    def states(self, z_BTD: Tensor, rotary_mask: RotaryAndMask, e_MBTD: Tensor | None, detach: bool) -> list[Tensor]:
        read = z_BTD.detach() if detach else z_BTD
        return [head(read if i else z_BTD, *rotary_mask) for i, head in enumerate(self)]

    def scored(
        self, z_BTD: Tensor, rotary_mask: RotaryAndMask, detach: bool, norm: nn.Module, score: Score[Scored]
    ) -> list[Scored]:
        """The score of each head, of which nothing is kept but z: each is run again, head and score, in its backward.

        One head after the other is so finished, its gradient added to z's, before the next one's states exist (the
        order of the paper's figure 2). By torch's non-reentrant checkpoints within one backward, so that the hooks of
        sharding and of gradient reduction see what they always see; the paper's own loop is wrong under most of them.
        """
        read = z_BTD.detach() if detach else z_BTD
        scores = []
        for i, head in enumerate(self):

            def run(x_BTD: Tensor, i: int = i, head: nn.Module = head) -> Scored:
                return score(i, norm(head(x_BTD, *rotary_mask))[None])

            given = read if i else z_BTD
            scores.append(checkpoint(run, given, use_reentrant=False, context_fn=lambda: (first_run(), nullcontext())))
        return scores


class CausalHeads(Heads):
    """h_i = H_i(h_{i-1}), h_0 = z: later heads sit on earlier ones (paper, appendix B)."""

    def states(self, z_BTD: Tensor, rotary_mask: RotaryAndMask, e_MBTD: Tensor | None, detach: bool) -> list[Tensor]:
        h_BTD, states = z_BTD, []
        for i, head in enumerate(self):
            h_BTD = head(h_BTD.detach() if detach and i == 1 else h_BTD, *rotary_mask)
            states.append(h_BTD)
        return states


class AnticausalHeads(Heads):
    """h_i = H_i(h_{i+1}), h_{n+1} = z: the furthest token first, head 1 on top of all (paper, appendix B)."""

    def states(self, z_BTD: Tensor, rotary_mask: RotaryAndMask, e_MBTD: Tensor | None, detach: bool) -> list[Tensor]:
        assert not detach, "head 1 reads the further heads, so their gradients cannot be separated"
        h_BTD, states = z_BTD, []
        for head in reversed(self):
            h_BTD = head(h_BTD, *rotary_mask)
            states.append(h_BTD)
        return states[::-1]

    def first(self, z_BTD: Tensor, rotary_mask: RotaryAndMask) -> Tensor:
        return self.states(z_BTD, rotary_mask, None, False)[0]


class SequentialHeads(Heads):
    """h_1 = H_1(z), h_i = Join_i(h_{i-1}, e_{i-1}): the true tokens enter one by one (DeepSeek-V3, equations 21-23).

    `recurrent` is the same with two modules only: `self[1]` serves every further head (FastMTP).
    """

    teacher_forced = True

    def further(
        self, h_BTD: Tensor, z_BTD: Tensor, rotary_mask: RotaryAndMask, e_MBTD: Tensor | None
    ) -> Sequence[Tensor]:
        states = []
        for i, e_BTD in enumerate([] if e_MBTD is None else e_MBTD, start=1):
            h_BTD = self[min(i, len(self) - 1)](h_BTD, e_BTD, *rotary_mask)
            states.append(h_BTD)
        return states


class NormedHeads(SequentialHeads):
    """h_1 = norm(H_1(z)), h_i = norm_i(Join_i(h_{i-1}, e_{i-1})): states are handed on after their norm.

    `next_latent` is the same with one `LatentNetwork` for every further head, which norms nothing at its end.
    """

    def forward(
        self,
        z_BTD: Float[Tensor, "B T D"],
        rotary: RotaryAngles,
        mask: Mask = None,
        e_MBTD: Float[Tensor, "M B T D"] | None = None,
        detach: bool = False,
        *,
        norm: nn.Module,
    ) -> Float[Tensor, "S B T D"]:
        h_BTD = norm(self[0](z_BTD, rotary, mask))
        if not detach:
            return torch.stack([h_BTD, *self.further(h_BTD, z_BTD, (rotary, mask), e_MBTD)])
        e_MBTD = None if e_MBTD is None else e_MBTD.detach()
        return torch.stack([h_BTD, *self.further(h_BTD.detach(), z_BTD.detach(), (rotary, mask), e_MBTD)])


class FetchHeads(NormedHeads):
    """h_1 = norm(H_1(z)), and one `Fetch` from it for all further heads."""

    reads_current = True

    def further(
        self, h_BTD: Tensor, z_BTD: Tensor, rotary_mask: RotaryAndMask, e_MBTD: Tensor | None
    ) -> Sequence[Tensor]:
        assert e_MBTD is not None
        return list(self[1](h_BTD, e_MBTD))


class OneStream(Heads):
    """h_1 = H_1(z) alone, for kinds whose head 1 answers for every future token."""

    def further(
        self, h_BTD: Tensor, z_BTD: Tensor, rotary_mask: RotaryAndMask, e_MBTD: Tensor | None
    ) -> Sequence[Tensor]:
        return ()


def make_heads(config: BackboneConfig, heads: HeadsConfig) -> Heads:
    """The heads of `model.heads.kind`."""
    if heads.is_own:
        from mtp_lightning.model.own_kind import make_own

        return make_own(config, heads)
    n, layers = heads.n_future, heads.layers

    def linear() -> nn.Module:
        return LinearHead(config)

    def stack() -> nn.Module:
        return Stack(config, layers)

    def join() -> nn.Module:
        return Join(config, layers, heads.norms == "own")

    def latent() -> nn.Module:
        return LatentNetwork(config, heads.network_width(config.dim))

    def fetch() -> nn.Module:
        return Fetch(config, n)

    sequential = NormedHeads if heads.norms == "own" else SequentialHeads
    makers: dict[str, tuple[type[Heads], list[Callable[[], nn.Module]]]] = {
        "parallel": (ParallelHeads, [stack] * n),
        "markov": (ParallelHeads, [stack] * n),
        "mixture": (ParallelHeads, [stack] * n),
        "linear": (ParallelHeads, [linear] * n),
        "causal": (CausalHeads, [stack] * n),
        "anticausal": (AnticausalHeads, [stack] * n),
        "sequential": (sequential, [stack, *[join] * (n - 1)]),
        "recurrent": (sequential, [stack, join][:n]),
        "next_latent": (NormedHeads, [stack, latent][:n]),
        "fetch": (FetchHeads, [stack, fetch][:n]),
        "none": (OneStream, [stack]),
        "order": (OneStream, [stack]),
        "registers": (OneStream, [stack]),
        "future_summary": (OneStream, [stack]),
    }
    make, modules = makers[heads.kind]
    if n == 1 and not heads.second_loss:  # it has no other to read
        make = ParallelHeads
    return make(module() for module in modules)


class Source(NamedTuple):
    """Who proposes the token at one offset: head `head` (from 2), `shift` positions before the last accepted."""

    head: int
    shift: int


def sources(offsets: Sequence[int], heads_used: int) -> list[Source]:
    """For the offsets 2, 3, .. up to the last used head's: the nearest head that looks so far or further."""
    return [
        Source(head, offsets[head - 1] - offset)
        for head in range(2, heads_used + 1)
        for offset in range(offsets[head - 2] + 1, offsets[head - 1] + 1)
    ]
