"""Models of Hugging Face's own classes, random ones, as models here."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mtp_lightning.checkpoints.files import LoadedModel, load_model
from mtp_lightning.cli import main
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.decoding.reference import decode_plainly
from mtp_lightning.errors import InputError
from mtp_lightning.interop.hf_config import hf_config, read_hf_config
from mtp_lightning.interop.hf_names import to_llama_state_dict
from mtp_lightning.interop.importing.import_command import import_command
from mtp_lightning.model.rope import rope_frequencies

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 37, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 16, "initializer_range": 0.3, "tie_word_embeddings": False,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, grouped, tied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, odd": ("llama", {"hidden_size": 18, "num_attention_heads": 3, "num_key_value_heads": 3, "vocab_size": 5,
                             "intermediate_size": 7, "rms_norm_eps": 1e-3}),
    "llama, head_dim apart": ("llama", {"head_dim": 20}),
    "mistral": ("mistral", {"num_key_value_heads": 1, "sliding_window": None}),
    "mistral, odd width": ("mistral", {"hidden_size": 25, "head_dim": 6, "sliding_window": None}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"head_dim": 16, "num_key_value_heads": 1}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}}),
    "llama3": ("llama", {"rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, "rope_theta": 10000.0}}),
    "yarn": ("qwen3", {"head_dim": 32, "rope_parameters": YARN}),
    "yarn, other numbers": ("llama", {"rope_parameters": YARN | {
        "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False, "mscale": 1.2, "mscale_all_dim": 0.7}}),
    "yarn, factor by contexts": ("llama", {"max_position_embeddings": 64, "rope_parameters": YARN | {"factor": None}}),
    "yarn, attention factor": ("qwen2", {"rope_parameters": YARN | {"attention_factor": 1.3}}),
}  # fmt: skip


QUICK = ("llama, grouped, tied", "mistral, odd width", "qwen2, tied", "llama3", "yarn")


def theirs(name: str) -> Any:
    """A model of theirs, every weight random."""
    kind, changes = MODELS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **json.loads(json.dumps(SMALL | changes)))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return model


def exactly(model: Any) -> None:
    """Their norms round to float32, whatever the model's precision: torch's own do not."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)


def imported(folder: Path, **options: Any) -> LoadedModel:
    out = folder.parent / f"{folder.name}.safetensors"
    import_command(str(folder), str(out), **{"tokenizer": "none", **options})
    return load_model(out)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_theirs(name: str, tmp_path: Path) -> None:
    """At positions beyond the original context."""
    model = theirs(name)
    model.save_pretrained(tmp_path / "hf")
    ours = imported(tmp_path / "hf").model
    tokens = torch.randint(0, SMALL["vocab_size"] if "odd" not in name else 5, (2, 70))
    with torch.no_grad():
        expected, found = model(tokens).logits, ours.logits(tokens)[0]
        assert float(expected.std()) > 0.3
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(float(expected.abs().max()), 1))
        rotary, frequencies = model.model.rotary_emb, rope_frequencies(ours.config, tokens.device)
        torch.testing.assert_close(frequencies, rotary.inv_freq, rtol=1e-6, atol=0)
        assert rotary.attention_scaling == pytest.approx(ours.config.rope_scaling.attention, rel=1e-12)
        rotary.inv_freq = frequencies
        exactly(model)
        torch.testing.assert_close(ours.double().logits(tokens)[0], model.double()(tokens).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_what_was_imported_decodes_and_goes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    model.save_pretrained(tmp_path / "hf")
    ours = imported(tmp_path / "hf").model
    prompt = torch.tensor([1, 2, 3, 4, 0])
    assert generate(Engine(ours), [prompt], 12)[0].tokens == decode_plainly(ours, prompt, 12)
    config = hf_config(ours.config, ours.config.n_layers, 16)
    again = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    again.load_state_dict(to_llama_state_dict(ours))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    again.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1 or "odd" in name
    second = imported(tmp_path / "again").model
    assert second.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), second.state_dict().values()))


def test_the_form_of_transformers_4_says_the_same(tmp_path: Path) -> None:
    new = {**SMALL, "model_type": "llama", "dtype": "bfloat16", "rope_parameters": YARN}
    old = {**SMALL, "model_type": "llama", "torch_dtype": "bfloat16", "rope_theta": 10000.0}
    old["rope_scaling"] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert read_hf_config(new) == read_hf_config(old)
    assert read_hf_config({**old, "rope_scaling": None}).backbone.rope_scaling.kind == "default"


def test_what_a_config_leaves_out_is_what_their_classes_take() -> None:
    for kind in ("llama", "mistral", "qwen2", "qwen3"):
        few = {key: SMALL[key] for key in ("vocab_size", "intermediate_size", "num_hidden_layers")}
        few |= {"hidden_size": 768, "num_attention_heads": 32}
        config = transformers.AutoConfig.for_model(kind, **few)
        found = read_hf_config({**few, "model_type": kind}, 2048)
        backbone = found.backbone
        assert backbone.kv_heads == config.num_key_value_heads
        assert backbone.norm_eps == config.rms_norm_eps
        assert backbone.rope_theta == config.rope_parameters["rope_theta"]
        assert backbone.tie_embeddings == config.tie_word_embeddings
        assert found.context == 2048 <= config.max_position_embeddings
        with pytest.raises(InputError, match=rf"made for {config.max_position_embeddings} positions \(max_position"):
            read_hf_config({**few, "model_type": kind}, config.max_position_embeddings + 1)
        if kind == "qwen3":
            assert backbone.head_dim == config.head_dim


