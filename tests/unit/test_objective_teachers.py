"""Heads that head 1 teaches, against the definition, one position at a time."""

import itertools
from dataclasses import asdict, replace
from typing import Any

import my_heads  # noqa: F401 - a configuration that names it is taken at its word only then
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objective_heads import gradients, problem
from tiny import VARIANTS, tiny_backbone
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.signature import LATER
from mtp_lightning.metrics import training_means
from mtp_lightning.model.config import ONE_STREAM, HeadsConfig
from mtp_lightning.model.counts import flops_per_token
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.heads import check_options, count_targets, model_loss, unembedded_again
from mtp_lightning.objective.loss import LossOptions, LossOutput, multi_token_loss
from mtp_lightning.objective.targets import Targets
from mtp_lightning.objective.teacher_config import TARGETS, TeacherConfig, find_taught
from mtp_lightning.objective.teachers import teacher_loss
from mtp_lightning.objective.weights import LossConfig

TEACHERS = TARGETS[1:]
TAUGHT = {
    name: heads
    for name, heads in VARIANTS.items()
    if heads.n_future > 1 and heads.kind not in (*ONE_STREAM, "mixture") and not heads.replicate_unembedding
} | {"own": HeadsConfig(n_future=3, kind="my_heads.Gated")}
SLOW_LATENT = [("recurrent", "chunked"), ("recurrent", "naive"), ("recurrent", "checkpointed")]
SLOW_LATENT += [
    ("next_latent", "naive"),
    ("fetch", "chunked"),
    ("normed sequential", "chunked"),
    ("leaping sequential", "chunked"),
]
HARD = TeacherConfig(weight=0.25, top=3)


def options(target: Any, implementation: Any = "chunked", **settings: Any) -> LossOptions:
    teacher = settings.pop("teacher", TeacherConfig(weight=0.75))
    if target == "lk_lambda":
        teacher = replace(teacher, kl_scale=0.8, kl_decay=2.0)
    return LossOptions(implementation, target=target, teacher=teacher, **settings)


def divergence(target: str, p: Tensor, q: Tensor, kl_weight: Tensor) -> Tensor:
    overlap = torch.minimum(p, q).sum()
    kl = (p[p > 0] * (p[p > 0] / q[p > 0]).log()).sum()
    return {
        "teacher_kl": kl,
        "tv": (p - q).abs().sum() / 2,
        "lk_alpha": -overlap.log(),
        "lk_lambda": kl_weight * kl + (1 - kl_weight) * (1 - overlap),
    }[target]


def by_definition(
    model: MTPModel, targets: Targets, weights: list[float], options: LossOptions
) -> tuple[Tensor, list[float]]:
    """(total, each head's sum of divergences)."""
    h, T, teacher = model(targets.inputs, None, targets.targets), targets.inputs.shape[1], options.teacher
    logits = h[..., :32] @ model.unembedding.weight.t()
    if model.before is not None:
        logits[1:] += model.before.weight[targets.targets[:-1]] @ model.unembedding.bigram.t()
    total, sums = torch.zeros((), dtype=torch.float64), []
    for i, offset in enumerate(model.heads_config.head_offsets):
        nll, squares, pairs, distances = [], [], [], []
        for b, t in itertools.product(range(2), range(T)):
            if not targets.valid[i, b, t]:
                continue
            z = logits[i, b, t]
            nll.append(-z.log_softmax(0)[targets.targets[i, b, t]])
            squares.append(z.logsumexp(0) ** 2)
            if i and t + offset - 1 < T:
                p = logits[0, b, t + offset - 1].softmax(0).detach()
                if teacher.top:
                    p = torch.where(p >= p.sort().values[-teacher.top], p, 0.0)
                    p = p / p.sum()
                pairs.append((p, z.softmax(0)))
                x = (h[i, b, t] - h[0, b, t + offset - 1].detach()).abs()
                distances.append(torch.where(x < 1, x * x / 2, x - 0.5).mean())
        overlaps = torch.stack([torch.minimum(p, q).sum() for p, q in pairs] or [total]).detach()
        kl_weight = teacher.kl_scale * torch.exp(-teacher.kl_decay * overlaps.mean())
        found = torch.stack([divergence(options.target, p, q, kl_weight) for p, q in pairs] or [0 * total])
        sums.append(found.sum().item())
        token = torch.stack(nll).mean()
        mixed = (1 - teacher.weight) * token + teacher.weight * found.mean() if i else token
        mixed = mixed + teacher.latent * torch.stack(distances or [0 * total]).mean()
        total = total + weights[i] * (mixed + options.z_loss * torch.stack(squares).mean())
    return total, sums


