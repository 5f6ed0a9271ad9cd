"""Meta's layout: the rotation's other order, files split over processors, the paper's further heads."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.cli import main
from mtp_lightning.interop.importing.import_meta import ffn_width, to_half_split, to_neighbours
from mtp_lightning.model.config import RopeScaling
from mtp_lightning.model.mtp import MTPModel

PARAMS = {"dim": 24, "n_layers": 5, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1, "multiple_of": 8, "norm_eps": 1e-5}
V, E = 11, 6


def block(prefix: str, ffn: int = 64) -> dict[str, Tensor]:
    shapes = {
        "attention.wq": (24, 24), "attention.wk": (12, 24), "attention.wv": (12, 24), "attention.wo": (24, 24),
        "feed_forward.w1": (ffn, 24), "feed_forward.w2": (24, ffn), "feed_forward.w3": (ffn, 24),
        "attention_norm": (24,), "ffn_norm": (24,),
    }  # fmt: skip
    return {f"{prefix}.{name}.weight": torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def release(n: int) -> dict[str, Tensor]:
    """A file of the paper's layout: trunk and head 1 in `layers`, the others in `extra_heads`."""
    torch.manual_seed(0)
    weights = {"tok_embeddings.weight": torch.randn(V, 24), "norm.weight": torch.randn(24)}
    weights |= {"output.weight": torch.randn(V, 24), "rope.freqs": torch.zeros(3)}
    for i in range(5 - n + 1):
        weights |= block(f"layers.{i}")
    for j in range(n - 1):
        weights |= block(f"extra_heads.{j}")
    return weights


def write(folder: Path, weights: dict[str, Tensor], **params: Any) -> Path:
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps({**PARAMS, **params}))
    torch.save(weights, folder / "consolidated.00.pth")
    return folder


def run(folder: Path, *arguments: str) -> int:
    return main(["import", str(folder), str(folder.parent / "out.safetensors"), "--tokenizer", "none", *arguments])


def as_meta_computes(weights: dict[str, Tensor], tokens: Tensor, n: int) -> Tensor:
    """(N, T, V): plain code of its own, which rotates neighbours as complex numbers."""
    T = tokens.numel()
    turns = torch.polar(torch.ones(T, E // 2), torch.arange(T)[:, None] * 10000.0 ** -(torch.arange(0, E, 2) / E))

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weights[f"{name}.weight"]

    def rotate(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns[:, None]).flatten(-2)

    def layer(x: Tensor, name: str) -> Tensor:
        y = norm(x, f"{name}.attention_norm")
        q, k, v = ((y @ weights[f"{name}.attention.w{part}.weight"].T).unflatten(-1, (-1, E)) for part in "qkv")
        k, v = (part.repeat_interleave(2, 1) for part in (rotate(k), v))
        q, k, v = (part.transpose(0, 1) for part in (rotate(q), k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
        x = x + mixed @ weights[f"{name}.attention.wo.weight"].T
        y, w1, w2, w3 = norm(x, f"{name}.ffn_norm"), *(weights[f"{name}.feed_forward.w{i}.weight"] for i in (1, 2, 3))
        return x + (torch.nn.functional.silu(y @ w1.T) * (y @ w3.T)) @ w2.T

    x = weights["tok_embeddings.weight"][tokens]
    for i in range(5 - n):
        x = layer(x, f"layers.{i}")
    states = [layer(x, name) for name in (f"layers.{5 - n}", *(f"extra_heads.{j}" for j in range(n - 1)))]
    return torch.stack([norm(h, "norm") @ weights["output.weight"].T for h in states])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_every_head_of_the_release_computes_what_it_does_there(n: int, tmp_path: Path) -> None:
    weights = release(n)
    params = {"n_future_tokens": n} if n > 1 else {}
    assert run(write(tmp_path / "meta", weights, **params)) == 0
    model = load_model(tmp_path / "out.safetensors").model
    assert (model.n_future, model.heads_config.kind, len(model.trunk)) == (n, "parallel", 5 - n)
    tokens = torch.randint(0, V, (13,))
    with torch.no_grad():
        found, expected = model.logits(tokens[None])[:, 0], as_meta_computes(weights, tokens, n)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    names = model.state_dict()
    back = to_neighbours(names["trunk.0.attention.wk.weight"], E)
    assert torch.equal(back, weights["layers.0.attention.wk.weight"])
    assert not torch.equal(back, names["trunk.0.attention.wk.weight"])
    assert torch.equal(to_half_split(back, E), names["trunk.0.attention.wk.weight"])


def test_head_1_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = release(3)
    assert run(write(tmp_path / "meta", weights, n_future_tokens=3), "--heads", "1") == 0
    assert "2 further heads are left out" in capsys.readouterr().out
    model, tokens = load_model(tmp_path / "out.safetensors").model, torch.randint(0, V, (9,))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(tokens[None])[0, 0], as_meta_computes(weights, tokens, 3)[0])


@pytest.mark.parametrize("by_columns", [True, False], ids=["Llama 2's embedding", "Llama 3's embedding"])
def test_files_of_several_processors_are_one_model(by_columns: bool, tmp_path: Path) -> None:
    whole = release(1) | {name: torch.randn(12, 24) for name in ("tok_embeddings.weight", "output.weight")}
    one, two = write(tmp_path / "one", whole), write(tmp_path / "two", {})
    parts: list[dict[str, Tensor]] = [{}, {}]
    for name, weight in whole.items():
        columns = "wo" in name or "w2" in name or (by_columns and name == "tok_embeddings.weight")
        cut = [weight, weight] if weight.ndim == 1 else weight.chunk(2, dim=1 if columns else 0)
        for part, piece in zip(parts, cut):
            part[name] = piece.clone()
    for i, part in enumerate(parts):
        torch.save(part, two / f"consolidated.0{i}.pth")
    found: list[MTPModel] = []
    for folder in (one, two):
        assert main(["import", str(folder), str(folder) + ".safetensors", "--tokenizer", "none"]) == 0
        found.append(load_model(Path(str(folder) + ".safetensors")).model)
    assert all(torch.equal(a, b) for a, b in zip(found[0].state_dict().values(), found[1].state_dict().values()))


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["a pickle", "a pickle in a zip", "truncated", "no tensors", "none"])
def test_a_file_that_holds_anything_else_is_refused_and_nothing_runs(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "meta", release(1))
    path, evil = folder / "consolidated.00.pth", {"tok_embeddings.weight": Evil(str(tmp_path / "ran"))}
    if kind == "a pickle":
        path.write_bytes(pickle.dumps(evil))
    elif kind == "a pickle in a zip":
        torch.save(evil, path)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "no tensors":
        torch.save({"a": "text"}, path)
    else:
        path.unlink()
    assert run(folder) == 2
    assert str(folder) in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["meta"]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"moe": {}}, "moe is {}: this key is not known"),
        ({"dim": 25}, "dim is 25"),
        ({"n_heads": None}, "n_heads is null: it has to be a whole number"),
        ({"n_heads": True}, "n_heads is True: it has to be a whole number"),
        ({"multiple_of": 0}, "multiple_of is 0: it has to be at least 1"),
        ({"ffn_dim_multiplier": "x"}, "ffn_dim_multiplier is x: it has to be a finite number"),
        ({"norm_eps": None}, "norm_eps is null: it has to be a finite number"),
        ({"rope_theta": "x"}, "rope_theta is x: it has to be a finite number"),
        ({"use_scaled_rope": "false"}, "use_scaled_rope is 'false': it has to be true or false"),
        ({"use_scaled_rope": 0}, "use_scaled_rope is 0: it has to be true or false"),
        ({"max_seq_len": "4096"}, "max_seq_len is 4096: it has to be a whole number"),
        ({"max_seq_len": None}, "max_seq_len is null: it has to be a whole number"),
        ({"n_future_tokens": 5}, "n_future_tokens is 5, and n_layers 5: there have to be more layers"),
        ({"n_future_tokens": 2}, "has no tensor 'extra_heads.0."),
        ({"multiple_of": 32, "ffn_dim_multiplier": 2.0}, "is of shape (64, 24), and by its configuration of (128, 24)"),
        ({"vocab_size": 12}, "'output.weight' is of shape (11, 24)"),
        ({"n_layers": 6}, "has no tensor 'layers.5."),
        ({"n_layers": 4}, "knows no tensor 'layers.4."),
    ],
)
def test_params_that_disagree_are_refused_by_name(
    params: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(tmp_path / "meta", release(1), **params)) == 2
    said = capsys.readouterr().err
    assert says in said or ("tok_embeddings" in said and "vocab_size" in params)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(("factor", "model"), [("8", "Llama 3.1"), ("32", "Llama 3.2")])
