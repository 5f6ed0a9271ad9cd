"""`mtp export --to gguf`: by Meta's formulas, and by transformers where it reads such files, the same model; what is no
Llama is refused by name."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_interop_export import save, trained

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.cli import main
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from mtp_lightning.errors import InputError, UnprovenError
from mtp_lightning.interop import llama_cpp_model
from mtp_lightning.interop.export_gguf import Vocabulary, export_llama, prove, tensors_of, vocabulary_of, write_gguf
from mtp_lightning.interop.export_meta import SCALED, meta_logits
from mtp_lightning.model.config import HeadsConfig, RopeScaling
from mtp_lightning.model.rope import rope_frequencies

META = {
    "token_embd": "tok_embeddings", "output_norm": "norm", "attn_q": "attention.wq", "attn_k": "attention.wk",
    "attn_v": "attention.wv", "attn_output": "attention.wo", "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3", "attn_norm": "attention_norm", "ffn_norm": "ffn_norm",
}  # fmt: skip
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the package gguf")


def in_metas_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {name: re.sub(r"^blk\.", "layers.", name) for name in tensors}
    for theirs, meta in META.items():
        names = {name: re.sub(rf"(^|\.){theirs}\.weight$", rf"\1{meta}.weight", own) for name, own in names.items()}
    return {names[name]: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("heads", "backbone"),
    [(HeadsConfig(n_future=4), {"n_kv_heads": 2}), (HeadsConfig(n_future=3, kind="anticausal"), {})],
    ids=["grouped", "anticausal"],
)
def test_its_tensors_are_the_path_to_the_next_token(heads: HeadsConfig, backbone: dict[str, Any]) -> None:
    model = trained(heads, **backbone)
    exported = export_llama(model, 1)
    weights = in_metas_names(tensors_of(exported, model.config))
    layers = exported.config["num_hidden_layers"]
    params = {
        "dim": model.config.dim, "n_layers": layers, "n_heads": model.config.n_heads, "n_future_tokens": 1,
        "n_kv_heads": model.config.kv_heads, "vocab_size": 256, "norm_eps": model.config.norm_eps,
        "rope_theta": model.config.rope_theta, "multiple_of": 1,
    }  # fmt: skip
    tokens = torch.randint(0, 256, (2, 30))
    with torch.no_grad():
        expected = model.unembedding(model.next_token_states(tokens))
        torch.testing.assert_close(meta_logits(params, weights, tokens)[0], expected, atol=2e-5, rtol=1e-5)


def test_slowed_rotary_positions_are_what_frequencies_are_divided_by() -> None:
    for scaling in (RopeScaling("linear", factor=4.0), SCALED):
        model = trained(HeadsConfig(), rope_scaling=scaling)
        factors = tensors_of(export_llama(model), model.config)["rope_freqs.weight"]
        plain = rope_frequencies(replace(model.config, rope_scaling=RopeScaling()), torch.device("cpu"))
        torch.testing.assert_close(plain / factors, rope_frequencies(model.config, torch.device("cpu")))
        assert 1 < factors.max() <= scaling.factor


@pytest.mark.parametrize(
    ("heads", "backbone", "says"),
    [
        (HeadsConfig(n_future=4), {}, "n_future 4: a GGUF file is written of a plain Llama: give `--heads 1`"),
        (HeadsConfig(n_future=2, kind="linear"), {}, "model.heads.kind is 'linear'"),
        (HeadsConfig(), {"attention_bias": "qkv"}, "model.backbone.attention_bias is qkv"),
        (HeadsConfig(), {"qk_norm": True}, "model.backbone.qk_norm is True"),
        (
            HeadsConfig(),
            {"rope_scaling": RopeScaling("yarn", factor=4.0, original_context=16)},
            "model.backbone.rope_scaling",
        ),
    ],
    ids=["heads", "linear", "biases", "norms", "yarn"],
)
def test_what_is_no_llama_is_refused_by_name(heads: HeadsConfig, backbone: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        export_llama(trained(heads, **backbone))


def test_bytes_are_byte_level_bpe_without_merges() -> None:
    found = vocabulary_of(ByteTokenizer(), 256)
    assert found is not None
    assert len(set(found.tokens)) == 256
    assert found.tokens[ord("a")] == "a"
    assert (found.tokens[255], found.special, found.end) == ("<|endoftext|>", {255}, 255)
    assert not any(merge in "".join(found.tokens) for merge in found.merges)


def test_a_tokenizer_that_cuts_words_otherwise_is_left_out() -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    def made(before: Any) -> Any:
        tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
        tokenizer.pre_tokenizer = before
        tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
        return vocabulary_of(HuggingFaceTokenizer(tokenizer.to_str()), 6)

    found = made(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert found.tokens == ["a", "b", "ab", "<|endoftext|>", "[unused4]", "[unused5]"]
    assert (found.merges, found.special, found.end) == (["a b"], {3}, 3)
    assert made(pre_tokenizers.Whitespace()) is None
    assert made(pre_tokenizers.ByteLevel(add_prefix_space=True)) is None


def test_an_added_token_that_a_text_can_write_is_cut_out_of_it_whole() -> None:
    """llama.cpp looks for USER_DEFINED in every text, for CONTROL in none, and makes NORMAL of merges alone."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    def made(**flags: bool) -> HuggingFaceTokenizer:
        tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
        tokenizer.add_tokens([AddedToken("aba", **flags)])
        return HuggingFaceTokenizer(tokenizer.to_str())

    assert made().encode("ababa<|endoftext|>") == [4, 1, 0], "before merges"
    found = vocabulary_of(made(), 6)
    assert found is not None
    assert (found.special, found.whole) == ({3}, {4})
    for flag in ("lstrip", "rstrip", "single_word"):
        assert vocabulary_of(made(**{flag: True}), 6) is None


