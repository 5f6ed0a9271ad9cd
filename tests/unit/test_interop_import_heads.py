"""Heads of somebody else's making: the MTP standard against `transformers`' own MtpModel."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_interop_import import MODELS, imported, theirs

from mtp_lightning.cli import main
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.decoding.reference import decode_plainly
from mtp_lightning.model.config import BackboneConfig, HeadsConfig

modeling_layers = pytest.importorskip("transformers.modeling_layers")


def save_with_heads(name: str, n: int, folder: Path, ones: bool = False) -> tuple[Any, Any]:
    """A folder in the standard, random, its norms too but for `ones` of the final ones; and who computes it there."""
    model = theirs(name)
    model.config.num_mtp_layers = model.config.num_nextn_predict_layers = n - 1
    if getattr(model.config, "layer_types", None):
        model.config.mtp_layer_types = ["full_attention"] * (n - 1)
    mtp = modeling_layers.MtpModel(model, n - 1)
    torch.manual_seed(1)
    for layer in mtp.layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    torch.nn.init.normal_(model.model.norm.weight, mean=1.0, std=0.3)
    if ones:
        for norm in (model.model.norm, *(layer.post_norm for layer in mtp.layers)):
            torch.nn.init.ones_(norm.weight)
    model.save_pretrained(folder)
    weights, first = load_file(folder / "model.safetensors"), model.config.num_hidden_layers
    for k, layer in enumerate(mtp.layers):
        for key, weight in layer.state_dict().items():
            key = key.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm", key.startswith("post_norm"))
            weights[f"model.layers.{first + k}.{key}"] = weight
        weights[f"model.layers.{first + k}.embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return model, mtp.eval()


@pytest.mark.parametrize(
    ("name", "n", "ones"), [("llama", 2, False), ("qwen2, tied", 3, False), ("qwen3", 4, False), ("yarn", 2, True)]
)
def test_every_heads_logits_are_theirs(name: str, n: int, ones: bool, tmp_path: Path) -> None:
    model, mtp = save_with_heads(name, n, tmp_path / "hf", ones)
    ours = imported(tmp_path / "hf").model
    norms = "shared" if ones else "own"
    assert ours.heads_config == HeadsConfig(n, "sequential", match="none", norms=norms)  # type: ignore[arg-type]
    T, tokens = 40, torch.randint(0, 37, (1, 44))
    ahead = torch.stack([tokens[:, i : i + T] for i in range(1, n + 1)])
    with torch.no_grad():
        states = [model.model(tokens[:, :T]).last_hidden_state]
        for i in range(1, n):
            positions = torch.arange(i, i + T)[None]
            states.append(mtp.forward_layer(i - 1, states[-1], positions, None, input_ids=tokens[:, i : i + T]))
        found = ours.logits(tokens[:, :T], None, ahead)
        for head, state in enumerate(states):
            expected = model.lm_head(state)
            bound = (1e-4 if head and ones else 1e-5) * float(expected.abs().max())
            torch.testing.assert_close(found[head], expected, rtol=0, atol=bound)
    prompt = torch.tensor([1, 2, 3])
    assert generate(Engine(ours), [prompt], 10)[0].tokens == decode_plainly(ours, prompt, 10)


def test_what_a_run_has_to_say_to_begin_with_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs("yarn, other numbers").save_pretrained(tmp_path / "hf")
    found = imported(tmp_path / "hf").model.config
    said = yaml.safe_load(capsys.readouterr().out.rpartition("--model.backbone '")[2].rstrip("\n'"))
    assert BackboneConfig.from_dict(said) == found
    save_with_heads("llama", 3, tmp_path / "mtp")
    imported(tmp_path / "mtp")
    heads = "--model.heads '{n_future: 3, kind: sequential, match: none, norms: own}'\n"
    assert capsys.readouterr().out.endswith(heads)


def test_the_model_comes_without_its_further_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = save_with_heads("llama", 3, tmp_path / "hf")
    loaded = imported(tmp_path / "hf", heads=1)
    assert loaded.model.n_future == 1
    assert "2 further heads are left out" in capsys.readouterr().out
    tokens = torch.randint(0, 37, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model.logits(tokens)[0], model(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damage", ["no heads in the config", "a head less", "another embedding"])
def test_heads_that_do_not_fit_the_config_are_refused(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_with_heads("llama", 3, tmp_path / "hf")
    config, path = tmp_path / "hf" / "config.json", tmp_path / "hf" / "model.safetensors"
    said = "knows no tensor 'model.layers.3."
    if damage == "no heads in the config":
        without = {key: value for key, value in json.loads(config.read_text()).items() if "mtp" not in key}
        config.write_text(json.dumps({key: value for key, value in without.items() if "nextn" not in key}))
    elif damage == "a head less":
        weights = {key: weight for key, weight in load_file(path).items() if ".layers.4." not in key}
        save_file(weights, path, {"format": "pt"})
        said = "has no tensor 'model.layers.4."
    else:
        weights = load_file(path)
        weights["model.layers.4.embed_tokens.weight"] += 1
        save_file(weights, path, {"format": "pt"})
        said = "'model.layers.4.embed_tokens.weight' has to be a copy of 'model.embed_tokens.weight'"
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "o.safetensors"), "--tokenizer", "none"]) == 2
    assert said in capsys.readouterr().err


def test_every_model_here_is_one_of_theirs() -> None:
    assert {kind for kind, _ in MODELS.values()} == {"llama", "mistral", "qwen2", "qwen3"}
