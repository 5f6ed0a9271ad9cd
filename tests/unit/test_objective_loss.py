"""Every fast path of the objective against slow ones: naive, checkpointed, and the paper's sequential loop."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.model.mtp import MTPModel, Unembedding
from mtp_lightning.objective.chunked import chunked_scores
from mtp_lightning.objective.loss import LossOptions, multi_token_loss, score_heads

IMPLEMENTATIONS = ["chunked", "checkpointed", "naive"]


def random_problem(
    n: int, rows: int, V: int = 13, D: int = 8, keep: float = 0.7, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, 1, rows, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, V, (n, 1, rows), generator=generator)
    valid = torch.rand(n, 1, rows, generator=generator) < keep
    return h, weight, targets, valid


def brute_force(h: Tensor, weight: Tensor, targets: Tensor, valid: Tensor, head_weights: list[float]) -> Tensor:
    """The definition, one position at a time."""
    total = h.new_zeros(())
    for i in range(h.shape[0]):
        terms = [
            -torch.log_softmax(weight @ h[i, b, t], 0)[targets[i, b, t]]
            for b in range(h.shape[1])
            for t in range(h.shape[2])
            if valid[i, b, t]
        ]
        if terms:
            total = total + head_weights[i] * torch.stack(terms).mean()
    return total


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 8),
    rows=st.integers(1, 9),
    chunk=st.integers(1, 20),
    keep=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 2**16),
    outer=st.floats(0.1, 10),
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_loss_and_gradients_equal_the_definition(
    implementation: str, n: int, rows: int, chunk: int, keep: float, seed: int, outer: float
) -> None:
    h, weight, targets, valid = random_problem(n, rows, keep=keep, seed=seed)
    head_weights = [1.0 + 0.5 * i for i in range(n)]
    expected_h, expected_w = h.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = brute_force(expected_h, expected_w, targets, valid, head_weights)
    if expected.requires_grad:
        (outer * expected).backward()
    h.requires_grad_(), weight.requires_grad_()
    out = multi_token_loss(h, weight, targets, valid, head_weights, LossOptions(implementation, chunk))  # type: ignore[arg-type]
    (outer * out.total).backward()
    torch.testing.assert_close(out.total, expected.detach(), rtol=1e-10, atol=1e-10)
    for ours, theirs in ((h.grad, expected_h.grad), (weight.grad, expected_w.grad)):
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert out.n_valid.tolist() == valid.sum((1, 2)).tolist()


def paper_loop(model: MTPModel, tokens: Tensor, targets: Tensor, valid: Tensor) -> float:
    """Section 2's memory-efficient loop, literally: detach the trunk, one backward per head, then the trunk's.

    Right in a single process only, which is why it lives here and not in the package.
    """
    rotary = model.rotary(torch.arange(tokens.shape[1]))
    z = model.run_trunk(tokens, rotary)
    d = z.detach().requires_grad_()
    total = 0.0
    for head, y, ok in zip(model.heads, targets, valid):
        logits = model.unembedding(model.norm(head(d, rotary)))
        nll = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        loss = (nll * ok.flatten()).sum() / ok.sum().clamp(min=1)
        loss.backward()
        total += loss.item()
    z.backward(gradient=d.grad)
    return total


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("n", range(1, 9))
def test_every_parameter_gradient_equals_the_papers_loop(
    make_model: Callable[..., MTPModel], n: int, implementation: str
) -> None:
    model, reference = make_model(n, seed=n).double(), make_model(n, seed=n).double()
    torch.manual_seed(n)
    tokens = torch.randint(0, 16, (2, 7))
    targets = torch.randint(0, 16, (n, 2, 7))
    valid = torch.rand(n, 2, 7) < 0.6
    valid[-1] = n == 1  # the last head has nothing to learn, unless it is the only one
    expected = paper_loop(reference, tokens, targets, valid)
    h = model(tokens)
    out = model.unembedding(
        h,
        lambda h, w: multi_token_loss(h, w, targets, valid, options=LossOptions(implementation, 5)),  # type: ignore[arg-type]
    )
    out.total.backward()
    assert out.total.item() == pytest.approx(expected, rel=1e-10)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10, msg=f"gradient of {name}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_valid_gives_zero_not_nan(implementation: str) -> None:
    h, weight, targets, valid = random_problem(3, 4, keep=0.0)
    h[0, 0, 0] = float("nan")  # what a masked position holds must not reach the total
    h.requires_grad_(), weight.requires_grad_()
    if implementation != "chunked":
        h = h.detach().nan_to_num().requires_grad_()
    out = multi_token_loss(h, weight, targets, valid, options=LossOptions(implementation))  # type: ignore[arg-type]
    assert out.total.item() == 0.0
    assert out.nll.tolist() == [0.0] * 3


def test_likelihood_is_exact_where_the_probability_underflows() -> None:
    weight = torch.eye(4)
    h = torch.tensor([[[[0.0, 300.0, 0.0, 0.0]]]])
    targets, valid = torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, dtype=torch.bool)
    assert multi_token_loss(h, weight, targets, valid).total.item() == pytest.approx(300.0)


def test_bfloat16_chunks_err_no_more_than_plain_bfloat16() -> None:
    h, weight, targets, valid = random_problem(2, 64, V=50, D=32, seed=3)
    exact_h = h.clone().requires_grad_()
    multi_token_loss(exact_h, weight, targets, valid, options=LossOptions("naive")).total.backward()
    errors = {}
    for implementation in ("naive", "chunked"):
        x = h.float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = multi_token_loss(x, weight.float(), targets, valid, options=LossOptions(implementation, 48))  # type: ignore[arg-type]
        out.total.backward()
        errors[implementation] = (x.grad - exact_h.grad).norm() / exact_h.grad.norm()
    assert errors["chunked"] < 1.5 * errors["naive"] < 0.05


@pytest.mark.parametrize("bf16", [False, True])
def test_how_much_is_made_and_added_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    h, weight, targets, valid = random_problem(2, 30, V=50, D=32, seed=3)
    found = []
    for rows in (2**10, 3, 0):  # all rows of logits and of the unembedding, three of them, less than one
        monkeypatch.setattr("mtp_lightning.objective.chunked.PASS_ELEMENTS", rows * 50)
        monkeypatch.setattr("mtp_lightning.objective.chunked.ADDED_ELEMENTS", rows * 32)
        x, w = (y.float().requires_grad_() for y in (h, weight))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            out = multi_token_loss(x, w, targets, valid, options=LossOptions(chunk_rows=17, z_loss=0.1))
        out.total.backward()
        found.append([out.total, out.nll, x.grad, w.grad])
    for some in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], some))  # type: ignore[arg-type]


def test_small_weights_do_not_underflow_in_float16() -> None:
    """A mean over so many positions that a row's share of it is 0 in float16; the incoming gradient makes it large."""
    h, weight, targets, valid = random_problem(1, 8, V=50, D=32, seed=3)
    found = []
    for dtype in (torch.float16, torch.float64):
        x, w = (y.to(dtype).requires_grad_() for y in (h, weight))
        (multi_token_loss(x, w, targets, valid, [1e-9]).total * 1e9).backward()
        found.append([x.grad.double(), w.grad.double()])
    for ours, exact in zip(*found):
        assert (ours - exact).norm() < 0.01 * exact.norm()


