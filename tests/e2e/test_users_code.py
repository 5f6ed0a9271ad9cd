"""A user's own code, beside a `callbacks/` folder of theirs: by the script, in its child processes, in a grid."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Mtp

PROBE = """
import lightning.pytorch as pl

class MyProbe(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        trainer.loggers[0].log_metrics({"probe/mine": 1.0 + trainer.global_rank}, step=trainer.global_step)
        open(f"rank-{trainer.global_rank}-of-{trainer.world_size}", "a").close()
"""
QUICK = """
model: {heads: {n_future: 2}}
trainer: {max_steps: 6, val_check_interval: 6, callbacks+: [{class_path: my_probe.MyProbe}]}
"""
GRID = """
name: own
configs: [conf/base.yaml, tiny.yaml, quick.yaml]
axes: {model.heads.n_future: [1, 2]}
baseline: {model.heads.n_future: 1}
compare: [probe/mine]
"""


@pytest.fixture
def own(folder: Path) -> Path:
    (folder / "callbacks").mkdir()
    (folder / "callbacks/__init__.py").write_text("raise RuntimeError('a folder of the user')\n")
    (folder / "my_probe.py").write_text(PROBE)
    (folder / "quick.yaml").write_text(QUICK)
    return folder


def test_the_script_and_its_child_processes(own: Path) -> None:
    script = Path(sys.executable).with_name("mtp")
    if not script.is_file():
        pytest.skip("`mtp` is not installed beside this Python")
    words = ["fit", "-c", "conf/base.yaml", "-c", "tiny.yaml", "-c", "quick.yaml", "-c", "conf/strategy/ddp.yaml"]
    words += ["--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([script, *words], cwd=own, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in own.glob("rank-*")} == {"rank-0-of-2", "rank-1-of-2"}


def test_cells_of_a_grid(own: Path, mtp: Mtp) -> None:
    (own / "grid.yaml").write_text(GRID)
    done = mtp("grid", "run", "grid.yaml")
    assert "probe/mine" in done.stdout
    assert "incomplete" not in done.stdout
