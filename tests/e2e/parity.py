"""Gradients of a step under a strategy, through the real Trainer on two CPU processes, and of one plain process.

The processes are forked from one that has everything imported, keep their process group, and run one cell after the
other: a second or two each. A cell trains one optimizer step; its gradients are gathered just before the step.
"""

import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from mtp_lightning.checkpoints.files import LoadedModel, save_safetensors
from mtp_lightning.checkpoints.initial import load_initial
from mtp_lightning.data.loader import ResumableLoader
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.initial import InitConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.training.freezing import Freeze
from mtp_lightning.model.training.later import made_later
from mtp_lightning.model.training.recompute import Recompute, recompute_model
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.heads import count_targets, model_loss
from mtp_lightning.objective.loss import LossOptions, LossOutput, multi_token_loss
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.objective.teacher_config import Target, TeacherConfig
from mtp_lightning.objective.weights import LossConfig
from mtp_lightning.strategies.fsdp2 import FSDP2Strategy
from mtp_lightning.strategies.zero import ZeroStrategy

RANKS, ROWS, T, CLIP = 2, 2, 8, 0.5
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": FSDP2Strategy,
    "zero1": lambda: ZeroStrategy(1),
    "zero2": lambda: ZeroStrategy(2),
    "zero3": lambda: ZeroStrategy(3),
}
WRONG: dict[str, Callable[[], Strategy]] = {"zero2 uncorrected": lambda: Uncorrected(2)}
Gradients = dict[str, Tensor]


class Uncorrected(ZeroStrategy):
    """With Lightning's backward, which divides a second time by the number of accumulated batches."""

    backward = DeepSpeedStrategy.backward


LATER: dict[str, Any] = {"attention_bias": "qkv", "qk_norm": True, "head_dim": 10, "n_kv_heads": 1}
"""What later Llamas have: vectors, and matrices of odd sizes."""


@dataclass(frozen=True)
class ParityCell:
    """One combination. `wrong`: the paper's loop instead of one loss and one backward; `source`: the file
    whose weights it begins with; `apart`: documents do not see each other; `target`: of the further heads."""

    strategy: str
    heads: HeadsConfig
    accumulate: int = 1
    tied: bool = False
    wrong: bool = False
    freeze: Freeze = "none"
    source: str | None = None
    later: bool = False
    recompute: Recompute = "none"
    apart: bool = False
    target: Target = "token"
    latent: float = 0.0

    def __str__(self) -> str:
        heads = [f"{k}={v}" for k, v in vars(self.heads).items() if v != getattr(HeadsConfig, k)]
        rest = f"accumulate={self.accumulate} tied={self.tied} freeze={self.freeze} from {self.source}"
        rest += f" later={self.later} recompute={self.recompute} apart={self.apart}"
        rest += f" target={self.target} latent={self.latent}"
        return f"{self.strategy} {' '.join(heads)} {rest}"

    def module(self) -> MTPModule:
        torch.manual_seed(0)
        init = InitConfig(self.source, "copy") if self.source else InitConfig()
        make = PaperLoop if self.wrong else MTPModule
        loss = LossConfig(target=self.target, teacher=TeacherConfig(latent=self.latent))
        return make(self.backbone, self.heads, loss, init=init, freeze=self.freeze, recompute=self.recompute)

    @property
    def backbone(self) -> BackboneConfig:
        return BackboneConfig(
            vocab_size=16, dim=32, n_layers=8, n_heads=2, ffn_dim=48, tie_embeddings=self.tied, init_std=0.3,
            attend_across_documents=not self.apart,            **(LATER if self.later else {}),
        )  # fmt: skip

    def write_source(self, path: Path) -> "ParityCell":
        """The same cell begun with a model of one head, written to `path`, in which nothing is what the seed draws."""
        torch.manual_seed(7)
        model = MTPModel(self.backbone, HeadsConfig(n_future=1))
        save_safetensors(LoadedModel(path, model, None, 0, None, None), path)
        return replace(self, source=str(path))

    def batches(self) -> list[dict[str, Tensor]]:
        """Global batches, one for each backward; borders at random, so that ranks have unequal numbers of targets, and
        of several batches, each has a mask that leaves more than that of the one before it."""
        generator = torch.Generator().manual_seed(1)
        shape = (RANKS * ROWS, T + self.heads.horizon)
        batches = []
        for i in range(self.accumulate):
            batch = {
                "tokens": torch.randint(0, 16, shape, generator=generator),
                "documents": (torch.rand(shape, generator=generator) < 0.2).cumsum(1).int(),
            }
            if self.accumulate > 1:
                batch["loss_mask"] = torch.rand(shape, generator=generator) < 0.3 + 0.7 * i / (self.accumulate - 1)
            batches.append(batch)
        return batches


