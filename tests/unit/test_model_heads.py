"""Every kind of heads: against its equation, blind to the future, at equal parameters, counted right, decodable."""

from typing import Any

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from tiny import KINDS, VARIANTS, tiny_backbone
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import TEACHER_FORCED, BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import count_parameters, flops_per_token, trunk_widths
from mtp_lightning.model.mtp import MTPModel

NARROW = HeadsConfig(n_future=4, kind="next_latent", latent_width=24)
EACH = pytest.mark.parametrize("heads", [*VARIANTS.values(), NARROW], ids=[*VARIANTS, "narrow next_latent"])


def random_model(heads: HeadsConfig, n_layers: int = 8, **backbone: object) -> MTPModel:
    """In float64, with weights large enough that every part matters, norms included."""
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_layers=n_layers, **backbone), heads).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return model


def tokens_and_ahead(heads: HeadsConfig, T: int = 9, B: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    window = torch.randint(0, 16, (B, T + heads.horizon))
    return window[:, :T], torch.stack([window[:, place : place + T] for place in heads.head_offsets])


def by_equation(model: MTPModel, tokens: Tensor, ahead: Tensor) -> Tensor:
    """Hidden states by the equations of `HeadsConfig.kind`, written out."""
    heads, n = model.heads_config, model.n_future
    where = (model.rotary(torch.arange(tokens.shape[1])), None)
    z = model.run_trunk(tokens, *where)

    def H(i: int, x: Tensor) -> Tensor:  # noqa: N802
        if heads.kind == "linear":
            return x @ model.heads[i - 1].projection.weight.t()
        for block in model.heads[i - 1]:
            x = block(x, *where)
        return x

    def M(i: int, h: Tensor, e: Tensor) -> Tensor:  # noqa: N802
        join = model.heads[1 if heads.kind == "recurrent" else i - 1]
        x = torch.cat([join.hidden_norm(h), join.embedding_norm(e)], -1) @ join.projection.weight.t()
        for block in join.stack:
            x = block(x, *where)
        return x

    if heads.kind in ("parallel", "linear", "markov", "mixture"):
        h = [H(i, z) for i in range(1, n + 1)]
    elif heads.kind == "causal":
        h = [H(1, z)]
        for i in range(2, n + 1):
            h.append(H(i, h[-1]))
    elif heads.kind == "anticausal":
        h = [H(n, z)]
        for i in range(n - 1, 0, -1):
            h.insert(0, H(i, h[0]))
    elif heads.norms == "own":
        h = [model.norm(H(1, z))]
        for i in range(2, n + 1):
            join = model.heads[1 if heads.kind == "recurrent" else i - 1]
            h.append(join.norm(M(i, h[-1], model.embedding.weight[ahead[i - 2]])))
        return torch.stack(h)
    elif heads.kind == "next_latent":
        h, f = [model.norm(H(1, z))], model.heads[1]
        for i in range(2, n + 1):
            x = torch.cat([model.embedding.weight[ahead[i - 2]], h[-1]], -1)
            x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * f.norm.weight
            for w in (f.first.weight, f.second.weight):
                x = x @ w.t()
                x = x * (1 + torch.erf(x / 2**0.5)) / 2
            h.append(h[-1] + x @ f.last.weight.t())
        return torch.stack(h)
    elif heads.kind == "fetch":
        h, f = [model.norm(H(1, z))], model.heads[1]
        for i in range(2, n + 1):
            e = [model.embedding.weight[read] for read in (tokens, *ahead[: i - 1])]
            s = [
                torch.nn.functional.layer_norm(x + f.gain * h[0], (32,), f.slot_norm.weight, f.slot_norm.bias)
                for x in e
            ]
            parts = []
            for a, own in enumerate((slice(16), slice(16, None))):  # two attention heads
                q = (s[-1] @ f.wq.weight.t())[..., own]
                scores = [(q * (x @ f.wk.weight.t())[..., own]).sum(-1) / 4 + f.pair_bias.view(2, n - 1, n)[a, i - 2, k]
                          for k, x in enumerate(s)]  # fmt: skip
                p = torch.stack(scores).softmax(0)
                parts.append(sum(p[k][..., None] * (x @ f.wv.weight.t())[..., own] for k, x in enumerate(s)))
            h.append(f.norm(h[0] + torch.cat(parts, -1) @ f.wo.weight.t()))
        return torch.stack(h)
    elif heads.kind in ("sequential", "recurrent"):
        h = [H(1, z)]
        for i in range(2, n + 1):
            h.append(M(i, h[-1], model.embedding.weight[ahead[i - 2]]))
    else:
        h = [H(1, z)]
    if heads.kind == "mixture":
        assert model.mixture is not None
        h = list(model.norm(torch.stack(h)))
        gate = torch.zeros_like(h[0])
        gate[..., :2] = h[1] @ model.mixture.gate.weight.t()
        parts = [c.weight.view(2, 32, 32) for c in model.mixture.components]
        return torch.stack([h[0], gate, *(h[max(i, 1)] @ C.t() for i, part in enumerate(parts) for C in part)])
    if heads.kind == "markov":
        assert model.before is not None
        before = [torch.zeros(*tokens.shape, 64), *(model.before.weight[ahead[i - 2]] for i in range(2, n + 1))]
        return torch.cat([model.norm(torch.stack(h)), torch.stack(before)], -1)
    return model.norm(torch.stack(h))


@EACH
def test_hidden_states_follow_the_equation(heads: HeadsConfig) -> None:
    model = random_model(heads)
    tokens, ahead = tokens_and_ahead(heads)
    torch.testing.assert_close(model(tokens, None, ahead), by_equation(model, tokens, ahead))


@EACH
def test_no_head_sees_its_target(heads: HeadsConfig) -> None:
    """Head i at position t may know everything before t + places[i - 1], and nothing from there on."""
    model = random_model(heads)
    T = 6
    torch.manual_seed(2)
    window = torch.randint(0, 16, (1, T + heads.horizon))

    def hidden(window: Tensor) -> Tensor:
        ahead = torch.stack([window[:, place : place + T] for place in heads.head_offsets])
        return model(window[:, :T], None, ahead)  # type: ignore[no-any-return]

    before = hidden(window)
    for place in range(T + heads.horizon):
        changed = window.clone()
        changed[0, place] = (changed[0, place] + 1) % 16
        moved = (hidden(changed) != before).any(-1)[:, 0]  # (S, T)
        for i, row in enumerate(moved):
            sees_up_to = [
                t + (heads.head_offsets[i - 1] if heads.kind in (*TEACHER_FORCED, "markov") and i else 0)
                for t in range(T)
            ]
            for t in range(T):
                assert not (moved[i, t] and place > sees_up_to[t]), f"head {i + 1} at {t} sees token {place}"
                assert heads.components or sees_up_to[t] < t + heads.head_offsets[i]
            assert place >= T or row[place:].all()


def test_a_mixtures_components_begin_as_their_heads_but_for_a_little_noise() -> None:
    mixture = MTPModel(tiny_backbone(n_layers=8), HeadsConfig(n_future=3, kind="mixture", mixture_rank=4)).mixture
    assert mixture is not None
    noise = torch.cat([part.weight.view(4, 32, 32) - torch.eye(32) for part in mixture.components])
    assert noise.square().sum(-1).mean().sqrt().item() == pytest.approx(0.02, rel=0.1), "moves a state by init_std"
    assert noise.flatten(1).std(0).min() > 0, "each by its own"


@pytest.mark.parametrize("kind", [*TEACHER_FORCED, "markov"])
def test_teacher_forced_heads_ask_for_their_tokens(kind: Any) -> None:
    model = random_model(HeadsConfig(n_future=2, kind=kind))
    with pytest.raises(ValueError, match="give ahead_NBT"):
        model(torch.zeros(1, 4, dtype=torch.long))


@EACH
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("match", ["parameters", "none"])
def test_counts_by_formula_are_the_models(heads: HeadsConfig, tie: bool, match: Any) -> None:
    heads = HeadsConfig(**{**vars(heads), "match": match})
    backbone = tiny_backbone(n_layers=8, n_kv_heads=1, tie_embeddings=tie)
    with torch.device("meta"):
        model = MTPModel(backbone, heads)
    counts = count_parameters(backbone, heads)
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.non_embedding + counts.embedding == counts.total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("replicate", [False, True])
def test_every_kind_has_the_parameters_of_the_next_token_model(kind: Any, n: int, replicate: bool) -> None:
    """At the paper's size 30M, within the two norms of one layer; byte vocabulary, so that every matrix fits in."""
    if replicate and kind in (
        "none",
        "order",
        "markov",
        "next_latent",
        "registers",
        "mixture",
        "future_summary",
        "fetch",
    ):
        pytest.skip("refused")
    backbone = BackboneConfig(vocab_size=256, dim=512, n_layers=10, n_heads=8)
    arm = count_parameters(backbone, HeadsConfig(n_future=n, kind=kind, replicate_unembedding=replicate))
    plain = count_parameters(backbone, HeadsConfig())
    assert abs(arm.total - plain.total) <= 2 * backbone.dim
    widths = trunk_widths(backbone, HeadsConfig(n_future=n, kind=kind, replicate_unembedding=replicate))
    assert max(widths) - min(widths) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_match_at_a_large_vocabulary_too(kind: Any) -> None:
    backbone = BackboneConfig(vocab_size=32000, dim=512, n_layers=10, n_heads=8)
    arm = count_parameters(backbone, HeadsConfig(n_future=4, kind=kind))
    assert abs(arm.total - count_parameters(backbone, HeadsConfig()).total) <= 2 * backbone.dim


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 4),
    n_layers=st.integers(2, 12),
    dim=st.sampled_from([16, 64, 512, 2**20]),
    ffn=st.sampled_from([1, 8, 32, 3000]),
    vocab_size=st.sampled_from([16, 256, 32000]),
)
def test_parameters_match_however_wide_the_layers_are(
    kind: Any, n: int, n_layers: int, dim: int, ffn: int, vocab_size: int
) -> None:
    """A SwiGLU can be too narrow to give what half a layer has: no width is below 1."""
    backbone = BackboneConfig(vocab_size=vocab_size, dim=dim, n_layers=n_layers, n_heads=2, ffn_dim=ffn)
    heads = HeadsConfig(n_future=n, kind=kind)
    try:
        widths = trunk_widths(backbone, heads)
    except InputError:  # no layer would be left
        reject()
    assert min(widths) >= 1
    assert max(widths) - min(widths) <= 1
    assert abs(count_parameters(backbone, heads).total - count_parameters(backbone, HeadsConfig()).total) <= 2 * dim