@needs_gguf
def test_kinds_of_tokens_are_gguf_s(tmp_path: Path) -> None:
    import gguf

    model = trained(HeadsConfig())
    vocabulary = Vocabulary([*"abcd"], {1}, {2}, ["a b"], 1)
    write_gguf(tmp_path / "m.gguf", model, export_llama(model), 64, vocabulary, None)
    field = gguf.GGUFReader(tmp_path / "m.gguf").get_field("tokenizer.ggml.token_type")
    assert [gguf.TokenType(kind).name for kind in field.contents()] == ["NORMAL", "CONTROL", "USER_DEFINED", "NORMAL"]


def test_bad_calls_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(save(tmp_path / "m.safetensors", trained(HeadsConfig())))
    before = sorted(tmp_path.iterdir())
    for arguments, says in (
        ([str(tmp_path / "out")], "a gguf file is named *.gguf"),
        ([str(tmp_path / "out.gguf"), "--dtype", "bfloat16"], "dtype is bfloat16"),
    ):
        assert main(["export", file, *arguments, "--to", "gguf"]) == 2
        assert says in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_without_the_package_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["export", "m.safetensors", str(tmp_path / "out.gguf"), "--to", "gguf"]) == 2
    assert "pip install gguf" in capsys.readouterr().err


def test_a_text_that_llama_cpp_continues_otherwise_is_no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(HeadsConfig())
    exported = export_llama(model)
    read = [
        SimpleNamespace(name=name, data=tensor.numpy()) for name, tensor in tensors_of(exported, model.config).items()
    ]
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFReader=lambda file: SimpleNamespace(tensors=read)))
    monkeypatch.setattr(llama_cpp_model, "why_not", lambda: "it is not there")
    assert "No text was compared: it is not there" in prove(Path("m.gguf"), model, exported)

    class Other:
        def __init__(self, *args: object) -> None: ...
        def __enter__(self) -> "Other":
            return self

        def __exit__(self, *_: object) -> None: ...
        def continued(self, prompt: list[int], new_tokens: int) -> list[int]:
            return [0] * new_tokens

    monkeypatch.setattr(llama_cpp_model, "why_not", lambda: "")
    monkeypatch.setattr(llama_cpp_model, "LlamaCpp", Other)
    with pytest.raises(UnprovenError, match="continues a text otherwise"):
        prove(Path("m.gguf"), model, exported)
    read.pop()
    with pytest.raises(UnprovenError, match="is not in the file"):
        prove(Path("m.gguf"), model, exported)


@needs_gguf
@pytest.mark.slow
def test_transformers_reads_the_same_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    file = save(tmp_path / "m.safetensors", trained(HeadsConfig(n_future=2), n_kv_heads=2))
    assert main(["export", str(file), str(tmp_path / "m.gguf"), "--to", "gguf", "--heads", "1"]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    model = load_model(file).model
    tokens = torch.randint(0, 256, (2, 30))
    with torch.no_grad():
        expected = model.unembedding(model.next_token_states(tokens))
        torch.testing.assert_close(theirs(tokens).logits, expected, atol=2e-5, rtol=1e-5)