class PaperLoop(MTPModule):
    """Section 2's loop, literally: trunk detached, one backward per head, then the trunk's. Right in one process."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        targets, _ = self.make_targets(batch)
        rotary = self.model.rotary(torch.arange(T))
        z = self.model.run_trunk(targets.inputs, rotary)
        d = z.detach().requires_grad_()
        for i, head in enumerate(self.model.heads):
            own = slice(i, i + 1)

            def score(h: Tensor, weight: Tensor, own: slice = own) -> LossOutput:
                return multi_token_loss(h, weight, targets.targets[own], targets.valid[own])

            self.model.unembedding(self.model.norm(head(d, rotary))[None], score).total.backward()
        assert d.grad is not None
        total = (z * d.grad).sum()  # whose backward is z's with the gradient that has gathered in d
        nothing = torch.zeros(self.heads_config.n_future)
        self._since_step.append(LossOutput(total.detach(), nothing, nothing))
        return total


def reference(cell: ParityCell) -> Gradients:
    """One process, all rows of all batches at once, every logit alive, torch's own autograd. (Batch by batch for
    `lk_lambda`, each of whose batches has a mean overlap of its own.)"""
    module = cell.module()
    if cell.source:
        load_initial(module.init_config, module.model)
    batches = cell.batches()
    if cell.target != "lk_lambda":
        batches = [{key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}]
    made = [make_targets(cell.heads, batch["tokens"], batch["documents"], batch.get("loss_mask")) for batch in batches]
    recompute_model(module.model, "none")
    module.trainer = type("At", (), {"global_step": 0, "max_steps": 1})()  # type: ignore[assignment]
    weights, options = (
        module.head_weights(),
        LossOptions("naive", target=cell.target, teacher=TeacherConfig(latent=cell.latent)),
    )
    count = torch.stack([count_targets(targets, options, cell.heads) for targets in made]).float().mean(0)
    for targets, batch in zip(made, batches):
        out = model_loss(module.model, targets, batch["documents"][:, :T], weights, options, count)
        (out.total / len(batches)).backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


class Gather(pl.Callback):
    """Full gradients, averaged over ranks, as the optimizer is about to see them (before clipping)."""

    def __init__(self) -> None:
        self.gradients: Gradients = {}
        self.weights: Gradients = {}
        self.states: dict[str, Any] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        zero = isinstance(trainer.strategy, ZeroStrategy)
        if zero and not trainer.model.is_gradient_accumulation_boundary():
            return
        for name, parameter in pl_module.named_parameters():
            if not parameter.requires_grad:
                assert parameter.grad is None, name
                continue
            gradient = _full_zero_gradient(parameter) if zero else parameter.grad
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            self.gradients[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a checkpoint would hold: on rank zero."""
        self.weights = trainer.strategy.lightning_module_state_dict()
        self.states = trainer.strategy.optimizer_state(trainer.optimizers[0])


def _full_zero_gradient(parameter: torch.nn.Parameter) -> Tensor:
    from deepspeed.utils import safe_get_full_grad

    return safe_get_full_grad(parameter)  # type: ignore[no-any-return]


class _Recorder(pl.loggers.logger.DummyLogger):  # type: ignore[name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics |= metrics


def run_cell(cell: ParityCell, rank: int) -> tuple[Gradients, float]:
    """On one of the ranks: (gradients, the norm that was logged)."""
    rows = slice(rank * ROWS, (rank + 1) * ROWS)
    batches = [{key: value[rows] for key, value in batch.items()} for batch in cell.batches()]
    gather, recorder = Gather(), _Recorder()
    trainer = pl.Trainer(
        accelerator="cpu", devices=RANKS, strategy=(STRATEGIES | WRONG)[cell.strategy](), max_steps=1, max_epochs=1,
        accumulate_grad_batches=cell.accumulate, gradient_clip_val=CLIP, callbacks=[gather], logger=recorder,
        log_every_n_steps=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    later = cell.strategy == "fsdp2" or (cell.strategy == "zero3" and cell.source is None and cell.freeze == "none")
    with made_later(later):  # as by the command
        module = cell.module()
    trainer.fit(module, train_dataloaders=ResumableLoader(batches, len(batches), step_batches=cell.accumulate))
    if rank == 0 and not cell.wrong:  # a loop that is wrong may leave heads as they were: its gradients tell
        check_frozen(cell, gather)
    return gather.gradients, recorder.metrics["train/gradient_norm"]


def check_frozen(cell: ParityCell, gather: Gather) -> None:
    """After a step, what is frozen is, bit for bit, what it was, the rest is not, and only the rest has states."""
    module = cell.module()
    if cell.source:
        load_initial(module.init_config, module.model)
    for name, before in module.named_parameters():
        assert torch.equal(gather.weights[name], before) != before.requires_grad, f"{name} moved, or did not"
    trained = sum(weight.requires_grad for weight in module.parameters())
    assert len(gather.states["state"]) == trained, f"{len(gather.states['state'])} states for {trained} weights"


def run_cells(cells: Sequence[ParityCell]) -> Iterator[tuple[Gradients, float] | str]:
    """Results of the cells in order, by a pair of processes; an exception of a cell as its text."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    receiver, sender = context.Pipe(duplex=False)
    workers = [
        context.Process(target=_work, args=(rank, port, cells, sender if rank == 0 else None)) for rank in range(RANKS)
    ]
    for worker in workers:
        worker.start()
    sender.close()
    try:
        for _ in cells:
            result = receiver.recv()
            if not isinstance(result, str):
                result = {name: torch.from_numpy(array) for name, array in result[0].items()}, result[1]
            yield result
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _work(rank: int, port: int, cells: Sequence[ParityCell], sender: Connection | None) -> None:
    warnings.simplefilter("ignore")  # here it is about numbers
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    for cell in cells:
        result: Any
        try:
            gradients, norm = run_cell(cell, rank)
            result = {name: gradient.numpy() for name, gradient in gradients.items()}, norm
        except Exception:  # it is the result: sent, and shown by whoever asked
            result = traceback.format_exc()
        if sender is not None:
            sender.send(result)


def worst_error(ours: Gradients, theirs: Gradients) -> float:
    """The largest difference over all parameters, relative to the parameter's largest gradient."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    return max(float((ours[k] - theirs[k]).abs().max() / theirs[k].abs().max().clamp(min=1e-12)) for k in theirs)
