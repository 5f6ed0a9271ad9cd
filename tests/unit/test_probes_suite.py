"""The questions about induction together: which tokens names are made of, and which attention heads are taken out."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_probes_ablation import induction_by_hand
from tiny import VARIANTS, tiny_backbone

from mtp_lightning.data.stories.generator import stories
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.attention import AttentionScores, attention_layers, attention_scores
from mtp_lightning.probes.suite import (
    InductionSuite,
    measure_induction,
    measure_without,
    prepare_names,
    prepare_repeated,
)


def test_seen_names_are_made_of_tokens_that_were_seen() -> None:
    counts = np.zeros(256, dtype=np.int64)
    counts[[ord(letter) for letter in "ABCDEFGHIJKLMabcdefghijklm"]] = 1
    named = prepare_names(list(stories(40)), ByteTokenizer(), counts, 20, 200)
    assert set(named["seen"].pairs.flatten().tolist()) <= set(np.flatnonzero(counts).tolist())
    assert not set(named["any"].pairs.flatten().tolist()) <= set(np.flatnonzero(counts).tolist())


def test_what_texts_begin_with_goes_before_stories_and_copies(make_model: Callable[..., MTPModel]) -> None:
    texts, counts, tokenizer = list(stories(40)), np.ones(256, dtype=np.int64), ByteTokenizer()
    plain = prepare_names(texts, tokenizer, counts, 5, 200)["any"]
    begun = prepare_names(texts, tokenizer, counts, 5, 202, (7, 9))["any"]
    assert begun.tokens[:, :2].tolist() == [[7, 9]] * 5
    assert np.array_equal(begun.tokens[:, 2:], plain.tokens)
    assert np.array_equal(begun.tokens[begun.rows, begun.positions], plain.tokens[plain.rows, plain.positions])
    assert np.array_equal(begun.lengths, plain.lengths + 2)
    model = make_model(n_future=2)
    windows = prepare_repeated(model.heads_config, range(16), 3, 6, (7, 9))
    assert torch.equal(windows[:, 2:], prepare_repeated(model.heads_config, range(16), 3, 6))
    metrics, _ = measure_induction(model, InductionSuite({}, windows, 6, begin=2))
    with torch.no_grad():
        logits = model.unembedding(model.next_token_states(windows))[:, 2 + 6 : 2 + 11]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 2 + 7 : 2 + 12].flatten())
    assert metrics["repeated/loss/head_1"] == pytest.approx(wanted.item(), rel=1e-5)


def test_without_its_induction_head_a_model_does_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four attention heads in all, two of which do the work. The previous-token head has the lowest prefix-matching
    score of all, and is none of the control."""
    model = induction_by_hand()
    suite = InductionSuite({}, prepare_repeated(model.heads_config, range(16), 16, 12), 12)
    metrics, scores = measure_induction(model, suite)
    assert metrics["repeated/accuracy/head_1"] > 0.4
    assert scores.top(4)[-1] == ("trunk_1", 0) == scores.top(1, "previous_token")[0]
    monkeypatch.setattr("mtp_lightning.probes.suite.ABLATED", 1)
    drops = measure_without(model, suite, scores)
    assert drops["without_top_1/repeated/drop"] > 0.3
    assert abs(drops["without_lowest_1/repeated/drop"]) < 0.05


@pytest.mark.parametrize("name", ["parallel", "anticausal", "two layers a head"])
def test_only_attention_heads_that_head_1_reads_are_taken_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head 1 of an anticausal model reads all of them; of others, what the further heads have is no loss to it."""
    torch.manual_seed(0)
    heads = VARIANTS[name]
    model = MTPModel(tiny_backbone(n_layers=7), heads).eval()
    suite = InductionSuite({}, prepare_repeated(heads, range(16), 4, 6), 6)
    scores = attention_scores(model, suite.repeated)
    further = [layer.startswith(("head_2", "head_3")) for layer in scores.layers]
    raised = AttentionScores(
        scores.layers, scores.prefix_matching + torch.tensor(further)[:, None], scores.previous_token
    )
    taken: list[str] = []

    def watch(model: MTPModel, chosen: list[tuple[str, int]], windows: torch.Tensor) -> object:
        taken.extend(layer for layer, _ in chosen)
        return torch.no_grad()

    monkeypatch.setattr("mtp_lightning.probes.suite.mean_ablation", watch)
    measure_without(model, suite, raised)
    assert set(taken) <= set(attention_layers(model))
    assert any(layer.startswith("head_2") for layer in taken) == (name == "anticausal")
