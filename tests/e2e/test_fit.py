"""A run from the command line: trained, recorded, killed and continued, used."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from processes import Mtp
from test_tracking_fakes import fresh_store

from mtp_lightning.errors import PREEMPTED
from mtp_lightning.tracking.read import history, read_run
from mtp_lightning.tracking.store import default_tracking_uri

FIT = ("fit", "-c", "conf/base.yaml", "-c", "tiny.yaml", "--model.heads.n_future", "3")

KILLER = """
import os, signal
import lightning.pytorch as pl

class Kill(pl.Callback):
    '''Sends its own process signals, once at each of the steps: in training, or inside the validation behind it.'''
    def __init__(self, steps: list[int], signals: list[int]) -> None:
        self.signals = dict(zip(steps, signals))
    def strike(self, step: int) -> None:
        marker = f"killed-{step}"
        if step in self.signals and not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), self.signals[step])
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step % 6:
            self.strike(trainer.global_step)
    def on_validation_batch_end(self, trainer, *_):
        self.strike(trainer.global_step)
"""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (last,) = sorted((folder / "checkpoints").glob("*.ckpt"))[-1:]
    content = torch.load(last, weights_only=True)
    assert content["global_step"] == 30
    return content["state_dict"]  # type: ignore[no-any-return]


def test_killed_and_restarted_is_as_if_never_killed(mtp: Mtp, folder: Path) -> None:
    """Bit for bit in the weights; one MLflow run with every step once and the same values."""
    chance = random.Random()
    # 12 and 18 strike inside their validations; only kill is not waited for
    steps = [chance.choice([7, 8, 9, 10, 11]), 12, 18, chance.choice([25, 26, 27])]
    signals = [signal.SIGKILL, chance.choice([signal.SIGTERM, signal.SIGUSR1]), signal.SIGKILL, signal.SIGUSR2]
    print("at", steps, "came", signals)
    (folder / "killer.py").write_text(KILLER)
    fresh_store(folder / "runs")
    mtp(*FIT, "--trainer.default_root_dir", "runs/whole")
    killed = (*FIT, "--trainer.default_root_dir", "runs/killed", "--ckpt_path", "auto")
    killed += ("--trainer.callbacks+=killer.Kill", f"--trainer.callbacks.steps={steps}")
    killed += (f"--trainer.callbacks.signals={[int(number) for number in signals]}",)
    for number in signals:
        ended = mtp(*killed, check=False)
        assert ended.returncode == (-number if number == signal.SIGKILL else PREEMPTED), ended.stderr
        assert "Traceback" not in ended.stderr
    mtp(*killed)
    whole, resumed = weights(folder / "runs/whole"), weights(folder / "runs/killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    uri = default_tracking_uri(folder / "runs")
    ids = {name: (folder / "runs" / name / "mlflow_run_id").read_text().strip() for name in ("whole", "killed")}
    record = read_run(uri, ids["killed"])
    assert record.status == "FINISHED"
    assert record.tags["mtp.attempt"] == "5"
    keys = [key for key in record.metrics if key.startswith(("train/", "val/"))] + ["perf/tokens_seen"]
    assert {"train/loss", "val/loss/head_3", "val/bits_per_byte", "train/gradient_norm"} <= set(keys)
    theirs = history(uri, ids["whole"], keys)
    for key, points in history(uri, ids["killed"], keys).items():
        at = [step for step, _ in points]
        assert len(at) == len(set(at)), f"{key} has a step twice: {at}"
        assert points == theirs[key], key
    results = [json.loads((folder / "runs" / name / "result.json").read_text()) for name in ("whole", "killed")]
    assert results[0]["metrics"].keys() == results[1]["metrics"].keys()
    assert results[0]["data_fingerprint"] == results[1]["data_fingerprint"] is not None
    assert results[0]["tokens"] == results[1]["tokens"] == 30 * 4 * 24


def test_trained_validated_generated(mtp: Mtp, folder: Path) -> None:
    mtp(*FIT, fresh=True)
    run_id = (folder / "runs/fit/mlflow_run_id").read_text().strip()
    record = read_run(default_tracking_uri(folder / "runs"), run_id)
    assert record.params["model.heads.n_future"] == "3"
    assert record.params["model.backbone.dim"] == "32"
    assert record.tags["mtp.version.torch"] == torch.__version__
    assert {"decode/tokens_per_forward", "perf/tokens_per_second_median", "model/parameters"} <= set(record.metrics)
    assert record.metrics["decode/mismatches"] == 0
    assert (folder / "runs/mlflow-artifacts").rglob("config.yaml")

    checkpoint = str(sorted((folder / "runs/fit/checkpoints").glob("*.ckpt"))[-1])
    validated = mtp("validate", "-c", "conf/base.yaml", "-c", "tiny.yaml", "--model.heads.n_future", "3",
                    "--ckpt_path", checkpoint, "--trainer.default_root_dir", "runs/validate")  # fmt: skip
    assert "val/loss/head_1" in validated.stdout

    plain = mtp("generate", checkpoint, "--prompt", "Ann saw", "--decoding", "greedy", "--max_new_tokens", "40")
    drafted = mtp("generate", "runs/fit", "--prompt", "Ann saw", "--max_new_tokens", "40", "--json", "out.json")
    assert plain.stdout == drafted.stdout
    assert plain.stdout.startswith("Ann saw")
    assert "1.00 tokens per forward with 1 of 3 heads" in plain.stderr
    assert json.loads((folder / "out.json").read_text())["heads_used"] == "auto"
    assert "with up to 3 of 3 heads" in drafted.stderr

    again = mtp(*FIT, check=False)
    assert again.returncode == 2
    assert "'runs/fit' already holds a run" in again.stderr
    other = mtp("fit", "-c", "conf/base.yaml", "-c", "tiny.yaml", "--ckpt_path", checkpoint,
                "--trainer.default_root_dir", "runs/other", check=False)  # fmt: skip
    assert other.returncode == 2
    assert "model.heads.n_future = 3" in other.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--data.source.path", "nowhere"), "data.source.path: there is no file or folder 'nowhere'"),
        (("--data.context", "100000"), "context = 100000"),
        (("--model.backbone.vocab_size", "300"), "model.backbone.vocab_size"),
    ],
)
def test_data_that_cannot_be_trained_on(mtp: Mtp, folder: Path, flags: tuple[str, str], says: str) -> None:
    refused = mtp(*FIT, *flags, check=False)
    assert refused.returncode == 2
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(folder.rglob("*.ckpt"))
    assert not (folder / "runs/mlflow.db").exists()
