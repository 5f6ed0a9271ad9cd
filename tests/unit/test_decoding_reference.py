"""The reference: plain decoding's text with every kind of heads that drafts, in as many forwards as the engine's."""

import pytest
import torch
from compiling import EITHER
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoding import DRAFTING, random_model

from mtp_lightning.decoding import reference
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.decoding.reference import count_right, decode_plainly, decode_speculatively


@pytest.mark.parametrize("compiled", EITHER)
@pytest.mark.usefixtures("shapes_unchecked")
@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(DRAFTING)),
    seed=st.integers(0, 10_000),
    length=st.integers(1, 12),
    new=st.integers(0, 14),
    stop=st.integers(0, 15),
)
def test_drafts_change_no_text_and_the_engine_takes_the_same_forwards(
    compiled: bool, name: str, seed: int, length: int, new: int, stop: int
) -> None:
    model = random_model(DRAFTING[name], seed)
    prompt = torch.randint(0, 16, (length,))
    plain = decode_plainly(model, prompt, new, {stop})
    for k in range(1, DRAFTING[name].n_future + 1):
        decoded = decode_speculatively(model, prompt, new, k, {stop})
        assert decoded.tokens == plain
        (out,) = generate(Engine(model, k, exact_drafts=True, compiled=compiled), [prompt], new, stop_ids={stop})
        assert [(step.tokens, step.block) for step in out.steps] == decoded.forwards
        if decoded.forwards:
            assert out.tokens_per_forward == decoded.tokens_per_forward


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("name", DRAFTING)
def test_without_verification_the_text_is_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above would see it: these models' drafts are seldom right."""
    model, prompt = random_model(DRAFTING[name], seed=1), torch.arange(5)
    k = DRAFTING[name].n_future
    assert decode_speculatively(model, prompt, 12, k).tokens == decode_plainly(model, prompt, 12)
    monkeypatch.setattr(reference, "count_right", lambda block, chosen: len(block))
    assert decode_speculatively(model, prompt, 12, k).tokens != decode_plainly(model, prompt, 12)


def test_a_block_is_right_up_to_its_first_wrong_draft() -> None:
    assert count_right([5], [8]) == 1, "the first token is certain"
    assert count_right([5, 6, 7], [6, 7, 8]) == 3
    assert count_right([5, 6, 7], [6, 0, 8]) == 2
    assert count_right([5, 6, 7], [0, 7, 8]) == 1, "what comes after a wrong draft is wrong"


def test_a_model_that_knows_the_text_needs_a_forward_for_every_n_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: with 3 heads whose drafts are all right, 8 tokens take 3 + 3 + 1, and the last one is certain."""
    model = random_model(DRAFTING["parallel"], seed=0)
    right = decode_plainly(model, torch.arange(4), 20)
    text = [*range(4), *right]
    monkeypatch.setattr(reference, "predict", lambda model, before, k: text[len(before) : len(before) + k])
    decoded = decode_speculatively(model, torch.arange(4), 7, 3)
    assert (decoded.tokens, [len(forward.accepted) for forward in decoded.forwards]) == (right[:7], [3, 3])
    assert decoded.tokens_per_forward == 3
    assert len(decode_speculatively(model, torch.arange(4), 8, 3).forwards) == 3
