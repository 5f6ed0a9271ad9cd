"""Attention scores on hand-built patterns; patterns against the model's own attention; mean ablation; a model whose
weights are set by hand so that it does induction and nothing else."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import VARIANTS, tiny_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from mtp_lightning.model.attention import Attention, rotate
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.documents import document_mask
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.rope import Rotary
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.probes import attention
from mtp_lightning.probes.ablation import mean_ablation
from mtp_lightning.probes.attention import (
    AttentionScores,
    attention_layers,
    attention_pattern,
    attention_scores,
    over_patterns,
    prefix_matching,
    previous_token,
)

MakeModel = Callable[..., MTPModel]
EACH = pytest.mark.parametrize("heads", VARIANTS.values(), ids=VARIANTS.keys())


def problem(heads: HeadsConfig, rows: int = 3, **backbone: object) -> tuple[MTPModel, Tensor]:
    """A model with weights large enough that attention is uneven, and windows of 9 inputs that repeat tokens."""
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(**{"n_layers": 8, "init_std": 0.3} | backbone), heads).eval()
    return model, torch.randint(0, 5, (rows, 9 + heads.horizon))


def one_hot(targets: list[int]) -> Tensor:
    """The pattern (1, 1, T, T) of a head that attends from each position to one other."""
    return F.one_hot(torch.tensor(targets), len(targets)).float()[None, None]


def prefix_by_definition(pattern_BHTT: Tensor, tokens_BT: Tensor) -> Tensor:
    shares = []
    for pattern_HTT, tokens in zip(pattern_BHTT, tokens_BT.tolist()):
        for t in range(len(tokens)):
            earlier = [s for s in range(t) if tokens[s] == tokens[t]]
            if earlier:
                shares.append(torch.stack([pattern_HTT[:, t, s + 1] for s in earlier]).sum(0))
    return torch.stack(shares).mean(0)


def previous_by_definition(pattern_BHTT: Tensor) -> Tensor:
    B, _, T, _ = pattern_BHTT.shape
    return torch.stack([pattern_BHTT[b, :, t, t - 1] for b in range(B) for t in range(1, T)]).mean(0)


def test_hand_built_heads_have_known_scores() -> None:
    tokens = torch.tensor([[7, 2, 5, 9, 7, 2, 5, 9]])
    uniform = torch.ones(8, 8).tril() / torch.arange(1, 9)[:, None]
    heads = {
        "induction": one_hot([0, 0, 0, 0, 1, 2, 3, 4]),
        "duplicate token": one_hot([0, 0, 0, 0, 0, 1, 2, 3]),
        "two after": one_hot([0, 0, 0, 0, 2, 3, 4, 5]),
        "previous token": one_hot([0, 0, 1, 2, 3, 4, 5, 6]),
        "uniform": uniform[None, None],
    }
    pattern = torch.cat(list(heads.values()), dim=1)
    matched = dict(zip(heads, prefix_matching(pattern, tokens).tolist()))
    assert matched["induction"] == 1.0
    assert matched["duplicate token"] == matched["two after"] == matched["previous token"] == 0.0
    assert matched["uniform"] == pytest.approx((1 / 5 + 1 / 6 + 1 / 7 + 1 / 8) / 4)
    before = dict(zip(heads, previous_token(pattern).tolist()))
    assert before["previous token"] == 1.0
    assert before["uniform"] == pytest.approx(sum(1 / n for n in range(2, 9)) / 7)
    assert before["induction"] == pytest.approx(1 / 7)  # from position 1 to 0, while nothing repeats


def test_an_induction_head_may_share_its_attention_among_earlier_occurrences() -> None:
    tokens = torch.tensor([[3, 3, 1, 3]])
    pattern = one_hot([0, 1, 0, 0])
    pattern[0, 0, 3] = torch.tensor([0.0, 0.25, 0.75, 0.0])  # 3 came at 0 and 1: 1 and 2 followed it
    assert prefix_matching(pattern, tokens).item() == 1.0


@given(st.integers(0, 10**6))
def test_scores_of_any_pattern_are_their_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 4, (3, 7), generator=generator)
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
    pattern = torch.randn(3, 2, 7, 7, generator=generator).masked_fill(hidden, float("-inf")).softmax(-1)
    torch.testing.assert_close(prefix_matching(pattern, tokens), prefix_by_definition(pattern, tokens))
    torch.testing.assert_close(previous_token(pattern), previous_by_definition(pattern))


@pytest.mark.parametrize(
    ("heads", "names"),
    [
        (HeadsConfig(2), ["trunk_1", "trunk_2", "head_1", "head_2"]),
        (HeadsConfig(3, kind="anticausal"), ["trunk_1", "head_1", "head_2", "head_3"]),
        (HeadsConfig(2, layers=2, match="none"), [f"trunk_{i}" for i in (1, 2)]
         + ["head_1_layer_1", "head_1_layer_2", "head_2_layer_1", "head_2_layer_2"]),
        (HeadsConfig(3, kind="linear", match="none"), ["trunk_1", "trunk_2", "trunk_3", "trunk_4"]),
        (HeadsConfig(3, kind="recurrent", match="none"), ["trunk_1", "trunk_2", "trunk_3", "head_1", "head_2"]),
        (HeadsConfig(3, kind="order"), ["trunk_1", "trunk_2", "trunk_3", "head_1"]),
    ],
)  # fmt: skip
def test_layers_are_named_in_order(heads: HeadsConfig, names: list[str]) -> None:
    model, _ = problem(heads, n_layers=4)
    layers = attention_layers(model)
    assert list(layers) == names
    assert set(layers.values()) == {part for part in model.modules() if isinstance(part, Attention)}
    assert layers["trunk_1"] is model.trunk[0].attention


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("documents", [None, [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 2]]])
def test_a_pattern_is_what_the_module_uses(kv_heads: int, documents: list[list[int]] | None) -> None:
    torch.manual_seed(0)
    module = Attention(tiny_backbone(n_heads=4, n_kv_heads=kv_heads, init_std=0.3), 0.3)
    x, rotary = torch.randn(2, 6, 32), Rotary(tiny_backbone(head_dim=8, rope_theta=100.0))(torch.arange(6))
    mask = None if documents is None else document_mask(torch.tensor(documents))
    pattern = attention_pattern(module, x, rotary, mask)
    v = module.wv(x).unflatten(-1, (kv_heads, 8)).transpose(1, 2).repeat_interleave(4 // kv_heads, dim=1)
    torch.testing.assert_close(module.wo((pattern @ v).transpose(1, 2).flatten(2)), module(x, rotary, mask))
    assert pattern.amax() > 0.5


def test_under_autocast_rounded_queries_and_keys_meet_in_float32() -> None:
    torch.manual_seed(0)
    module = Attention(tiny_backbone(init_std=0.3), 0.3)
    x, rotary = torch.randn(2, 40, 32), Rotary(tiny_backbone(head_dim=16, rope_theta=100.0))(torch.arange(40))
    with torch.autocast("cpu", torch.bfloat16):
        q, k = (rotate(w(x).unflatten(-1, (2, 16)).transpose(1, 2), *rotary) for w in (module.wq, module.wk))
        pattern = attention_pattern(module, x, rotary)
    assert q.dtype == k.dtype == torch.bfloat16
    seen = torch.eye(40).expand(2, 2, 40, 40)  # values that tell which position they come from
    torch.testing.assert_close(pattern, F.scaled_dot_product_attention(q.float(), k.float(), seen, is_causal=True))


@EACH
def test_scores_of_every_kind_are_those_of_the_attention_that_ran(
    heads: HeadsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, windows = problem(heads, n_heads=4, n_kv_heads=2)
    targets = make_targets(heads, windows)
    ran: dict[nn.Module, tuple[Any, ...]] = {}
    handles = [
        module.register_forward_pre_hook(lambda module, args: ran.setdefault(module, args) and None)
        for module in attention_layers(model).values()
    ]
    model(targets.inputs, None, targets.targets)
    for handle in handles:
        handle.remove()
    expected = {}
    for name, module in attention_layers(model).items():
        pattern = attention_pattern(module, *ran[module])
        expected[name] = prefix_by_definition(pattern, targets.inputs), previous_by_definition(pattern)
    monkeypatch.setattr(attention, "PATTERN_ELEMENTS", 2 * 4 * 9 * 9)  # forwards of two rows and of one
    scores = attention_scores(model, windows)
    assert scores.layers == tuple(expected)
    for i, (matched, before) in enumerate(expected.values()):
        torch.testing.assert_close(scores.prefix_matching[i], matched)
        torch.testing.assert_close(scores.previous_token[i], before)


def test_a_model_is_left_as_found_even_by_what_fails(make_model: MakeModel) -> None:
    model, windows = make_model(2).train(), torch.randint(0, 16, (2, 8))
    state = torch.get_rng_state()

    def fail(pattern: Tensor, tokens: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    attention_scores(model, windows)
    with pytest.raises(RuntimeError, match="on purpose"):
        over_patterns(model, windows, fail)
    with pytest.raises(RuntimeError, match="on purpose"), mean_ablation(model, [("trunk_1", 0)], windows):
        raise RuntimeError("on purpose")
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
    assert all(part.training for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_top_heads_and_scalars() -> None:
    matched = torch.tensor([[0.1, 0.7], [0.9, 0.2]])
    scores = AttentionScores(("trunk_1", "head_1"), matched, torch.tensor([[0.8, 0.0], [0.0, 0.4]]))
    assert scores.top(3) == [("head_1", 0), ("trunk_1", 1), ("head_1", 1)]
    assert scores.top(1, "previous_token") == [("trunk_1", 0)]
    assert len(scores.top(9)) == 4
    assert scores.summary() == pytest.approx(
        {
            "prefix_matching/max": 0.9,
            "prefix_matching/top_3": 0.6,
            "previous_token/max": 0.8,
            "previous_token/top_3": 0.4,
        }
    )
    alone = AttentionScores(("head_1",), torch.tensor([[0.3]]), torch.tensor([[0.5]])).summary()
    assert alone["prefix_matching/top_3"] == pytest.approx(0.3)


COMPILED = """
import torch
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.ablation import mean_ablation
from mtp_lightning.probes.attention import attention_scores

torch.manual_seed(0)
model = MTPModel(BackboneConfig(vocab_size=16, dim=32, n_layers=3, n_heads=2, ffn_dim=48), HeadsConfig(2)).eval()
windows = torch.randint(0, 16, (2, 12))
plain = attention_scores(model, windows)
with torch.no_grad(), mean_ablation(model, [("trunk_1", 0)], windows):
    ablated = model(windows)
traced = []
for block in model.blocks():
    block.compile(backend=lambda graph, inputs: traced.append(graph) or graph.forward)
with torch.no_grad():
    model(windows), model(windows[:, :10])  # as long as the windows, and as their inputs
assert traced
assert torch.equal(attention_scores(model, windows).prefix_matching, plain.prefix_matching)
with torch.no_grad(), mean_ablation(model, [("trunk_1", 0)], windows):
    assert torch.equal(model(windows), ablated)
"""


@pytest.mark.slow
def test_hooks_are_seen_in_layers_that_were_compiled() -> None:
    subprocess.run([sys.executable, "-c", COMPILED], check=True)  # elsewhere: shape checks cannot be compiled
