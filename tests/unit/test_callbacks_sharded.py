"""Checkpoints in a folder, and those that are written while training goes on."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from damages import DAMAGES
from test_callbacks_training import Counting
from tiny import tiny_backbone
from torch import Tensor
from typing_extensions import override

from callbacks import checkpointing
from callbacks.checkpointing import PeriodicCheckpoint
from mtp_lightning.checkpoints.files import load_model, read_checkpoint, read_weights, verify_checkpoint
from mtp_lightning.checkpoints.initial import weights_digest
from mtp_lightning.checkpoints.select import find_checkpoint, latest_checkpoint
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.command import evaluation_folder
from mtp_lightning.interop.mix import open_parent
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.module import MTPModule
from mtp_lightning.strategies.check import check_checkpoints

KINDS = [("single", True), ("sharded", False), ("sharded", True)]


def fit(folder: Path, *callbacks: pl.Callback, steps: int = 4, start: Path | None = None) -> MTPModule:
    pl.seed_everything(0, verbose=False)
    module = MTPModule(tiny_backbone(tie_embeddings=True), HeadsConfig())
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=1, accelerator="cpu", devices=1, logger=False, callbacks=[*callbacks],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, use_distributed_sampler=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=Counting(horizon=1, vocab_size=16), ckpt_path=start, weights_only=True)
    return module


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`, and one of each other way to save, of the same run."""
    root = tmp_path_factory.mktemp("runs")
    fit(root / "plain", PeriodicCheckpoint(every_n_steps=2, keep=3))
    for kind, background in KINDS:
        name = f"{kind}-{background}"
        fit(root / name, PeriodicCheckpoint(every_n_steps=2, keep=3, kind=kind, background=background))  # type: ignore[arg-type]
    return root


def flat(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, item in items for key, leaf in flat(item, f"{at}/{name}").items()}
    return {at: value}


@pytest.mark.parametrize("name", [f"{kind}-{background}" for kind, background in KINDS])
@pytest.mark.parametrize("step", [2, 4])
def test_every_way_to_save_holds_the_same(runs: Path, name: str, step: int) -> None:
    """All of the state of the step that was asked for: also of one that was written while later ones were made."""
    plain, other = (
        flat(read_checkpoint(runs / run / "checkpoints" / f"step-{step:08d}.ckpt")) for run in ("plain", name)
    )
    assert plain.keys() == other.keys()
    for key, value in plain.items():
        same = torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        assert same or "/callbacks/" in key, key


def test_what_reads_a_run_reads_a_folder(runs: Path) -> None:
    found = find_checkpoint(runs / "sharded-True")
    assert found.is_dir()
    assert found.name == "step-00000004.ckpt"
    assert find_checkpoint(found) == found
    plain, ours = (load_model(find_checkpoint(runs / run)) for run in ("plain", "sharded-True"))
    assert (ours.step, ours.context) == (4, plain.context)
    assert weights_digest(ours.model.state_dict()) == weights_digest(plain.model.state_dict())
    mixed = open_parent(found).weights
    assert weights_digest(dict(mixed)) == weights_digest(dict(open_parent(find_checkpoint(runs / "plain")).weights))
    assert evaluation_folder(found) == evaluation_folder(runs / "sharded-True") == runs / "sharded-True" / "evaluation"
    lazy = read_weights(found, lazy=True).weights
    assert all(weight.is_meta for weight in lazy.values()), "shapes alone are read"


@pytest.mark.parametrize("name", ["single-True", "sharded-True"])
def test_a_run_goes_on_from_it(runs: Path, name: str, tmp_path: Path) -> None:
    start = runs / name / "checkpoints" / "step-00000002.ckpt"
    module = fit(tmp_path, PeriodicCheckpoint(every_n_steps=2, kind="sharded"), start=start)
    whole = load_model(runs / "plain" / "checkpoints" / "step-00000004.ckpt").model
    assert weights_digest(module.model.state_dict()) == weights_digest(whole.state_dict())


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def in_place_of(path: Path, damage: str) -> None:
    path.unlink()
    DAMAGES[damage](path)


