"""`mtp export --to meta`: the paper's release layout, by Meta's formulas the same model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_interop_export import save, trained

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.cli import main
from mtp_lightning.errors import InputError
from mtp_lightning.interop import export_meta
from mtp_lightning.interop.export_meta import SCALED, ffn_params, meta_logits
from mtp_lightning.interop.importing.import_meta import ffn_width
from mtp_lightning.model.config import HeadsConfig, RopeScaling


@pytest.mark.parametrize(
    ("heads", "backbone"),
    [
        (HeadsConfig(n_future=4), {"n_kv_heads": 2}),
        (HeadsConfig(n_future=2, match="none"), {"tie_embeddings": True, "ffn_dim": 53}),
        (HeadsConfig(), {"rope_scaling": SCALED}),
    ],
    ids=["four", "tied", "one, scaled"],
)
def test_the_release_layout_holds_every_head(
    heads: HeadsConfig, backbone: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out, n = trained(heads, **backbone), tmp_path / "out", heads.n_future
    assert main(["export", str(save(tmp_path / "m.safetensors", model)), str(out), "--to", "meta"]) == 0
    assert f"| {n} |" in capsys.readouterr().out
    params = json.loads((out / "params.json").read_text())
    weights = torch.load(out / "consolidated.00.pth", weights_only=True)
    assert params["n_layers"] == len(model.trunk) + n
    assert params["n_future_tokens"] == n
    assert weights["layers.0.feed_forward.w1.weight"].shape == (ffn_width(params), params["dim"])
    assert {name.split(".")[1] for name in weights if name.startswith("extra_heads")} == set(map(str, range(n - 1)))
    tokens = torch.randint(0, 256, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(meta_logits(params, weights, tokens), model.logits(tokens), atol=2e-5, rtol=1e-5)
    factor = ["--rope_factor", "8"] if "rope_scaling" in backbone else []
    assert main(["import", str(out), str(tmp_path / "back.safetensors"), *factor]) == 0
    back = load_model(tmp_path / "back.safetensors").model
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name


def test_head_1_of_a_deeper_kind(tmp_path: Path) -> None:
    model = trained(HeadsConfig(n_future=3, kind="anticausal"))
    arguments = [str(tmp_path / "out"), "--to", "meta", "--heads", "1", "--dtype", "bfloat16"]
    assert main(["export", str(save(tmp_path / "m.safetensors", model)), *arguments]) == 0
    weights = torch.load(tmp_path / "out" / "consolidated.00.pth", weights_only=True)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("heads", "arguments", "says"),
    [
        (HeadsConfig(n_future=2, kind="sequential"), [], "'sequential': the release layout holds 'parallel' heads"),
        (HeadsConfig(n_future=2, layers=2), [], "model.heads.layers is 2"),
        (HeadsConfig(n_future=2, replicate_unembedding=True), [], "replicate_unembedding True"),
        (HeadsConfig(n_future=2, kind="linear"), ["--heads", "1"], "its head 1 is no Llama"),
    ],
)
def test_other_heads_are_refused(
    heads: HeadsConfig, arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "m.safetensors", trained(heads))
    assert main(["export", str(source), str(tmp_path / "out"), "--to", "meta", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_rows_in_the_wrong_order_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_meta, "_permuted", lambda name, weight, head_dim: weight)
    source = save(tmp_path / "m.safetensors", trained(HeadsConfig(n_future=2)))
    assert main(["export", str(source), str(tmp_path / "out"), "--to", "meta"]) == 1
    assert "the logits of head 1 differ" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@given(dim=st.integers(1, 1024).map(lambda i: 8 * i), width=st.integers(1, 40_000))
def test_every_width_has_its_numbers(dim: int, width: int) -> None:
    assert ffn_width(ffn_params(dim, width)) == width


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention_bias", "qkv"), ("qk_norm", True), ("head_dim", 6), ("rope_scaling", RopeScaling("linear", 2.0))],
)
def test_other_backbones_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"model.backbone.{key} is .*: the release layout has no place for it"):
        export_meta.export_release(trained(HeadsConfig(), **{key: value}))