def check(heads: HeadsConfig, asked: LossOptions) -> None:
    model, documents, targets = problem(heads)
    weights = [1.0, 0.5, 0.25][: heads.n_future]
    expected, sums = by_definition(model, targets, weights, asked)
    expected.backward()
    theirs = gradients(model)
    model.zero_grad()
    out = model_loss(model, targets, documents, weights, asked)
    out.total.backward()
    assert out.teacher is not None
    assert out.total.item() == pytest.approx(expected.item(), rel=1e-10)
    assert out.teacher.divergence.tolist() == pytest.approx(sums, rel=1e-10)
    torch.testing.assert_close(out.nll, model_loss(model, targets, documents).nll)
    for name, ours in gradients(model).items():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-9, atol=1e-12, msg=f"gradient of {name}")


@pytest.mark.parametrize("target", TEACHERS)
def test_loss_and_every_gradient_follow_the_definition(target: Any) -> None:
    check(VARIANTS["leap"], options(target, chunk_rows=5))


@pytest.mark.parametrize("implementation", ["chunked", "checkpointed"])
def test_so_does_a_teacher_of_the_best_entries_beside_a_z_loss(implementation: Any) -> None:
    check(VARIANTS["parallel"], options("lk_alpha", implementation, teacher=HARD, z_loss=0.01))


@pytest.mark.parametrize(
    "name",
    [name if name in ("sequential", "anticausal") else pytest.param(name, marks=pytest.mark.slow) for name in TAUGHT],
)
def test_every_kind_of_heads_is_taught(name: str) -> None:
    check(TAUGHT[name], options("lk_lambda", chunk_rows=4))


FORESEES = TeacherConfig(weight=1.0, latent=0.7)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("next_latent", "chunked"), *(pytest.param(name, way, marks=pytest.mark.slow) for name, way in SLOW_LATENT)],
)
def test_states_are_foreseen_as_defined(name: str, implementation: Any) -> None:
    check(VARIANTS[name], options("teacher_kl", implementation, teacher=FORESEES, chunk_rows=5))


def test_a_state_is_pulled_to_the_one_it_foresees_which_is_not() -> None:
    """By smooth L1: the gradient is the difference, at most 1, over the number of coordinates and of positions."""
    h, weight, targets, valid = states(3, 6, 1)
    with_it, without = (
        loss_of(options("teacher_kl", teacher=TeacherConfig(1.0, latent=latent)), h, weight, targets, valid)
        for latent in (0.5, 0.0)
    )
    pull = with_it[1] - without[1]
    torch.testing.assert_close(with_it[2], without[2])
    assert not pull[0].any()
    taught = find_taught(valid, (1, 2, 3))
    for i in (1, 2):
        by_hand = (h[i, :, : 6 - i] - h[0, :, i:]).clamp(-1, 1) / 4 * taught[i, :, : 6 - i, None]
        torch.testing.assert_close(pull[i, :, : 6 - i], 0.5 * by_hand / taught[i].sum())
        assert not pull[i, :, 6 - i :].any()
    found, none = (out.teacher for out, *_ in (with_it, without))
    assert found is not None
    assert none is not None
    assert found.distance[1:].all()
    assert not none.distance.any()
    means = training_means(["head_1", "head_2", "head_3"], [with_it[0]], [1.0] * 3)
    assert means["train/latent/head_2"] == pytest.approx((found.distance[1] / found.n_taught[1]).item())
    assert "train/latent/head_2" not in training_means(["head_1", "head_2", "head_3"], [without[0]], [1.0] * 3)


