"""Choosing tokens: greedily, or sampled exactly from head 1's distribution; and whether a draft is accepted.

Greedy, and sampling by `match`: a position's token is the best of scores, its log-probabilities plus, when sampling,
Gumbel noise that belongs to the position (the Gumbel-max trick: the best is then a sample). Noise is drawn once for
each position, in order, from the row's own generator. So the text is the same whatever was drafted or accepted, and
whatever else is in the batch; and drafts chosen under the noise of their position agree with head 1 more often than
independent samples would (Daliri et al. 2024, arXiv 2408.07978).

`ratio`: speculative sampling (Leviathan et al. 2022, arXiv 2211.17192): a draft sampled from q is accepted with
probability min(1, p / q), else replaced by a sample from max(p - q, 0): the distribution is exact, the text depends on
the drafts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mtp_lightning.decoding.positions import PerRow, Tree
from mtp_lightning.errors import InputError
from mtp_lightning.shapes import Float, Int

COLDEST = 1e-6
"""Below it sampling is greedy, as it is but for ties; divided by much less, logits overflow."""
TINY = torch.finfo(torch.float32).tiny
"""The least value of noise before it is divided by, or its logarithm is taken."""
FEW = 2
"""Rows that Python compares sooner than ten small operations of torch do, whose code is cold after a forward."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Raises:
        InputError: numbers that cannot be.
    """

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int | None = None
    """Sample among that many most probable tokens."""
    top_p: float | None = None
    """Nucleus: sample among the fewest most probable tokens that have this probability together."""
    seed: int = 0
    accept: Literal["match", "ratio"] = "match"
    """How drafts are accepted when sampling; the distribution is the same."""
    seeds: tuple[int, ...] | None = None
    """Of each prompt's own noise, in place of `seed`: then a text does not depend on its place in the batch."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:  # nor NaN
            raise InputError(f"temperature is {self.temperature}: it has to be a number, at least 0 (0 is greedy)")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}: it has to be at least 0 and below 2^32")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}: it has to be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: it has to be above 0 and at most 1")
        if self.accept not in ("match", "ratio"):
            raise InputError(f"accept is '{self.accept}': it has to be match or ratio")
        if self.temperature == 0 and (self.top_k or self.top_p):
            raise InputError("top_k and top_p are for sampling: give a temperature above 0 (1 is the model's own)")
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)

    def restrict(self, logits: Float[Tensor, "*rows V"]) -> Float[Tensor, "*rows V"]:
        """Logits at this temperature, -inf for tokens that must not be sampled."""
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            probabilities = ordered.softmax(-1)
            before = probabilities.cumsum(-1) - probabilities  # the first is always kept
            dropped = (before >= self.top_p).scatter(-1, order, before >= self.top_p)
            logits = logits.masked_fill(dropped, float("-inf"))
        return logits


class Verdict(NamedTuple):
    """Which drafts of a block head 1 agrees with."""

    accepted_B: Tensor  # noqa: N815
    """How many tokens are right, counted from the root: at least 1."""
    certain_B: Tensor  # noqa: N815
    """The token after them."""
    path_BA: Tensor | None  # noqa: N815
    """Trees: the node of each depth on the way to the last right one; after that, any numbers."""


