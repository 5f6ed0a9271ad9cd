"""The objective of a model, whatever its kind of heads: which hidden states go through which unembedding."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import ONE_STREAM, TEACHER_FORCED, HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.training.recompute import HEADS, Recompute
from mtp_lightning.objective.future_summary import score_summary, summary_loss
from mtp_lightning.objective.loss import (
    HeadScores,
    LossOptions,
    LossOutput,
    multi_token_loss,
    order_loss,
    score_heads,
    score_order,
)
from mtp_lightning.objective.mixture import mixture_loss, score_mixture
from mtp_lightning.objective.targets import Targets, count_valid
from mtp_lightning.objective.teacher_config import find_taught
from mtp_lightning.objective.teachers import teacher_loss
from mtp_lightning.shapes import Float, Int

Part = TypeVar("Part", LossOutput, HeadScores)


def check_options(
    options: LossOptions, heads: HeadsConfig, vocab_size: int | None = None, recompute: Recompute = "none"
) -> None:
    """
    Raises:
        InputError: a gradient is to be stopped that this kind of heads cannot separate from the others, or heads are to
            be taught that cannot be.
    """
    _check_target(options, heads)
    if recompute in HEADS and teaches(options, heads):
        raise InputError(
            f"model.recompute is '{recompute}', and model.loss.target is '{options.target}': head 1 teaches the "
            "others, so heads cannot be run again one at a time; give recompute: layers, or target: token"
        )
    if vocab_size is not None and (options.teacher.top or 1) > vocab_size:
        raise InputError(
            f"model.loss.teacher.top is {options.teacher.top}, and model.backbone.vocab_size is {vocab_size}: give a "
            "smaller number, or null for the whole vocabulary"
        )
    stop = options.stop_gradient
    if stop is None or len(heads.loss_names) == 1:
        return
    what = f"model.loss.stop_gradient is '{stop}', and model.heads.kind is '{heads.kind}'"
    if heads.kind == "none":
        raise InputError(f"{what}: it has no further heads, one hidden state is scored against all tokens")
    if heads.kind == "registers" and stop != "unembedding":
        raise InputError(
            f"{what}: registers go through all layers of head 1 and trunk, and would never be trained; give "
            "'unembedding', or null"
        )
    if heads.kind == "anticausal" and stop != "unembedding":
        raise InputError(f"{what}: head 1 reads the further heads, so their gradients cannot be separated")
    if stop != "trunk" and heads.bigram_rank:
        raise InputError(f"{what}: its bigram is part of the unembedding, and would never be trained")
    if stop != "trunk" and (heads.replicate_unembedding or heads.second_loss):
        raise InputError(f"{what}: the further heads have unembeddings of their own, which would never be trained")


def _check_target(options: LossOptions, heads: HeadsConfig) -> None:
    """
    Raises:
        InputError: there are no heads that head 1 could teach, or their distributions never meet.
    """
    if options.target == "token" or len(heads.loss_names) == 1:
        return
    what = f"model.loss.target is '{options.target}'"
    if heads.kind in ONE_STREAM:
        raise InputError(f"{what}, and model.heads.kind is '{heads.kind}', which has no further heads to be taught")
    if heads.components:
        raise InputError(
            f"{what}, and model.heads.kind is 'mixture': what its further heads predict depends on the tokens between, "
            "so they have no distribution of their own to be taught; give target: token"
        )
    if options.teacher.latent and heads.kind not in TEACHER_FORCED:
        raise InputError(
            f"model.loss.teacher.latent is {options.teacher.latent}, and model.heads.kind is '{heads.kind}': what "
            f"foresees a state has to read the tokens up to it, as kind {' or '.join(TEACHER_FORCED)} does"
        )
    if heads.replicate_unembedding:
        raise InputError(
            f"{what}, and model.heads.replicate_unembedding is true: head 1's distribution and those of the others are "
            "made in modules of their own and never meet; leave one of the two out"
        )
    if options.implementation == "fused":
        raise InputError(
            f"{what}, and model.loss.implementation is 'fused', whose kernels know tokens alone: it has to be "
            "'chunked', 'checkpointed' or 'naive'"
        )


def teaches(options: LossOptions, heads: HeadsConfig) -> bool:
    """Whether there are heads that learn from head 1's distribution."""
    return options.target != "token" and heads.n_future > 1


