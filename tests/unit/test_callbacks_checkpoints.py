"""Which checkpoints stay: torn, damaged, by name and not by clock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_callbacks_training import Fit, fit

from callbacks import checkpointing
from callbacks.checkpointing import PeriodicCheckpoint
from mtp_lightning.checkpoints.lightning_files import CheckpointFiles

__all__ = ["fit"]


def test_a_newer_file_that_is_torn_does_not_push_out_a_good_one(fit: Fit, tmp_path: Path) -> None:
    """A run that went on from an earlier step, with a torn file of a later one."""
    (tmp_path / "checkpoints").mkdir()
    torn = tmp_path / "checkpoints" / "step-00000400.ckpt"
    torn.write_bytes(b"torn")
    fit([PeriodicCheckpoint(every_n_steps=2, keep=2)], steps=6)
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-00000004.ckpt", "step-00000006.ckpt"]


def test_a_folder_may_have_a_name_that_looks_like_an_address(fit: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "a::b"
    fit([PeriodicCheckpoint()], steps=4, default_root_dir=folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004.ckpt"]
    assert [path.name for path in tmp_path.iterdir()] == ["a::b"]


def test_a_full_disk_is_said_and_costs_nothing_that_is_there(tmp_path: Path) -> None:
    """In a process of its own, whose files may have 100 kB."""
    script = """if True:
        import resource, signal, sys, torch
        from mtp_lightning.checkpoints.lightning_files import CheckpointFiles

        CheckpointFiles().save_checkpoint({"a": torch.ones(3)}, sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            CheckpointFiles().save_checkpoint({"a": torch.ones(100_000)}, sys.argv[1])
        except OSError as error:
            print(error.strerror)
    """
    command = [sys.executable, "-c", script, str(tmp_path / "last.ckpt")]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["a"].tolist() == [1, 1, 1]


def test_what_a_gpu_wrote_is_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"weight": torch.ones(3)}, tmp_path / "a.ckpt")
    assert CheckpointFiles().load_checkpoint(tmp_path / "a.ckpt")["weight"].tolist() == [1, 1, 1]


def test_clocks_do_not_choose_which_checkpoint_goes(tmp_path: Path) -> None:
    """Those up to the step just saved stay by their steps; one of a later step could not be read, and goes."""
    for age, step in enumerate((40, 30, 20, 10, 50)):  # the older, the later it was written
        path = tmp_path / f"step-{step:08d}.ckpt"
        torch.save({"step": step}, path)
        os.utime(path, (1000 + age, 1000 + age))
    (tmp_path / "step-best.ckpt").touch()  # somebody's own
    gone = checkpointing.superseded(tmp_path, step=40, keep=2)
    assert sorted(path.name for path in gone) == [f"step-{step:08d}.ckpt" for step in (10, 20, 50)]
    assert checkpointing.superseded(tmp_path, step=10, keep=9) == [
        path for path in tmp_path.glob("step-*.ckpt") if path.stem[5:].isdigit() and int(path.stem[5:]) > 10
    ]


def test_a_damaged_checkpoint_does_not_count_among_those_that_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        torch.save({"weight": torch.ones(100)}, tmp_path / f"step-{step:08d}.ckpt")
    damaged = tmp_path / "step-00000003.ckpt"
    content = bytearray(damaged.read_bytes())
    content[content.index(torch.ones(4).numpy().tobytes())] ^= 1
    damaged.write_bytes(bytes(content))
    gone = checkpointing.superseded(tmp_path, step=4, keep=2)
    assert sorted(path.name for path in gone) == ["step-00000001.ckpt", "step-00000003.ckpt"]
    assert checkpointing.superseded(tmp_path, step=4, keep=1) == [
        path for path in tmp_path.glob("*.ckpt") if path.name != "step-00000004.ckpt"
    ]
