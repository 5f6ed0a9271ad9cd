"""What a backbone may have beside Llama's first form: biases, norms of queries and keys, scaled positions."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from test_decoding import random_model
from tiny import VARIANTS, tiny_backbone
from torch import Tensor

from mtp_lightning.decoding.choosing import Chooser
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.decoding.reference import decode_plainly
from mtp_lightning.decoding.session import Session
from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.signature import signature
from mtp_lightning.model.attention import Attention, rotate
from mtp_lightning.model.block import FinalNorm
from mtp_lightning.model.config import BackboneConfig, HeadKind, HeadsConfig, RopeScaling
from mtp_lightning.model.counts import count_parameters, flops_per_token
from mtp_lightning.model.memory import training_memory
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.rope import Rotary
from mtp_lightning.optimization.adamw import OptimizerConfig, make_adamw
from mtp_lightning.probes.attention import attention_pattern

YARN = RopeScaling("yarn", factor=4.0, original_context=8)
FEATURES: dict[str, dict[str, Any]] = {
    "bias": {"attention_bias": "qkv"},
    "norm": {"qk_norm": True},
    "wide": {"head_dim": 24},
    "narrow": {"head_dim": 6, "n_kv_heads": 1},
    "odd width": {"dim": 33, "head_dim": 8},
    "yarn": {"rope_scaling": YARN},
    "all": {"attention_bias": "qkv", "qk_norm": True, "head_dim": 10, "n_kv_heads": 1, "rope_scaling": YARN},
}


@pytest.mark.parametrize("kind", ["parallel", "sequential", "linear", "my_heads.LikeParallel"])
@pytest.mark.parametrize("name", FEATURES)
def test_counts_are_the_models_and_arms_are_matched(name: str, kind: str) -> None:
    import my_heads  # noqa: F401

    backbone = tiny_backbone(n_layers=7, **FEATURES[name])
    heads = HeadsConfig(n_future=3, kind=kind)
    with torch.device("meta"):
        model = MTPModel(backbone, heads)
    counts = count_parameters(backbone, heads)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    one = count_parameters(backbone, HeadsConfig()).total
    assert abs(counts.total - one) <= 3 * backbone.dim / 2 * len(model.trunk) + 4 * backbone.dim


@pytest.mark.parametrize("name", FEATURES)
def test_flops_by_formula_are_those_that_torch_counts(name: str) -> None:
    """The same heads once by formula, once as an own kind, which is run and counted; memory likewise."""
    import my_heads  # noqa: F401

    backbone = tiny_backbone(n_layers=7, **FEATURES[name])
    own, known = (HeadsConfig(n_future=3, kind=kind) for kind in ("my_heads.LikeParallel", "parallel"))
    assert flops_per_token(backbone, own, 24) == flops_per_token(backbone, known, 24)
    assert training_memory(backbone, own, 2, 24, 4) == pytest.approx(
        training_memory(backbone, known, 2, 24, 4), rel=0.1
    )  # what its heads read is not known


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
@pytest.mark.parametrize("name", FEATURES)
def test_drafting_with_caches_writes_the_plain_text(name: str, kind: str) -> None:
    model = random_model(VARIANTS[kind], seed=2, **FEATURES[name])
    prompts = [torch.tensor([3, 1, 4]), torch.tensor([2, 7, 1, 8, 2, 8, 1])]
    outs = generate(Engine(model), prompts, 9)
    assert [out.tokens for out in outs] == [decode_plainly(model, prompt, 9) for prompt in prompts]


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
def test_drafts_are_the_models_own(kind: str) -> None:
    """All features at once: what the engine drafts is what the heads say, in float64."""
    model = random_model(VARIANTS[kind], seed=2, **FEATURES["all"]).double()
    engine, text = Engine(model, exact_drafts=True), [3, 1, 4, 1, 5, 9]
    session = Session(engine, [torch.tensor(text)], 1, Chooser())
    session.read_prompts(engine.heads_used)
    known = session.text_BS[0, : len(text) + 3]
    window = torch.cat([known, known.new_zeros(3)])
    ahead = torch.stack([window[i : i + len(text)] for i in (1, 2, 3)])[:, None]
    says = model.logits(torch.tensor([text]), None, ahead)[:, 0, -1]
    assert known[len(text) :].tolist() == says.argmax(-1).tolist()


def test_attention_by_its_definition() -> None:
    config = tiny_backbone(attention_bias="qkv", qk_norm=True, head_dim=6, n_kv_heads=1)
    torch.manual_seed(0)
    module, rotary = Attention(config, 0.3).double(), Rotary(config)(torch.arange(5))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    q, k, v = (
        (x @ linear.weight.T + linear.bias).view(2, 5, -1, 6).transpose(1, 2)
        for linear in (module.wq, module.wk, module.wv)
    )
    assert module.q_norm is not None
    assert module.k_norm is not None
    q, k = (
        y / (y.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * norm.weight
        for y, norm in ((q, module.q_norm), (k, module.k_norm))
    )
    scores = rotate(q, *rotary) @ rotate(k, *rotary).transpose(-1, -2) / 6**0.5
    pattern = scores.masked_fill(~torch.ones(5, 5).tril().bool(), float("-inf")).softmax(-1)
    expected = (pattern @ v).transpose(1, 2).flatten(2) @ module.wo.weight.T
    torch.testing.assert_close(module(x, rotary), expected)
    torch.testing.assert_close(attention_pattern(module, x, rotary), pattern.float())


def test_under_autocast_queries_and_keys_are_as_precise_as_values() -> None:
    model = MTPModel(tiny_backbone(**FEATURES["all"]), HeadsConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randint(0, 16, (2, 9))).float().square().mean()
        q, k = model.trunk[0].attention.queries_keys(torch.randn(1, 3, 32), model.rotary(torch.arange(3)))
    assert q.dtype == k.dtype == torch.bfloat16
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for name, p in model.named_parameters() if "unembedding" not in name)


def test_biases_and_norms_are_not_decayed() -> None:
    model = MTPModel(tiny_backbone(**FEATURES["all"]), HeadsConfig())
    decayed, plain = make_adamw(model.parameters(), OptimizerConfig()).param_groups
    attention = model.trunk[0].attention
    assert attention.q_norm is not None
    vectors = {id(p) for p in plain["params"]}
    assert {id(attention.wq.bias), id(attention.wv.bias), id(attention.q_norm.weight)} <= vectors
    assert all(p.ndim == 2 for p in decayed["params"])
    assert not attention.wk.bias.any()


def test_a_matrix_in_pieces_decays_as_one() -> None:
    """Under ZeRO-3 a process holds nothing of a weight between its uses, and `ds_shape` says what it is."""
    matrix, vector = (torch.nn.Parameter(torch.empty(0)) for _ in range(2))
    matrix.ds_shape, vector.ds_shape = torch.Size([4, 8]), torch.Size([8])  # type: ignore[attr-defined]
    decayed, plain = make_adamw([vector, matrix], OptimizerConfig()).param_groups
    assert [decayed["params"], plain["params"]] == [[matrix], [vector]]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("name", FEATURES)
def test_a_backbone_comes_back_from_what_describes_it(name: str) -> None:
    backbone = tiny_backbone(**FEATURES[name])
    assert BackboneConfig.from_dict(asdict(backbone)) == backbone
    before = {key: value for key, value in asdict(tiny_backbone()).items() if key in ("vocab_size", "dim", "n_layers")}
    assert BackboneConfig.from_dict(before).rope_scaling == RopeScaling()


def test_cells_keep_their_names_where_nothing_new_is_used() -> None:
    new = {"model": {"backbone": asdict(tiny_backbone())}}
    old = {"model": {"backbone": {key: value for key, value in new["model"]["backbone"].items() if key not in (
        "head_dim", "attention_bias", "qk_norm", "rope_scaling")}}}  # fmt: skip
    assert signature(new) == signature(old)
    named = {signature({"model": {"backbone": asdict(tiny_backbone(**feature))}}) for feature in FEATURES.values()}
    assert len(named | {signature(new)}) == len(FEATURES) + 1


def test_linear_positions_are_interpolated() -> None:
    plain = Rotary(tiny_backbone())(torch.arange(10))
    slow = Rotary(tiny_backbone(rope_scaling=RopeScaling("linear", factor=2.0)))(torch.arange(20))
    torch.testing.assert_close(slow[0][::2], plain[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"head_dim": 7}, r"head_dim is 7: it has to be even"),
        ({"rope_scaling": {"kind": "linear", "factor": 0.5}}, r"rope_scaling\.factor is 0\.5"),
        ({"rope_scaling": {"factor": 2.0}}, r"rope_scaling\.factor goes with kind linear"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2.0}}, r"original_context is null"),
        (
            {"rope_scaling": {"kind": "llama3", "original_context": 8, "high_freq_factor": 1.0}},
            r"high_freq_factor is 1",
        ),
        ({"rope_scaling": asdict(YARN), "rope_theta": 1.0}, r"rope_theta is 1"),
        ({"rope_scaling": {"kind": "linear", "attention_factor": 2.0}}, r"attention_factor goes with kind yarn"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        BackboneConfig.from_dict(asdict(tiny_backbone()) | change)


def test_the_context_that_a_model_was_made_for_is_no_limit() -> None:
    assert replace(YARN, factor=1.0).attention == 1


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_final_norms_are_compiled_and_say_what_rms_norm_says() -> None:
    """torch leaves a class of its own as it is, without a word, whatever its `compile` is asked for."""
    traced: list[object] = []

    def backend(graph: Any, inputs: list[Tensor]) -> Any:
        traced.append(graph)
        return graph.forward

    x = torch.randn(3, 2, 32)
    own, final = torch.nn.RMSNorm(32, eps=1e-5), FinalNorm(32, eps=1e-5)
    own.compile(backend=backend)
    plain = own(x)
    assert torch.equal(plain, final(x))
    assert not traced
    final.compile(backend=backend)
    assert torch.equal(plain, final(x))
    assert len(traced) == 1


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("kind", ["parallel", "sequential", "fetch"])
def test_every_norm_before_an_unembedding_is_one_that_is_compiled(kind: HeadKind) -> None:
    heads = HeadsConfig(n_future=3, kind=kind, norms="own" if kind == "sequential" else "shared")
    model = MTPModel(tiny_backbone(n_layers=4), heads)
    assert all(isinstance(norm, FinalNorm) for norm in model.final_norms())
    model.compile_layers()
    compiled = {part for part in model.modules() if part._compiled_call_impl is not None}
    assert compiled == {*model.blocks(), *model.final_norms()}