def count_targets(targets: Targets, options: LossOptions, heads: HeadsConfig) -> Int[Tensor, "C"]:
    """For each mean in the objective, the number of positions that it is taken over: each loss's valid ones, and then,
    where head 1 teaches, each head's taught ones."""
    counts_M = count_valid(targets)
    if not teaches(options, heads):
        return counts_M
    return torch.cat([counts_M, find_taught(targets.valid, heads.head_offsets).sum((1, 2))])


def unembedded_again(options: LossOptions, heads: HeadsConfig) -> int:
    """How many hidden states a position has that the loss puts through the unembedding, forward alone, a second time:
    those that give `lk_lambda` its mean overlap."""
    return heads.n_future if teaches(options, heads) and options.target == "lk_lambda" else 0


def model_loss(
    model: MTPModel,
    targets: Targets,
    documents_BT: Int[Tensor, "B T"] | None = None,
    weights: Sequence[float] | None = None,
    options: LossOptions = LossOptions(),
    mean_count_C: Float[Tensor, "C"] | None = None,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x,
) -> LossOutput:
    """One forward through trunk, heads and losses; `total` wants one backward.

    Args:
        documents_BT: ids of the inputs' documents, for models that keep documents apart.
        weights: one for each of `model.heads_config.loss_names`, all 1 by default.
        mean_count_C: where this is one of several batches whose gradients are averaged, the mean of their
            `count_targets`: each loss is then a mean over the targets of all of them.
        sum_over_ranks: over the processes that share the batch.
    """
    weights = (1.0,) * len(model.heads_config.loss_names) if weights is None else weights
    heads = model.heads_config
    stops = heads.n_future > 1 and heads.kind not in ONE_STREAM  # a single head has none to be stopped for
    detach = stops and options.stop_gradient in ("trunk", "both")
    scored = targets.of_losses()

    def tokens(h: Tensor, weight: Tensor, part: slice) -> LossOutput:
        if teaches(options, heads):
            return teacher_loss(
                h, weight, targets.targets, targets.valid, heads.head_offsets, weights, options, mean_count_C,
                sum_over_ranks,
            )  # fmt: skip
        if heads.components:
            return mixture_loss(h, weight, targets.targets, targets.valid, weights, options, mean_count_C)
        mean_count = None if mean_count_C is None else mean_count_C[part]
        return multi_token_loss(h, weight, scored.targets[part], scored.valid[part], weights[part], options, mean_count)

    def order(h: Tensor, weight: Tensor) -> LossOutput:
        assert targets.first is not None
        if options.stop_gradient in ("trunk", "both"):
            h = h.detach()
        mean_count = None if mean_count_C is None else mean_count_C[1:]
        second = order_loss if heads.kind == "order" else summary_loss
        return second(h, weight, targets.targets, targets.first, weights[1], options, mean_count)

    def one_head(i: int, h_1BTD: Tensor) -> LossOutput:
        unembedding = model.further_unembeddings[i - 1] if i and heads.replicate_unembedding else model.unembedding
        stays = i > 0 and options.stop_gradient in ("unembedding", "both")
        return unembedding(  # type: ignore[no-any-return]
            h_1BTD, lambda h, weight: tokens(h, weight.detach() if stays else weight, slice(i, i + 1))
        )

    if model.heads.run_again:
        assert not teaches(options, heads), "head 1's logits are not there when another head is run"
        parts = model(targets.inputs, documents_BT, None, detach, one_head)
    else:
        h_SBTD = model(targets.inputs, documents_BT, targets.targets, detach, offsets_B=targets.offsets)
        parts = _through_unembeddings(model, h_SBTD, tokens, order)
    return LossOutput(
        torch.stack([part.total for part in parts]).sum(),
        torch.cat([part.nll for part in parts]),
        torch.cat([part.n_valid for part in parts]),
        parts[0].teacher,
    )


