"""Random tokens repeated: the windows; losses and accuracies of every kind of heads against loops over logits."""

import math
from collections.abc import Callable

import pytest
import torch
from tiny import VARIANTS, tiny_backbone

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import ONE_STREAM, HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.probes import repeated
from mtp_lightning.probes.repeated import Repetition, repeated_windows, repetition

MakeModel = Callable[..., MTPModel]


def test_a_window_is_two_copies_and_as_much_of_a_third_as_the_last_head_is_asked() -> None:
    windows = repeated_windows(16, rows=5, length=6, horizon=3, seed=0)
    assert windows.shape == (5, 14)
    assert torch.equal(windows[:, :6], windows[:, 6:12])
    assert torch.equal(windows[:, :2], windows[:, 12:])
    targets = make_targets(HeadsConfig(3), windows)
    assert targets.targets[0, 0, -1] == windows[0, 11]  # head 1's last target ends the second copy
    assert len({tuple(row) for row in windows.tolist()}) == 5


def test_windows_are_a_function_of_their_seed_alone() -> None:
    state = torch.get_rng_state()
    first, same, other = (repeated_windows(16, 4, 9, 1, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_tokens_are_drawn_evenly_from_those_allowed() -> None:
    assert set(repeated_windows(7, 40, 20, 1, seed=0).flatten().tolist()) == set(range(7))
    counts = repeated_windows(16, 200, 50, 1, 0, tokens=[3, 11, 12])[:, :50].flatten().bincount(minlength=16) / 10_000
    assert counts.nonzero().flatten().tolist() == [3, 11, 12]
    assert counts[[3, 11, 12]].tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_copies_too_short_to_look_at_are_refused() -> None:
    with pytest.raises(InputError, match="length is 4, and the heads look up to 4 tokens ahead"):
        repeated_windows(16, 2, length=4, horizon=4, seed=0)
    assert repeated_windows(16, 2, length=5, horizon=4, seed=0).shape == (2, 13)


@pytest.mark.parametrize("heads", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_kind_is_scored_by_its_definition(heads: HeadsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_layers=8, init_std=0.3), heads).eval()
    C, rows = 7, 3
    windows = repeated_windows(4, rows, C, heads.horizon, seed=0)
    targets = make_targets(heads, windows)
    logits = model.logits(targets.inputs, None, targets.targets).double().log_softmax(-1)
    monkeypatch.setattr(repeated, "ROWS", 2)
    found = repetition(model, windows, C)
    assert found.offsets == (heads.head_offsets[:1] if heads.kind in ONE_STREAM else heads.head_offsets)
    assert found.loss.shape == found.accuracy.shape == (len(found.offsets), C)
    summary = found.summary()
    for i, p in enumerate(found.offsets):
        first, second, right = [], [[] for _ in range(C)], [[] for _ in range(C)]  # type: ignore[var-annotated]
        for b in range(rows):
            for place in range(p, 2 * C):  # of the target in the window
                said, target = logits[i, b, place - p], windows[b, place]
                if place < C:
                    first.append(-said[target].item())
                else:
                    second[place - C].append(-said[target].item())
                    right[place - C].append(float(said.argmax() == target))
        mean_loss, mean_right = [sum(x) / rows for x in second], [sum(x) / rows for x in right]
        assert found.first_loss[i].item() == pytest.approx(sum(first) / len(first), rel=1e-4)
        assert found.loss[i].tolist() == pytest.approx(mean_loss, rel=1e-4)
        assert found.accuracy[i].tolist() == pytest.approx(mean_right)
        assert summary[f"first_loss/head_{i + 1}"] == pytest.approx(found.first_loss[i].item())
        assert summary[f"loss/head_{i + 1}"] == pytest.approx(sum(mean_loss[p:]) / (C - p), rel=1e-4)
        assert summary[f"accuracy/head_{i + 1}"] == pytest.approx(sum(mean_right[p:]) / (C - p))
    assert len(summary) == 3 * len(found.offsets)


def test_means_leave_out_what_cannot_be_known() -> None:
    loss = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 9.0, 9.0, 4.0]])
    accuracy = torch.tensor([[0.0, 1.0, 1.0, 0.4], [0.0, 0.0, 0.0, 0.5]])
    summary = Repetition((1, 3), torch.tensor([2.5, 2.7]), loss, accuracy).summary()
    assert summary == pytest.approx(
        {
            "first_loss/head_1": 2.5,
            "loss/head_1": 2.0,
            "accuracy/head_1": 0.8,
            "first_loss/head_2": 2.7,
            "loss/head_2": 4.0,
            "accuracy/head_2": 0.5,
        }
    )


def test_who_knows_nothing_loses_the_entropy_everywhere(make_model: MakeModel) -> None:
    model = make_model(2)
    torch.nn.init.zeros_(model.unembedding.weight)
    found = repetition(model, repeated_windows(16, 3, 8, 2, seed=0), 8)
    torch.testing.assert_close(found.loss, torch.full((2, 8), math.log(16)))
    torch.testing.assert_close(found.first_loss, torch.full((2,), math.log(16)))


def test_windows_that_do_not_repeat_so_are_refused(make_model: MakeModel) -> None:
    model, windows = make_model(2), repeated_windows(16, 3, 8, 2, seed=0)
    with pytest.raises(AssertionError, match="no copies of this length"):
        repetition(model, windows, 7)
    with pytest.raises(AssertionError, match="a part of the second copy is no target"):
        repetition(model, windows[:, :-1], 8)
