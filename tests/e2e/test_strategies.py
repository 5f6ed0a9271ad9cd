"""Training goes on under any strategy from any other's checkpoint, as if one process had done it all."""

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from parity import STRATEGIES, _Recorder
from tiny import tiny_backbone
from typing_extensions import override

from callbacks.checkpointing import PeriodicCheckpoint
from mtp_lightning.checkpoints.files import read_checkpoint
from mtp_lightning.checkpoints.select import find_checkpoint
from mtp_lightning.cli import main
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.loader import ResumableLoader
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.training.later import made_later
from mtp_lightning.module import MTPModule
from mtp_lightning.optimization.adamw import OptimizerConfig
from mtp_lightning.optimization.schedule import ScheduleConfig

ROWS, T, STEPS = 4, 8, 2
ALL_ROWS = 12
"""Of a run on numbers of ranks that 4 rows cannot be dealt to."""
TOTAL = 5 * STEPS
HEADS = HeadsConfig(n_future=2, kind="sequential")
DECAY = 5.0
"""So that it is seen whether weights decay: by a twentieth a step."""
ADAMW, MUON = (OptimizerConfig(kind=kind, lr=1e-2, weight_decay=DECAY) for kind in ("adamw", "muon"))  # type: ignore[arg-type]
LATER = ("fsdp2", "zero3")
"""Strategies whose weights are drawn when the processes have met."""