def states(n: int, T: int, seed: int, V: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, 2, T, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, 4, generator=generator, dtype=torch.float64)
    shape = n, 2, T
    return h, weight, torch.randint(0, V, shape, generator=generator), torch.rand(shape, generator=generator) < 0.7


def loss_of(
    asked: LossOptions, h: Tensor, weight: Tensor, targets: Tensor, valid: Tensor, offsets: Any = None
) -> tuple[LossOutput, Tensor, Tensor]:
    """(loss, gradients of states and unembedding)."""
    h, weight = h.detach().requires_grad_(), weight.detach().requires_grad_()
    offsets = offsets or tuple(range(1, len(h) + 1))
    out = teacher_loss(h, weight, targets, valid, offsets, [1.0] * len(h), asked)
    return out, *torch.autograd.grad(out.total, (h, weight))


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(2, 4),
    T=st.integers(1, 6),
    chunk=st.integers(1, 14),
    target=st.sampled_from(TEACHERS),
    top=st.sampled_from([None, 1, 7]),
    stop=st.sampled_from([None, "unembedding"]),
    seed=st.integers(0, 2**16),
)
def test_chunks_of_any_size_are_the_whole(
    n: int, T: int, chunk: int, target: Any, top: int | None, stop: Any, seed: int
) -> None:
    """Windows that are shorter than a head looks ahead among them."""
    found = [
        loss_of(
            options(target, way, teacher=TeacherConfig(0.4, top), chunk_rows=chunk, stop_gradient=stop),
            *states(n, T, seed),
        )
        for way in ("chunked", "naive")
    ]
    for ours, theirs in zip(*([out.total, *grads, *out.teacher] for out, *grads in found)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("implementation", ["chunked", "checkpointed", "naive"])
@pytest.mark.parametrize("target", TEACHERS)
def test_no_gradient_reaches_head_1_through_the_teacher(target: Any, implementation: Any) -> None:
    """Its states have their cross-entropy's gradient and no other; so has the unembedding where it may have no more."""
    problem = h, weight, targets, valid = states(3, 6, 1)
    asked = options(target, implementation, teacher=TeacherConfig(1.0), stop_gradient="unembedding")
    _, dh, dw = loss_of(asked, *problem)
    x, w = h[:1].clone().requires_grad_(), weight.clone().requires_grad_()
    alone = torch.autograd.grad(multi_token_loss(x, w, targets[:1], valid[:1]).total, (x, w))
    torch.testing.assert_close((dh[:1], dw), alone)
    assert dh[1:].any()


@pytest.mark.parametrize("target", TEACHERS)
def test_a_head_that_agrees_with_its_teacher_overlaps_wholly_and_learns_nothing(target: Any) -> None:
    h, weight, targets, valid = states(3, 6, 2)
    for i in (1, 2):
        h[i, :, : 6 - i] = h[0, :, i:]
    out, dh, _ = loss_of(options(target, teacher=TeacherConfig(1.0)), h, weight, targets, valid)
    assert out.teacher is not None
    torch.testing.assert_close(out.teacher.overlap[1:], out.teacher.n_taught[1:].double())
    torch.testing.assert_close(out.teacher.divergence, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(dh[1:], torch.zeros_like(dh[1:]))


def test_total_variation_is_the_largest_difference_over_all_events() -> None:
    h, weight, targets, _ = states(2, 2, 3, V=5)
    one = torch.zeros(2, 2, 2, dtype=torch.bool)
    one[1, 0, 0] = True
    out, *_ = loss_of(options("tv"), h, weight, targets, one)
    p, q = (weight @ h[0, 0, 1]).softmax(0), (weight @ h[1, 0, 0]).softmax(0)
    events = torch.tensor([*itertools.product([0.0, 1.0], repeat=5)], dtype=torch.float64)
    assert out.teacher is not None
    assert out.teacher.divergence[1].item() == pytest.approx((events @ (p - q)).max().item())


def test_distributions_that_do_not_overlap_have_a_finite_loss() -> None:
    weight = torch.eye(3)
    h = torch.zeros(2, 1, 2, 3)
    h[0, 0, 1, 0], h[1, 0, 0, 1] = 500.0, 500.0
    valid = torch.ones(2, 1, 2, dtype=torch.bool)
    for target in TEACHERS:
        out, dh, _ = loss_of(options(target), h, weight, valid.long(), valid)
        assert out.total.isfinite()
        assert dh.isfinite().all()


@settings(max_examples=12)
@given(st.integers(1, 8), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 2**16))
def test_who_is_taught_against_a_loop(T: int, gaps: list[int], seed: int) -> None:
    offsets = (1, *itertools.accumulate(gaps, initial=2))
    valid = torch.rand(len(offsets), 2, T, generator=torch.Generator().manual_seed(seed)) < 0.7
    taught = find_taught(valid, offsets)
    for i, b, t in itertools.product(range(len(offsets)), range(2), range(T)):
        assert taught[i, b, t] == (i > 0 and bool(valid[i, b, t]) and t + offsets[i] - 1 <= T - 1)


@pytest.mark.parametrize("target", TEACHERS)
def test_a_mean_count_makes_the_means_those_over_all_batches(target: Any) -> None:
    """Two ranks with unequal numbers of targets and of teachers: their averaged gradients are one batch's."""
    heads, asked = HeadsConfig(n_future=3), options(target)
    model, documents, targets = problem(heads)
    model_loss(model, targets, documents, options=asked).total.backward()
    whole = gradients(model)
    halves = [Targets(*(None if x is None else x.narrow(x.ndim - 2, b, 1) for x in targets)) for b in range(2)]
    counts = torch.stack([count_targets(half, asked, heads) for half in halves])
    shared: list[Tensor] = []
    for half, count in zip(halves, counts):
        out = model_loss(
            model, half, documents[:1], options=asked, sum_over_ranks=lambda x: shared.append(x) or x  # type: ignore[func-returns-value]
        )  # fmt: skip
        assert out.teacher is not None
        assert count.tolist() == [*out.n_valid.tolist(), *out.teacher.n_taught.tolist()]
    assert not torch.equal(*counts), "as many here as there would show nothing"
    model.zero_grad()
    for half in halves:
        out = model_loss(
            model, half, documents[:1], None, asked, counts.double().mean(0), lambda x: torch.stack(shared).sum(0)
        )
        (out.total / 2).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], msg=name)