def test_no_gradient_is_formed_under_no_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    """`needs_input_grad` is True there all the same."""
    h, weight, targets, valid = random_problem(2, 4)
    h.requires_grad_(), weight.requires_grad_()
    formed: list[object] = []
    monkeypatch.setattr("mtp_lightning.objective.chunked.add_outer", lambda *args: formed.append(args))
    with torch.no_grad():
        assert not multi_token_loss(h, weight, targets, valid).total.requires_grad
    assert not formed
    multi_token_loss(h, weight, targets, valid)
    assert formed


def test_backward_twice_through_a_retained_graph_gives_the_same_gradient() -> None:
    h, weight, targets, valid = random_problem(2, 4)
    h.requires_grad_()
    total = multi_token_loss(h, weight, targets, valid).total
    (first,) = torch.autograd.grad(total, h, retain_graph=True)
    (second,) = torch.autograd.grad(total, h)
    torch.testing.assert_close(first, second)


def test_scores_count_what_the_loss_sums_and_what_argmax_hits() -> None:
    h, weight, targets, valid = random_problem(3, 20, seed=5)
    scores = score_heads(h, weight, targets, valid)
    loss = multi_token_loss(h, weight, targets, valid)
    torch.testing.assert_close(scores.nll, loss.nll)
    hits = ((h @ weight.t()).argmax(-1) == targets) & valid
    assert scores.correct.tolist() == hits.sum((1, 2)).tolist()
    assert scores.n_valid.tolist() == loss.n_valid.tolist()


def test_scores_break_ties_as_argmax_does() -> None:
    h, weight = torch.ones(2, 3), torch.ones(5, 3)
    assert chunked_scores(h, weight, torch.tensor([[0], [4]])).best.tolist() == [0, 0]


def test_torchs_own_fused_loss_agrees() -> None:
    """A second oracle, where torch has one (2.13)."""
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip("torch.nn.functional.linear_cross_entropy came with torch 2.13")
    h, weight, targets, _ = random_problem(1, 12, seed=7)
    valid = torch.ones_like(targets, dtype=torch.bool)
    ours = multi_token_loss(h, weight, targets, valid, options=LossOptions(chunk_rows=5)).total
    torch.testing.assert_close(ours, F.linear_cross_entropy(h.flatten(0, 2), weight, targets.flatten()))


def test_the_unembedding_runs_its_score_inside_forward() -> None:
    """Sharding hooks gather the weight only while forward runs."""
    unembedding = Unembedding(5, 3, std=1.0)
    inside = []
    unembedding.register_forward_pre_hook(lambda *_: inside.append("enter"))
    unembedding.register_forward_hook(lambda *_: inside.append("leave"))
    unembedding(torch.zeros(2, 3), lambda h, w: inside.append("score"))
    assert inside == ["enter", "score", "leave"]