class Chooser:
    """Greedy choice. `rows` says which rows of the batch a call is about, `targets` for each row the position in the
    text of the first token to choose."""

    def start(self, batch: int, vocab_size: int, most_tokens: int, device: torch.device) -> None:
        """A new batch."""

    def move_row(self, source: int, target: int) -> None:
        """Row `source` is called `target` from now on."""

    def begin_draft(self, rows: slice) -> None:
        """Proposals for the next block follow."""

    def draft(self, logits_BJV: Tensor, rows: slice, targets: PerRow) -> Int[Tensor, "B J"]:
        """One token for each of the J positions from `targets` on."""
        depths = list(range(logits_BJV.shape[1]))
        return self._scores(logits_BJV, rows, targets, depths).argmax(-1)

    def candidates(self, logits_BJV: Tensor, rows: slice, targets: PerRow, most: int) -> Int[Tensor, "B J W"]:
        """The `most` likeliest tokens for each of the J positions."""
        depths = list(range(logits_BJV.shape[1]))
        return self._scores(logits_BJV, rows, targets, depths).topk(most, dim=-1).indices

    def verify(
        self, block_BM: Int[Tensor, "B M"], logits_BMV: Tensor, tree: Tree, rows: slice, targets: PerRow
    ) -> Verdict:
        """Head 1's choice after every node, and how far the drafts agree with it."""
        depths = list(range(tree.size)) if tree.is_chain else tree.depths
        chosen_BM = self._scores(logits_BMV, rows, targets, depths).argmax(-1)
        if tree.size == 1:  # plain decoding: nothing to verify
            return Verdict(torch.ones_like(chosen_BM[:, 0]), chosen_BM[:, 0], None)
        if tree.is_chain and len(block_BM) <= FEW and block_BM.device.type == "cpu":
            chosen = chosen_BM.tolist()
            accepted = [_agreed(*row) for row in zip(block_BM.tolist(), chosen)]
            certain = [row[count - 1] for row, count in zip(chosen, accepted)]
            return Verdict(torch.tensor(accepted), torch.tensor(certain), None)
        if tree.is_chain:
            right_BM = (block_BM[:, 1:] == chosen_BM[:, :-1]).cumprod(dim=1)
            accepted_B = 1 + right_BM.sum(dim=1)
            return Verdict(accepted_B, chosen_BM.gather(1, accepted_B[:, None] - 1)[:, 0], None)
        parents = torch.tensor(tree.parents, device=block_BM.device)
        follows_BM = block_BM == chosen_BM[:, parents]
        node_B1 = torch.zeros_like(block_BM[:, :1])
        on_B1, accepted_B1, path = torch.ones_like(node_B1, dtype=torch.bool), torch.ones_like(node_B1), [node_B1]
        for level in tree.levels[1:]:
            nodes = slice(level.start, level.stop)
            here_BW = follows_BM[:, nodes] & (parents[nodes] == path[-1]) & on_B1
            on_B1 = here_BW.any(dim=1, keepdim=True)
            path.append(level.start + here_BW.int().argmax(dim=1, keepdim=True))
            accepted_B1 = accepted_B1 + on_B1
        path_BA = torch.cat(path, dim=1)
        last_B1 = path_BA.gather(1, accepted_B1 - 1)
        return Verdict(accepted_B1[:, 0], chosen_BM.gather(1, last_B1)[:, 0], path_BA)

    def _scores(self, logits: Tensor, rows: slice, targets: PerRow, depths: list[int]) -> Tensor:
        return logits


