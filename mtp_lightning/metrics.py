"""Means over what was really counted: sums and counts over batches and ranks, divided once, at the very end."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.objective.acceptance import ENTROPY_BINS, Drafts, count_offsets, draft_metrics
from mtp_lightning.objective.loss import HeadScores, LossOutput, TeacherSums
from mtp_lightning.shapes import Int


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum over all processes, the same on each; x itself in a single one."""
    if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return x
    x = x.clone()
    torch.distributed.all_reduce(x)
    return x


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean over all processes, in floating point, the same on each."""
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return sum_over_ranks(x) / ranks


def training_means(names: Sequence[str], batches: Sequence[LossOutput], weights: Sequence[float]) -> dict[str, float]:
    """Metrics of a step, of all its batches and all ranks: `train/loss`, which is the objective, and of each loss the
    nats per token and its weight.

    A loss without a valid target gives 0, which is what it adds to the objective. Where head 1 teaches, of each further
    head that was taught the mean divergence, `train/teacher/head_i`, the mean overlap, `train/overlap/head_i`,
    and where states are foreseen their mean distance, `train/latent/head_i`.
    """
    sums_2M = torch.stack([torch.stack([out.nll.double(), out.n_valid.double()]) for out in batches]).sum(0)
    nll_M, n_valid_M = sum_over_ranks(sums_2M).cpu()
    total = mean_over_ranks(torch.stack([out.total for out in batches]).double().mean())
    metrics = {"train/loss": total.item()}
    for name, nll, weight in zip(names, (nll_M / n_valid_M.clamp(min=1)).tolist(), weights, strict=True):
        metrics |= {f"train/loss/{name}": nll, f"train/weight/{name}": weight}
    return metrics | _teacher_means(names, [out.teacher for out in batches if out.teacher])


def _teacher_means(names: Sequence[str], batches: Sequence[TeacherSums]) -> dict[str, float]:
    if not batches:
        return {}
    sums_4N = torch.stack([torch.stack([x.double() for x in sums]) for sums in batches]).sum(0)
    divergence_N, overlap_N, n_N, distance_N = sum_over_ranks(sums_4N).cpu()
    means = torch.stack([divergence_N, overlap_N, distance_N]) / n_N
    metrics: dict[str, float] = {}
    for name, (divergence, overlap, distance), n in zip(names, means.t().tolist(), n_N.tolist(), strict=True):
        metrics |= {f"train/teacher/{name}": divergence, f"train/overlap/{name}": overlap} if n else {}
        metrics |= {f"train/latent/{name}": distance} if n and distance_N.any() else {}
    return metrics


class Sums(Metric):
    """Sums by name: exact over any split into batches and ranks, and in any precision of the model, for they stay
    float64."""

    full_state_update = False

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Follow the module to its device, and not to its dtype: half precision could not count beyond 256 or 2048."""
        return super()._apply(lambda x: x.to(fn(x).device), exclude_state)


class DraftMetrics(Sums):
    """What of `objective.acceptance` is summed: drafts whose turn came, the right ones, and bytes."""

    drafts: Tensor

    def __init__(self, heads: HeadsConfig) -> None:
        super().__init__(drafts=(3, len(ENTROPY_BINS), count_offsets(heads)))

    @override
    def update(self, drafts: Drafts) -> None:
        self.drafts += torch.stack(drafts)

    @override
    def compute(self) -> Tensor:
        """The sums as they are (3, K, J), which `draft_metrics` divides."""
        return self.drafts.clone()


class HeadMetrics(Sums):
    """Negative log-likelihood and accuracy per loss (one a head), and the bytes that head 1 was scored on."""

    nll: Tensor
    correct: Tensor
    n_valid: Tensor
    n_bytes: Tensor

    def __init__(self, n_losses: int) -> None:
        super().__init__(nll=(n_losses,), correct=(n_losses,), n_valid=(n_losses,), n_bytes=(1,))

    @override
    def update(self, scores: HeadScores, n_bytes: Int[Tensor, ""] | None = None) -> None:
        """
        Args:
            n_bytes: of text, in the targets that head 1 was scored on.
        """
        self.nll += scores.nll
        self.correct += scores.correct
        self.n_valid += scores.n_valid
        if n_bytes is not None:
            self.n_bytes += n_bytes

    @override
    def compute(self) -> Tensor:
        """The sums as they are (3 M + 1), which `validation_means` divides; torchmetrics adds them over the ranks."""
        return torch.cat([self.nll, self.correct, self.n_valid, self.n_bytes])


class SourceMetrics:
    """`HeadMetrics` and `DraftMetrics` of each source of a mixture, from its first batch on. Not a part of the model,
    which is the same whatever it is validated on."""

    def __init__(self, heads: HeadsConfig) -> None:
        self._heads = heads
        self._metrics: dict[str, tuple[HeadMetrics, DraftMetrics]] = {}

    def update(self, source: str | None, scores: HeadScores, n_bytes: Int[Tensor, ""] | None, drafts: Drafts) -> None:
        """
        Args:
            source: of the batch; None: data of one source alone.
        """
        if source is None:
            return
        if source not in self._metrics:
            made = HeadMetrics(len(self._heads.loss_names)), DraftMetrics(self._heads)
            self._metrics[source] = made[0].to(scores.nll.device), made[1].to(scores.nll.device)
        of_heads, of_drafts = self._metrics[source]
        of_heads.update(scores, n_bytes)
        of_drafts.update(drafts)

    def take(self) -> dict[str, float]:
        """`val/<source>/loss/head_1`, `decode/<source>/simulated_length` and so on; counting begins anew."""
        found: dict[str, float] = {}
        for source, (of_heads, of_drafts) in self._metrics.items():
            means = validation_means(self._heads.loss_names, of_heads.compute())
            means |= draft_metrics(self._heads, of_drafts.compute(), by_entropy=False)
            for name, value in means.items():
                room, _, rest = name.partition("/")
                found[f"{room}/{source}/{rest}"] = value
            of_heads.reset()
            of_drafts.reset()
        return found


def validation_means(names: Sequence[str], sums: Tensor) -> dict[str, float]:
    """Metrics of the losses with these names, from what `HeadMetrics` counted.

    `val/loss` is the sum of the losses that have a valid target: NaN if one of these is, and if there is none. A loss
    without a valid target is NaN itself. `val/bits_per_byte` is there for text.
    """
    values = sums.cpu()
    nll_M, correct_M, n_valid_M = values[:-1].view(3, -1)
    loss_M, accuracy_M = nll_M / n_valid_M, correct_M / n_valid_M
    has_targets_M = n_valid_M > 0
    metrics = {"val/loss": loss_M[has_targets_M].sum().item() if has_targets_M.any() else math.nan}
    for name, loss, accuracy in zip(names, loss_M.tolist(), accuracy_M.tolist(), strict=True):
        metrics |= {f"val/loss/{name}": loss, f"val/accuracy/{name}": accuracy}
    if values[-1]:
        metrics["val/bits_per_byte"] = (nll_M[0] / math.log(2) / values[-1]).item()
    return metrics