REFUSED = {
    "model_type": "gemma", "hidden_act": "gelu", "attention_bias": True, "mlp_bias": True, "num_local_experts": 8,
    "quantization_config": {"quant_method": "gptq"}, "final_logit_softcapping": 30.0, "residual_multiplier": 0.2,
    "use_sliding_window": True, "layer_types": ["sliding_attention"], "partial_rotary_factor": 0.5,
    "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": {"rope_type": "yarn", "finetuned": True},
    "sliding_window": 8, "no_rope_layers": [1], "hidden_size": 23, "num_attention_heads": 0, "vocab_size": None,
    "rope_theta": "many", "tie_word_embeddings": "yes", "num_key_value_heads": 3, "mtp_hidden_states_first": True,
    "chain_hidden_post_norm": True, "num_nextn_predict_layers": "two",
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *REFUSED.items(),
        ("rope_scaling", ["factor"]),
        ("rope_parameters", {"rope_type": [1]}),
        ("rope_scaling", 3),
        ("model_type", ["llama"]),
        ("max_position_embeddings", None),
        ("max_position_embeddings", 0),
        ("layer_types", 1),
        ("layer_types", [[1]]),
    ],
)
def test_what_cannot_be_is_refused_by_its_name_before_a_tensor_is_read(
    key: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**SMALL, "model_type": "llama", key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["import", str(tmp_path), str(tmp_path / "out.safetensors")]) == 2
    said = capsys.readouterr().err
    assert key in said
    assert "config.json" in said
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("linear", {"factor": ...}, "factor is missing: rope_type 'linear' cannot do without it"),
        ("linear", {"factor": None}, "factor is null: it has to be a finite number, at least 1"),
        ("llama3", {"factor": None}, "factor is null"),
        ("llama3", {"low_freq_factor": ...}, "low_freq_factor is missing"),
        ("llama3", {"high_freq_factor": None}, "high_freq_factor is null"),
        ("llama3", {"original_max_position_embeddings": None}, "original_max_position_embeddings is null"),
        ("yarn", {"factor": ...}, "factor is missing"),
        ("yarn", {"factor": "4"}, "factor is 4: it has to be a finite number"),
        ("yarn", {"factor": True}, "factor is True"),
        ("yarn", {"attention_factor": "1"}, "attention_factor is 1: it has to be a finite number"),
        ("yarn", {"mscale": "1", "mscale_all_dim": 1}, "mscale is 1: it has to be a finite number"),
        ("yarn", {"truncate": None}, "truncate is None: it has to be true or false"),
        ("yarn", {"beta_fast": [32]}, "beta_fast is [32]"),
        ("linear", {"rope_theta": True}, "rope_theta is True: it has to be a finite number"),
    ],
)
def test_numbers_of_positions_are_there_and_are_numbers(kind: str, changes: dict[str, Any], says: str) -> None:
    given = {"linear": {"factor": 2.0}, "llama3": LLAMA3, "yarn": YARN}[kind] | {"rope_type": kind} | changes
    given = {key: value for key, value in given.items() if value is not ...}
    for name in ("rope_scaling", "rope_parameters"):
        with pytest.raises(InputError) as caught:
            read_hf_config({**SMALL, "model_type": "llama", name: given})
        assert says in str(caught.value)
        assert says.startswith("rope_theta") or str(caught.value).startswith(f"{name}.")


def test_two_ways_of_writing_positions_that_differ_are_refused() -> None:
    config = {**SMALL, "model_type": "llama", "rope_parameters": YARN, "rope_scaling": YARN}
    assert read_hf_config(config).backbone.rope_scaling.factor == 4
    old = {"type" if key == "rope_type" else key: value for key, value in YARN.items() if key != "rope_theta"}
    both = {**config, "rope_parameters": {**YARN, "rope_theta": 5e5}, "rope_scaling": old}
    assert read_hf_config(both).backbone.rope_theta == 5e5, "one of version 5, the other of 4"
    with pytest.raises(InputError, match="rope_scaling and rope_parameters say different things"):
        read_hf_config({**config, "rope_scaling": {"type": "linear", "factor": 2.0}})


def test_a_window_is_no_matter_within_it(tmp_path: Path) -> None:
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**{**SMALL, "sliding_window": 8}))
    model.save_pretrained(tmp_path / "hf")
    loaded = imported(tmp_path / "hf", context=8)
    assert loaded.context == 8
    tokens = torch.randint(0, 37, (1, 8))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model.logits(tokens)[0], model(tokens).logits, rtol=1e-5, atol=1e-5)


def test_precision_is_kept(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = theirs("qwen2, tied").bfloat16()
    model.save_pretrained(tmp_path / "hf")
    imported(tmp_path / "hf")
    weights = load_file(tmp_path / "hf.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert torch.equal(weights["embedding.weight"], model.model.embed_tokens.weight)
    assert "unembedding.weight" not in weights


def test_yarns_attention_factor_by_hand() -> None:
    config = {**SMALL, "model_type": "llama", "rope_parameters": YARN}
    assert read_hf_config(config).backbone.rope_scaling.attention == pytest.approx(0.1 * math.log(4) + 1)
