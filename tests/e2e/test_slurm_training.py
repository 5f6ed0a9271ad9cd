"""Real training on a real one-node Slurm cluster: preempted and continued, and in two tasks."""

import json
from pathlib import Path

import pytest
import torch
from slurm_cluster import WHOLE, Cluster, cluster, slurm

from mtp_lightning.cli import main
from mtp_lightning.grid.run.attempts import read_attempts
from mtp_lightning.grid.slurm.submissions import Submissions

__all__ = ["cluster", "slurm"]

SEEN = """
import json, os, time
import lightning.pytorch as pl

class Seen(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if "SLURM_JOB_ID" not in os.environ:
            return
        time.sleep(0.2)
        environment = trainer.strategy.cluster_environment if trainer.world_size > 1 else None
        seen = [type(environment).__name__, getattr(environment, "auto_requeue", None), trainer.world_size]
        with open(f"seen-{trainer.global_rank}", "w") as file:
            json.dump(seen, file)
"""
TRAINED = """
name: trained
configs: [conf/base.yaml, tiny.yaml, seen.yaml]
overrides: {trainer.max_steps: 12, trainer.val_check_interval: 6, trainer.accelerator: cpu}
axes:
  model.heads.n_future: [2]
compare: [val/loss/head_1]
"""


def train(folder: Path, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "seen.py").write_text(SEEN)
    monkeypatch.syspath_prepend(folder)
    (folder / "seen.yaml").write_text("trainer: {callbacks+: [{class_path: seen.Seen}]}\n")
    (folder / "grid.yaml").write_text(TRAINED + more)


def weights(runs: Path) -> dict[str, torch.Tensor]:
    (path,) = runs.glob("*/checkpoints/step-00000012.ckpt")
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def run_mtp(*words: str) -> None:
    """In this process, which has loaded Lightning once; its jobs are processes of their own."""
    assert main(list(words)) == 0


@pytest.mark.slow
def test_a_preempted_run_ends_with_the_weights_of_one_that_was_left_alone(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(folder, WHOLE, monkeypatch)
    run_mtp("grid", "submit", "grid.yaml")
    cluster.until(lambda: any(json.loads(p.read_text())["step"] >= 3 for p in folder.glob("runs/*/progress.json")), 240)
    cluster.preempt()
    run_mtp("grid", "run", "grid.yaml", "--runs", "alone")
    run_mtp("grid", "status", "grid.yaml", "--watch", "--json", "status.json")
    (row,) = json.loads((folder / "status.json").read_text())["cells"]
    assert (row["state"], row["step"]) == ("finished", 12)
    cluster.until(lambda: not cluster.jobs())
    first, second = read_attempts(Path(row["directory"]))
    assert (first["state"], second["state"]) == ("interrupted", "finished")
    assert 3 <= int(first["checkpoint"][5:13]) < 12
    got, expected = weights(folder / "runs"), weights(folder / "alone")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)


@pytest.mark.slow
def test_two_tasks_are_one_run(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(folder, "resources: {tasks: 2}\n", monkeypatch)
    run_mtp("grid", "submit", "grid.yaml")
    cluster.until(lambda: not cluster.jobs(), 240)
    (record,) = Submissions(folder / "runs").read()
    (output,) = folder.glob(f"runs/submissions/{record.token}/*_0_log.out")
    (result,) = folder.glob("runs/*/result.json")
    assert json.loads(result.read_text())["step"] == 12, output.read_text()
    for rank in range(2):
        assert json.loads((folder / f"seen-{rank}").read_text()) == ["SLURMEnvironment", False, 2]
