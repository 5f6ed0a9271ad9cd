"""Names of tensors, ours and Hugging Face's."""

import pytest
import torch
from tiny import VARIANTS, tiny_backbone

from mtp_lightning.errors import InputError
from mtp_lightning.interop.hf_names import llama_names, standard_names, swap_halves, weight_names
from mtp_lightning.model.config import HeadsConfig


def test_every_weight_has_a_name_of_its_own() -> None:
    names = standard_names(tiny_backbone(n_layers=9), HeadsConfig(n_future=3, kind="sequential"))
    ours = weight_names(tiny_backbone(n_layers=9), HeadsConfig(n_future=3, kind="sequential"))
    assert sorted(names.values()) == sorted(ours)
    further = {theirs: name for theirs, name in names.items() if name.startswith("heads.2.")}
    layer = max(int(theirs.split(".")[2]) for theirs in names if theirs.startswith("model.layers."))
    assert further[f"model.layers.{layer}.eh_proj.weight"] == "heads.2.projection.weight"
    assert further[f"model.layers.{layer}.mlp.down_proj.weight"] == "heads.2.stack.0.ffn.down.weight"
    assert len(further) == 3 + 9


def test_the_module_of_a_recurrent_model_is_named_once_for_each_head() -> None:
    backbone, heads = tiny_backbone(n_layers=5), HeadsConfig(n_future=4, kind="recurrent", match="none")
    names = standard_names(backbone, heads)
    assert [theirs for theirs, ours in names.items() if ours == "heads.1.hidden_norm.weight"] == [
        f"model.layers.{layer}.hnorm.weight" for layer in (5, 6, 7)
    ]
    assert names["model.layers.4.input_layernorm.weight"] == "heads.0.0.attention_norm.weight"


@pytest.mark.parametrize("name", ["parallel", "causal", "replicated sequential", "linear", "none", "order"])
def test_heads_without_a_name_there_are_refused(name: str) -> None:
    backbone = tiny_backbone(n_layers=9)
    with pytest.raises(InputError, match=f"kind '{VARIANTS[name].kind}'"):
        standard_names(backbone, VARIANTS[name])
    if name != "linear":
        named = set(llama_names(backbone, VARIANTS[name]).values())
        assert {"heads.0.0.ffn.up.weight", "trunk.0.attention.wo.weight", "unembedding.weight"} < named
        assert named <= set(weight_names(backbone, VARIANTS[name]))


def test_halves_are_swapped() -> None:
    assert swap_halves(torch.tensor([[1, 2, 3, 4]])).tolist() == [[3, 4, 1, 2]]
