"""How far greedy self-speculation gets, counted on the text that losses are computed on, with no forward of its own.

Decoding makes one token certain, head 1's, and takes the drafts of the further heads as long as each is head 1's choice
once that reads the tokens before it (`decoding.reference`). Here every position of a window begins such a step, and
what is read is the window's own text in place of head 1's choices (teacher-forced): the draft of head i at t is right
if it is head 1's best token at t + i - 1. Where the text is what the model itself would write, that is what decoding
accepts with exact drafts (by default parallel heads look back `engine.DRAFT_REACH` positions alone); elsewhere it is
what decoding would accept if the text had gone so.

    acceptance_i       right / turns; a draft's turn comes where all before it are right
    simulated length   1 + sum_i prod_{j <= i} acceptance_j      tokens per forward (NeMo Automodel's "simulated
                                                                 acceptance length")

A draft counts where its head's loss counts: in the same document, and in the loss mask. The last drafts of a window
have no position of head 1 that judges them, and are left out, so draft i is counted on the same positions for every n.
"""

import itertools
import operator
from typing import NamedTuple

import torch
from torch import Tensor

from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.heads import sources
from mtp_lightning.objective.loss import HeadScores
from mtp_lightning.objective.targets import Targets
from mtp_lightning.shapes import Bool, Int

ENTROPY_BORDERS = (0.5, 1.0, 2.0)
"""Nats of head 1's distribution where a step begins, between which positions are counted apart."""
ENTROPY_BINS = (
    f"entropy_below_{ENTROPY_BORDERS[0]:g}",
    *(f"entropy_{low:g}_to_{high:g}" for low, high in itertools.pairwise(ENTROPY_BORDERS)),
    f"entropy_above_{ENTROPY_BORDERS[-1]:g}",
)


class Drafts(NamedTuple):
    """Drafts of one batch: J offsets from 2 on, K bins of entropy."""

    turns: Int[Tensor, "K J"]
    """Whose turn came."""
    right: Int[Tensor, "K J"]
    """Of these, the ones that head 1 chooses too."""


def count_offsets(heads: HeadsConfig) -> int:
    """J, drafted tokens of a step; 1, whose turn never comes, for kinds that cannot draft."""
    return max(heads.head_offsets[heads.max_heads_used - 1] - 1, 1)


def count_drafts(scores: HeadScores, targets: Targets, heads: HeadsConfig) -> Drafts:
    """
    Args:
        scores: of `model_scores` on these targets.
    """
    if heads.max_heads_used == 1:
        none = targets.inputs.new_zeros(len(ENTROPY_BINS), 1)
        return Drafts(none, none)
    assert scores.best is not None
    assert scores.entropy is not None
    turns_JBT, right_JBT = judge_drafts(scores.best, targets.valid, heads)
    bins_BT = torch.bucketize(scores.entropy[0], scores.entropy.new_tensor(ENTROPY_BORDERS), right=True)
    in_bin_K1BT = torch.stack([bins_BT == k for k in range(len(ENTROPY_BINS))])[:, None]
    return Drafts((in_bin_K1BT & turns_JBT).sum((2, 3)), (in_bin_K1BT & right_JBT).sum((2, 3)))


def judge_drafts(
    best_SBT: Int[Tensor, "S B T"], valid_NBT: Bool[Tensor, "N B T"], heads: HeadsConfig
) -> tuple[Bool[Tensor, "J B T"], Bool[Tensor, "J B T"]]:
    """(whether a draft's turn came, whether it was right) of the step that begins at each position.

    A head that leaps fills the gaps before it from positions before the last, as in decoding.
    """
    T = valid_NBT.shape[2]
    turns, right = [], []
    chain_BT = valid_NBT[0]
    for offset, (head, shift) in enumerate(sources(heads.head_offsets, heads.max_heads_used), start=2):
        count = max(T + 1 - offset - shift, 0)
        made, judged = slice(0, count), slice(shift + offset - 1, shift + offset - 1 + count)
        turn_BT, hit_BT = torch.zeros_like(chain_BT), torch.zeros_like(chain_BT)
        turn_BT[:, shift : shift + count] = valid_NBT[head - 1][:, made]
        hit_BT[:, shift : shift + count] = best_SBT[head - 1][:, made] == best_SBT[0][:, judged]
        turn_BT &= chain_BT
        chain_BT = turn_BT & hit_BT
        turns.append(turn_BT)
        right.append(chain_BT)
    return torch.stack(turns), torch.stack(right)


def draft_metrics(heads: HeadsConfig, drafts_2KJ: Tensor, by_entropy: bool = True) -> dict[str, float]:
    """`decode/simulated_length`, `decode/simulated_acceptance/head_i`, `decode/simulated_accepted/head_i` (this draft
    and all before it), and the first two by bin, as `decode/<bin>/...`, of summed turns and right ones."""
    found = _measures(heads, drafts_2KJ.sum(1))
    for name, drafts_2J in zip(ENTROPY_BINS, drafts_2KJ.unbind(1)) if by_entropy else ():
        if drafts_2J.any():
            of_bin = _measures(heads, drafts_2J)
            found |= {f"{name}/{metric}": of_bin[metric] for metric in of_bin if "_accepted" not in metric}
    return {f"decode/{name}": value for name, value in found.items()}


def _measures(heads: HeadsConfig, drafts_2J: Tensor) -> dict[str, float]:
    turns_J, right_J = drafts_2J.tolist()
    rates = [right / turns if turns else 0.0 for turns, right in zip(turns_J, right_J)]
    accepted = list(itertools.accumulate(rates, operator.mul))
    found = {"simulated_length": 1.0 + sum(accepted)}
    for head, offset in enumerate(heads.head_offsets[1 : heads.max_heads_used], start=2):
        if turns_J[offset - 2]:
            found[f"simulated_acceptance/head_{head}"] = rates[offset - 2]
            found[f"simulated_accepted/head_{head}"] = accepted[offset - 2]
    return found
