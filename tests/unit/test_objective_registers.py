"""Registers (MuToR): their objective position by position; the next-token model as if there were none; their draws."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import fit, fit_until, make_folder
from tiny import tiny_backbone
from torch import Tensor
from torch.nn import functional

from mtp_lightning.checkpoints.files import read_checkpoint
from mtp_lightning.checkpoints.select import find_checkpoint
from mtp_lightning.errors import InputError
from mtp_lightning.model import attention
from mtp_lightning.model.attention import attention_with_registers, causal_attention
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.documents import Documents, WithRegisters
from mtp_lightning.model.memory import recomputed_flops
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.training.freezing import check_freeze
from mtp_lightning.model.training.recompute import check_recompute, recompute_model
from mtp_lightning.module import MTPModule
from mtp_lightning.objective import targets as objective_targets
from mtp_lightning.objective.heads import check_options, model_loss, model_scores
from mtp_lightning.objective.loss import LossOptions
from mtp_lightning.objective.registers import draw_offsets
from mtp_lightning.objective.targets import Targets, make_targets
from mtp_lightning.objective.teacher_config import TeacherConfig
from mtp_lightning.objective.weights import LossConfig, head_weights

HEADS = HeadsConfig(n_future=4, kind="registers")
T = 7
GROUPED: dict[str, object] = {"n_kv_heads": 1, "qk_norm": True, "attention_bias": "qkv"}


def random_model(**backbone: object) -> MTPModel:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(**backbone), HEADS).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return model


def windows(seed: int = 3) -> tuple[Tensor, Targets]:
    """(document ids, targets): three rows of different offsets, borders, and tokens that are no target."""
    torch.manual_seed(seed)
    window = torch.randint(0, 16, (3, T + HEADS.horizon))
    documents = (torch.rand(window.shape) < 0.2).cumsum(1).int()
    targets = make_targets(HEADS, window, documents, torch.rand(window.shape) < 0.8, torch.rand(window.shape) < 0.1)
    return documents[:, :T], targets


def rotated(x_E: Tensor, position: int, theta: float = 10_000.0) -> Tensor:
    half = len(x_E) // 2
    out = [torch.zeros(())] * len(x_E)
    for j in range(half):
        angle = torch.tensor(position, dtype=torch.float32) * torch.tensor(theta ** (-j / half), dtype=torch.float32)
        out[j] = x_E[j] * angle.cos() - x_E[j + half] * angle.sin()
        out[j + half] = x_E[j + half] * angle.cos() + x_E[j] * angle.sin()
    return torch.stack(out)


def one_more_layer(block: Any, rows: list[Tensor], positions: list[int], sees: list[list[int]]) -> list[Tensor]:
    """A layer of the backbone, position by position; position i sees those of `sees[i]`."""
    layer, E = block.attention, block.attention.head_dim
    queries, keys, values = [], [], []
    for x_D, position in zip(rows, positions):
        normed = block.attention_norm(x_D)
        q, k, v = (w(normed).unflatten(0, (-1, E)) for w in (layer.wq, layer.wk, layer.wv))
        if layer.q_norm is not None:
            q, k = layer.q_norm(q), layer.k_norm(k)
        queries.append([rotated(x, position) for x in q])
        keys.append([rotated(x, position) for x in k])
        values.append(list(v))
    out = []
    for i, x_D in enumerate(rows):
        mixed = []
        for h, q_E in enumerate(queries[i]):
            group = h * len(keys[i]) // len(queries[i])
            scores = torch.stack([q_E @ keys[j][group] / math.sqrt(E) for j in sees[i]])
            mixed.append(sum(p * values[j][group] for p, j in zip(scores.softmax(0), sees[i])))
        x_D = x_D + layer.wo(torch.cat(mixed))  # type: ignore[arg-type]
        normed = block.ffn_norm(x_D)
        out.append(x_D + block.ffn.down(functional.silu(block.ffn.gate(normed)) * block.ffn.up(normed)))
    return out


def by_definition(model: MTPModel, documents: Tensor, targets: Targets, weights: tuple[float, float]) -> Tensor:
    """The total of `objective.registers`, of a text with its registers alternating, as in the paper."""
    assert targets.offsets is not None
    assert model.register is not None
    of_text, of_registers = [], []
    for b, tokens in enumerate(targets.inputs.tolist()):
        d = int(targets.offsets[b])
        rows, positions, sees, document = [], [], [], documents[b].tolist()
        for t, token in enumerate(tokens):
            apart = not model.config.attend_across_documents
            text = [2 * s for s in range(t + 1) if not apart or document[s] == document[t]]
            rows += [model.embedding.weight[token], model.register.weight]
            positions += [t, t + d - 1]
            sees += [text, [*text, 2 * t + 1]]
        for block in [*model.trunk, *model.heads[0]]:
            rows = one_more_layer(block, rows, positions, sees)
        for t in range(T):
            for i, row, losses in ((1, rows[2 * t], of_text), (d, rows[2 * t + 1], of_registers)):
                if targets.valid[i - 1, b, t]:
                    logits = model.unembedding.weight @ model.norm(row)
                    losses.append(-logits.log_softmax(0)[targets.targets[i - 1, b, t]])
    return weights[0] * torch.stack(of_text).mean() + weights[1] * torch.stack(of_registers).mean()


@pytest.mark.parametrize("backbone", [{}, {"attend_across_documents": False, **GROUPED}], ids=["plain", "documents"])
def test_loss_and_every_gradient_follow_the_definition(backbone: dict[str, object]) -> None:
    model = random_model(**backbone)
    documents, targets = windows()
    assert targets.offsets is not None
    assert len(targets.offsets.unique()) == 3
    expected = by_definition(model, documents, targets, (0.7, 0.3))
    theirs = torch.autograd.grad(expected, [*model.parameters()])
    out = model_loss(model, targets, documents, head_weights(LossConfig().weights, HEADS, 0.0))
    ours = torch.autograd.grad(out.total, [*model.parameters()])
    torch.testing.assert_close(out.total, expected, rtol=1e-6, atol=0)  # angles are of float32
    for (name, _), mine, one in zip(model.named_parameters(), ours, theirs):
        torch.testing.assert_close(mine, one, rtol=1e-5, atol=1e-7, msg=name)
        assert one.abs().max() > 1e-4, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("apart", [False, True])
def test_the_next_token_model_is_what_it_is_without_registers(dtype: torch.dtype, apart: bool) -> None:
    """Using it and validating it, to the bit; in a training step, whose matrices have twice the rows, to rounding."""
    model = random_model(attend_across_documents=not apart).to(dtype)
    documents, targets = windows()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = MTPModel(model.config, HeadsConfig())
    weights = model.state_dict()
    plain.to(dtype).load_state_dict({name: weights[name] for name in plain.state_dict()})
    alone, used = plain(targets.inputs, documents), model(targets.inputs, documents)
    assert torch.equal(used, alone)
    assert torch.equal(model.next_token_states(targets.inputs), plain.next_token_states(targets.inputs))
    first = Targets(targets.inputs, targets.targets[:1], targets.valid[:1])
    scores, expected = model_scores(model, targets, documents), model_scores(plain, first, documents)
    assert torch.equal(scores.nll[0], expected.nll[0])
    assert torch.equal(scores.correct[0], expected.correct[0])
    trained = model(targets.inputs, documents, offsets_B=targets.offsets)
    torch.testing.assert_close(trained[:1], alone)


def test_it_is_drawn_after_everything_else() -> None:
    """So that arms of a grid begin with the same next-token model."""
    torch.manual_seed(0)
    plain = MTPModel(tiny_backbone(), HeadsConfig()).state_dict()
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(), HEADS).state_dict()
    assert set(model) - set(plain) == {"register.weight"}
    assert all(torch.equal(model[name], weight) for name, weight in plain.items())


def test_a_register_sees_nothing_after_its_token() -> None:
    model = random_model()
    documents, targets = windows()
    before = model(targets.inputs, documents, offsets_B=targets.offsets)
    for place in range(T):
        changed = targets.inputs.clone()
        changed[:, place] = (changed[:, place] + 1) % 16
        moved = (model(changed, documents, offsets_B=targets.offsets) != before).any(-1)
        assert not moved[:, :, :place].any()
        assert moved[:, :, place:].all()


def attentions(apart: bool, length: int = 9) -> tuple[list[Tensor], WithRegisters, Tensor]:
    """(q, k, v of text and registers, what they see, the same as one mask of all pairs)."""
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, heads, 2 * length, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    numbers = (torch.rand(2, length) < 0.3).cumsum(1)
    see = torch.zeros(2, 1, 2 * length, 2 * length, dtype=torch.bool)
    for b in range(2):
        for t in range(length):
            text = [s for s in range(t + 1) if not apart or numbers[b, s] == numbers[b, t]]
            see[b, 0, t, text] = True
            see[b, 0, length + t, [*text, length + t]] = True
    return [q, k, v], WithRegisters(Documents(numbers) if apart else None, length, torch.device("cpu")), see


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("blocks", [4, 128, None], ids=str)
def test_attention_in_blocks_or_under_one_mask_is_the_masks(
    blocks: int | None, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv, mask, see = attentions(apart)
    if blocks:
        monkeypatch.setattr(attention, "CAUSAL_BLOCK", blocks)
    else:
        mask.of_registers = mask._of_registers(9, torch.device("cpu"))  # as on a GPU
    out, expected = attention_with_registers(*qkv, mask), causal_attention(*qkv, see)
    weights = torch.randn_like(out)
    torch.testing.assert_close(out, expected)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), qkv) for x in (out, expected))
    torch.testing.assert_close(ours, theirs)


def test_offsets_are_a_function_of_seed_step_and_window() -> None:
    torch.manual_seed(0)
    window = torch.randint(0, 50_000, (64, 20))
    state = torch.get_rng_state()
    drawn = draw_offsets(window, 4, seed=3, step=5)
    assert torch.equal(torch.get_rng_state(), state)
    order = torch.randperm(64)
    assert torch.equal(draw_offsets(window[order], 4, 3, 5), drawn[order]), "whatever the batch, and the process"
    assert torch.equal(draw_offsets(window.int(), 4, 3, 5), drawn)
    for other in (draw_offsets(window, 4, 4, 5), draw_offsets(window, 4, 3, 6), draw_offsets(window.flip(1), 4, 3, 5)):
        assert 0.1 < (other == drawn).double().mean() < 0.4
    assert drawn[:8].tolist() == [1, 1, 3, 2, 1, 1, 3, 3], "a changed draw is another run"


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7])
def test_offsets_are_uniform(most: int) -> None:
    """Over windows, over steps of one window, and over seeds: chi-squared within its 99.9 % quantile, about 24."""
    windows = torch.arange(4000)[:, None] // torch.tensor([1, 64]) % 64
    by_window = draw_offsets(windows, most, 0, 0)
    by_step = torch.cat([draw_offsets(windows[:1], most, 0, step) for step in range(300)])
    by_seed = torch.cat([draw_offsets(windows[:1], most, seed, 0) for seed in range(300)])
    for drawn in (by_window, by_step, by_seed):
        counts, expected = drawn.bincount(minlength=most + 1)[1:], len(drawn) / most
        assert len(counts) == most
        assert ((counts - expected) ** 2 / expected).sum() < 24


def test_targets_are_those_of_the_drawn_offset() -> None:
    _, targets = windows()
    both = targets.of_losses()
    assert targets.offsets is not None
    for b, d in enumerate(targets.offsets.tolist()):
        for got, given in ((both.targets, targets.targets), (both.valid, targets.valid)):
            assert torch.equal(got[0, b], given[0, b])
            assert torch.equal(got[1, b], given[d - 1, b])
    assert torch.equal(targets.between(2, 5).of_losses().targets, both.targets[:, :, 2:5])


@pytest.mark.parametrize("recompute", ["layers", "attention", {"every": 2}])
def test_recomputed_layers_give_the_same_gradients(recompute: Any) -> None:
    model = random_model(attend_across_documents=False)
    documents, targets = windows()
    kept = torch.autograd.grad(model_loss(model, targets, documents).total, [*model.parameters()])
    recompute_model(model, recompute)
    again = torch.autograd.grad(model_loss(model, targets, documents).total, [*model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(kept, again))


def test_recomputing_costs_the_registers_forward_too() -> None:
    backbone, plain = BackboneConfig(), HeadsConfig()
    one, two = (recomputed_flops(backbone, heads, 64, recompute="layers") for heads in (plain, HEADS))
    assert two == 2 * one


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: check_freeze("trunk", BackboneConfig(), HEADS), r"model\.freeze is 'trunk', and model\.heads\.kind is 'r"),
    (lambda: recompute_model(random_model(), "heads"), r"model\.recompute is 'heads', and .* 'registers'"),
    (lambda: check_recompute("heads", HeadsConfig(kind="registers")), "only heads that read the trunk alone"),
    (lambda: check_options(LossOptions(target="tv"), HEADS), "'registers', which has no further heads to be taught"),
    (
        lambda: check_options(LossOptions(target="teacher_kl", teacher=TeacherConfig(latent=1.0)), HEADS),
        r"model\.loss\.target is 'teacher_kl', and model\.heads\.kind is 'registers'",
    ),
    (
        lambda: HeadsConfig(n_future=2, kind="registers", norms="own"),
        r"model\.heads\.norms is 'own', which goes with kind sequential or recurrent",
    ),
]


@pytest.mark.parametrize(("make", "says"), REFUSED)
def test_what_cannot_be_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_training_draws_by_seed_and_step_and_validation_always_the_same() -> None:
    module = MTPModule(tiny_backbone(), HEADS)
    module.trainer = SimpleNamespace(global_step=5, datamodule=SimpleNamespace(seed=3))  # type: ignore[assignment]
    window = torch.randint(0, 16, (32, T + HEADS.horizon))
    trained, validated = (module.make_targets({"tokens": window}, training)[0] for training in (True, False))
    assert torch.equal(trained.offsets, draw_offsets(window, 4, seed=3, step=5))  # type: ignore[arg-type]
    assert torch.equal(validated.offsets, draw_offsets(window, 4, seed=0, step=0))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_resumed_run_draws_what_it_would_have_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the run's seed and step; validation always the same; the weights at the end are bit for bit one run's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mtp"])
    make_folder(tmp_path)
    drawn = set()

    def draw(window: Tensor, most: int, seed: int, step: int) -> Tensor:
        drawn.add((seed, step))
        return draw_offsets(window, most, seed, step)

    monkeypatch.setattr(objective_targets, "draw_offsets", draw)
    flags = ("--model.heads.kind=registers", "--model.heads.n_future=4", "--seed_everything=3")
    assert fit("runs/whole", *flags) == 0
    assert drawn == {(0, 0), *((3, step) for step in range(6))}
    fit_until("runs/cut", 3, *flags)
    assert fit("runs/cut", *flags, "--ckpt_path=auto") == 0
    whole, cut = (read_checkpoint(find_checkpoint(tmp_path / "runs" / name)) for name in ("whole", "cut"))
    assert "model.register.weight" in whole["state_dict"]
    for name, weight in whole["state_dict"].items():
        assert torch.equal(cut["state_dict"][name], weight), name
