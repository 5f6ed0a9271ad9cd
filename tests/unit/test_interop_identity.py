"""A model that went in, out and in again is the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_interop_export import CASES, save, trained, true_logits

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.cli import main
from mtp_lightning.model.config import HeadsConfig, RopeScaling

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own
pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_in_and_out_and_in_again_is_the_identity(name: str, tmp_path: Path) -> None:
    features: dict[str, Any] = {
        "llama": {"n_kv_heads": 2, "rope_scaling": RopeScaling("llama3", 8.0, 16)},
        "qwen2": {"attention_bias": "qkv", "tie_embeddings": True},
        "qwen3": {"qk_norm": True, "head_dim": 6},
    }[name]
    model = trained(HeadsConfig(n_future=3, kind="sequential", match="none"), **features)
    model.norm.weight.data.fill_(1.0)  # as in a file of the standard, so that nothing is folded
    source, out, back = save(tmp_path / "m.safetensors", model), tmp_path / "out", tmp_path / "back.safetensors"
    assert main(["export", str(source), str(out), "--to", "hf", "--verify", "false"]) == 0
    assert main(["import", str(out), str(back)]) == 0
    found = load_model(back)
    assert (found.model.config, found.model.heads_config) == (replace(model.config, init_std=0.02), model.heads_config)
    assert found.context == 64
    for key, weight in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[key], weight), key


@pytest.mark.parametrize("case", ["parallel, unembeddings", "causal Qwen2, llama3", "linear Qwen3, linear"])
def test_the_layout_of_our_own_comes_back(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads, features = CASES[case]
    heads = replace(heads, match="none")
    source = save(tmp_path / "m.safetensors", trained(heads, **features))
    out, back = tmp_path / "out", tmp_path / "back.safetensors"
    assert main(["export", str(source), str(out), "--to", "hf", "--verify", "false"]) == 0
    assert main(["import", str(out), str(back), "--tokenizer", "none"]) == 0
    mine, found = load_model(source).model, load_model(back).model
    assert (found.config, found.heads_config) == (replace(mine.config, init_std=0.02), heads)
    assert all(torch.equal(found.state_dict()[key], weight) for key, weight in mine.state_dict().items())
    alone = tmp_path / "alone.safetensors"
    assert main(["import", str(out), str(alone), "--tokenizer", "none", "--heads", "1"]) == 0
    tokens = torch.randint(0, mine.config.vocab_size, (1, 9))
    next_token = load_model(alone).model
    assert next_token.n_future == 1
    assert torch.equal(next_token.next_token_states(tokens), mine.next_token_states(tokens))
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"mtp_trunk_layers": 5}))
    assert main(["import", str(out), str(tmp_path / "no.safetensors"), "--tokenizer", "none"]) == 2
    assert "mtp_trunk_layers 5" in capsys.readouterr().err


def test_what_was_folded_comes_back_with_the_same_logits(tmp_path: Path) -> None:
    model = trained(HeadsConfig(n_future=3, kind="recurrent"), tie_embeddings=True)
    source, out, back = save(tmp_path / "m.safetensors", model), tmp_path / "out", tmp_path / "back.safetensors"
    assert main(["export", str(source), str(out), "--to", "hf"]) == 0
    assert main(["import", str(out), str(back)]) == 0
    found = load_model(back).model
    assert (found.heads_config.kind, found.config.tie_embeddings) == ("sequential", False)
    tokens = torch.randint(0, 256, (1, 33))
    with torch.no_grad():
        torch.testing.assert_close(true_logits(found, tokens, 3), true_logits(model, tokens, 3), atol=2e-5, rtol=1e-5)
