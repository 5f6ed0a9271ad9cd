"""Weights of one model as the start of another: head 1 is the source's, bit for bit; what cannot be is refused."""

from dataclasses import replace

import pytest
import torch
from tiny import KINDS, VARIANTS, tiny_backbone
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.initial import InitConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.transfer import Source, fill, make_plan, other_positions, summary

TOKENS = torch.arange(24).view(2, 12) * 7 % 16
STACKED = [kind for kind in KINDS if kind != "linear"]


pytestmark = pytest.mark.usefixtures("shapes_unchecked")


def source_of(heads: HeadsConfig, n_layers: int = 4, **changes: object) -> tuple[MTPModel, Source]:
    torch.manual_seed(1)
    model = MTPModel(tiny_backbone(n_layers=n_layers, **changes), heads)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.normal_(1.0, 0.2)  # norms that are no ones
    return model, Source("base.ckpt", model.config, heads, model.state_dict())


def begun(source: Source, backbone: BackboneConfig, shape: HeadsConfig, **init: str) -> MTPModel:
    torch.manual_seed(2)
    model = MTPModel(backbone, shape)
    fill(model, source, make_plan(source, model, InitConfig("base.ckpt", **init)))  # type: ignore[arg-type]
    return model


def path_layers(model: MTPModel) -> int:
    on_path = {"linear": 0, "anticausal": model.n_future * model.heads_config.layers}
    return len(model.trunk) + on_path.get(model.heads_config.kind, model.heads_config.layers)


def ahead(model: MTPModel) -> Tensor:
    """The true tokens of every target, for kinds that read them."""
    return torch.stack([TOKENS.roll(-i, 1) for i in range(1, model.n_future + 1)])


NEXT = HeadsConfig(n_future=1)


@pytest.mark.parametrize("kind", STACKED)
def test_first_strips_any_model_to_its_next_token_exactly(kind: str) -> None:
    there, source = source_of(HeadsConfig(n_future=3, kind=kind, match="none"))
    ours = begun(source, replace(source.backbone, n_layers=path_layers(there)), NEXT, heads="first")
    assert torch.equal(ours.next_token_states(TOKENS), there.next_token_states(TOKENS))
    assert torch.equal(ours.logits(TOKENS)[0], there.unembedding(there.next_token_states(TOKENS)))


@pytest.mark.parametrize("heads", [v for v in VARIANTS.values() if v.kind != "anticausal"], ids=str)
def test_head_1_is_the_sources_whatever_heads_are_added(heads: HeadsConfig) -> None:
    there, source = source_of(NEXT)
    expected, heads = there.next_token_states(TOKENS), replace(heads, match="none")
    torch.manual_seed(2)
    drawn = MTPModel(source.backbone, heads).state_dict()
    for policy in ("copy", "identity", "random"):
        if heads.kind in ("next_latent", "fetch") and policy == "copy":
            continue  # refused
        ours = begun(source, source.backbone, heads, heads=policy)
        assert len(ours.trunk) == 4 - (0 if heads.kind == "linear" else heads.layers)
        assert torch.equal(ours.next_token_states(TOKENS), expected)
        further = [n for n, w in drawn.items() if n.startswith("heads.1.") and w.ndim > 1]
        if heads.kind in ("next_latent", "fetch"):  # of whose network one map is zero, the others as they are drawn
            further = [n for n in further if n in ("heads.1.last.weight", "heads.1.wo.weight")]
            assert len(further) == 1
        assert all(torch.equal(drawn[n], ours.state_dict()[n]) == (policy == "random") for n in further)


def test_two_layers_a_head_are_the_same_path_cut_elsewhere() -> None:
    there, source = source_of(NEXT)
    ours = begun(source, source.backbone, HeadsConfig(n_future=2, layers=2, match="none"), heads="copy")
    assert (len(ours.trunk), len(ours.heads[1])) == (2, 2)
    assert torch.equal(ours.next_token_states(TOKENS), there.next_token_states(TOKENS))
    assert torch.equal(ours.heads[1][0].attention.wq.weight, there.trunk[2].attention.wq.weight)


