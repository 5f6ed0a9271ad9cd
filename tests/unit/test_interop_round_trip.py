"""In, out and in again: the same model, bit for bit."""

from pathlib import Path

import pytest
import torch
from test_interop_import import imported, theirs
from test_interop_import_heads import save_with_heads
from test_interop_meta import release, write

from mtp_lightning.checkpoints.files import LoadedModel, load_model
from mtp_lightning.cli import main


def same(first: LoadedModel, second: LoadedModel) -> None:
    assert second.model.config == first.model.config
    assert second.model.heads_config == first.model.heads_config
    mine, other = first.model.state_dict(), second.model.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(weight, other[name]) for name, weight in mine.items())
    assert second.context == first.context


@pytest.mark.parametrize(
    "name", ["llama, grouped, tied", "llama, odd", "qwen2, tied", "qwen3", "llama3", "yarn, other numbers"]
)
def test_next_token_models(name: str, tmp_path: Path) -> None:
    theirs(name).save_pretrained(tmp_path / "hf")
    first = imported(tmp_path / "hf")
    assert main(["export", str(first.path), str(tmp_path / "out"), "--to", "hf", "--verify", "false"]) == 0
    same(first, imported(tmp_path / "out"))


@pytest.mark.parametrize(("name", "ones"), [("llama", False), ("qwen2, tied", False), ("qwen3", True)])
def test_heads_of_the_standard(name: str, ones: bool, tmp_path: Path) -> None:
    save_with_heads(name, 3, tmp_path / "hf", ones)
    first = imported(tmp_path / "hf")
    assert main(["export", str(first.path), str(tmp_path / "out"), "--to", "hf", "--verify", "false"]) == 0
    same(first, imported(tmp_path / "out"))


@pytest.mark.parametrize("n", [1, 3])
def test_the_papers_layout(n: int, tmp_path: Path) -> None:
    first = imported(write(tmp_path / "meta", release(n), n_future_tokens=n))
    assert main(["export", str(first.path), str(tmp_path / "out"), "--to", "meta", "--verify", "false"]) == 0
    same(first, imported(tmp_path / "out"))
    assert load_model(first.path).model.n_future == n
