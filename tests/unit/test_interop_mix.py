"""Averages of checkpoints: exact, and only of what has one."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoints import save
from tiny import tiny_backbone

from mtp_lightning.checkpoints.files import LoadedModel, load_model, save_safetensors
from mtp_lightning.checkpoints.initial import digest_of
from mtp_lightning.cli import main
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.model.config import CHECKPOINT_KEY, HeadsConfig
from mtp_lightning.model.mtp import MTPModel


def write(path: Path, seed: int, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    torch.manual_seed(seed)
    backbone = tiny_backbone(**{"vocab_size": 256, "tie_embeddings": True} | changes.get("backbone", {}))
    model = MTPModel(backbone, replace(HeadsConfig(n_future=2, match="none"), **changes.get("heads", {})))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    tokenizer = changes.get("tokenizer", ByteTokenizer())
    context, begins = changes.get("context", 16), changes.get("begin_ids", ())
    save_safetensors(LoadedModel(path, model.to(dtype), tokenizer, seed, context, None, begins), path)
    return path


def header(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()[CHECKPOINT_KEY]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_is_exact_and_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    paths = [write(tmp_path / f"{seed}.safetensors", seed, dtype) for seed in (1, 2, 3)]
    out = tmp_path / "out.safetensors"
    assert main(["mix", *map(str, paths), "--out", str(out), "--weights", "[1, 2, 1]"]) == 0
    found, parents = load_file(out), [load_file(path) for path in paths]
    for name in ("embedding.weight", "heads.1.0.ffn_norm.weight"):
        assert found[name].dtype == dtype
        first = [parent[name].flatten()[:20].tolist() for parent in parents]
        for value, *of in zip(found[name].flatten()[:20].tolist(), *first):
            exact = sum(Fraction(share, 4) * Fraction(number) for share, number in zip((1, 2, 1), of))
            assert value == torch.tensor(float(exact), dtype=torch.float64).to(dtype).item()
    record = header(out)["parents"]
    assert [parent["share"] for parent in record] == [0.25, 0.5, 0.25]
    assert [parent["step"] for parent in record] == [1, 2, 3]
    assert [parent["sha256"] for parent in record] == [digest_of(path) for path in paths]
    assert len({parent["sha256"] for parent in record}) == 3
    assert load_model(out).model.n_future == 2


def test_the_average_of_one_model_is_itself_and_runs_are_taken_too(tmp_path: Path) -> None:
    model = load_model(write(tmp_path / "a.safetensors", 1)).model
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    save(run / "step-5.ckpt", model, step=5)
    out = tmp_path / "out.safetensors"
    assert main(["mix", str(tmp_path / "run"), str(run / "step-5.ckpt"), "--out", str(out), "--average", "all"]) == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load_model(out).model.parameters()))
    hashes = {parent["sha256"] for parent in header(out)["parents"]}
    assert len(hashes) == 1
    exported = tmp_path / "exported.safetensors"
    assert main(["export", str(tmp_path / "run"), str(exported)]) == 0
    assert main(["mix", str(exported), str(exported), "--out", str(out), "--force"]) == 0
    assert {parent["sha256"] for parent in header(out)["parents"]} == hashes


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "n": ({"heads": {"n_future": 1}}, "has model.heads.n_future = 2, and"),
    "kind": ({"heads": {"kind": "causal"}}, "has model.heads.kind = 'parallel', and"),
    "shape": ({"backbone": {"ffn_dim": 50}}, "has model.backbone.ffn_dim = 48, and"),
    "ties": ({"backbone": {"tie_embeddings": False}}, "has model.backbone.tie_embeddings = True, and"),
    "function": ({"backbone": {"rope_theta": 500.0}}, "has model.backbone.rope_theta"),
    "first tokens": ({"begin_ids": [1]}, "begins with the tokens [], and of"),
    "tokenizer": ({"tokenizer": None}, "have different tokenizers"),
    "precision": ({"dtype": torch.bfloat16}, "is torch.float32 in"),
}


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "match": ({"heads": {"n_future": 1}}, {"heads": {"n_future": 1, "match": "parameters"}}),
    "drawn otherwise": ({}, {"backbone": {"init_std": 0.5}}),
    "by default": ({}, {"backbone": {"head_dim": 16, "n_kv_heads": 2}, "heads": {"offsets": (1, 2)}}),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_function_has_an_average_whatever_was_written_down(name: str, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", i, **changes) for i, changes in enumerate(SAME[name])]
    assert main(["mix", *map(str, paths), "--out", str(tmp_path / "out.safetensors")]) == 0


def test_the_context_is_one_that_all_have_seen(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", i, context=i or None) for i in (64, 0, 16)]
    assert main(["mix", *map(str, paths), "--out", str(tmp_path / "out.safetensors")]) == 0
    assert load_model(tmp_path / "out.safetensors").context == 16


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_average_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, says = OTHERS[name]
    a, b = write(tmp_path / "a.safetensors", 1), tmp_path / "b.safetensors"
    write(b, 2, **changes)
    assert main(["mix", str(a), str(b), "--out", str(tmp_path / "out.safetensors")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_other_widths_have_no_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.safetensors", 1, backbone={"n_layers": 3})
    b = write(tmp_path / "b.safetensors", 2, backbone={"n_layers": 3}, heads={"match": "parameters"})
    assert main(["mix", str(a), str(b), "--out", str(tmp_path / "out.safetensors")]) == 2
    assert "has model.heads.match = 'none', and" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.safetensors"], "an average takes two or more"),
        (["a.safetensors", "a.safetensors", "--weights", "[1]"], "a list of 2 numbers"),
        (["a.safetensors", "a.safetensors", "--weights", "[1, true]"], "a list of 2 numbers"),
        (["a.safetensors", "a.safetensors", "--weights", "1, 2"], "it has to be a list"),
        (["a.safetensors", "a.safetensors", "--weights", "[0, 0]"], "one above it"),
        (["a.safetensors", "a.safetensors", "--weights", "[2, -1]"], "at least 0"),
        (["a.safetensors", "none.ckpt"], "is not a file"),
    ],
)
def test_arguments_are_checked(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.safetensors", 1)
    assert main(["mix", *arguments, "--out", "out.safetensors"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