SHARD = "shard-00001-model-00001-of-00001.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of a tensor": (lambda path: flip(path / SHARD, -5), f"'{SHARD}' was changed since it was written"),
    "a bit of the rest": (lambda path: flip(path / "run.pt", 400), "'run.pt' was changed since it was written"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "no manifest.json, which is written last"),
    "half a manifest": (lambda path: flip(path / "manifest.json", 0), "manifest.json cannot be read"),
    "a pipe for a manifest": (lambda path: in_place_of(path / "manifest.json", "pipe"), "no ordinary file"),
    "a nested manifest": (lambda path: in_place_of(path / "manifest.json", "deep"), "nested too deeply"),
    "a later manifest": (
        lambda path: (path / "manifest.json").write_text('{"format": 2, "parts": []}'),
        "manifest.json is of format 2, and this version reads 1",
    ),
    "sizes that are text": (
        lambda path: (path / "manifest.json").write_text('{"format": 1, "files": {"a": {"bytes": "9", "sha256": ""}}}'),
        "its 'files.a.bytes' is '9', and has to be int",
    ),
    "no shard": (lambda path: (path / SHARD).unlink(), f"its file '{SHARD}' is not there"),
    "another file": (lambda path: (path / "more").touch(), "its file 'more' is not in its manifest"),
    "a short shard": (lambda path: (path / SHARD).write_bytes(b"1"), "has 1 bytes, and"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_seen_and_the_last_good_one_taken(
    runs: Path, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "sharded-False", tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    damage, says = DAMAGE[kind]
    damage(folder / "step-00000004.ckpt")
    with pytest.raises(InputError) as refused:
        verify_checkpoint(folder / "step-00000004.ckpt")
    assert says in str(refused.value)
    assert str(folder / "step-00000004.ckpt") in str(refused.value)
    assert latest_checkpoint(folder) == folder / "step-00000002.ckpt"
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert "passed over for" in line


def test_old_folders_go(tmp_path: Path) -> None:
    stale = tmp_path / "checkpoints" / "step-00000004.partial"
    stale.mkdir(parents=True)
    (stale / "shard-00007-model-00001-of-00001.safetensors").touch()
    fit(tmp_path, PeriodicCheckpoint(every_n_steps=1, keep=2, kind="sharded"))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000003.ckpt", "step-00000004.ckpt"]
    verify_checkpoint(tmp_path / "checkpoints" / "step-00000004.ckpt")


@pytest.mark.parametrize(("kind", "background"), [*KINDS, ("single", False)])
@pytest.mark.parametrize("left", ["partial", "ckpt"])
@pytest.mark.parametrize("was", ["file", "folder"])
def test_what_a_run_of_the_other_kind_left_is_in_no_ones_way(
    kind: Any, background: bool, left: str, was: str, tmp_path: Path
) -> None:
    """Torn while it was written, or passed over as damaged, before the same step is saved again."""
    stale = tmp_path / "checkpoints" / f"step-00000004.{left}"
    if was == "folder":
        stale.mkdir(parents=True)
        (stale / "shard-00007-model-00001-of-00001.safetensors").touch()
    else:
        stale.parent.mkdir()
        stale.write_bytes(b"torn")
    fit(tmp_path, PeriodicCheckpoint(every_n_steps=4, keep=1, kind=kind, background=background))
    (found,) = (tmp_path / "checkpoints").iterdir()
    assert (found.name, found.is_dir()) == ("step-00000004.ckpt", kind == "sharded")
    verify_checkpoint(found)


def test_training_goes_on_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer waits until two more steps are made; what it then writes is the step that was asked for."""
    later = threading.Event()
    write = PeriodicCheckpoint._write

    def slowly(self: PeriodicCheckpoint, content: Any, path: Path, step: int, zero: bool) -> None:
        assert step != 2 or later.wait(60), "training waits for its checkpoint"
        write(self, content, path, step, zero)

    monkeypatch.setattr(PeriodicCheckpoint, "_write", slowly)
    weights: dict[int, Tensor] = {}

    class Watch(pl.Callback):
        @override
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            weights[trainer.global_step] = pl_module.model.embedding.weight.detach().clone()
            if trainer.global_step == 3:
                assert not (tmp_path / "checkpoints" / "step-00000002.ckpt").exists()
                later.set()

    fit(tmp_path, Watch(), PeriodicCheckpoint(every_n_steps=2, keep=3, background=True))
    saved = load_model(tmp_path / "checkpoints" / "step-00000002.ckpt").model.embedding.weight
    assert torch.equal(saved, weights[2])
    assert not torch.equal(saved, weights[3])


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_a_writer_that_fails_ends_the_run(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(checkpointing, "write_sharded", full)
    monkeypatch.setattr(checkpointing.CheckpointFiles, "save_checkpoint", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*step-00000004.ckpt'"):
        fit(tmp_path, PeriodicCheckpoint(kind=kind, background=True))
    assert list((tmp_path / "checkpoints").glob("*")) == [] if (tmp_path / "checkpoints").exists() else True


@pytest.mark.parametrize(("key", "value"), [("background", True), ("kind", "sharded")])
def test_a_strategy_that_is_not_known_to_give_its_states_is_refused(key: str, value: Any) -> None:
    callback = SimpleNamespace(
        class_path="callbacks.checkpointing.PeriodicCheckpoint", init_args=SimpleNamespace(**{key: value})
    )
    with pytest.raises(InputError, match=rf"PeriodicCheckpoint\.{key} is '{value}', and trainer.strategy 'my.Own'"):
        check_checkpoints([callback], SimpleNamespace(class_path="my.Own"))
    for strategy in ("auto", "ddp", SimpleNamespace(class_path="mtp_lightning.strategies.zero.ZeroStrategy")):
        check_checkpoints([callback], strategy)