@pytest.mark.parametrize(("kind", "exact"), [("parallel", True), ("causal", True), ("linear", True),
                                              ("sequential", False), ("recurrent", False),
                                              ("next_latent", True)])  # fmt: skip
def test_identity_passes_what_a_head_reads(kind: str, exact: bool) -> None:
    """Parallel heads read z; causal ones the head before; the join of the sequential kinds norms what it passes."""
    there, source = source_of(NEXT, init_std=0.5)
    ours = begun(source, source.backbone, HeadsConfig(n_future=3, kind=kind, match="none"), heads="identity")
    states = ours(TOKENS, ahead_NBT=ahead(ours))
    z = ours.run_trunk(TOKENS, ours.rotary(torch.arange(12)))
    passed = ours.norm(z) if kind in ("parallel", "linear") else there.next_token_states(TOKENS)
    for state in states[1:]:
        assert torch.equal(state, passed) if exact else torch.allclose(state, passed, rtol=2e-3, atol=2e-3)


def test_copies_are_head_1_of_the_source() -> None:
    there, source = source_of(HeadsConfig(n_future=1, replicate_unembedding=True), tie_embeddings=True)
    heads = HeadsConfig(n_future=3, kind="sequential", replicate_unembedding=True, match="none")
    ours = begun(source, replace(source.backbone, tie_embeddings=False), heads, heads="copy")
    for i in (1, 2):
        for name, weight in there.heads[0].state_dict().items():
            assert torch.equal(ours.heads[i].stack.state_dict()[name], weight)
        assert torch.equal(ours.heads[i].projection.weight, torch.eye(32, 64))
        assert torch.equal(ours.further_unembeddings[i - 1].weight, there.embedding.weight)
    assert torch.equal(ours.unembedding.weight, there.embedding.weight)


@pytest.mark.parametrize("heads", VARIANTS.values(), ids=VARIANTS)
def test_keep_is_the_very_model(heads: HeadsConfig) -> None:
    _, source = source_of(heads, n_layers=7)
    ours = begun(source, replace(source.backbone, rope_theta=5e5, init_std=0.1), heads)
    assert {n: w.tolist() for n, w in ours.state_dict().items()} == {n: w.tolist() for n, w in source.weights.items()}
    assert ours.config.rope_theta == 5e5


def test_another_vocabulary_keeps_all_but_the_two_matrices() -> None:
    there, source = source_of(NEXT)
    ours = begun(source, replace(source.backbone, vocab_size=20), NEXT, unembedding="random")
    assert ours.embedding.weight.shape == (20, 32)
    names = [n for n, w in ours.state_dict().items() if w.shape == source.weights[n].shape
             and torch.equal(w, source.weights[n])]  # fmt: skip
    assert set(source.weights) - set(names) == {"embedding.weight", "unembedding.weight"}
    kept = begun(source, source.backbone, NEXT, unembedding="random")
    assert torch.equal(kept.embedding.weight, there.embedding.weight)
    assert not torch.equal(kept.unembedding.weight, there.unembedding.weight)
    drawn = begun(source, source.backbone, NEXT, vocabulary="random")
    names = [n for n, w in drawn.state_dict().items() if torch.equal(w, source.weights[n])]
    assert set(source.weights) - set(names) == {"embedding.weight", "unembedding.weight"}


@pytest.mark.parametrize("drawn", ["unembedding", "vocabulary"])
def test_unembeddings_that_are_drawn_need_not_be_as_many(drawn: str) -> None:
    _, source = source_of(HeadsConfig(2, replicate_unembedding=True, match="none"))
    ours = begun(source, source.backbone, HeadsConfig(2, match="none"), **{drawn: "random"})
    assert torch.equal(ours.heads[1][0].ffn.gate.weight, source.weights["heads.1.0.ffn.gate.weight"])


