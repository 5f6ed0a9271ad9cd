"""The objective of every kind of heads against its definition, one position at a time; its switches; its guards."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import KINDS, VARIANTS, tiny_backbone
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective import fused
from mtp_lightning.objective.heads import check_options, model_loss, model_scores
from mtp_lightning.objective.loss import LossOptions, multi_token_loss, order_shares
from mtp_lightning.objective.targets import Targets, count_valid, first_ahead, make_targets

EACH = pytest.mark.parametrize("heads", VARIANTS.values(), ids=VARIANTS.keys())
IMPLEMENTATIONS = ["chunked", "fused", "checkpointed", "naive"]
Z = 0.01


def problem(heads: HeadsConfig, T: int = 7) -> tuple[MTPModel, Tensor, Targets]:
    """A random model in float64, two windows with document borders and masked targets."""
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_layers=8), heads).double()
    for weight in () if model.mixture is None else model.mixture.parameters():  # of which components differ
        weight.data += 0.3 * torch.randn_like(weight)
    window = torch.randint(0, 16, (2, T + heads.horizon))
    documents = (torch.rand(window.shape) < 0.15).cumsum(1).int()
    targets = make_targets(heads, window, documents, torch.rand(window.shape) < 0.8)
    return model, documents[:, :T], targets


def by_definition(model: MTPModel, targets: Targets, weights: list[float], z_loss: float) -> tuple[Tensor, Tensor]:
    """(total, sums of nll of each loss): the module docstring's sums, position by position."""
    heads = model.heads_config
    h = model(targets.inputs, None, targets.targets, offsets_B=targets.offsets)
    T, W = targets.inputs.shape[1], heads.n_future
    unembeddings = [model.unembedding, *model.further_unembeddings]
    totals, sums = [], []
    for term in range(len(heads.loss_names)):
        ranks = heads.kind == "order" and term == 1
        hidden = h[0] if len(h) == 1 else h[term]
        sums_up = heads.kind == "future_summary" and term == 1
        unembedding = unembeddings[term] if heads.replicate_unembedding or ranks or sums_up else unembeddings[0]
        losses, squares = [], []
        for b in range(2):
            target = term if targets.offsets is None or not term else targets.offsets[b] - 1
            for t in range(T):
                if heads.kind == "mixture" and term:
                    if targets.valid[term, b, t]:
                        nll, square = of_mixture(unembedding.weight, h[:, b, t], targets.targets[:, b, t], term)
                        losses.append(nll)
                        squares.append(square)
                    continue
                logits = unembedding.weight @ hidden[b, t][:32]
                if heads.kind == "markov" and term:
                    before = targets.targets[term - 1, b, t]
                    logits = logits + model.unembedding.bigram @ model.before.weight[before]  # type: ignore[operator, union-attr]
                if sums_up:  # FSP-BCE
                    ahead, valid = targets.targets[1:, b, t].tolist(), targets.valid[1:, b, t].tolist()
                    comes = {token for token, counts in zip(ahead, valid) if counts}
                    each = [z.sigmoid() if v in comes else 1 - z.sigmoid() for v, z in enumerate(logits)]
                    losses += [-torch.stack(each).log().mean()] if comes else []
                    continue
                if ranks:  # TOP: y_v = W - distance to the next v, -inf where there is none
                    y = torch.full((16,), float("-inf"), dtype=torch.float64)
                    for i in range(W, 0, -1):
                        if targets.valid[i - 1, b, t]:
                            y[targets.targets[i - 1, b, t]] = W - i
                    for i in range(1, W + 1):  # a masked token is no target, even where the same comes later unmasked
                        v = targets.targets[i - 1, b, t]
                        earlier = (targets.targets[: i - 1, b, t] == v).any()
                        if targets.valid[i - 1, b, t] and earlier and y[v] == W - i:
                            y[v] = float("-inf")
                    if y.isinf().all():
                        continue
                    losses.append(-(y.softmax(0) * logits.log_softmax(0)).sum())
                elif targets.valid[target, b, t]:
                    losses.append(-logits.log_softmax(0)[targets.targets[target, b, t]])
                else:
                    continue
                squares.append(logits.logsumexp(0) ** 2)
        nll = torch.stack(losses) if losses else torch.zeros(1, dtype=torch.float64)
        square = torch.stack(squares) if squares else torch.zeros(1, dtype=torch.float64)
        totals.append(weights[term] * (nll.mean() + z_loss * square.mean()))
        sums.append(nll.sum())
    return torch.stack(totals).sum(), torch.stack(sums)