def test_scaled_positions_are_asked_for(
    factor: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both models say `use_scaled_rope: true`, and no more."""
    folder = write(tmp_path / "meta", release(1), use_scaled_rope=True, rope_theta=500000.0)
    assert run(folder) == 2
    said = capsys.readouterr().err
    assert f"{factor} for {model}" in said
    assert not (tmp_path / "out.safetensors").exists()
    assert run(folder, "--rope_factor", factor) == 0
    config = load_model(tmp_path / "out.safetensors").model.config
    assert config.rope_scaling == RopeScaling("llama3", float(factor), original_context=8192)


@pytest.mark.parametrize(
    ("factor", "says"), [("8", "goes with use_scaled_rope: true"), ("0.5", "--rope_factor is 0.5: it has to be")]
)
def test_a_factor_that_nothing_asks_for_is_refused(
    factor: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(tmp_path / "meta", release(1)), "--rope_factor", factor) == 2
    assert says in capsys.readouterr().err


def test_the_context_is_said_or_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out, ask = write(tmp_path / "meta", release(1)), tmp_path / "out.safetensors", "give --context"
    assert run(folder) == 0
    assert ask in capsys.readouterr().out
    assert load_model(out).context is None
    assert run(folder, "--force", "--context", "4096") == 0
    assert ask not in capsys.readouterr().out
    assert load_model(out).context == 4096
    limited = write(tmp_path / "limited", {}, max_seq_len=64)
    torch.save(release(1), limited / "consolidated.00.pth")
    assert run(limited, "--force") == 0
    assert load_model(out).context == 64
    assert run(limited, "--force", "--context", "65") == 2
    assert "--context is 65, and the model is made for 64 positions (max_seq_len)" in capsys.readouterr().err


def test_widths_by_llamas_rule() -> None:
    assert ffn_width({"dim": 4096, "multiple_of": 256}) == 11008
    assert ffn_width({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}) == 28672
    assert ffn_width({"dim": 4096, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}) == 14336
