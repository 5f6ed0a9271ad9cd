"""From the command line on two processes: every callback, a killed rank, another number of processes, validation."""

from pathlib import Path

import pytest
import torch
from processes import Mtp
from test_fit import FIT
from test_tracking_fakes import fresh_store

from mtp_lightning.errors import PREEMPTED
from mtp_lightning.tracking.read import history
from mtp_lightning.tracking.store import default_tracking_uri

KILLER = """
import os, signal
import lightning.pytorch as pl

class KillRank(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 10 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""
TWO = ("--trainer.accelerator", "cpu", "--trainer.devices", "2")


def losses(folder: Path, name: str) -> list[tuple[int, float]]:
    run_id = (folder / "runs" / name / "mlflow_run_id").read_text().strip()
    return history(default_tracking_uri(folder / "runs"), run_id, ["train/loss"])["train/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_a_rank_dies_and_one_process_goes_on(mtp: Mtp, folder: Path, strategy: str) -> None:
    """The run ends instead of hanging; continued on one process it has the losses of a run on one, each step once."""
    (folder / "killer.py").write_text(KILLER)
    fresh_store(folder / "runs")
    sharded = (*FIT, "-c", f"conf/strategy/{strategy}.yaml", "--trainer.accelerator", "cpu", "--ckpt_path", "auto")
    sharded += ("--model.backbone.tie_embeddings", "true", "--trainer.default_root_dir", "runs/two")
    died = mtp(*sharded, "--trainer.devices", "2", "--trainer.callbacks+=killer.KillRank", check=False, fresh=True)
    assert died.returncode != 0
    mtp(*sharded, "--trainer.devices", "1")
    mtp(*FIT, "--model.backbone.tie_embeddings", "true", "--trainer.default_root_dir", "runs/one")
    one, two = losses(folder, "one"), losses(folder, "two")
    assert [step for step, _ in two] == list(range(1, 31))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-4)

    longer = mtp(*FIT, "--model.backbone.tie_embeddings", "true", "--trainer.max_steps", "36", "--ckpt_path",
                 "runs/two/checkpoints/step-00000030.ckpt", "--trainer.default_root_dir", "runs/longer",
                 check=False)  # fmt: skip
    assert longer.returncode == 2
    assert "is of a run of 30 steps whose learning rates depend on its length" in longer.stderr


TELLER = """
import os, signal
import callbacks.checkpointing
import lightning.pytorch as pl

callbacks.checkpointing.ASK_SECONDS = 0.02  # the whole run takes less than the usual two seconds

class TellRank(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 8 and trainer.global_rank == 1 and not os.path.exists("told"):
            open("told", "w").close()
            os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp2"])
def test_one_rank_is_told_to_stop_and_all_save(mtp: Mtp, folder: Path, strategy: str) -> None:
    (folder / "teller.py").write_text(TELLER)
    fresh_store(folder / "runs")
    run = (*FIT, "-c", f"conf/strategy/{strategy}.yaml", *TWO, "--ckpt_path", "auto")
    run += ("--trainer.callbacks+=teller.TellRank",)
    told = mtp(*run, check=False, fresh=True)
    assert told.returncode == PREEMPTED, told.stderr[-3000:]
    assert "another process was asked to stop: saved step" in told.stderr
    mtp(*run, fresh=True)
    assert [step for step, _ in losses(folder, "fit")] == list(range(1, 31))


POISONER = """
import math, os, time
import lightning.pytorch as pl

class PoisonRank(pl.Callback):
    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == 4 and trainer.global_rank == 1:
            module.model.norm.weight.data.fill_(math.nan)

    def on_exception(self, trainer, module, error):
        with open(f"ended-{trainer.global_rank}", "w") as file:
            file.write(f"after {trainer.global_step}: {error}")
        for _ in range(600):  # rank 0 ends the others when it ends
            if os.path.exists("ended-1"):
                break
            time.sleep(0.1)
"""


@pytest.mark.slow
def test_the_loss_of_one_rank_is_not_finite_and_all_stop_at_that_step(mtp: Mtp, folder: Path) -> None:
    """Step 5, that of rank 1 alone: averaged gradients spoil the other's loss at step 6. Both ask at step 7."""
    (folder / "poisoner.py").write_text(POISONER)
    fresh_store(folder / "runs")
    run = (*FIT, "-c", "conf/strategy/ddp.yaml", *TWO, "--trainer.log_every_n_steps", "7")
    run += ("--trainer.val_check_interval", "30", "--trainer.callbacks+=poisoner.PoisonRank")
    done = mtp(*run, check=False, fresh=True)
    assert done.returncode == 1, done.stderr[-3000:]
    said = {(folder / f"ended-{rank}").read_text() for rank in range(2)}
    assert len(said) == 1
    assert "diverged at step 5: its loss is not finite" in said.pop()


PROBE = """
trainer:
  callbacks+:
    - class_path: callbacks.induction.InductionProbe
      init_args: {when: 2, stories: 3, rows: 2, length: 6, pictures: false}
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "ddp", "zero2", "zero3"])
def test_probes_and_validation_on_two_processes(mtp: Mtp, folder: Path, strategy: str) -> None:
    (folder / "probe.yaml").write_text(PROBE)
    fresh_store(folder / "runs")
    own = (*FIT[1:], "-c", "probe.yaml", "-c", f"conf/strategy/{strategy}.yaml", *TWO)
    own += ("--data.context", "100")  # room for a name and its second mention
    mtp("fit", *own, "--trainer.max_steps", "6", fresh=True)
    checkpoint = folder / "runs/fit/checkpoints/step-00000006.ckpt"
    assert torch.load(checkpoint, weights_only=True)["heartbeat"]["metrics"]["decode/mismatches"] == 0
    probed = "probe/induction/names_seen/loss"
    found = history(
        default_tracking_uri(folder / "runs"), (folder / "runs/fit/mlflow_run_id").read_text().strip(), [probed]
    )
    assert [step for step, _ in found[probed]] == [0, 2, 4, 6]
    into = ("--trainer.default_root_dir", "runs/validate")
    validated = mtp("validate", *own, "--ckpt_path", str(checkpoint), *into, fresh=True)
    assert validated.stdout.count("val/loss/head_1") == 1