def of_mixture(weight: Tensor, h: Tensor, tokens: Tensor, term: int) -> tuple[Tensor, Tensor]:
    """(-log q of a token given those before it, as a quotient of sums over components; the mean squared
    log-sum-exp)."""
    rank = (len(h) - 2) // len(tokens)
    components = h[2:].view(len(tokens), rank, -1)

    def joint(count: int) -> Tensor:
        terms = h[1, :rank].softmax(0).unbind()
        for i in range(count):
            p = [(weight @ components[i, r]).softmax(0)[tokens[i]] for r in range(rank)]
            terms = [term * each for term, each in zip(terms, p)]
        return torch.stack(list(terms)).sum()

    squares = [(weight @ components[term, r]).logsumexp(0) ** 2 for r in range(rank)]
    return -(joint(term + 1) / joint(term)).log(), torch.stack(squares).mean()


def gradients(model: MTPModel) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


@EACH
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("z_loss", [0.0, Z])
def test_loss_and_every_gradient_follow_the_definition(heads: HeadsConfig, implementation: Any, z_loss: float) -> None:
    model, documents, targets = problem(heads)
    weights = [1.0, 0.5, 0.25][: len(heads.loss_names)]
    expected, sums = by_definition(model, targets, weights, z_loss)
    expected.backward()
    theirs = gradients(model)
    model.zero_grad()
    out = model_loss(model, targets, documents, weights, LossOptions(implementation, chunk_rows=5, z_loss=z_loss))
    out.total.backward()
    torch.testing.assert_close(out.total, expected)
    torch.testing.assert_close(out.nll, sums.detach())
    for name, ours in gradients(model).items():
        torch.testing.assert_close(ours, theirs[name], msg=f"gradient of {name}")


@EACH
def test_scores_sum_what_the_loss_sums(heads: HeadsConfig) -> None:
    model, documents, targets = problem(heads)
    if heads.kind == "future_summary":  # of which the likeliest token sometimes comes
        often = targets.targets[1:][targets.valid[1:]].mode().values
        model.further_unembeddings[0].weight.data[often] = 9 * model(targets.inputs)[0].mean((0, 1)).detach()
    scores, out = model_scores(model, targets, documents), model_loss(model, targets, documents)
    torch.testing.assert_close(scores.nll, out.nll)
    assert torch.equal(scores.n_valid, out.n_valid)
    if heads.kind == "registers":
        plain = model.next_token_states(targets.inputs)
        hits = (model.unembedding(plain).argmax(-1) == targets.targets[0]) & targets.valid[0]
        assert scores.correct[0] == hits.sum()
    elif heads.kind == "future_summary":
        best = model.further_unembeddings[0](model(targets.inputs)[0]).argmax(-1)
        comes = ((targets.targets == best) & targets.valid)[1:].any(0)
        assert 0 < scores.correct[1] == comes.sum() < scores.n_valid[1] == targets.valid[1:].any(0).sum()
    elif heads.kind != "order":
        logits = model.logits(targets.inputs, documents, targets.targets).expand(heads.n_future, -1, -1, -1)
        hits = (logits.argmax(-1) == targets.targets) & targets.valid
        assert scores.correct.tolist() == hits.sum((1, 2)).tolist()
    else:
        top = model.further_unembeddings[0](model(targets.inputs)[0]).argmax(-1)
        assert scores.correct[1] == ((top == targets.targets[0]) & targets.valid[0]).sum()


