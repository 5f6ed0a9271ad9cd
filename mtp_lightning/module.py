"""The LightningModule: windows -> targets -> trunk and heads -> one loss, one backward."""

import math
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
from mtp_lightning.objective.heads import Question, ask, check_options, model_loss, model_scores
from mtp_lightning.objective.loss import HeadScores, LossOptions, LossOutput
from mtp_lightning.objective.weights import WeightsConfig, complete, head_weights
from mtp_lightning.optimization import OptimizerConfig, ScheduleConfig, learning_rate_factor, make_adamw


@dataclass(frozen=True)
class LossConfig(LossOptions):
    """How the losses of the heads are weighed and computed."""

    weights: WeightsConfig = WeightsConfig()
    """w_i, and how they move during training; all 1 by default for the paper's heads."""


class HeadMetrics(Metric):
    """Negative log-likelihood and accuracy per loss (one a head): exact over any split into batches and ranks."""

    full_state_update = False
    nll: Tensor
    correct: Tensor
    n_valid: Tensor

    def __init__(self, terms: int) -> None:
        super().__init__()
        for name in ("nll", "correct", "n_valid"):
            self.add_state(name, torch.zeros(terms, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, scores: HeadScores) -> None:
        self.nll += scores.nll
        self.correct += scores.correct
        self.n_valid += scores.n_valid

    @override
    def compute(self) -> tuple[Tensor, Tensor]:
        """(nats per token, accuracy) per loss; NaN for one that never had a valid target.

        Each is (M,), or a scalar for a single one: torchmetrics squeezes what it returns.
        """
        return self.nll / self.n_valid, self.correct / self.n_valid


class MTPModule(pl.LightningModule):
    """Trains an `MTPModel`; logs `train/loss`, `val/loss/head_i`, `val/accuracy/head_i`, `val/bits_per_byte`.

    A batch is a dict: `tokens` (B, L) int64, `documents` (B, L) ids or absent, `loss_mask` (B, L) bool or absent,
    with L = T + horizon, which is n_future but for heads that leap.

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
        complete(loss.weights, heads)  # both refuse what does not go together
        check_options(loss, heads)
        self.loss_config, self.optimizer_config, self.schedule_config = loss, optimizer, schedule
        self.model = MTPModel(backbone, heads)
        self.val_metrics = HeadMetrics(len(heads.terms))
        self._since_step: list[LossOutput] = []
        """Losses of the batches whose gradients wait for the next optimizer step."""
        if compile:
            for block in self.model.blocks():
                block.compile()

    @property
    def heads_config(self) -> HeadsConfig:
        return self.model.heads_config

    @property
    def horizon(self) -> int:
        """Tokens that a window carries behind its last input."""
        return self.heads_config.horizon

    def describe(self, context: int) -> dict[str, int]:
        """Parameters and training FLOPs per token at `context` positions, for the log."""
        counts = count_parameters(self.model.config, self.model.heads_config)
        flops = flops_per_token(self.model.config, self.model.heads_config, context)
        return {
            "model/parameters": counts.total,
            "model/parameters_non_embedding": counts.non_embedding,
            "model/flops_per_token": flops,
        }

    def ask(self, batch: dict[str, Tensor]) -> tuple[Question, Tensor | None]:
        """(inputs and targets, the inputs' document ids)."""
        documents = batch.get("documents")
        question = ask(self.heads_config, batch["tokens"], documents, batch.get("loss_mask"))
        return question, None if documents is None else documents[:, : question.inputs.shape[1]]

    def head_weights(self) -> tuple[float, ...]:
        """The losses' weights at this step."""
        progress = self.trainer.global_step / max(1, self.trainer.max_steps)
        return head_weights(self.loss_config.weights, self.heads_config, progress)

    @override
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        question, documents_BT = self.ask(batch)
        out = model_loss(self.model, question, documents_BT, self.head_weights(), self.loss_config)
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
        metrics = {f"train/loss/{term}": nll for term, nll in zip(self.heads_config.terms, nll_N.tolist())}
        metrics |= {f"train/weight/{term}": w for term, w in zip(self.heads_config.terms, self.head_weights())}
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
        question, documents_BT = self.ask(batch)
        self.val_metrics.update(model_scores(self.model, question, documents_BT))

    @override
    def on_validation_epoch_end(self) -> None:
        nll_N, accuracy_N = map(torch.atleast_1d, self.val_metrics.compute())
        self.val_metrics.reset()
        measured_N = nll_N[~nll_N.isnan()]  # a head without a valid target adds nothing
        metrics = {"val/loss": measured_N.sum().item() if len(measured_N) else math.nan}
        for term, nll, accuracy in zip(self.heads_config.terms, nll_N.tolist(), accuracy_N.tolist()):
            metrics |= {f"val/loss/{term}": nll, f"val/accuracy/{term}": accuracy}
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
