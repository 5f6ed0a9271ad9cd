"""Every weight goes out in the precision that it has in the file, whatever the others have."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_checkpoints import save as save_checkpoint
from test_interop_export import save, trained

from mtp_lightning.checkpoints.initial import digest_of
from mtp_lightning.cli import main
from mtp_lightning.interop.export_hf import OWN_CODE, path_layers
from mtp_lightning.interop.hf_names import tensor_names
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own


def mixed(heads: HeadsConfig) -> MTPModel:
    """Matrices in bfloat16 but for one, norms in float32, as many models are published."""
    model = trained(heads)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not name.startswith("trunk.1.ffn.up"):
            weight.data = weight.data.bfloat16()
    return model


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
@pytest.mark.parametrize("to", ["hf", "meta"])
def test_a_model_of_two_precisions_keeps_both(kind: str, to: str, tmp_path: Path) -> None:
    heads = HeadsConfig(n_future=2, kind=kind, match="none")
    model, out = mixed(heads), tmp_path / "out"
    arguments = ["--heads", "1"] if to == "meta" else []
    source = save(tmp_path / "m.safetensors", model)
    assert main(["export", str(source), str(out), "--to", to, *arguments]) == 0
    if to == "meta":
        weights = torch.load(out / "consolidated.00.pth", weights_only=True)
        assert {weight.dtype for name, weight in weights.items() if "norm" in name} == {torch.float32}
        assert torch.equal(weights["layers.1.feed_forward.w3.weight"], model.trunk[1].ffn.up.weight)
        assert weights["tok_embeddings.weight"].dtype == torch.bfloat16
        return
    found, own = load_file(out / "model.safetensors"), dict(model.named_parameters())
    names = tensor_names(model.config, heads, "own" if kind in OWN_CODE else "standard", 2)
    for theirs, ours in names.items():
        assert found[theirs].dtype == own[ours].dtype, theirs
    for part in ("up_proj", "down_proj"):
        for i in range(path_layers(model.config, heads)):
            name = f"model.layers.{i}.mlp.{part}.weight"
            assert torch.equal(found[name], own[names[name]])
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32", "which holds both"


@pytest.mark.parametrize("tied", [False, True])
def test_one_file_out_of_another_is_the_same_weights(tied: bool, tmp_path: Path) -> None:
    """And of a checkpoint of a run in bf16."""
    model = trained(HeadsConfig(n_future=2), tie_embeddings=tied).bfloat16()
    sources = save(tmp_path / "m.safetensors", model), save_checkpoint(tmp_path / "m.ckpt", model)
    out, wanted = tmp_path / "out.safetensors", load_file(sources[0])
    for source in sources:
        assert main(["export", str(source), str(out), "--force"]) == 0
        found = load_file(out)
        assert all(found[name].dtype == torch.bfloat16 for name in wanted)
        assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
        assert digest_of(out) == digest_of(source)
    assert main(["export", str(sources[1]), str(tmp_path / "hf"), "--to", "hf", "--verify", "false"]) == 0
    assert {weight.dtype for weight in load_file(tmp_path / "hf" / "model.safetensors").values()} == {torch.bfloat16}
