"""Acceptance counted on the text of the losses: against decoding, against loops, and in what it does not depend on."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VARIANTS, Recorder, tiny_backbone
from torch import Tensor
from uneven import Uneven, fit

from mtp_lightning.decoding.reference import count_right, next_tokens, predict
from mtp_lightning.metrics import DraftMetrics, SourceMetrics
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.heads import sources
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.acceptance import (
    ENTROPY_BINS,
    ENTROPY_BORDERS,
    Drafts,
    count_drafts,
    draft_metrics,
    judge_drafts,
)
from mtp_lightning.objective.heads import model_scores
from mtp_lightning.objective.targets import make_targets

SIZES = torch.tensor([1, 0, 5])
"""Bytes of the tokens."""
SLOW = ("linear", "causal", "recurrent", "replicated", "normed sequential", "leap")
DRAFTING = [
    *("parallel", "anticausal", "sequential", "leaping sequential", "markov", "next_latent", "mixture", "fetch"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
]


def model_of(heads: HeadsConfig, seed: int = 0) -> MTPModel:
    """Three symbols and large weights, so that heads often agree, and often do not."""
    torch.manual_seed(seed)
    return MTPModel(tiny_backbone(vocab_size=3, n_layers=5, init_std=0.5), heads).double().eval()


def judged(model: MTPModel, window_BL: Tensor, **given: Tensor) -> tuple[Tensor, Tensor]:
    targets = make_targets(model.heads_config, window_BL, **given)
    best = model_scores(model, targets).best
    assert best is not None
    return judge_drafts(best, targets.valid, model.heads_config)


@pytest.mark.parametrize("name", DRAFTING)
def test_it_is_what_decoding_after_the_same_text_accepts(name: str) -> None:
    """Steps of the decoder by its definition, from every prefix of a window: as far as the window is what the model
    writes, drafts have their turn there and are right there, and nowhere else."""
    seen: set[bool] = set()
    for seed in range(8):
        seen |= verdicts_checked(model_of(VARIANTS[name], seed))
        if len(seen) == 2:  # drafts that are right, and wrong ones
            return
    pytest.fail(f"every draft is {'right' if seen == {True} else 'wrong'}")


def verdicts_checked(model: MTPModel) -> set[bool]:
    heads = model.heads_config
    T, horizon = 7, heads.horizon
    own = torch.tensor([1])
    for _ in range(T + horizon - 1):
        own = torch.cat([own, torch.tensor(next_tokens(model, own.tolist())[-1:])])
    window_BL = torch.stack([own, torch.randint(0, 3, (T + horizon,))])
    turns_JBT, right_JBT = judged(model, window_BL)
    gaps = max(source.shift for source in sources(heads.head_offsets, heads.n_future))  # filled from before the text
    seen: set[bool] = set()
    for b, row in enumerate(window_BL.tolist()):
        for t in range(gaps, T):
            text = row[: t + 1]
            block = predict(model, text, heads.n_future)
            accepted = count_right(block, next_tokens(model, text + block)[t + 1 :])
            for offset in range(2, min(horizon, T - t) + 1):
                if row[t + 1 : t + offset] != block[: offset - 1]:
                    break  # the text goes another way than the model would
                assert turns_JBT[offset - 2, b, t]
                assert right_JBT[offset - 2, b, t] == (accepted >= offset)
                seen.add(accepted >= offset)
                if accepted < offset:
                    break
    return seen


def test_counts_by_loops_of_documents_masks_and_sentinels() -> None:
    """Every rule written out, position by position."""
    model = model_of(HeadsConfig(n_future=4))
    heads, (B, T, N) = model.heads_config, (4, 20, 4)
    window = torch.randint(0, 3, (B, T + N))
    given = {
        "documents_BL": (torch.arange(T + N) // 7).expand(B, -1),
        "loss_mask_BL": torch.rand(B, T + N) < 0.9,
        "sentinels_BL": torch.rand(B, T + N) < 0.05,
    }
    targets = make_targets(heads, window, **given)
    scores = model_scores(model, targets)
    drafts = count_drafts(scores, targets, heads, SIZES)
    logits = model.logits(targets.inputs, None, targets.targets).detach()
    best, p = logits.argmax(-1).tolist(), logits[0].softmax(-1)
    entropy = torch.special.entr(p).sum(-1)
    turns, right, n_bytes = torch.zeros(3, 4, 4).long()
    for b in range(B):
        for t in range(T):
            if not targets.valid[0, b, t]:
                continue
            k = sum(float(entropy[b, t]) >= border for border in ENTROPY_BORDERS)
            for i in (1, 2, 3, 4):
                if t + i - 1 >= T or not targets.valid[i - 1, b, t]:
                    break
                turns[k, i - 1] += 1
                if best[i - 1][b][t] != best[0][b][t + i - 1]:
                    break
                right[k, i - 1] += 1
                n_bytes[k, i - 1] += SIZES[window[b, t + i]]
    assert turns[:, 1:].sum() > 40
    assert (turns[:, 1] > 0).sum() >= 2
    assert drafts.turns.tolist() == turns.tolist()
    assert drafts.right.tolist() == right.tolist()
    assert drafts.n_bytes.tolist() == n_bytes.tolist()
    assert n_bytes[:, 2:].sum() > 0
    found = _summed(heads, drafts)
    rates = [1.0, *(right.sum(0) / turns.sum(0)).tolist()[1:]]
    means = (n_bytes.sum(0) / right.sum(0)).tolist()
    expected = sum(math.prod(rates[: i + 1]) * mean for i, mean in enumerate(means))
    assert found["decode/simulated_bytes"] == pytest.approx(expected)
    assert "decode/simulated_bytes" not in _summed(heads, count_drafts(scores, targets, heads)), "of no text"
    ones = _summed(heads, count_drafts(scores, targets, heads, torch.ones(3).long()))
    for name, value in ones.items():
        if name.endswith("simulated_bytes"):
            assert value == pytest.approx(ones[name.replace("bytes", "length")])
    assert sum(name.endswith("simulated_bytes") for name in ones) >= 3


def _summed(heads: HeadsConfig, drafts: Drafts) -> dict[str, float]:
    metrics = DraftMetrics(heads)
    metrics.update(drafts)
    return draft_metrics(heads, metrics.compute())


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
def test_a_draft_is_counted_alike_however_many_follow(kind: str) -> None:
    """The same weights with fewer heads: the same turns, the same right ones."""
    whole = model_of(HeadsConfig(n_future=4, kind=kind, match="none"))
    T = 16
    window = torch.randint(0, 3, (3, T + 4))
    turns, right = judged(whole, window)
    for n in (2, 3):
        fewer = model_of(HeadsConfig(n_future=n, kind=kind, match="none"))
        fewer.load_state_dict({key: value for key, value in whole.state_dict().items() if key in fewer.state_dict()})
        found = judged(fewer, window[:, : T + n])
        assert torch.equal(found[0], turns[: n - 1])
        assert torch.equal(found[1], right[: n - 1])


def test_lengths_and_shares_by_hand() -> None:
    heads = HeadsConfig(n_future=4, offsets=(1, 3, 4, 5))
    turns = torch.tensor([[8, 4, 1, 0], [2, 2, 1, 1]])
    right = torch.tensor([[4, 1, 0, 0], [2, 1, 1, 0]])
    counts = torch.zeros(3, 4, 5, dtype=torch.float64)
    counts[:2, [0, 3], 1:] = torch.stack([turns, right]).double()
    counts[:2, [0, 3], 0] = torch.tensor([16, 4]).double()
    counts[2, 3] = torch.tensor([8, 6, 4, 0, 0]).double()
    found = draft_metrics(heads, counts)
    assert found == pytest.approx(
        {
            "decode/simulated_length": 1 + 0.6 + 0.6 / 3 + 0.6 / 3 / 2,
            "decode/simulated_bytes": 8 / 20 + 0.6 * 6 / 6 + 0.6 / 3 * 4 / 2,
            "decode/simulated_acceptance/head_2": 1 / 3,  # of the token three ahead: its draft for two is a gap's
            "decode/simulated_acceptance/head_3": 1 / 2,
            "decode/simulated_acceptance/head_4": 0.0,
            "decode/simulated_accepted/head_2": 0.2,
            "decode/simulated_accepted/head_3": 0.1,
            "decode/simulated_accepted/head_4": 0.0,
            "decode/entropy_below_0.5/simulated_length": 1 + 0.5 + 0.5 / 4,
            "decode/entropy_below_0.5/simulated_acceptance/head_2": 1 / 4,
            "decode/entropy_below_0.5/simulated_acceptance/head_3": 0.0,
            "decode/entropy_above_2/simulated_length": 1 + 1 + 1 / 2 + 1 / 2,
            "decode/entropy_above_2/simulated_bytes": 8 / 4 + 6 / 2 + 1 / 2 * 4,
            "decode/entropy_above_2/simulated_acceptance/head_2": 1 / 2,
            "decode/entropy_above_2/simulated_acceptance/head_3": 1.0,
            "decode/entropy_above_2/simulated_acceptance/head_4": 0.0,
        }
    )


@pytest.mark.parametrize("heads", [HeadsConfig(), HeadsConfig(n_future=3, kind="order"), HeadsConfig(3, "none")])
def test_what_cannot_draft_has_a_length_of_one(heads: HeadsConfig) -> None:
    model = model_of(heads)
    targets = make_targets(heads, torch.randint(0, 3, (2, 8 + heads.horizon)))
    scores = model_scores(model, targets)
    assert _summed(heads, count_drafts(scores, targets, heads)) == {"decode/simulated_length": 1.0}
    found = _summed(heads, count_drafts(scores, targets, heads, SIZES))
    assert found == {"decode/simulated_length": 1.0, "decode/simulated_bytes": SIZES[targets.targets[0]].sum() / 16}


def test_any_split_into_batches_counts_the_same_and_sources_add_up() -> None:
    heads = HeadsConfig(n_future=3)
    model = model_of(heads)
    window = torch.randint(0, 3, (6, 13))
    whole, parts, sources_ = DraftMetrics(heads), DraftMetrics(heads), SourceMetrics(heads)

    def count(rows: slice) -> tuple[Any, Drafts]:
        targets = make_targets(heads, window[rows])
        scores = model_scores(model, targets)
        return scores, count_drafts(scores, targets, heads)

    whole.update(count(slice(None))[1])
    for a, b, source in ((0, 1, "code"), (1, 4, "prose"), (4, 6, "code")):
        scores, drafts = count(slice(a, b))
        parts.update(drafts)
        sources_.update(source, scores, None, drafts)
    assert torch.equal(whole.compute(), parts.compute())
    assert whole.compute()[0, :, 1].sum() == 6 * 9, "of ten positions the last has nobody to judge its draft"
    found = sources_.take()
    names = {"simulated_length", "simulated_acceptance/head_2", "simulated_accepted/head_3"}
    assert {f"decode/{source}/{name}" for source in ("code", "prose") for name in names} <= found.keys()
    assert not any(name in metric for metric in found for name in ENTROPY_BINS)
    prose = DraftMetrics(heads)
    prose.update(count(slice(1, 4))[1])
    alone = draft_metrics(heads, prose.compute())
    assert found["decode/prose/simulated_length"] == alone["decode/simulated_length"]


def test_it_is_recorded_with_the_losses_of_a_validation(tmp_path: Path) -> None:
    class Text(Uneven):
        token_bytes = torch.full((16,), 3)  # type: ignore[assignment]

    recorder: Recorder = fit(tmp_path, 4, Text(4))
    lengths = recorder.steps("decode/simulated_length")
    assert lengths == recorder.steps("val/loss") == [2, 4]
    for _, metrics in recorder.calls:
        if "decode/simulated_length" in metrics:
            assert metrics["decode/simulated_bytes"] == pytest.approx(3 * metrics["decode/simulated_length"])