def test_bfloat16_chunks_err_no_more_than_plain_bfloat16() -> None:
    h, weight, targets, valid = states(3, 40, 4, V=50)
    for target in TEACHERS:
        _, exact, _ = loss_of(options(target, "naive"), h, weight, targets, valid)
        errors = {}
        for way in ("naive", "chunked"):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                _, dh, _ = loss_of(options(target, way, chunk_rows=16), h.float(), weight.float(), targets, valid)
            errors[way] = ((dh - exact).norm() / exact.norm()).item()
        assert errors["chunked"] < 1.5 * errors["naive"] < 0.1


class _Largest(TorchDispatchMode):
    """Remembers how many elements the largest result of any operation had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.elements = max(
            [self.elements, *(x.numel() for x in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(x))]
        )
        return out  # fmt: skip


@pytest.mark.parametrize("target", ["lk_alpha", "lk_lambda"])
def test_never_more_logits_than_a_chunks_and_the_flops_are_counted(target: Any) -> None:
    """No tensor is larger than a chunk's logits or the unembedding; and products are those of the formula."""
    n, T, V, chunk, heads = 3, 10, 64, 4, HeadsConfig(n_future=3)
    h, weight, targets, valid = states(n, T, 5, V)
    largest, asked = _Largest(), options(target, chunk_rows=chunk)
    with FlopCounterMode(display=False) as counter:
        loss_of(asked, h, weight, targets, valid)
    with largest:
        loss_of(asked, h, weight, targets, valid)
    assert largest.elements == max(chunk * V, weight.numel(), h.numel())
    again = unembedded_again(asked, heads)
    assert (again == 0) == (target != "lk_lambda")
    counts = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counts.items() if "bmm" not in str(op))  # those are vecdot's
    assert products == 2 * T * (2 * n + again) * 2 * V * 4, "logits and dh; torch does not count `addmm_`, dW"
    backbone = tiny_backbone(n_layers=5)
    described = MTPModule(backbone, heads, LossConfig(target=target)).describe(8)["model/flops_per_token"]
    assert described - flops_per_token(backbone, heads, 8) == again * 2 * backbone.vocab_size * backbone.dim


