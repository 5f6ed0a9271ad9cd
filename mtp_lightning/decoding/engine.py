"""A model prepared for decoding: the path to the next token, which verifies, and the heads that draft."""

import itertools
import math
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtp_lightning.decoding.adaptive import Experience
from mtp_lightning.decoding.compiled.compiler import wanted
from mtp_lightning.decoding.compiled.layers import Compiled
from mtp_lightning.decoding.drafts import Drafter, make_drafter
from mtp_lightning.decoding.layers import FinalNorm, Norm, Plain
from mtp_lightning.decoding.linear import can_pack
from mtp_lightning.decoding.positions import KeyValues, LayerCache, NewPositions
from mtp_lightning.machine import cpu_has_bfloat16
from mtp_lightning.model.config import SIDE_BY_SIDE
from mtp_lightning.model.heads import LinearHead
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.shapes import Float, Int

DRAFT_REACH = 128
"""Positions back that drafting heads look. Byte models of 12 layers accepted as many drafts with 64 as with all 512
(1.63, 2.63 and 2.80 tokens per forward with 2, 4 and 8 heads, 1.63, 2.63 and 2.78 without a limit)."""


class Engine:
    """Copies of a model's weights, laid out for few rows at a time. Make it once, decode any number of texts.

    Args:
        heads_used: the most heads that are to draft; by default all that can.
        dtype: precision of weights and activations; by default the model's own.
        exact_drafts: draft as the heads were trained. By default parallel heads look back DRAFT_REACH positions, and on
            a CPU that computes in bfloat16 their SwiGLUs do: a draft is only a guess, and this makes it sooner.
        compiled: run the layers of `compiled/`, on a CPU and where there is a compiler; else torch's, and `compiled` is
            false. They compute in float32, with weights in `dtype`, and round no drafts' activations but their weights.

    Raises:
        InputError: more heads than the model has, or than can draft.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: MTPModel,
        heads_used: int | None = None,
        dtype: torch.dtype | None = None,
        exact_drafts: bool = False,
        compiled: bool = False,
    ) -> None:
        self.heads_used = model.heads_config.max_heads_used if heads_used is None else heads_used
        self.config, self.heads = model.config, model.heads_config
        dtype = dtype or model.embedding.weight.dtype
        self.device = model.embedding.weight.device
        self.compiled = compiled = wanted(compiled, self.device, 0)
        made = Compiled(dtype) if compiled else Plain(dtype)
        self.dtype = made.activations
        cpu = self.device.type == "cpu"
        rounded = not exact_drafts and cpu and (compiled or (can_pack(torch.bfloat16) and cpu_has_bfloat16()))
        reach = sys.maxsize if exact_drafts else DRAFT_REACH
        self.drafter: Drafter | None = make_drafter(model, self.heads_used, made, reach, rounded)
        self.experience = Experience(self.heads.head_offsets[: self.heads_used])
        """What `heads_used="auto"` has learned from the texts so far."""
        self.embedding = model.embedding.weight.detach().to(dtype).to(self.dtype, copy=True)
        self.norm = Norm(model.norm)
        norms, further = model.final_norms()[: self.heads_used], model.further_unembeddings
        self.final_norms: list[Callable[[Tensor], Tensor]] | None = None
        """Of each head, where several have norms of their own, or none, before one unembedding."""
        if len(set(norms)) > 1 and not further:
            self.final_norms = [nn.Identity() if norm is None else FinalNorm(norm, self.dtype) for norm in norms]
            self.unembeddings = [made.linear(model.unembedding.weight)]
        else:
            self.unembeddings = [
                made.linear(own.weight.detach() * norm.weight.detach() * math.sqrt(model.config.dim))
                for own, norm in zip([model.unembedding, *further], norms)
                if norm is not None
            ]
        self.before: Tensor | None = None
        """A of the bigram that says to drafts what the token before them is."""
        if model.before is not None and self.heads_used > 1:
            self.before = model.before.weight.detach().to(dtype).to(self.dtype, copy=True)
            self.bigram = made.linear(model.unembedding.bigram.detach())  # type: ignore[union-attr]
        self.mixture: MixtureMaps | None = None
        if model.mixture is not None and self.heads_used > 1:
            self.mixture = MixtureMaps(model, self.heads_used, made)
        kind = self.heads.kind
        stacks = [model.trunk, *(reversed(model.heads) if kind == "anticausal" else model.heads[:1])]
        self.matrix = None
        if isinstance(stacks[-1], LinearHead):
            self.matrix = made.linear(stacks.pop().projection.weight)
        self.path = made.path([made.layer(block) for stack in stacks for block in stack])
        ends = list(itertools.accumulate(len(stack) for stack in stacks))
        if kind in ("linear", *SIDE_BY_SIDE):
            self.taps = [ends[0]]
        elif kind == "anticausal":  # h_n .. h_2, of which the drafts need h_2 .. h_k
            self.taps = ends[1:-1][::-1][: self.heads_used - 1]
        else:
            self.taps = [ends[-1]]
        """The drafter's inputs are the outputs of these layers of the path, counted from 1; 0 is the embedding."""

    @property
    def most_tokens(self) -> int:
        """Tokens that one forward can make certain with all heads."""
        return self.heads.head_offsets[self.heads_used - 1]

    def key_values(self, batch: int, size: int) -> KeyValues:
        """Caches of the path."""
        layers, config = len(self.path.layers), self.config
        return KeyValues(layers, batch, size, config.kv_heads, self.embedding, config.head_size)

    def forward_bytes(self, heads_used: int, batch: int, length: int) -> int:
        """Bytes that one step of decoding has to read: every weight once, keys and values of every row."""
        layers = self.path.layers
        weights = sum(layer.nbytes for layer in layers) + sum(u.nbytes for u in self.unembeddings[:heads_used])
        per_position = sum(layer.position_bytes for layer in layers)
        weights += 0 if self.matrix is None else self.matrix.nbytes
        if self.drafter is not None and heads_used > 1:
            more_weights, more_per_position = self.drafter.nbytes(heads_used)
            more_weights += 0 if self.before is None else self.bigram.nbytes
            more_weights += 0 if self.mixture is None else self.mixture.nbytes(heads_used)
            drafting = batch * min(length, self.drafter.reach) * more_per_position
            return weights + more_weights + batch * length * per_position + drafting
        return weights + batch * length * per_position

    def run(
        self, tokens_BM: Int[Tensor, "B M"], new: NewPositions, cache: Sequence[LayerCache]
    ) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "B M X"] | None]:
        """(head 1's states before the norm, the drafter's inputs): one forward over new positions."""
        x_BMD = F.embedding(tokens_BM, self.embedding)
        outs = self.path(x_BMD, new, cache)
        inputs = [outs[tap - 1] if tap else x_BMD for tap in self.taps]
        x_BMX = None if self.drafter is None else inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)
        x_BMD = outs[-1] if self.path.layers else x_BMD
        return (x_BMD if self.matrix is None else self.matrix(x_BMD)), x_BMX

    def bigram_logits(self, tokens_BJ: Int[Tensor, "B J"]) -> Float[Tensor, "B J V"]:
        """What the logits of drafts after these tokens have more, of kind `markov`."""
        assert self.before is not None
        return self.bigram(F.embedding(tokens_BJ, self.before))

    def logits(self, h_BJD: Float[Tensor, "B J D"], heads: Sequence[int] = (1,)) -> Float[Tensor, "B J V"]:
        """Of states before the norm: all of one head, or the j-th of head `heads[j]`."""
        if self.final_norms is not None:
            norms = [self.final_norms[head - 1] for head in heads]
            if len(set(heads)) == 1:
                return self.unembeddings[0](norms[0](h_BJD))
            return self.unembeddings[0](torch.stack([norm(h_BJD[:, j]) for j, norm in enumerate(norms)], dim=1))
        if len(self.unembeddings) == 1:
            return self.unembeddings[0].of_normed(h_BJD, self.norm)
        if len(set(heads)) == 1:
            return self.unembeddings[heads[0] - 1].of_normed(h_BJD, self.norm)
        own = [self.unembeddings[head - 1].of_normed(h_BJD[:, j], self.norm) for j, head in enumerate(heads)]
        return torch.stack(own, dim=1)


class MixtureMaps:
    """The maps that drafts of kind `mixture` are made with, from the states of heads 2 .. `heads_used`."""

    def __init__(self, model: MTPModel, heads_used: int, made: Plain) -> None:
        assert model.mixture is not None
        self.norm = FinalNorm(model.norm, made.activations)
        self.gate = made.linear(model.mixture.gate.weight)
        self.components = [made.linear(part.weight) for part in model.mixture.components[:heads_used]]  # type: ignore[arg-type]
        self.unembedding = made.linear(model.unembedding.weight)  # head 1's has the final norm in it

    def nbytes(self, count: int) -> int:
        maps = [self.gate, self.unembedding, *self.components[:count]]
        return sum(each.nbytes for each in maps)

    def weights(self, h_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B R"]:
        """Logits of the components' weights, from head 2's state before the norm."""
        return self.gate(self.norm(h_BD))

    def logits(self, h_BD: Float[Tensor, "B D"], token: int) -> Float[Tensor, "B R V"]:
        """The components' of the token so far ahead, from its head's state before the norm (of the first, head 2's)."""
        states_BX = self.components[token - 1](self.norm(h_BD))
        return self.unembedding(states_BX.view(len(h_BD), -1, h_BD.shape[1]))
