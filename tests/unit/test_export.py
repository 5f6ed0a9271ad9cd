"""One consolidated file: everything in it, and nothing that could be executed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_checkpoints import save
from tiny import VARIANTS, tiny_backbone

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.cli import main
from mtp_lightning.model.mtp import MTPModel


@pytest.mark.parametrize("name", ["sequential", "leap", "order", "replicated"])
@pytest.mark.parametrize("tie", [False, True])
def test_an_exported_model_is_the_same_model(name: str, tie: bool, tmp_path: Path) -> None:
    model = MTPModel(tiny_backbone(vocab_size=256, n_layers=8, tie_embeddings=tie), VARIANTS[name])
    out = tmp_path / "model.safetensors"
    assert main(["export", str(save(tmp_path / "a.ckpt", model, step=7)), str(out)]) == 0
    (tmp_path / "usual").touch()
    assert out.stat().st_mode == (tmp_path / "usual").stat().st_mode
    loaded = load_model(out)
    assert (loaded.step, loaded.tokenizer.vocab_size) == (7, 256)
    assert (loaded.model.config, loaded.model.heads_config) == (model.config, model.heads_config)
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    for key, weight in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], weight), key
    assert (loaded.model.unembedding.weight is loaded.model.embedding.weight) == tie


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.ckpt", "there.safetensors"], "exists: give another name, or --force true"),
        (["a.ckpt", "model.bin"], "a safetensors file is named *.safetensors"),
        (["a.ckpt", "nowhere/model.safetensors"], "there is no folder 'nowhere'"),
        (["empty", "model.safetensors"], "folder 'empty' holds no checkpoint"),
        (["truncated.safetensors", "model.safetensors"], "is not a checkpoint, or a truncated or damaged one"),
        (["foreign.safetensors", "model.safetensors"], "was not written by `mtp export`"),
        (["none.ckpt", "model.safetensors"], "is not a file"),
    ],
)
def test_bad_input_writes_nothing(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.ckpt", MTPModel(tiny_backbone(vocab_size=256), replace(VARIANTS["one"])))
    (tmp_path / "there.safetensors").write_text("precious")
    (tmp_path / "empty").mkdir()
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "truncated.safetensors").write_bytes((tmp_path / "foreign.safetensors").read_bytes()[:-4])
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["export", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "there.safetensors").read_text() == "precious"
