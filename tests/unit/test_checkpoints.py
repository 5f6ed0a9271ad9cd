"""Checkpoints as files: nothing in them is executed, broken ones are named or passed over."""

import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_backbone

from mtp_lightning.checkpoints.files import LoadedModel, load_model, read_checkpoint, save_safetensors
from mtp_lightning.checkpoints.select import latest_checkpoint
from mtp_lightning.checkpoints.verify import content_hash
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


def test_the_good_one_of_the_latest_step_is_taken(
    tmp_path: Path, model: MTPModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latest_checkpoint(tmp_path) is None
    good = save(tmp_path / "step-1.ckpt", model, step=7)
    broken = tmp_path / "step-2.ckpt"
    broken.write_bytes(good.read_bytes()[:-500])
    (tmp_path / "step-3.ckpt").touch()
    (tmp_path / "step-4.partial").write_bytes(good.read_bytes())
    assert latest_checkpoint(tmp_path) == good
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(broken) in said
    assert f"passed over for '{good}'" in said
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


def flipped(path: Path, at: int, bit: int = 0) -> Path:
    """The same file with one bit changed."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    other = path.with_name("flipped" + path.suffix)
    other.write_bytes(bytes(content))
    return other


def same(a: LoadedModel, b: LoadedModel) -> bool:
    one, two = a.model.state_dict(), b.model.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one) and a[2:] == b[2:]


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_no_bit_that_flips_changes_what_is_read(tmp_path: Path, model: MTPModel, suffix: str) -> None:
    path = save(tmp_path / "a.ckpt", model)
    if suffix == ".safetensors":
        save_safetensors(load_model(path), path.with_suffix(suffix))
        path = path.with_suffix(suffix)
    good = load_model(path)._replace(text_tokenizer=None)
    chance, size = random.Random(0), path.stat().st_size
    places = [chance.randrange(size) for _ in range(40)] + [chance.randrange(2000) for _ in range(20)]
    noticed = 0
    for place in places + [size - 1 - chance.randrange(2000) for _ in range(20)]:
        other = flipped(path, place, chance.randrange(8))
        try:
            assert same(good, load_model(other)._replace(text_tokenizer=None, path=path)), f"byte {place}"
        except InputError as error:
            assert str(other) in str(error)  # noqa: PT017
            noticed += 1
    assert noticed > 40  # the others are in bytes without a meaning


def test_a_bit_in_the_newest_is_noticed_and_the_one_before_is_taken(
    tmp_path: Path, model: MTPModel, capsys: pytest.CaptureFixture[str]
) -> None:
    good, newer = (save(tmp_path / f"step-{step}.ckpt", model, step) for step in (1, 2))
    weight = next(iter(model.parameters())).detach().numpy().tobytes()[:64]
    flipped(newer, newer.read_bytes().index(weight)).replace(newer)
    assert latest_checkpoint(tmp_path) == good
    assert "step-2.ckpt' is damaged: its record" in capsys.readouterr().err
    good.unlink()
    with pytest.raises(InputError, match="holds no good checkpoint"):
        latest_checkpoint(tmp_path)  # not: begin anew over what may be saved


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(key)


def described(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["mtp_lightning"].update(values)


def backbone(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["mtp_lightning"]["backbone"].update(values)


def weight(value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["state_dict"].update({"model.embedding.weight": value})


@pytest.mark.parametrize(
    "change",
    [
        without("state_dict"), without("global_step"), without("mtp_lightning"),
        lambda content: content.update(global_step="7"), lambda content: content.update(global_step=-1),
        lambda content: content.update(state_dict=[1]), lambda content: content.update(mtp_lightning=None),
        lambda content: content["state_dict"].clear(), lambda content: content["state_dict"].update(more=torch.ones(2)),
        described(backbone=None), described(heads={}), described(tokenizer=7),
        described(tokenizer={"kind": "huggingface"}),
        described(tokenizer={"kind": "huggingface", "json": "{"}), described(context="long"), described(task=3),
        backbone(dim="16"), backbone(n_layers=10**9), backbone(vocab_size=10**13), backbone(n_heads=0),
        backbone(colour=1),
        lambda content: content["state_dict"]["model.embedding.weight"][3, 1].fill_(torch.nan),
        lambda content: content["state_dict"]["model.norm.weight"][0].fill_(torch.inf),
        weight(torch.ones(3, 3)), weight([1.0]), weight(torch.ones(256, 16, dtype=torch.int64)), weight(None),
    ],
)  # fmt: skip
def test_what_is_no_model_of_ours_is_one_message(
    tmp_path: Path, model: MTPModel, change: Callable[[dict[str, Any]], object]
) -> None:
    path = save(tmp_path / "a.ckpt", model)
    content = torch.load(path, weights_only=True)
    change(content)
    if "more" in content.get("state_dict", ()):
        content["state_dict"]["model.more"] = content["state_dict"].pop("more")
    torch.save(content, path)
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_model(path)


@pytest.mark.parametrize(
    "header",
    [
        {}, {"mtp_lightning": "{"}, {"mtp_lightning": "[" * 10**5, "step": "1"}, {"mtp_lightning": "{}", "step": "1"},
        {"mtp_lightning": "7", "step": "1"}, {"mtp_lightning": '{"format": 2}', "step": "1"},
        {"mtp_lightning": '{"format": 2, "backbone": {"tie_embeddings": true}}', "step": "one"},
        {"mtp_lightning": "{}", "step": "1", "digest": "crc32:0"}, {"mtp_lightning": "{}", "step": "1", "digesT": "x"},
    ],
)  # fmt: skip
def test_a_safetensors_file_of_another_structure_is_one_message(tmp_path: Path, header: dict[str, str]) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(2)}, path, header)
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_model(path)


def test_a_model_is_known_by_what_it_was_known_by() -> None:
    """Samples and scores of before are found again: a later key has no place in what a model is identified by, since
    the shapes of the weights say what it is."""
    assert repr(HeadsConfig(n_future=2)) == (
        "HeadsConfig(n_future=2, kind='parallel', match='parameters', layers=1, offsets=None, "
        "replicate_unembedding=False, norms='shared', markov_rank=None)"
    )
    ranks = [MTPModel(tiny_backbone(), HeadsConfig(2, "mixture", "none", mixture_rank=rank)) for rank in (2, 3)]
    assert content_hash(ranks[0]) != content_hash(ranks[1])
