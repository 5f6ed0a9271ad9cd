"""A user's own code, beside a `callbacks/` folder of theirs: by the script, in its child processes, in a grid."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from manuals import ROOT, files
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


@pytest.fixture
def own(folder: Path) -> Path:
    (folder / "callbacks").mkdir()
    (folder / "callbacks/__init__.py").write_text("raise RuntimeError('a folder of the user')\n")
    (folder / "my_probe.py").write_text(PROBE)
    (folder / "quick.yaml").write_text(QUICK)
    return folder


@pytest.mark.slow  # two processes
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


@pytest.mark.slow  # a grid, in processes of its own
def test_the_readmes_own_code_runs_in_a_grid(tmp_path: Path, mtp: Mtp, folder: Path) -> None:
    """Copied out of the README into a folder with nothing else in it but a `callbacks/` of the user's."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    names = files(ROOT / "README.md")
    assert set(names) == {"my_probe.py", "my_heads.py", "my_data.py", "my_metric.py", "own.yaml", "grid.yaml"}
    for name, text in names.items():
        (folder / name).write_text(text)
        assert len(text.splitlines()) <= 18, f"{name}: about 15 lines"
    (folder / "callbacks").mkdir()
    (folder / "callbacks/__init__.py").write_text("raise RuntimeError('a folder of the user')\n")
    small = "model.backbone.dim: 32, model.backbone.ffn_dim: 64, model.schedule.warmup_steps: 1"
    steps = "trainer.max_steps: 4, trainer.val_check_interval: 4, data.init_args.val_windows: 8"
    done = mtp(
        "grid", "run", "grid.yaml", "--workers", "2", "--overrides", f"{{{small}, {steps}}}", "--json", "out.json"
    )
    assert "incomplete" not in done.stdout
    for metric in ("val/counts_on", "probe/entropy", "val/loss/head_3"):
        assert metric in done.stdout
    (run,) = (path.parent for path in folder.glob("runs/*/config.yaml") if "my_heads.Gated" in path.read_text())
    exported = mtp("export", str(run), "own.safetensors", check=False)
    assert exported.returncode == 2
    assert "--import my_heads" in exported.stderr
    mtp("export", str(run), "own.safetensors", "--import", "my_heads")
