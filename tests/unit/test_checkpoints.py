"""Checkpoints as files: nothing in them is executed, broken ones are named or passed over."""

import os
from pathlib import Path

import pytest
import torch
from tiny import tiny_backbone

from mtp_lightning.checkpoints.files import load_model, read_checkpoint
from mtp_lightning.checkpoints.select import latest_checkpoint
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def save(path: Path, model: MTPModel, step: int = 7) -> Path:
    from dataclasses import asdict

    described = {
        "format": 2,
        "backbone": asdict(model.config),
        "heads": asdict(model.heads_config),
        "tokenizer": ByteTokenizer().state(),
    }
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"mtp_lightning": described, "state_dict": weights, "global_step": step}, path)
    return path


@pytest.fixture
def model() -> MTPModel:
    return MTPModel(tiny_backbone(vocab_size=256, n_layers=3), HeadsConfig(n_future=2))


def test_a_model_comes_back_whole(tmp_path: Path, model: MTPModel) -> None:
    loaded = load_model(save(tmp_path / "a.ckpt", model))
    assert (loaded.step, loaded.tokenizer.vocab_size, loaded.model.n_future) == (7, 256, 2)
    tokens = torch.randint(0, 256, (1, 9))
    assert torch.equal(loaded.model.logits(tokens), model.eval().logits(tokens))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"mtp_lightning": Malicious(tmp_path / "executed")}, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match="is not a checkpoint"):
        read_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "executed").exists()


def test_another_format_is_named(tmp_path: Path) -> None:
    torch.save({"mtp_lightning": {"format": 99}}, tmp_path / "later.ckpt")
    with pytest.raises(InputError, match="of format 99, and this version reads 2"):
        read_checkpoint(tmp_path / "later.ckpt")


def test_the_good_one_of_the_latest_step_is_taken(tmp_path: Path, model: MTPModel) -> None:
    assert latest_checkpoint(tmp_path) is None
    good = save(tmp_path / "step-1.ckpt", model, step=7)
    broken = tmp_path / "step-2.ckpt"
    broken.write_bytes(good.read_bytes()[:-500])
    (tmp_path / "step-3.ckpt").touch()
    (tmp_path / "step-4.partial").write_bytes(good.read_bytes())
    assert latest_checkpoint(tmp_path) == good
    for name, step in (("a.ckpt", 9), ("z.ckpt", 8)):
        save(tmp_path / name, model, step)
    for age, name in enumerate(["step-1.ckpt", "z.ckpt", "a.ckpt"]):  # as `cp -r` or a clock that jumps may leave them
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert latest_checkpoint(tmp_path) == tmp_path / "a.ckpt", "by the step inside, not by time or name"


def test_bytes_that_were_changed_do_not_hide_an_older_checkpoint(tmp_path: Path, model: MTPModel) -> None:
    """Whatever the unpickler makes of them."""
    good = save(tmp_path / "step-1.ckpt", model, step=1)
    newer = save(tmp_path / "step-2.ckpt", model, step=2)
    content = bytearray(newer.read_bytes())
    start = content.index(b"global_step") - 40
    content[start : start + 60] = bytes((byte * 7 + 13) % 256 for byte in content[start : start + 60])
    newer.write_bytes(bytes(content))
    assert latest_checkpoint(tmp_path) == good
