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
    simulated bytes    the same of bytes: of the text's tokens that such steps pass over. Bytes per forward

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
    """Tokens of the steps of one batch: at J offsets from 1 on, K bins of entropy. The first is head 1's, certain."""

    turns: Int[Tensor, "K J"]
    """Whose turn came."""
    right: Int[Tensor, "K J"]
    """Of these, the ones that head 1 chooses too."""
    n_bytes: Int[Tensor, "K J"]
    """Of the text's tokens in the places of the right ones; 0 for data that is not text."""


def count_offsets(heads: HeadsConfig) -> int:
    """J, tokens of a step: 1 for kinds that cannot draft."""
    return heads.head_offsets[heads.max_heads_used - 1]


def count_drafts(
    scores: HeadScores, targets: Targets, heads: HeadsConfig, bytes_V: Int[Tensor, "V"] | None = None
) -> Drafts:
    """
    Args:
        scores: of `model_scores` on these targets.
        bytes_V: of each token of text. Steps of kinds that cannot draft are all in the first bin.
    """
    turns_JBT = right_JBT = targets.valid[:1]
    bins_BT, bytes_BT = torch.zeros_like(targets.inputs), torch.zeros_like(targets.inputs)
    if heads.max_heads_used > 1:
        assert scores.best is not None
        assert scores.entropy is not None
        drafted = judge_drafts(scores.best, targets.valid, heads)
        turns_JBT, right_JBT = (torch.cat((targets.valid[:1], x_JBT)) for x_JBT in drafted)
        bins_BT = torch.bucketize(scores.entropy[0], scores.entropy.new_tensor(ENTROPY_BORDERS), right=True)
    if bytes_V is not None:
        bytes_BT = bytes_V.to(bytes_BT.device)[targets.targets[0]]
    bytes_JBT = torch.stack([bytes_BT.roll(-j, 1) for j in range(len(right_JBT))])  # no draft is right in the last j
    in_bin_K1BT = torch.stack([bins_BT == k for k in range(len(ENTROPY_BINS))])[:, None]
    n_bytes_KJBT = torch.where(in_bin_K1BT & right_JBT, bytes_JBT, 0)
    counted = (in_bin_K1BT & turns_JBT, in_bin_K1BT & right_JBT, n_bytes_KJBT)
    return Drafts(*(x_KJBT.sum((2, 3)) for x_KJBT in counted))


def judge_drafts(
    best_SBT: Int[Tensor, "S B T"], valid_NBT: Bool[Tensor, "N B T"], heads: HeadsConfig
) -> tuple[Bool[Tensor, "F B T"], Bool[Tensor, "F B T"]]:
    """(whether a draft's turn came, whether it was right) of the step that begins at each position; offsets from 2 on.

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


def draft_metrics(heads: HeadsConfig, drafts_3KJ: Tensor, by_entropy: bool = True) -> dict[str, float]:
    """`decode/simulated_length`, of text `decode/simulated_bytes`, `decode/simulated_acceptance/head_i`,
    `decode/simulated_accepted/head_i` (this draft and all before it), and all but the last by bin, as
    `decode/<bin>/...`, of the summed `Drafts`."""
    found = _measures(heads, drafts_3KJ.sum(1))
    for name, drafts_3J in zip(ENTROPY_BINS, drafts_3KJ.unbind(1)) if by_entropy else ():
        if drafts_3J[0, 1:].any():
            of_bin = _measures(heads, drafts_3J)
            found |= {f"{name}/{metric}": of_bin[metric] for metric in of_bin if "_accepted" not in metric}
    return {f"decode/{name}": value for name, value in found.items()}


def _measures(heads: HeadsConfig, drafts_3J: Tensor) -> dict[str, float]:
    turns_J, right_J, bytes_J = drafts_3J.tolist()
    rates = [1.0, *(right / turns if turns else 0.0 for turns, right in zip(turns_J[1:], right_J[1:]))]
    accepted = list(itertools.accumulate(rates, operator.mul))
    found = {"simulated_length": sum(accepted)}
    if any(bytes_J):
        means = [n_bytes / right if right else 0.0 for n_bytes, right in zip(bytes_J, right_J)]
        found["simulated_bytes"] = sum(map(operator.mul, accepted, means))
    for head, offset in enumerate(heads.head_offsets[1 : heads.max_heads_used], start=2):
        if turns_J[offset - 1]:
            found[f"simulated_acceptance/head_{head}"] = rates[offset - 1]
            found[f"simulated_accepted/head_{head}"] = accepted[offset - 1]
    return found