def test_the_summary_names_what_was_made_and_what_was_left() -> None:
    _, source = source_of(HeadsConfig(n_future=2, match="none"))
    model = MTPModel(source.backbone, HeadsConfig(n_future=3, kind="sequential", match="none"))
    said = summary(source, make_plan(source, model, InitConfig("base.ckpt", heads="random")))
    assert "drawn: heads.1.*, heads.2.*; not taken: heads.1.*" in said
    assert said.startswith("weights of 'base.ckpt': 39 taken; ")
    said = summary(source, make_plan(source, model, InitConfig("base.ckpt", heads="identity")))
    assert "copied: heads.1.*, heads.2.*; filled: heads.1.*, heads.2.*" in said


REFUSED = {
    "keep, other n": (HeadsConfig(4), HeadsConfig(2), {}, {}, r"'keep'.* has 4 heads of kind 'parallel', this one 2"),
    "keep, other kind": (HeadsConfig(2), HeadsConfig(2, "causal"), {}, {}, "this one 2 of kind 'causal'"),
    "first, n": (HeadsConfig(2), HeadsConfig(2), {"heads": "first"}, {}, "n_future is 2: set it to 1"),
    "matched trunk": (
        NEXT, HeadsConfig(4), {"heads": "copy"}, {},
        "has 8 layers in 'base.ckpt' and 5 here .*set model.backbone.n_layers: 8 and model.heads.match: none",
    ),
    "matched source": (HeadsConfig(4), NEXT, {"heads": "first"}, {}, "set model.backbone.n_layers: 5 and"),
    "shaved source": (
        HeadsConfig(3, "sequential"), NEXT, {"heads": "first"}, {"n_layers": 6},
        r"SwiGLUs of 39, 40 columns, which only the same heads .* train it with model.heads.match: none",
    ),
    "narrower": (
        NEXT, NEXT, {}, {"ffn_dim": 40},
        r"'trunk.0.ffn.gate.weight' is of shape \(48, 32\), and .* of \(40, 32\); set model.backbone.ffn_dim: 48",
    ),
    "dim": (NEXT, NEXT, {}, {"dim": 64}, r"of shape \(16, 32\), .* of \(16, 64\); set model.backbone.dim: 32"),
    "groups": (NEXT, NEXT, {}, {"n_kv_heads": 1}, r"wk.weight' is of shape \(32, 32\).*n_kv_heads: 2"),
    "attention heads": (NEXT, NEXT, {}, {"n_heads": 4}, "n_heads is 4, and the model in 'base.ckpt' has 2"),
    "all at once": (
        NEXT, NEXT, {}, {"n_layers": 4, "dim": 64, "ffn_dim": 40, "n_heads": 8, "norm_eps": 1e-6, "qk_norm": True},
        "n_layers: 8 and model.heads.match: none; and model.backbone.dim: 32, model.backbone.n_heads: 2, "
        "model.backbone.n_kv_heads: 2, model.backbone.ffn_dim: 48, model.backbone.norm_eps: 1e-05, "
        "model.backbone.qk_norm: False$",
    ),
    "norms of their own": (
        HeadsConfig(2, "sequential", norms="own"), HeadsConfig(2, "sequential"), {}, {},
        "model.heads.norms is 'shared', in 'base.ckpt' 'own'",
    ),
    "layers of heads": (
        HeadsConfig(2, layers=2, match="none"), HeadsConfig(2, match="none"), {}, {},
        "model.heads.layers is 1, in 'base.ckpt' 2: set the same",
    ),
    "offsets": (
        HeadsConfig(2, offsets=(1, 3), match="none"), HeadsConfig(2, match="none"), {}, {},
        r"model.heads.offsets is \[1, 2\], in 'base.ckpt' \[1, 3\]: set the same",
    ),
    "norms": (NEXT, NEXT, {}, {"norm_eps": 1e-6}, "norm_eps is 1e-06, and the model in 'base.ckpt' has 1e-05"),
    "tokens": (NEXT, NEXT, {}, {"vocab_size": 20}, "16 tokens there and 20 here .*vocabulary: random"),
    "tied": (NEXT, NEXT, {}, {"tie_embeddings": True}, "tie_embeddings is true, and 'base.ckpt' has two matrices"),
    "anticausal": (NEXT, HeadsConfig(2, "anticausal"), {"heads": "copy"}, {}, "reads heads 2 .. n"),
    "a matrix": (HeadsConfig(2, "linear"), NEXT, {"heads": "first"}, {}, "is a matrix, as only kind 'linear' has"),
    "unembeddings": (
        HeadsConfig(2, replicate_unembedding=True, match="none"), HeadsConfig(2, match="none"), {}, {},
        "replicate_unembedding is False, in 'base.ckpt' True",
    ),
    "components": (
        HeadsConfig(2, "mixture", match="none", mixture_rank=3), HeadsConfig(2, "mixture", match="none"), {}, {},
        "model.heads.mixture_rank is 2, in 'base.ckpt' 3: set the same",
    ),
    "width": (
        HeadsConfig(2, "next_latent", match="none"), HeadsConfig(2, "next_latent", match="none", latent_width=8),
        {}, {}, "model.heads.latent_width is 8, in 'base.ckpt' 64: set the same",
    ),
    "rank": (
        HeadsConfig(2, "markov", match="none", markov_rank=4), HeadsConfig(2, "markov", match="none", markov_rank=8),
        {}, {}, "model.heads.markov_rank is 8, in 'base.ckpt' 4: set the same",
    ),
    "fetch": (NEXT, HeadsConfig(n_future=2, kind="fetch", match="none"), {"heads": "copy"}, {},
              "the network of kind 'fetch' is no copy of a head; give identity or random"),
    "network": (NEXT, HeadsConfig(n_future=2, kind="next_latent", match="none"), {"heads": "copy"}, {},
                "the network of kind 'next_latent' is no copy of a head; give identity or random"),
}  # fmt: skip


