"""The LightningModule: windows -> targets -> trunk and heads -> one loss, one backward."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import CHECKPOINT_FORMAT, CHECKPOINT_KEY, BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import count_parameters, flops_per_token
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.loss import HeadScores, Implementation, LossOutput, multi_token_loss, score_heads
from mtp_lightning.objective.targets import Targets, make_targets
from mtp_lightning.optimization import OptimizerConfig, ScheduleConfig, learning_rate_factor, make_adamw


@dataclass(frozen=True)
class LossConfig:
    """How the n losses are weighed and computed."""

    head_weights: Sequence[float] | None = None
    """One weight per head; all 1 by default, as in the paper."""
    implementation: Implementation = "chunked"
    """`chunked` is the one to train with; `checkpointed` and `naive` are oracles and ablation arms."""
    chunk_rows: int | None = None
    """Positions whose logits are alive at once; by default what suits the device."""

    def __post_init__(self) -> None:
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise InputError(f"model.loss.chunk_rows is {self.chunk_rows}: it has to be at least 1, or null")
        if self.head_weights is not None and min(self.head_weights, default=-1) < 0:
            raise InputError(f"model.loss.head_weights is {list(self.head_weights)}: weights cannot be negative")


class HeadMetrics(Metric):
    """Negative log-likelihood and accuracy per head: exact over any split into batches and ranks."""

    full_state_update = False
    nll: Tensor
    correct: Tensor
    n_valid: Tensor

    def __init__(self, n_future: int) -> None:
        super().__init__()
        for name in ("nll", "correct", "n_valid"):
            self.add_state(name, torch.zeros(n_future, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, scores: HeadScores) -> None:
        self.nll += scores.nll
        self.correct += scores.correct
        self.n_valid += scores.n_valid

    @override
    def compute(self) -> tuple[Tensor, Tensor]:
        """(nats per token, accuracy) per head; NaN for a head that never had a valid target.

        Each is (N,), or a scalar for one head: torchmetrics squeezes what it returns.
        """
        return self.nll / self.n_valid, self.correct / self.n_valid


class MTPModule(pl.LightningModule):
    """Trains an `MTPModel`; logs `train/loss`, `val/loss/head_i`, `val/accuracy/head_i`, `val/bits_per_byte`.

    A batch is a dict: `tokens` (B, L) int64, `documents` (B, L) ids or absent, `loss_mask` (B, L) bool or absent,
    with L = T + n_future.

    Args:
        backbone: the trunk's dimensions.
        heads: how many tokens ahead are predicted, and by what.
        compile: compile every transformer layer (they share their code, so once) with torch.compile.

    Raises:
        InputError: an impossible combination; the message names the configuration key.
    """

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        heads: HeadsConfig = HeadsConfig(),
        loss: LossConfig = LossConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        compile: bool = False,
    ) -> None:
        super().__init__()
        if loss.head_weights is not None and len(loss.head_weights) != heads.n_future:
            raise InputError(
                f"model.loss.head_weights has {len(loss.head_weights)} weights, and "
                f"model.heads.n_future is {heads.n_future}: there has to be one for each head"
            )
        self.loss_config, self.optimizer_config, self.schedule_config = loss, optimizer, schedule
        self.model = MTPModel(backbone, heads)
        self.val_metrics = HeadMetrics(heads.n_future)
        self._since_step: list[LossOutput] = []
        """Losses of the batches whose gradients wait for the next optimizer step."""
        if compile:
            for block in self.model.blocks():
                block.compile()

    @property
    def n_future(self) -> int:
        return self.model.n_future

    def describe(self, context: int) -> dict[str, int]:
        """Parameters and training FLOPs per token at `context` positions, for the log."""
        counts = count_parameters(self.model.config, self.model.heads_config)
        flops = flops_per_token(self.model.config, self.model.heads_config, context)
        return {
            "model/parameters": counts.total,
            "model/parameters_non_embedding": counts.non_embedding,
            "model/flops_per_token": flops,
        }

    def targets(self, batch: dict[str, Tensor]) -> Targets:
        return make_targets(batch["tokens"], self.n_future, batch.get("documents"), batch.get("loss_mask"))

    def hidden(self, batch: dict[str, Tensor], inputs_BT: Tensor) -> Tensor:
        documents = batch.get("documents")
        return self.model(inputs_BT, None if documents is None else documents[:, : inputs_BT.shape[1]])  # type: ignore[no-any-return]

    @override
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        inputs_BT, targets_NBT, valid_NBT = self.targets(batch)
        h_NBTD = self.hidden(batch, inputs_BT)

        def score(h: Tensor, weight: Tensor) -> LossOutput:
            config = self.loss_config
            return multi_token_loss(
                h, weight, targets_NBT, valid_NBT, config.head_weights, config.implementation, config.chunk_rows
            )

        out: LossOutput = self.model.unembedding(h_NBTD, score)
        self.log("train/loss", out.total.detach(), prog_bar=True, logger=False)
        self._since_step.append(out._replace(total=out.total.detach()))
        return out.total

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Record the step that is about to be made, step k being the k-th, with the gradient's norm before clipping:
        n summed losses make it about n times larger, so that the clip bites more often.

        Recorded here and not through `self.log`, which reaches the loggers only behind `on_train_batch_end`: a
        checkpoint taken there would come before its own step's record, and a run killed then would lack that step.
        """
        outs, self._since_step = self._since_step, []
        step = self.trainer.global_step + 1
        if step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        nll_N = sum(out.nll for out in outs) / sum(out.n_valid for out in outs).clamp(min=1)  # type: ignore[union-attr]
        metrics = {f"train/loss/head_{i}": nll for i, nll in enumerate(nll_N.tolist(), start=1)}
        metrics["train/loss"] = torch.stack([out.total for out in outs]).mean().item()
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        metrics["train/gradient_norm"] = torch.nn.utils.get_total_norm(gradients).item()
        metrics["train/lr"] = optimizer.param_groups[0]["lr"]
        self._record(metrics, step)

    def _record(self, metrics: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

    @override
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        inputs_BT, targets_NBT, valid_NBT = self.targets(batch)
        h_NBTD = self.hidden(batch, inputs_BT)
        self.val_metrics.update(
            self.model.unembedding(h_NBTD, lambda h, weight: score_heads(h, weight, targets_NBT, valid_NBT))
        )

    @override
    def on_validation_epoch_end(self) -> None:
        nll_N, accuracy_N = map(torch.atleast_1d, self.val_metrics.compute())
        self.val_metrics.reset()
        measured_N = nll_N[~nll_N.isnan()]  # a head without a valid target adds nothing
        metrics = {"val/loss": measured_N.sum().item() if len(measured_N) else math.nan}
        for i, (nll, accuracy) in enumerate(zip(nll_N.tolist(), accuracy_N.tolist()), start=1):
            metrics |= {f"val/loss/head_{i}": nll, f"val/accuracy/head_{i}": accuracy}
        bytes_per_token = getattr(self.trainer.datamodule, "bytes_per_token", None)  # type: ignore[attr-defined]
        if bytes_per_token:
            metrics["val/bits_per_byte"] = nll_N[0].item() / math.log(2) / bytes_per_token
        self.log_dict(metrics, logger=False, sync_dist=True)
        self._record(metrics, self.trainer.global_step)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = make_adamw(self.parameters(), self.optimizer_config)
        total_steps = self.trainer.max_steps  # not estimated_stepping_batches: that makes the loader before a resume
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, total_steps, self.schedule_config)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What `load_model` needs beside the weights, as plain values: checkpoints load with weights_only."""
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        checkpoint[CHECKPOINT_KEY] = {
            "format": CHECKPOINT_FORMAT,
            "backbone": asdict(self.model.config),
            "heads": asdict(self.model.heads_config),
            "tokenizer": tokenizer.state() if tokenizer is not None else None,
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(CHECKPOINT_KEY, {})
        for part, mine in (("backbone", asdict(self.model.config)), ("heads", asdict(self.model.heads_config))):
            for key, value in saved.get(part, {}).items():
                if mine[key] != value:
                    raise InputError(
                        f"ckpt_path: the checkpoint was made with model.{part}.{key} = {value!r}, "
                        f"and this configuration says {mine[key]!r}"
                    )