def test_a_single_head_has_its_own_loss() -> None:
    model, documents, targets = problem(HeadsConfig(n_future=1))
    ours, plain = (model_loss(model, targets, documents, options=o) for o in (options("tv"), LossOptions()))
    assert torch.equal(ours.total, plain.total)
    assert ours.teacher is None


def test_metrics_of_a_step_are_means_over_all_that_was_taught() -> None:
    model, documents, targets = problem(HeadsConfig(n_future=3))
    halves = [Targets(*(None if x is None else x.narrow(x.ndim - 2, b, 1) for x in targets)) for b in range(2)]
    names, asked = model.heads_config.loss_names, options("lk_alpha")
    whole = training_means(names, [model_loss(model, targets, documents, options=asked)], [1.0] * 3)
    parts = [model_loss(model, half, documents[:1], options=asked) for half in halves]
    both = training_means(names, parts, [1.0] * 3)
    keys = {f"train/{what}/head_{i}" for what in ("teacher", "overlap", "loss") for i in (2, 3)}
    assert {key: both[key] for key in keys} == pytest.approx({key: whole[key] for key in keys})
    assert "train/teacher/head_1" not in both
    plain = training_means(names, [model_loss(model, targets, documents)], [1.0] * 3)
    assert plain["train/loss/head_2"] == pytest.approx(whole["train/loss/head_2"]), "the token's, whatever is learned"


@pytest.mark.parametrize(
    ("heads", "more", "says"),
    [
        (HeadsConfig(n_future=2, kind="none"), {}, "kind is 'none', which has no further heads"),
        (HeadsConfig(n_future=2, kind="order"), {}, "kind is 'order', which has no further heads"),
        (HeadsConfig(n_future=2, kind="future_summary"), {}, "kind is 'future_summary', which has no further heads"),
        (HeadsConfig(n_future=2, kind="mixture"), {}, "kind is 'mixture': what its further heads predict depends on"),
        (HeadsConfig(n_future=2, replicate_unembedding=True), {}, "replicate_unembedding is true"),
        (HeadsConfig(n_future=2), {"implementation": "fused"}, "implementation is 'fused'"),
        (HeadsConfig(n_future=2), {"teacher": TeacherConfig(latent=1.0)}, "latent is 1.0, and model.heads.kind is"),
        (HeadsConfig(n_future=2), {"teacher": TeacherConfig(top=17)}, "top is 17, and model.backbone.vocab_size is 16"),
    ],
)  # fmt: skip
def test_what_cannot_be_taught_is_refused(heads: HeadsConfig, more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_options(LossOptions(**({"target": "tv"} | more)), heads, 16)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"teacher": TeacherConfig(weight=1.0)},
            "weight goes with model.loss.target teacher_kl or .*, and that is 'to",
        ),
        ({"target": "tv", "teacher": TeacherConfig(kl_decay=2.0)}, "kl_decay goes with model.loss.target lk_lambda, "),
    ],
)
def test_settings_without_a_meaning_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        LossOptions(**given)


def test_what_is_left_out_of_a_signature_is_the_default() -> None:
    plain = asdict(LossOptions())
    plain |= {f"teacher.{key}": value for key, value in plain["teacher"].items()}
    left_out = {key.removeprefix("model.loss."): value for key, value in LATER if key.startswith("model.loss.")}
    assert left_out == {key: plain[key] for key in left_out}
