"""The LightningModule: windows -> targets -> trunk and heads -> one loss, one backward.

Longer than other files: all that Lightning calls on a model stands here, in the order of a run, so that what a step
does can be read from top to bottom; what is computed is in `objective`, `optimization`, `metrics` and `checkpoints`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from mtp_lightning.checkpoints.description import check_same_run, describe, settings
from mtp_lightning.checkpoints.initial import Parent, load_initial
from mtp_lightning.checkpoints.lightning_files import CheckpointFiles
from mtp_lightning.errors import DivergedError, InputError
from mtp_lightning.metrics import (
    DraftMetrics,
    HeadMetrics,
    SourceMetrics,
    mean_over_ranks,
    sum_over_ranks,
    training_means,
    validation_means,
)
from mtp_lightning.model.config import CHECKPOINT_KEY, BackboneConfig, HeadsConfig
from mtp_lightning.model.initial import InitConfig
from mtp_lightning.model.memory import describe_size
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.own_kind import import_kind
from mtp_lightning.model.training.freezing import freeze_model
from mtp_lightning.model.training.later import make_model, make_sharded
from mtp_lightning.model.training.recompute import Recompute, recompute_model
from mtp_lightning.model.training.sharding import shard_model
from mtp_lightning.objective.acceptance import count_drafts, draft_metrics
from mtp_lightning.objective.heads import check_options, count_targets, model_loss, model_scores, unembedded_again
from mtp_lightning.objective.loss import LossOutput
from mtp_lightning.objective.targets import SENTINELS, SOURCE, STEP_REST, Targets, make_targets
from mtp_lightning.objective.weights import LossConfig, complete, weights_at
from mtp_lightning.optimization.adamw import OptimizerConfig
from mtp_lightning.optimization.divergence import Divergence, diverged_error
from mtp_lightning.optimization.muon import make_optimizer
from mtp_lightning.optimization.schedule import ScheduleConfig, learning_rate_factor


class MTPModule(pl.LightningModule):
    """Trains an `MTPModel`; logs `train/loss`, `val/loss/head_i`, `val/accuracy/head_i`, `val/bits_per_byte`,
    `decode/simulated_length`.

    A batch is a dict: `tokens` (B, L) int64, `documents` (B, L) ids or absent, `loss_mask` and `sentinels` (B, L) bool
    or absent, with L = T + horizon, which is n_future but for heads that leap.

    Args:
        backbone: the trunk's dimensions.
        heads: how many tokens ahead are predicted, and by what.
        init: weights to begin with, of another run or of an imported model; by default they are drawn.
        freeze: what has no gradient and no optimizer state: `trunk` (and embedding), `trunk_and_unembedding` (and final
            norm), or `next_token` (and head 1: what the next token follows from stays, bit for bit).
        recompute: what is run again in the backward pass, so that its activations need not be kept: `layers`, those of
            trunk and heads; `{every: k}`, one layer in k; `attention`, of every layer the attention; `heads`, each head
            with its loss, so that one head's states and gradient exist at a time; `layers_and_heads`, these and the
            trunk's layers. The gradients are the same, a step takes longer.
        compile: compile every transformer layer (they share their code, so once) and the final norm with torch.compile.
        on_divergence: what becomes of a run whose loss or weights are no longer finite: `stop` ends it as failed, its
            last good checkpoint kept; `go_on` trains to the end.

    Raises:
        InputError: an impossible combination; the message names the configuration key.
        DivergedError: while training.
    """

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        heads: HeadsConfig = HeadsConfig(),
        loss: LossConfig = LossConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        init: InitConfig = InitConfig(),
        freeze: Literal["none", "trunk", "trunk_and_unembedding", "next_token"] = "none",
        recompute: Recompute = "none",
        compile: bool = False,
        on_divergence: Literal["stop", "go_on"] = "stop",
    ) -> None:
        super().__init__()
        import_kind(heads)  # a configuration of the user's own names it
        self._weights = complete(loss.weights, heads)  # both refuse what does not go together
        check_options(loss, heads, backbone.vocab_size, recompute)
        self.loss_config, self.optimizer_config, self.schedule_config = loss, optimizer, schedule
        self.init_config, self.frozen, self.recompute, self._compiles = init, freeze, recompute, compile
        model, self._drawn_from = make_model(backbone, heads)
        self._take(model)
        self.parent: Parent | None = None  # known from the run's start on
        self.val_metrics = HeadMetrics(len(heads.loss_names))
        self.draft_metrics = DraftMetrics(heads)
        self._source_metrics = SourceMetrics(heads)
        self._since_step: list[LossOutput] = []
        """Losses of the batches whose gradients wait for the next optimizer step."""
        self._mean_count_C: Tensor | None = None
        """Of the step under way: `count_targets`, the mean over its batches and over the ranks."""
        self.on_divergence = on_divergence
        self._divergence = Divergence()
        self._gradient_norm: Tensor | float = math.nan
        self._trained: list[nn.Parameter] = []
        """All parameters, from the first step of a run on: to look for them takes longer than to clip them."""
        self._is_sharded = False

    def _take(self, model: MTPModel) -> None:
        """What the configuration says of layers and weights that stand."""
        freeze_model(model, self.frozen)
        recompute_model(model, self.recompute)
        self.model = model
        if self._compiles:
            model.compile_layers()

    @property
    def heads_config(self) -> HeadsConfig:
        return self.model.heads_config

    @property
    def horizon(self) -> int:
        """Tokens that a window has after its last input."""
        return self.heads_config.horizon

    def describe(self, context: int) -> dict[str, int]:
        """Parameters and training FLOPs per token at `context` positions, for the log."""
        return describe_size(
            self.model.config, self.heads_config, context, self.frozen, self.recompute, self.unembedded_again
        )

    @property
    def unembedded_again(self) -> int:
        """Hidden states of a position that its loss puts through the unembedding twice."""
        return unembedded_again(self.loss_config, self.heads_config)

    @override
    def setup(self, stage: str) -> None:
        self.trainer.strategy.checkpoint_io, self._trained = CheckpointFiles(), []
        if self._drawn_from is None:
            self._load_initial()

    def _load_initial(self) -> None:
        """A new run begins with the weights of `model.init`; one that goes on from a checkpoint has its own."""
        fits = self.trainer.state.fn == "fit"
        if not fits or self.init_config.path is None or self.trainer.ckpt_path is not None or self.parent:
            return
        self.parent = load_initial(self.init_config, self.model, getattr(self._datamodule, "tokenizer", None))

    @property
    def _datamodule(self) -> Any:
        """None where there are loaders alone."""
        return getattr(self.trainer, "datamodule", None)

    def make_targets(self, batch: dict[str, Tensor], training: bool = True) -> tuple[Targets, Tensor | None]:
        """(inputs and targets, the inputs' document ids).

        Registers look as far as the run's seed and the step say; in validation, the same at every step and seed.
        """
        seed = step = 0
        if training and self.heads_config.kind == "registers":
            seed, step = getattr(self._datamodule, "seed", 0), self.trainer.global_step
        documents = batch.get("documents")
        masks = batch.get("loss_mask"), batch.get(SENTINELS)
        targets = make_targets(self.heads_config, batch["tokens"], documents, *masks, seed=seed, step=step)
        return targets, None if documents is None else documents[:, : targets.inputs.shape[1]]

    def head_weights(self) -> tuple[float, ...]:
        """The losses' weights at this step."""
        return self.head_weights_at(self.trainer.global_step, self.trainer.max_steps)

    def head_weights_at(self, step: int, total_steps: int) -> tuple[float, ...]:
        """The losses' weights at step `step` (0-based) of a run of `total_steps`."""
        return weights_at(self._weights, self.heads_config, step / max(1, total_steps))

    @override
    def configure_model(self) -> None:
        """The processes have met: make what was left for them to make, and under FSDP2 shard."""
        drawn_from, self._drawn_from = self._drawn_from, None
        if drawn_from is not None:
            shard: Callable[[nn.Module], None] = self.trainer.strategy.shard  # type: ignore[attr-defined]
            self._take(make_sharded(self.model, drawn_from, shard))
            shard(self.model)
            self._is_sharded = True
            self._load_initial()
        elif self._device_mesh is not None and not self._is_sharded:
            shard_model(self.model, self._device_mesh["data_parallel"])
            self._is_sharded = True

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        targets, documents_BT = self.make_targets(batch)
        k = self.trainer.accumulate_grad_batches
        if batch_idx % k == 0:
            self._mean_count_C = self._count_step(batch, targets) if k > 1 or self.trainer.world_size > 1 else None
        weights, counts = self.head_weights(), self._mean_count_C
        out = model_loss(self.model, targets, documents_BT, weights, self.loss_config, counts, sum_over_ranks)
        self._since_step.append(out._replace(total=out.total.detach()))
        return out.total

    def _count_step(self, batch: dict[str, Any], targets: Targets) -> Tensor:
        """Targets of each mean in the objective: the mean over the batches and ranks of the step that `batch` begins.

        Lightning averages the gradients of both, so that losses divided by it are means over all targets of the step.
        """
        k, following = self.trainer.accumulate_grad_batches, batch.get(STEP_REST, [])
        assert len(following) == k - 1
        every = [targets, *(self.make_targets(other)[0] for other in following)]
        counts = [count_targets(each, self.loss_config, self.heads_config) for each in every]
        return mean_over_ranks(torch.stack(counts).sum(0)) / k

    def check_loader(self) -> None:
        """
        Raises:
            InputError: gradients are accumulated, and the loader does not know of steps.
        """
        k = self.trainer.accumulate_grad_batches
        if k > 1 and getattr(self.trainer.train_dataloader, "step_batches", 1) != k:
            raise InputError(
                f"trainer.accumulate_grad_batches is {k}: the data module's train_dataloader has to return what its "
                "training_loader makes, so that the targets of a whole step are counted before its first gradient"
            )

    @override
    def on_train_start(self) -> None:
        self.check_loader()

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer is configured, and keep the norm before clipping, so that it is computed once.

        n summed losses make it about n times larger, so that the clip bites more often. Under ZeRO parameters have no
        gradients to look at: the engine clips, and the strategy is asked for the norm after the step.
        """
        if hasattr(self.trainer.strategy, "gradient_norm"):
            return
        self._trained = self._trained or list(self.parameters())
        parameters = [p for p in self._trained if p.grad is not None]
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            self._gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
            return
        if self._logs_step():
            self._gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @override
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Make the step, then record it; steps are counted from 1.

        Recorded here and not through `self.log`, which reaches the loggers only after `on_train_batch_end`: a
        checkpoint taken there would come before its own step's record, and a run killed then would lack that step.
        """
        logs, lr, step = self._logs_step(), optimizer.param_groups[0]["lr"], self.trainer.global_step + 1
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return  # DeepSpeed is called for every batch and steps where it is due
        outs, self._since_step = self._since_step, []
        self._divergence.note([out.total for out in outs], step)
        asks_each_step = self.device.type == "cpu" and self.trainer.world_size == 1  # where it costs nothing
        diverged = self._diverged_at() if logs or asks_each_step else None
        if not (logs or diverged):
            return
        norm = self._gradient_norm
        if hasattr(self.trainer.strategy, "gradient_norm"):
            norm = self.trainer.strategy.gradient_norm()
        weights = self.head_weights_at(step - 1, self.trainer.max_steps)
        metrics = training_means(self.heads_config.loss_names, outs, weights)
        metrics["train/gradient_norm"] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self._record(metrics | self._seen(step) | {"train/lr": lr}, step)
        loss = metrics["train/loss"]
        self.trainer.callback_metrics["train/loss"] = torch.tensor(loss)
        self.trainer.progress_bar_metrics["train/loss"] = loss  # `self.log` would cost more than all of the above
        if diverged:
            raise self._diverged(diverged, "its loss is not finite")

    def _seen(self, steps: int) -> dict[str, float]:
        return self._datamodule.seen(steps) if hasattr(self._datamodule, "seen") else {}

    def _diverged_at(self, weights: Iterable[torch.nn.Parameter] = ()) -> int | None:
        """The step at which the run went out of bounds, or None for a sound run, and for one that is to go on anyway.
        All ranks have to ask together."""
        return self._divergence.step(weights, now=self.trainer.global_step) if self._watches else None

    @property
    def _watches(self) -> bool:
        return self.on_divergence == "stop" and self.trainer.state.fn == "fit"

    def _diverged(self, step: int, what: str) -> DivergedError:
        return diverged_error(step, what, self.trainer.default_root_dir)

    @override
    def on_train_end(self) -> None:
        self._check_weights()

    def _check_weights(self) -> None:
        """
        Raises:
            DivergedError: the loss of a step, or a weight, is not finite.
        """
        diverged = self._diverged_at(self.parameters())
        if diverged:
            raise self._diverged(diverged, "its loss, or a weight after it, is not finite")

    def _logs_step(self) -> bool:
        """Whether the step under way is one to record."""
        return bool((self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0)  # type: ignore[attr-defined]

    def _record(self, metrics: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

    @override
    def on_validation_epoch_start(self) -> None:
        for metrics in (self.val_metrics, self.draft_metrics):
            metrics.to(self.device)  # ZeRO-3 moves the parameters alone

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        targets, documents_BT = self.make_targets(batch, training=False)
        bytes_V = getattr(self._datamodule, "token_bytes", None)
        n_bytes = None if bytes_V is None else bytes_V.to(self.device)[targets.targets[0][targets.valid[0]]].sum()
        scores = model_scores(self.model, targets, documents_BT)
        drafts = count_drafts(scores, targets, self.heads_config, bytes_V)
        self.val_metrics.update(scores, n_bytes)
        self.draft_metrics.update(drafts)
        self._source_metrics.update(batch.get(SOURCE), scores, n_bytes, drafts)

    @override
    def on_validation_epoch_end(self) -> None:
        sums, drafts = self.val_metrics.compute(), self.draft_metrics.compute()
        self.val_metrics.reset()
        self.draft_metrics.reset()
        of_sources = self._source_metrics.take()
        if self.trainer.sanity_checking:
            return  # nothing is recorded before training starts
        metrics = validation_means(self.heads_config.loss_names, sums)
        metrics |= draft_metrics(self.heads_config, drafts) | of_sources
        self.log_dict(metrics, logger=False, sync_dist=True)
        self._record(metrics, self.trainer.global_step)
        if self._watches and not sums.isfinite().all():
            raise self._diverged(self.trainer.global_step, f"val/loss is {metrics['val/loss']}")

    @override
    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.model.named_parameters(), self.optimizer_config)
        total_steps = self.trainer.max_steps  # not estimated_stepping_batches: that makes the loader before a resume
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, total_steps, self.schedule_config)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            DivergedError: there is nothing to go on from in these weights.
        """
        self._check_weights()
        checkpoint[CHECKPOINT_KEY] = {
            **describe(self.model, self._datamodule, self.frozen, self.parent),
            "schedule": asdict(self.schedule_config),
            "max_steps": self.trainer.max_steps,
            "settings": self.settings(self.trainer),
        }

    def settings(self, trainer: Any) -> dict[str, Any]:
        """What a run goes on with."""
        return settings(self.optimizer_config, self.loss_config, self._weights, trainer)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(CHECKPOINT_KEY, {})
        self.parent = check_same_run(saved, self.model, self.frozen, self.init_config)