@torch.no_grad()
def model_scores(model: MTPModel, targets: Targets, documents_BT: Int[Tensor, "B T"] | None = None) -> HeadScores:
    """Likelihood and accuracy of each of the model's losses; where it can draft, head 1's entropies too."""
    return scores_by_position(model, targets, [0, targets.inputs.shape[1]], documents_BT)[0]


@torch.no_grad()
def scores_by_position(
    model: MTPModel, targets: Targets, borders: Sequence[int], documents_BT: Int[Tensor, "B T"] | None = None
) -> list[HeadScores]:
    """`model_scores` of the positions from each border to the next, in one forward through trunk and heads; of kind
    `registers` in one without registers, and another with them for theirs.

    Args:
        borders: rising, within [0, T].
    """
    h_SBTD = model(targets.inputs, documents_BT, targets.targets)
    if targets.offsets is not None:  # head 1's states, bit for bit, are those of a model without registers
        both_2BTD = model(targets.inputs, documents_BT, targets.targets, offsets_B=targets.offsets)
        h_SBTD = torch.cat((h_SBTD, both_2BTD[1:]))
    return [_scores(model, h_SBTD[:, :, a:b], targets.between(a, b)) for a, b in itertools.pairwise(borders)]


def _scores(model: MTPModel, h_SBTD: Float[Tensor, "S B T D"], targets: Targets) -> HeadScores:
    scored = targets.of_losses()

    def tokens(h: Tensor, weight: Tensor, part: slice) -> HeadScores:
        if model.heads_config.components:
            return score_mixture(h, weight, targets.targets, targets.valid)
        entropies = int(model.heads_config.max_heads_used > 1 and not part.start)
        if targets.offsets is not None and part == slice(None):  # head 1 by itself, as where there are no registers
            return _joined([tokens(h[:1], weight, slice(1)), tokens(h[1:], weight, slice(1, 2))])
        return score_heads(h, weight, scored.targets[part], scored.valid[part], entropies)

    def order(h: Tensor, weight: Tensor) -> HeadScores:
        assert targets.first is not None
        second = score_order if model.heads_config.kind == "order" else score_summary
        return second(h, weight, targets.targets, targets.first)

    return _joined(_through_unembeddings(model, h_SBTD, tokens, order))


def _joined(parts: Sequence[HeadScores]) -> HeadScores:
    return HeadScores(*(torch.cat(field) for field in zip(*parts)))


def _through_unembeddings(
    model: MTPModel,
    h_SBTD: Float[Tensor, "S B T D"],
    tokens: Callable[..., Part],
    order: Callable[[Tensor, Tensor], Part],
) -> list[Part]:
    """Every unembedding runs once, with the losses of its heads inside its forward.

    Args:
        tokens: (h, weight, part: slice) scores hidden states against the targets of the heads in a slice.
        order: scores what the second unembedding says of the one hidden state.
    """
    if model.heads_config.second_loss:
        first = model.unembedding(h_SBTD, lambda h, weight: tokens(h, weight, slice(1)))
        return [first, model.further_unembeddings[0](h_SBTD, order)]
    if not model.heads_config.replicate_unembedding:
        return [model.unembedding(h_SBTD, lambda h, weight: tokens(h, weight, slice(None)))]
    parts: list[Part] = []
    for i, unembedding in enumerate([model.unembedding, *model.further_unembeddings]):
        own = slice(i, i + 1)
        parts.append(unembedding(h_SBTD[own], functools.partial(tokens, part=own)))
    return parts
