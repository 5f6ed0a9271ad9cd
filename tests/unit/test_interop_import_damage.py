"""What is no model, or a part of one, is refused with its name; nothing is written, and nothing of it runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_interop_import import theirs

from mtp_lightning.cli import main

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "hf"
    theirs("llama").save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


def shard_of(folder: Path, name: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return folder / str(index[name])


def change(folder: Path, name: str, make: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    path = shard_of(folder, name)
    weights = load_file(path)
    made = make(weights.pop(name))
    save_file(weights if made is None else weights | {name: made}, path, {"format": "pt"})


def config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def index(folder: Path, make: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    make(content["weight_map"])
    path.write_text(json.dumps(content))


def truncate(folder: Path) -> None:
    path = shard_of(folder, "model.norm.weight")
    path.write_bytes(path.read_bytes()[:-5])


def pickled(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")


NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a download": (lambda f: shard_of(f, NORM).unlink(), "there is no such file: the download is not complete"),
    "truncated": (truncate, "is no safetensors file, or a truncated or damaged one"),
    "NaN": (lambda f: change(f, DOWN, lambda w: w * torch.nan), "the weight 'trunk.1.ffn.down.weight' holds NaN"),
    "missing": (lambda f: (change(f, DOWN, lambda _: None), index(f, lambda m: m.pop(DOWN))), f"no tensor '{DOWN}'"),
    "not where it is said": (lambda f: change(f, DOWN, lambda _: None), f"does not hold the tensor '{DOWN}'"),
    "left over": (lambda f: index(f, lambda m: m.pop(DOWN)), f"holds the tensor '{DOWN}', and model.safetensors.index"),
    "another shape": (
        lambda f: config(f, intermediate_size=41),
        "of shape (40, 24), and by its configuration of (41",
    ),
    "more layers": (lambda f: config(f, num_hidden_layers=4), "has no tensor 'model.layers.3."),
    "fewer layers": (lambda f: config(f, num_hidden_layers=2), "knows no tensor 'model.layers.2."),
    "biases": (lambda f: config(f, model_type="qwen2"), "has no tensor 'model.layers.0.self_attn.k_proj.bias"),
    "tied, and not": (lambda f: config(f, tie_word_embeddings=True), "'lm_head.weight' has to be a copy"),
    "whole numbers": (lambda f: change(f, DOWN, lambda w: w.to(torch.int8)), "holds no plain real numbers"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    "no model": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "pickles": (pickled, "pytorch_model.bin is a pickle, which is not read"),
    "outside": (lambda f: index(f, lambda m: m.update({DOWN: "../x.safetensors"})), "files outside the folder"),
    "one layer": (lambda f: config(f, num_hidden_layers=1), "and leave the trunk none"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_it_is_refused_and_nothing_is_written(
    damage: str, sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(sharded, folder)
    do, says = DAMAGE[damage]
    do(folder)
    assert main(["import", str(folder), str(tmp_path / "out.safetensors"), "--tokenizer", "none"]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "o.safetensors"], "there is no folder 'nowhere'"),
        (["hf", "o.bin"], "a model file is named *.safetensors"),
        (["hf", "there.safetensors"], "'there.safetensors' exists"),
        (["hf", "no/o.safetensors"], "there is no folder 'no'"),
        (["hf", "o.safetensors", "--context", "0"], "--context is 0"),
        (["hf", "o.safetensors", "--heads", "2"], "--heads is 2"),
        (["hf", "o.safetensors", "--rope_factor", "8"], "goes with Meta's layout"),
        (["hf", "o.safetensors", "--layout", "meta"], "is no model: it has no params.json"),
        (["hf", "o.safetensors"], "holds neither tokenizer.json nor tokenizer.model"),
        (["hf", "o.safetensors", "--tokenizer", "big.json"], "has ids up to"),
    ],
)
def test_arguments_are_checked_first(
    arguments: list[str], says: str, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").symlink_to(sharded)
    (tmp_path / "there.safetensors").write_text("precious")
    vocabulary = {f"t{i}": i for i in range(40)} | {"</s>": 40}
    added = [{"id": 40, "content": "</s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False}]  # fmt: skip
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
    (tmp_path / "big.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["import", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "there.safetensors").read_text() == "precious"


def test_code_in_the_folder_is_not_run(sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(sharded, tmp_path / "hf")
    (tmp_path / "hf" / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config(tmp_path / "hf", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "o.safetensors"), "--tokenizer", "none"]) == 0
    assert "was not run" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()
