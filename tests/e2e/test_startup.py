"""How much processor time a command takes before it does what it was asked for, in a cold process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment
from test_checkpoints import save
from tiny import tiny_backbone

from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel


def cpu_seconds(folder: Path, *args: str) -> float:
    """User's and system's, of the command and all that it starts and waits for."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mtp_lightning", *args], cwd=folder, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_help_comes_at_once(tmp_path: Path) -> None:
    assert min(cpu_seconds(tmp_path, "--help") for _ in range(3)) <= 0.3


@pytest.mark.slow
def test_a_small_checkpoint_answers_soon(tmp_path: Path) -> None:
    model = MTPModel(tiny_backbone(vocab_size=256, n_layers=4), HeadsConfig(n_future=2))
    save(tmp_path / "it.ckpt", model)
    command = ("generate", "it.ckpt", "--prompt", "def ", "--max_new_tokens", "8")
    assert min(cpu_seconds(tmp_path, *command) for _ in range(3)) <= 3


FIRST_STEP = """
import os, pathlib
import lightning.pytorch as pl

class FirstStep(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        file = pathlib.Path(trainer.default_root_dir, "first-step")
        if not file.exists():
            file.write_text(str(sum(os.times()[:4])))
"""


@pytest.mark.slow
def test_a_run_reaches_its_first_step_soon(folder: Path) -> None:
    (folder / "first_step.py").write_text(FIRST_STEP)
    (folder / "more.yaml").write_text("trainer: {max_steps: 6, callbacks+: [{class_path: first_step.FirstStep}]}\n")
    times = []
    for number in range(3):
        root = ("--trainer.default_root_dir", f"runs/{number}")
        cpu_seconds(folder, "fit", "-c", "conf/base.yaml", "-c", "tiny.yaml", "-c", "more.yaml", *root)
        times.append(float((folder / "runs" / str(number) / "first-step").read_text()))
    assert min(times) <= 10


def test_a_model_is_imported_without_the_compiler() -> None:
    """torch's takes a second of processor time to import, and few commands compile."""
    code = "import sys, mtp_lightning.model.mtp; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == "False\n"
