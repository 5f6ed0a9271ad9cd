"""The backbone against Hugging Face's Llama, its attention and cache against the plain forms, its counts."""

from collections.abc import Callable

import pytest
import torch
from tiny import KINDS, tiny_backbone

from mtp_lightning.errors import InputError
from mtp_lightning.interop.hf_config import hf_config
from mtp_lightning.interop.hf_names import to_llama_state_dict
from mtp_lightning.model.attention import (
    CAUSAL_BLOCK,
    block_causal_attention,
    causal_attention,
    causal_mask,
)
from mtp_lightning.model.config import BackboneConfig, HeadKind, HeadsConfig
from mtp_lightning.model.counts import count_parameters, flops_per_token, trunk_widths
from mtp_lightning.model.mtp import MTPModel

MakeModel = Callable[..., MTPModel]


@pytest.mark.parametrize("n_kv_heads", [None, 1])
@pytest.mark.parametrize("n_future", [1, 3])
def test_trunk_and_head_one_are_hugging_faces_llama(
    make_model: MakeModel, n_future: int, n_kv_heads: int | None
) -> None:
    transformers = pytest.importorskip("transformers")
    model = make_model(n_future, n_layers=5, n_kv_heads=n_kv_heads, rope_theta=500.0)
    for parameter in model.parameters():  # weights of ordinary size, norms not at 1
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.ndim == 1 else 0, std=0.3)
    config = transformers.LlamaConfig(**hf_config(model.config, len(model.trunk) + 1))
    llama = transformers.LlamaForCausalLM(config).eval()
    missing = llama.load_state_dict(to_llama_state_dict(model, drop_heads=n_future > 1), strict=True)
    assert not missing.missing_keys
    tokens = torch.randint(0, 16, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(tokens)[0], llama(tokens).logits, rtol=1e-5, atol=1e-5)


def test_further_heads_are_not_dropped_unasked(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match="2 prediction heads"):
        to_llama_state_dict(make_model(2))


@pytest.mark.parametrize("T", [2, CAUSAL_BLOCK, 2 * CAUSAL_BLOCK + 3])
def test_block_causal_attention_equals_sdpa(T: int) -> None:
    q, k, v = torch.randn(3, 2, 4, T, 8, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(block_causal_attention(q, k, v), expected)


def test_bfloat16_attention_takes_the_blocks_and_agrees_with_float32() -> None:
    q, k = torch.randn(1, 4, 150, 8), torch.randn(1, 2, 150, 8)
    exact = causal_attention(q, k, k)
    rounded = causal_attention(q.bfloat16(), k.bfloat16(), k.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


def test_causal_mask_is_aligned_to_the_end() -> None:
    assert causal_mask(2, 4, torch.device("cpu")).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_no_position_sees_the_future(make_model: MakeModel) -> None:
    model = make_model(3)
    tokens = torch.randint(0, 16, (1, 12))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 16
    before, after = model.logits(tokens), model.logits(changed)
    assert torch.equal(before[:, :, :7], after[:, :, :7])
    assert (before[:, :, 7:] != after[:, :, 7:]).any(-1).all()


def test_documents_may_be_kept_apart(make_model: MakeModel) -> None:
    model = make_model(2, attend_across_documents=False)
    tokens = torch.randint(0, 16, (1, 10))
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]])
    together = model.logits(tokens, documents)
    torch.testing.assert_close(together[:, :, 4:], model.logits(tokens[:, 4:]))
    torch.testing.assert_close(together[:, :, :4], model.logits(tokens[:, :4]))


@pytest.mark.parametrize("match", ["parameters", "none"])
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("n_future", [1, 2, 4])
def test_counts_by_formula_are_the_models(n_future: int, tie: bool, match: str) -> None:
    backbone = tiny_backbone(n_layers=6, n_kv_heads=1, tie_embeddings=tie)
    heads = HeadsConfig(n_future=n_future, match=match)  # type: ignore[arg-type]
    counts = count_parameters(backbone, heads)
    with torch.device("meta"):
        model = MTPModel(backbone, heads)
    assert counts.total == sum(p.numel() for p in model.parameters())
    embedding = {model.embedding.weight, model.unembedding.weight}
    assert counts.embedding == sum(p.numel() for p in embedding)
    assert counts.non_embedding + counts.embedding == counts.total


def test_parameters_are_equal_for_every_n() -> None:
    totals = {count_parameters(tiny_backbone(n_layers=9), HeadsConfig(n_future=n)).total for n in range(1, 9)}
    assert len(totals) == 1


def test_flops_against_a_count_by_hand() -> None:
    """d 256, 6 layers, ffn 768, context 512: 6 x (5.11 M + n V d) + 4.7 M."""
    backbone = BackboneConfig(vocab_size=4096, dim=256, n_layers=6, n_heads=4, ffn_dim=768)
    layers = 6 * (4 * 256**2 + 3 * 256 * 768)
    for n in (1, 4):
        expected = 6 * (layers + n * 4096 * 256) + 6 * 6 * 512 * 256
        assert flops_per_token(backbone, HeadsConfig(n_future=n), context=512) == expected


def test_without_matching_the_trunk_keeps_its_layers() -> None:
    assert len(trunk_widths(tiny_backbone(n_layers=32), HeadsConfig(n_future=4))) == 28
    assert len(trunk_widths(tiny_backbone(n_layers=32), HeadsConfig(n_future=4, match="none"))) == 31


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: HeadsConfig(n_future=0), r"model\.heads\.n_future is 0"),
        (
            lambda: MTPModel(tiny_backbone(n_layers=4), HeadsConfig(n_future=4)),
            "take 4 layers and leave the trunk none",
        ),
        (lambda: tiny_backbone(dim=30, n_heads=4), r"model\.backbone\.dim is 30"),
        (lambda: tiny_backbone(n_heads=4, n_kv_heads=3), r"n_kv_heads is 3"),
        (lambda: tiny_backbone(vocab_size=0), r"model\.backbone\.vocab_size is 0"),
        (lambda: tiny_backbone(ffn_dim=0), r"model\.backbone\.ffn_dim is 0"),
    ],
)
def test_impossible_models_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_the_meta_device_draws_nothing(kind: HeadKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a draw there torch imports its compiler, which doubled the start of every command that loads a model."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr(torch.Tensor, "normal_", refused)
    with torch.device("meta"):
        MTPModel(tiny_backbone(n_layers=4), HeadsConfig(n_future=2, kind=kind))
    with pytest.raises(AssertionError, match="drawn"):
        MTPModel(tiny_backbone(n_layers=4), HeadsConfig(n_future=2, kind=kind))