@given(st.lists(st.integers(0, 3), min_size=4, max_size=12), st.integers(1, 3))
def test_first_ahead_against_a_loop(tokens: list[int], n: int) -> None:
    first = first_ahead(torch.tensor([tokens]), range(1, n + 1))
    for t in range(len(tokens) - n):
        for i in range(1, n + 1):
            assert first[i - 1, 0, t] == (tokens[t + i] not in tokens[t + 1 : t + i])


def test_a_ranking_favours_what_comes_sooner() -> None:
    shares, listed = order_shares(torch.tensor([[[True, False]], [[False, False]], [[True, False]]]))
    assert listed.tolist() == [[True, False]]
    assert shares[:, 0, 0].tolist() == pytest.approx(
        [1 / (1 + 2.718281828**-2), 0, 2.718281828**-2 / (1 + 2.718281828**-2)]
    )
    assert not shares[:, 0, 1].any()


@pytest.mark.parametrize("stop", ["trunk", "unembedding", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_gradient_leaves_the_next_token_model_as_if_alone(kind: Any, stop: Any) -> None:
    """What the switch names gets head 1's gradient and no other; everything else gets what it got."""
    heads, options = HeadsConfig(n_future=3, kind=kind), LossOptions(stop_gradient=stop)
    try:
        check_options(options, heads)
    except InputError:
        assert kind in ("none", "anticausal", "order", "future_summary") or (kind, stop) in [
            *(("registers", "trunk"), ("registers", "both"), ("markov", "unembedding"), ("markov", "both"))
        ]
        return
    model, documents, targets = problem(heads)

    def after(weights: list[float], options: LossOptions = LossOptions()) -> dict[str, Tensor]:
        model.zero_grad()
        model_loss(model, targets, documents, weights[: len(heads.loss_names)], options).total.backward()
        return gradients(model)

    stopped, alone, free = after([1.0, 1.0, 1.0], options), after([1.0, 0.0, 0.0]), after([1.0, 1.0, 1.0])
    upstream = ("trunk", "embedding")  # of the further heads
    if kind not in ("parallel", "linear", "markov", "mixture"):
        upstream += ("heads.0.",)
    if kind in ("order", "next_latent", "future_summary", "fetch"):
        upstream += ("norm.",)
    for name, gradient in stopped.items():
        trunk = name.startswith(upstream)
        unembedding = name == "unembedding.weight"
        if (trunk and stop != "unembedding") or (unembedding and stop != "trunk"):
            torch.testing.assert_close(gradient, alone[name], msg=name)
            assert not torch.allclose(gradient, free[name]), name
        else:
            torch.testing.assert_close(gradient, free[name], msg=name)


@pytest.mark.parametrize(
    ("heads", "stop", "says"),
    [
        (HeadsConfig(n_future=2, kind="none"), "trunk", "it has no further heads"),
        (HeadsConfig(n_future=2, kind="anticausal"), "both", "head 1 reads the further heads"),
        (HeadsConfig(n_future=2, kind="order"), "unembedding", "unembeddings of their own"),
        (HeadsConfig(n_future=1, kind="order"), "both", "unembeddings of their own"),
        (HeadsConfig(n_future=2, kind="future_summary"), "both", "unembeddings of their own"),
        (HeadsConfig(n_future=2, replicate_unembedding=True), "both", "unembeddings of their own"),
        (HeadsConfig(n_future=2, kind="markov"), "both", "its bigram is part of the unembedding"),
        (HeadsConfig(n_future=2, kind="registers"), "both", "registers go through all layers"),
        (HeadsConfig(n_future=1, kind="registers"), "trunk", "registers go through all layers"),
    ],
)
def test_gradients_that_cannot_be_told_apart_are_refused(heads: HeadsConfig, stop: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_options(LossOptions(stop_gradient=stop), heads)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_count_makes_the_mean_one_over_all_tokens(kind: Any) -> None:
    """Two batches with unequal numbers of targets: their averaged gradients are those of one batch with all rows."""
    heads = HeadsConfig(n_future=3, kind=kind)
    model, documents, targets = problem(heads)
    model_loss(model, targets, documents).total.backward()
    whole = gradients(model)
    model.zero_grad()
    halves = [Targets(*(None if x is None else x.narrow(x.ndim - 2, b, 1) for x in targets)) for b in range(2)]
    counts = torch.stack([count_valid(half) for half in halves])
    assert torch.equal(counts, torch.stack([model_loss(model, half, documents[:1]).n_valid for half in halves]))
    assert not torch.equal(*counts), "as many here as there would show nothing"
    for half in halves:
        (model_loss(model, half, documents[:1], mean_count_C=counts.double().mean(0)).total / 2).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], msg=name)


def test_a_single_target_on_one_of_two_ranks_counts_whole() -> None:
    h, weight = torch.randn(1, 1, 1, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.bool)
    alone = multi_token_loss(h, weight, one.long(), one).total
    ours = multi_token_loss(h, weight, one.long(), one, mean_count_N=torch.tensor([0.5])).total
    torch.testing.assert_close((ours + 0) / 2, alone)


def test_nowhere_a_target_on_any_rank_gives_zero() -> None:
    h, weight = torch.randn(2, 1, 3, 4, requires_grad=True), torch.randn(5, 4)
    nothing = torch.zeros(2, 1, 3, dtype=torch.bool)
    out = multi_token_loss(h, weight, nothing.long(), nothing, mean_count_N=torch.zeros(2))
    out.total.backward()
    assert out.total == 0
    assert h.grad is not None
    assert not h.grad.any()


def test_fused_is_cut_cross_entropy_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call, by a stand-in of the same signature; the kernels themselves want a GPU."""
    calls = []

    def linear_cross_entropy(e: Tensor, c: Tensor, targets: Tensor, reduction: str) -> Tensor:
        calls.append(e.shape)
        return F.cross_entropy(e @ c.t(), targets, reduction=reduction)

    stand_in = ModuleType("cut_cross_entropy")
    stand_in.linear_cross_entropy = linear_cross_entropy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", stand_in)
    monkeypatch.setattr(fused, "can_fuse", lambda *_: True)
    model, documents, targets = problem(HeadsConfig(n_future=3))
    ours = model_loss(model, targets, documents, options=LossOptions("fused"))
    ours.total.backward()
    found = gradients(model)
    model.zero_grad()
    theirs = model_loss(model, targets, documents, options=LossOptions("naive"))
    theirs.total.backward()
    torch.testing.assert_close(ours.total, theirs.total, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert len(calls) == 1, "all heads in one call: one gradient of the unembedding"


@pytest.mark.parametrize(
    ("settings", "says"), [({"chunk_rows": 0}, "chunk_rows is 0"), ({"z_loss": -1.0}, "z_loss is -1")]
)
def test_numbers_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        LossOptions(**settings)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("stop", ["trunk", "unembedding", "both"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "registers"])  # which even one head has beside it
def test_a_single_head_has_no_gradient_to_stop(kind: str, stop: Any, implementation: Any) -> None:
    heads = HeadsConfig(n_future=1, kind=kind)
    options = LossOptions(stop_gradient=stop, implementation=implementation)
    if kind == "order" and stop != "trunk":
        with pytest.raises(InputError, match="never be trained"):  # the ranking one
            check_options(options, heads)
        return
    check_options(options, heads)
    model, documents, targets = problem(heads)
    model_loss(model, targets, documents, options=LossOptions()).total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model_loss(model, targets, documents, options=options).total.backward()
    first = {name: g for name, g in gradients.items() if not (kind == "order" and name.startswith("further"))}
    stopped = {name: model.get_parameter(name).grad for name in first}
    assert {name for name, gradient in stopped.items() if gradient is None} == set()
    if kind != "order":
        torch.testing.assert_close(stopped, first)