class Matching(Chooser):
    """Sampling whose noise belongs to positions."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def start(self, batch: int, vocab_size: int, most_tokens: int, device: torch.device) -> None:
        self.generators = _generators(self.sampling, batch, device)
        self.kept = 2 * most_tokens + 1  # positions whose noise may still be needed
        self.noise_BRV = torch.empty(batch, self.kept, vocab_size, device=device)
        self.made: list[int | None] = [None] * batch
        """Of every row, the first position without noise."""

    def move_row(self, source: int, target: int) -> None:
        self.generators[target], self.made[target] = self.generators[source], self.made[source]
        self.noise_BRV[target] = self.noise_BRV[source]

    def _scores(self, logits: Tensor, rows: slice, targets: PerRow, depths: list[int]) -> Tensor:
        assert not isinstance(targets, Tensor), "noise is drawn by the host"
        positions = [[target + depth for depth in depths] for target in targets]
        for row, wanted in zip(range(rows.start, rows.stop), positions):
            made = self.made[row]
            for position in range(wanted[0] if made is None else made, max(wanted) + 1):
                own = self.noise_BRV[row, position % self.kept]
                own.exponential_(generator=self.generators[row]).clamp_(min=TINY).log_().neg_()
            self.made[row] = max(max(wanted) + 1, made or 0)
        index = torch.tensor(positions, device=logits.device) % self.kept
        row_index = torch.arange(rows.start, rows.stop, device=logits.device)[:, None]
        return self.sampling.restrict(logits) + self.noise_BRV[row_index, index]


class Ratio(Chooser):
    """Speculative sampling. Chains only."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def start(self, batch: int, vocab_size: int, most_tokens: int, device: torch.device) -> None:
        self.generators = _generators(self.sampling, batch, device)
        self.q_BJV = torch.zeros(batch, most_tokens, vocab_size, device=device)
        self.drafted = 0

    def move_row(self, source: int, target: int) -> None:
        self.generators[target] = self.generators[source]
        self.q_BJV[target] = self.q_BJV[source]

    def begin_draft(self, rows: slice) -> None:
        self.drafted = 0

    def draft(self, logits_BJV: Tensor, rows: slice, targets: PerRow) -> Int[Tensor, "B J"]:
        q_BJV = self.sampling.restrict(logits_BJV).softmax(-1)
        end = self.drafted + q_BJV.shape[1]
        self.q_BJV[rows, self.drafted : end] = q_BJV
        self.drafted = end
        return self._sample(q_BJV, rows)

    def verify(
        self, block_BM: Int[Tensor, "B M"], logits_BMV: Tensor, tree: Tree, rows: slice, targets: PerRow
    ) -> Verdict:
        p_BMV = self.sampling.restrict(logits_BMV).softmax(-1)
        drafts_BJ1 = block_BM[:, 1:, None]
        q_BMV = torch.cat((self.q_BJV[rows, : tree.size - 1], torch.zeros_like(p_BMV[:, :1])), dim=1)
        p_BJ, q_BJ = (x[:, :-1].gather(2, drafts_BJ1)[..., 0] for x in (p_BMV, q_BMV))
        right_BJ = self._exponential(p_BJ.shape[1:], rows).neg().exp() * q_BJ < p_BJ  # exp(-E) is uniform
        accepted_B = 1 + right_BJ.cumprod(dim=1).sum(dim=1)
        at = (torch.arange(len(accepted_B), device=accepted_B.device), accepted_B - 1)
        rest_BV = (p_BMV[at] - q_BMV[at]).clamp_(min=0)  # after the last draft q is 0: a sample from p
        rest_BV = torch.where(rest_BV.sum(-1, keepdim=True) > 0, rest_BV, p_BMV[at])
        return Verdict(accepted_B, self._sample(rest_BV[:, None], rows)[:, 0], None)

    def _sample(self, weights_BJV: Tensor, rows: slice) -> Int[Tensor, "B J"]:
        return (weights_BJV / self._exponential(weights_BJV.shape[1:], rows)).argmax(-1)

    def _exponential(self, shape: Sequence[int], rows: slice) -> Tensor:
        """Fresh noise, each row from its own generator."""
        drawn = [self.q_BJV.new_empty(shape).exponential_(generator=g) for g in self.generators[rows]]
        return torch.stack(drawn).clamp_(min=TINY)


def _agreed(block: Sequence[int], chosen: Sequence[int]) -> int:
    """How many tokens of a chain are right, the certain one included."""
    count = 1
    while count < len(block) and block[count] == chosen[count - 1]:
        count += 1
    return count


def make_chooser(sampling: Sampling) -> Chooser:
    if sampling.temperature == 0:
        return Chooser()
    return Matching(sampling) if sampling.accept == "match" else Ratio(sampling)


def _generators(sampling: Sampling, batch: int, device: torch.device) -> list[torch.Generator]:
    seeds = sampling.seeds or [(sampling.seed << 20) + row for row in range(batch)]
    assert len(seeds) == batch, "a seed for every prompt"
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]