def test_unembeddings_that_do_not_fit_are_refused() -> None:
    backbone = BackboneConfig(vocab_size=32000, dim=512, n_layers=10, n_heads=8)
    with pytest.raises(InputError, match=r"and their own unembeddings take .* leave the trunk none"):
        trunk_widths(backbone, HeadsConfig(n_future=4, replicate_unembedding=True))


@EACH
def test_flops_are_what_torch_counts(heads: HeadsConfig) -> None:
    """Weights' products to the last one; attention is counted over the whole square by torch, over half of it here."""
    backbone = tiny_backbone(n_layers=8, vocab_size=48, attend_across_documents=False)
    model = MTPModel(backbone, heads)
    tokens, ahead = tokens_and_ahead(heads, T=16)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        offsets = torch.tensor([1, 3]) if heads.kind == "registers" else None
        h = model(tokens, torch.zeros_like(tokens), ahead, offsets_B=offsets)
        own = [model.unembedding, *model.further_unembeddings]
        gate: Any = h[1].sum() if heads.components else 0  # which is no state
        h = torch.cat((h[:1], h[2:])) if heads.components else h
        hidden = h if heads.replicate_unembedding else [h] * len(own)
        (gate + sum(u(x).sum() for u, x in zip(own, hidden))).backward()  # type: ignore[union-attr]
    counted = {str(op): flops / tokens.numel() for op, flops in counter.get_flop_counts()["Global"].items()}
    assert set(counted) == {"aten.mm", "aten.bmm"}
    attention = counted["aten.bmm"] / 2
    slots = 6 * backbone.dim * (heads.n_future - 1) * heads.n_future if heads.kind == "fetch" else 0
    assert (attention - slots) % (6 * 16 * backbone.dim) == 0
    assert counted["aten.mm"] + attention == flops_per_token(backbone, heads, context=16)