@pytest.mark.parametrize(("there", "here", "init", "changes", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_says_what_to_set(
    there: HeadsConfig, here: HeadsConfig, init: dict[str, str], changes: dict[str, object], says: str
) -> None:
    _, source = source_of(there, n_layers=8)
    with pytest.raises(InputError, match=says):
        begun(source, replace(source.backbone, **changes), here, **init)  # type: ignore[arg-type]


def test_what_a_message_says_to_set_works() -> None:
    there, source = source_of(HeadsConfig(4), n_layers=8)
    ours = begun(source, replace(source.backbone, n_layers=5), replace(NEXT, match="none"), heads="first")
    assert torch.equal(ours.next_token_states(TOKENS), there.next_token_states(TOKENS))


def test_positions_that_rotate_otherwise_are_named() -> None:
    _, source = source_of(NEXT)
    assert other_positions(source, source.backbone) == ""
    said = other_positions(source, replace(source.backbone, rope_theta=5e5))
    assert said == "; positions rotate otherwise: model.backbone.rope_theta 500000.0, there 10000.0"


def test_nan_in_the_source_is_refused_and_nothing_copied() -> None:
    _, source = source_of(NEXT)
    source.weights["trunk.2.ffn.up.weight"][0, 0] = float("nan")
    model = MTPModel(source.backbone, NEXT)
    before = {n: w.clone() for n, w in model.state_dict().items()}
    with pytest.raises(InputError, match=r"'trunk\.2\.ffn\.up\.weight' holds NaN"):
        fill(model, source, make_plan(source, model, InitConfig("base.ckpt")))
    assert all(torch.equal(before[n], w) for n, w in model.state_dict().items())


@pytest.mark.parametrize(("arguments", "says"), [
    ({"path": None, "heads": "copy"}, "init.heads is 'copy', and model.init.path names no weights"),
    ({"path": None, "unembedding": "random"}, "init.unembedding is 'random'"),
    ({"path": " "}, "model.init.path is empty"),
])  # fmt: skip
def test_settings_that_cannot_be(arguments: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        InitConfig(**arguments)  # type: ignore[arg-type]