class Random(MTPDataModule):
    """Global batches that depend on their index alone, dealt to the ranks in rows; documents of random lengths."""

    rows = ROWS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(0, 16, (self.rows, T + self.horizon), generator=generator)
        documents = (torch.rand(tokens.shape, generator=generator) < 0.2).cumsum(1).int()
        rank, world = self.rank_and_world_size
        rows = slice(rank * self.rows // world, (rank + 1) * self.rows // world)
        return {"tokens": tokens[rows], "documents": documents[rows]}

    @override
    def train_dataloader(self) -> ResumableLoader:
        return self.training_loader(self)


class Losses(_Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[int, float] = {}
        self.rates: dict[int, float] = {}

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            assert step is not None
            self.losses[step] = metrics["train/loss"]
            self.rates[step] = metrics["train/lr"]


def train(
    strategy: str, until: int, total: int, start: Path | None, save: Path | None, accumulate: int = 1,
    optimizer: OptimizerConfig = ADAMW,
) -> dict[int, float]:  # fmt: skip
    """Loss of each step, from `start`'s checkpoint to step `until` of a schedule of `total`."""
    torch.manual_seed(0)
    schedule = ScheduleConfig(warmup_steps=2)
    with made_later(strategy in LATER):
        module = MTPModule(tiny_backbone(n_layers=4), HEADS, optimizer=optimizer, schedule=schedule)
    recorder = Losses()

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == until:
                if save is not None and not save.exists():
                    trainer.save_checkpoint(save)
                trainer.should_stop = True

    trainer = pl.Trainer(
        accelerator="cpu", devices=1 if strategy == "single" else 2, max_steps=total, max_epochs=1, min_steps=1,
        strategy="auto" if strategy == "single" else STRATEGIES[strategy](), accumulate_grad_batches=accumulate,
        gradient_clip_val=0.5, callbacks=[Stop()], logger=recorder, log_every_n_steps=1, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    data = Random(horizon=HEADS.horizon, vocab_size=16)
    trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    return recorder.losses


class Watched(NamedTuple):
    """Of each step, what rank zero saw."""

    losses: dict[int, float]
    rates: dict[int, float]
    first_rows: dict[int, list[int]]
    """Tokens of the global batch's first row."""


class Row(pl.Callback):
    def __init__(self) -> None:
        self.first: dict[int, list[int]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, __: Any, batch: Any, *args: Any) -> None:
        self.first[trainer.global_step] = batch["tokens"][0].tolist()


def watched(strategy: str, ranks: int, kind: str, until: int, start: Path | None, folder: Path) -> Watched:
    """To step `until`, saved there as the callback of every run saves: single files at once, folders in the
    background."""
    torch.manual_seed(0)
    with made_later(strategy in LATER):
        module = MTPModule(tiny_backbone(n_layers=4), HEADS, optimizer=ADAMW, schedule=ScheduleConfig(warmup_steps=2))
    recorder, row, sharded = Losses(), Row(), kind == "sharded"
    saves = PeriodicCheckpoint(every_n_steps=until, kind=kind, background=sharded)  # type: ignore[arg-type]

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step >= until

    trainer = pl.Trainer(
        accelerator="cpu", devices=ranks, max_steps=HANDED, max_epochs=1, min_epochs=0,
        strategy="auto" if strategy == "single" else STRATEGIES[strategy](), gradient_clip_val=0.5,
        callbacks=[row, saves, Stop()], logger=recorder, log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    data = Random(horizon=HEADS.horizon, vocab_size=16)
    data.rows = ALL_ROWS
    trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    return Watched(recorder.losses, recorder.rates, row.first)


def in_processes(strategy: str, *args: Any, ranks: int = 2, run: Callable[..., Any] = train) -> Any:
    """`train` in one forked process, or in a pair of them; what rank zero saw."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    results = context.SimpleQueue()

    def work(rank: int) -> None:
        warnings.simplefilter("ignore")
        if strategy != "single":
            names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0}
            os.environ |= {name: str(value) for name, value in names.items()}
        losses = run(strategy, *args)
        if rank == 0:
            results.put(losses)

    processes = [context.Process(target=work, args=(rank,)) for rank in range(1 if strategy == "single" else ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, f"{strategy}: a process ended with {process.exitcode}"
    return results.get()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], Path]:
    """Losses and last checkpoint of one process that never stopped."""
    save = tmp_path_factory.mktemp("whole") / "whole.ckpt"
    return in_processes("single", TOTAL, TOTAL, None, save), save


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(["zero2", "single", "ddp", "zero3", "fsdp2"], id="all but zero1"),
        pytest.param(["zero3", "fsdp2", "zero1", "zero2", "single"], id="the other way", marks=pytest.mark.slow),
    ],
)
def test_one_run_through_every_strategy(
    order: list[str], uninterrupted: tuple[dict[int, float], Path], tmp_path: Path
) -> None:
    """Each goes on from the checkpoint of the one before; the losses and the last weights are one process's."""
    start, found = None, {}
    for i, strategy in enumerate(order):
        save = tmp_path / f"{i}.ckpt"
        found |= in_processes(strategy, STEPS * (i + 1), TOTAL, start, save)
        start = save
    assert found == pytest.approx(uninterrupted[0], rel=2e-5)
    assert_same_weights(uninterrupted[1], save)


@pytest.mark.slow
def test_muon_through_every_strategy_that_has_it(tmp_path: Path) -> None:
    """Whole matrices under DDP, gathered ones under FSDP2. It orthogonalises in bfloat16, where the order of a sum
    shows: the bounds are wider than AdamW's. One process goes on bit for bit."""
    whole = in_processes("single", 8, 8, None, tmp_path / "whole.ckpt", 1, MUON)
    start, found = None, {}
    for i, strategy in enumerate(["single", "fsdp2", "ddp", "single"]):
        save = tmp_path / f"{i}.ckpt"
        found |= in_processes(strategy, 2 * (i + 1), 8, start, save, 1, MUON)
        start = save
    assert found == pytest.approx(whole, rel=1e-3)
    assert [found[1], found[2]] == [whole[1], whole[2]]
    assert_same_weights(tmp_path / "whole.ckpt", save, rtol=5e-2, atol=2e-3)
    states = [read_checkpoint(tmp_path / f"{i}.ckpt")["optimizer_states"][0]["state"] for i in range(4)]
    assert all(one.keys() == states[0].keys() for one in states)
    assert {key: one.keys() for key, one in states[0].items()} == {key: one.keys() for key, one in states[2].items()}
    again = in_processes("single", 8, 8, tmp_path / "0.ckpt", tmp_path / "again.ckpt", 1, MUON)
    assert again == {step: loss for step, loss in whole.items() if step > 2}


def assert_same_weights(one: Path, other: Path, rtol: float = 1e-3, atol: float = 2e-5) -> None:
    whole, pieces = (read_checkpoint(path)["state_dict"] for path in (one, other))
    assert whole.keys() == pieces.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(pieces[name], weight, rtol=rtol, atol=atol, msg=name)


STAGES = [
    ("single", 1, "sharded"),
    ("ddp", 2, "single"),
    ("fsdp2", 4, "sharded"),
    ("zero3", 3, "sharded"),
    ("zero1", 2, "sharded"),
    ("fsdp2", 2, "single"),
    ("zero2", 3, "sharded"),
    ("ddp", 4, "sharded"),
    ("single", 1, "single"),
]
"""Strategy, ranks, kind of checkpoint, of a run that is handed on after every step."""
HANDED = len(STAGES)


@pytest.mark.slow
def test_the_handover_table(tmp_path: Path) -> None:
    """One run, handed from each to the next, has the losses, windows, learning rates and states of one process's."""
    whole = in_processes("single", 1, "single", HANDED, None, tmp_path / "whole", run=watched)
    start, losses, rates, rows = None, {}, {}, {}
    for i, (strategy, ranks, kind) in enumerate(STAGES):
        folder = tmp_path / str(i)
        seen = in_processes(strategy, ranks, kind, i + 1, start, folder, ranks=ranks, run=watched)
        start = find_checkpoint(folder)
        assert start.is_dir() == (kind == "sharded")
        assert [*seen.losses] == [i + 1]
        losses, rates, rows = losses | seen.losses, rates | seen.rates, rows | seen.first_rows
        print(f"| {i + 1} | {strategy} | {ranks} | {kind} | {seen.losses[i + 1]:.7f} | {whole.losses[i + 1]:.7f} |")
    assert losses == pytest.approx(whole.losses, rel=2e-5)
    assert (rates, rows) == (whole.rates, whole.first_rows)
    ours, theirs = (read_checkpoint(path) for path in (start, find_checkpoint(tmp_path / "whole")))
    for name, weight in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], weight, rtol=1e-3, atol=2e-5, msg=name)
    (mine,), (one) = ours["optimizer_states"], theirs["optimizer_states"]
    for i, state in one[0]["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(mine["state"][i][key], value, rtol=1e-3, atol=1e-5, msg=f"{i} {key}")


@pytest.mark.parametrize("strategy", ["zero2", "fsdp2"])
def test_loss_curves_are_one_processs(strategy: str) -> None:
    """Over the same global batches, accumulated by two."""
    args = (6, 6, None, None, 2)
    assert in_processes(strategy, *args) == pytest.approx(in_processes("single", *args), rel=2e-5)


CONFIGS = ["-c", "conf/base.yaml", "-c", "conf/model/tiny.yaml", "-c", "conf/data/python_stdlib.yaml"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--trainer.strategy", "deepspeed_stage_2"], "divides the loss twice under accumulation; use"),
        (["--trainer.strategy", "fsdp"], "use -c conf/strategy/fsdp2.yaml"),
        (["--trainer.strategy", "lightning.pytorch.strategies.DeepSpeedStrategy"], "use -c conf/strategy/zero2.yaml"),
        (["-c", "conf/strategy/zero2.yaml", "--trainer.strategy.stage", "4"], "trainer.strategy"),
        (["-c", "conf/strategy/zero2.yaml", "--trainer.strategy.offload", "parameters"], "only stage 3 shards"),
        (["-c", "conf/strategy/zero2.yaml", "--trainer.precision", "16-mixed"], "trainer.precision is '16-mixed'"),
        (["-c", "conf/strategy/zero2.yaml", "--model.optimizer.kind", "muon"], "Muon needs whole matrices; use"),
        (["-c", "conf/strategy/fsdp2.yaml", "--trainer.gradient_clip_algorithm", "value"], "clips by the norm"),
    ],
)  # fmt: skip
def test_what_would_be_silently_wrong_is_refused(
    flags: Sequence[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = ["fit", *CONFIGS, *flags, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(folder)]
    assert main(command) == 2
    assert says in capsys.readouterr().err
    assert not folder.exists()


def test_a_missing_package_is_named_before_anything_is_built(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "deepspeed" else object())
    assert main(["fit", *CONFIGS, "-c", "conf/strategy/zero3.yaml", "--trainer.default_root_dir", str(tmp_path)]) == 2
    assert "pip install 'mtp-lightning[deepspeed]'" in capsys.readouterr().err