@EACH
def test_autocast_leaves_hidden_states_in_full_precision(heads: HeadsConfig) -> None:
    model = random_model(heads).float()
    tokens, ahead = tokens_and_ahead(heads)
    dtypes = []
    model.heads.register_forward_hook(lambda module, args, h: dtypes.append(h.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens, None, ahead)
    assert dtypes == [torch.float32]


@pytest.mark.parametrize(
    "kind",
    [
        "parallel",
        "linear",
        "causal",
        "sequential",
        "recurrent",
        "normed sequential",
        "markov",
        "next_latent",
        "mixture",
        "fetch",
    ],
)
def test_a_stopped_gradient_spares_trunk_and_embedding_alone(kind: Any) -> None:
    heads = VARIANTS[kind]
    model = random_model(heads)
    tokens, ahead = tokens_and_ahead(heads)
    model(tokens, None, ahead, True)[1:].square().sum().backward()
    trunk = [*model.trunk.parameters(), model.embedding.weight]
    if kind not in ("parallel", "linear", "markov", "mixture"):
        trunk += [*model.heads[0].parameters()]
    if heads.norms == "own" or kind in ("next_latent", "fetch"):
        trunk += [model.norm.weight]
    assert not any(p.grad is not None and p.grad.any() for p in trunk)
    assert all(p.grad is not None and p.grad.any() for head in list(model.heads)[1:] for p in head.parameters())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_future": 2, "layers": 0}, r"model\.heads\.layers is 0"),
        ({"n_future": 2, "kind": "linear", "layers": 2}, "heads of kind 'linear' have no layers to set"),
        ({"n_future": 2, "kind": "none", "replicate_unembedding": True}, "nothing to replicate the unembedding for"),
        ({"n_future": 2, "offsets": (1, 2, 3)}, r"offsets has 3 entries, and model\.heads\.n_future is 2"),
        ({"n_future": 2, "offsets": (2, 3)}, "has to begin with 1 and increase strictly"),
        ({"n_future": 3, "offsets": (1, 3, 3)}, "has to begin with 1 and increase strictly"),
        ({"n_future": 2, "kind": "order", "offsets": (1, 3)}, "'order' ranks all .* leave offsets out"),
        (
            {"n_future": 2, "kind": "future_summary", "offsets": (1, 3)},
            "'future_summary' sums up all .* leave offsets out",
        ),
        ({"n_future": 2, "kind": "markov", "offsets": (1, 3)}, "read the token before their target"),
        ({"n_future": 2, "kind": "registers", "offsets": (1, 3)}, r"registers look 1 \.\. n_future tokens ahead"),
        ({"n_future": 2, "kind": "registers", "replicate_unembedding": True}, "'registers' has no further heads"),
        ({"n_future": 2, "kind": "registers", "layers": 2}, "heads of kind 'registers' have no layers to set"),
        ({"n_future": 2, "kind": "markov", "replicate_unembedding": True}, "share the unembedding"),
        ({"n_future": 2, "markov_rank": 8}, "markov_rank is 8, which goes with kind 'markov'"),
        ({"n_future": 2, "kind": "markov", "markov_rank": 0}, r"model\.heads\.markov_rank is 0"),
        ({"n_future": 2, "kind": "next_latent", "offsets": (1, 3)}, "'next_latent' read the token before their target"),
        ({"n_future": 2, "kind": "next_latent", "replicate_unembedding": True}, "of the states that they foresee"),
        ({"n_future": 2, "kind": "next_latent", "layers": 2}, "have no layers to set"),
        ({"n_future": 2, "kind": "next_latent", "norms": "own"}, "and kind is 'next_latent'"),
        ({"n_future": 2, "latent_width": 8}, "latent_width is 8, which goes with kind 'next_latent'"),
        ({"n_future": 2, "kind": "next_latent", "latent_width": 0}, r"model\.heads\.latent_width is 0"),
        ({"n_future": 2, "kind": "fetch", "offsets": (1, 3)}, "'fetch' read the tokens before their target"),
        ({"n_future": 2, "kind": "fetch", "replicate_unembedding": True}, "the unembedding of their state"),
        ({"n_future": 2, "kind": "fetch", "layers": 2}, "heads of kind 'fetch' have no layers to set"),
        ({"n_future": 2, "kind": "mixture", "offsets": (1, 3)}, "read the tokens before their target"),
        ({"n_future": 2, "kind": "mixture", "replicate_unembedding": True}, "share one with all components"),
        ({"n_future": 2, "mixture_rank": 8}, "mixture_rank is 8, which goes with kind 'mixture'"),
        ({"n_future": 2, "kind": "mixture", "mixture_rank": 1}, r"model\.heads\.mixture_rank is 1"),
        (
            {"n_future": 2, "norms": "own"},
            "'own', which goes with kind sequential or recurrent, and kind is 'parallel'",
        ),
    ],
)
def test_heads_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        HeadsConfig(**settings)


def test_a_mixture_of_more_components_than_coordinates_is_refused() -> None:
    with pytest.raises(InputError, match=r"mixture_rank is 33, and model\.backbone\.dim is 32: .* at most"):
        trunk_widths(tiny_backbone(), HeadsConfig(n_future=2, kind="mixture", mixture_rank=33, match="none"))


def test_a_head_of_more_layers_than_the_model_is_refused() -> None:
    with pytest.raises(InputError, match="head 1 takes its layers off the trunk"):
        trunk_widths(tiny_backbone(n_layers=2), HeadsConfig(layers=2, match="none"))
