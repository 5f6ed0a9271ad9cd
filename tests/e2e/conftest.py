"""The command line as a user runs it: processes of their own, a tiny model, a corpus made here."""

import random
import subprocess
from pathlib import Path

import pytest
from processes import Mtp, run_forked, run_started

TINY = """
model:
  backbone: {vocab_size: 256, dim: 32, n_layers: 5, n_heads: 2, ffn_dim: 64}
  optimizer: {lr: 3.0e-3}
  schedule: {warmup_steps: 4}
trainer:
  precision: 32-true
  max_steps: 30
  val_check_interval: 6
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks:
    - class_path: callbacks.throughput.ThroughputMonitor
    - class_path: callbacks.decoding.DecodingProbe
      init_args: {prompts: 2, prompt_tokens: 16, new_tokens: 16}
    - class_path: callbacks.heartbeat.Heartbeat
    - class_path: callbacks.checkpointing.PeriodicCheckpoint
      init_args: {every_n_steps: 4}
data:
  class_path: mtp_lightning.data.TokenDataModule
  init_args:
    source: {kind: text, path: corpus}
    context: 24
    batch_size: 4
    val_windows: 6
    validation_fraction: 0.2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a corpus of made-up stories and the tiny configuration."""
    names, verbs, things = ["Ann", "Ben", "Cid"], ["saw", "found", "lost"], ["a cat", "the key", "two eggs"]
    chance = random.Random(0)
    (tmp_path / "corpus").mkdir()
    for number in range(20):
        lines = [f"{chance.choice(names)} {chance.choice(verbs)} {chance.choice(things)}." for _ in range(12)]
        (tmp_path / "corpus" / f"{number}.txt").write_text("\n".join(lines))
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def mtp(folder: Path) -> Mtp:
    """`mtp("fit", ...)`: run a command in the working folder; `fresh`: in an interpreter of its own."""

    def run(
        *args: str, check: bool = True, timeout: float = 240, fresh: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        done = (run_started if fresh else run_forked)(args, folder, timeout)
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done

    return run
