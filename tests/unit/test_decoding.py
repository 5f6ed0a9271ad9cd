"""Greedy decoding with caches against none; self-speculative against plain; the bookkeeping against brute force."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_backbone
from torch import Tensor

from mtp_lightning.decoding.greedy import generate
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.loss import multi_token_loss
from mtp_lightning.objective.targets import make_targets

MakeModel = Callable[..., MTPModel]


@torch.no_grad()
def without_cache(model: MTPModel, prompt: Tensor, max_new_tokens: int, stop_ids: tuple[int, ...] = ()) -> list[int]:
    """The definition: the whole text through the model again for every token."""
    text = prompt.tolist()
    for _ in range(max_new_tokens):
        text.append(int(model.logits(torch.tensor([text]))[0, 0, -1].argmax()))
        if text[-1] in stop_ids:
            break
    return text[prompt.numel() :]


@torch.no_grad()
def block_sizes(model: MTPModel, prompt: Tensor, output: list[int], heads_used: int) -> list[int]:
    """How many tokens each forward should accept, from whole-text forwards: replays draft and verify naively."""
    text, sizes, done = prompt.tolist(), [], 0
    while done < len(output) - 1:
        logits = model.logits(torch.tensor([text]))[:, 0, -1]
        block = logits[:heads_used].argmax(-1).tolist()[: len(output) - done]
        size = 1
        while size < len(block) and block[size] == output[done + size]:
            size += 1
        sizes.append(size)
        done += size
        text += block[:size]
    return sizes


def sharpened(model: MTPModel, seed: int) -> MTPModel:
    """Random weights large enough that the text does not collapse into one repeated token."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def trained() -> dict[int, MTPModel]:
    """Models that learned a periodic text, so that drafts are accepted often but not always."""
    models = {}
    for n in (2, 4, 8):
        torch.manual_seed(0)
        model = MTPModel(tiny_backbone(n_layers=n + 1), HeadsConfig(n_future=n))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        text = (torch.arange(4000) * torch.arange(4000) // 7) % 16
        for step in range(60):
            starts = torch.randint(0, 3900, (8, 1), generator=torch.Generator().manual_seed(step))
            targets = make_targets(text[starts + torch.arange(24 + n)], range(1, n + 1))
            loss = model.unembedding(
                model(targets.inputs), lambda h, w, t=targets: multi_token_loss(h, w, t.targets, t.valid).total
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        models[n] = model.eval()
    return models


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 8), seed=st.integers(0, 10_000), length=st.integers(1, 12), new=st.integers(0, 16))
def test_speculative_equals_plain_equals_no_cache_on_random_weights(n: int, seed: int, length: int, new: int) -> None:
    torch.manual_seed(seed)
    model = sharpened(MTPModel(tiny_backbone(n_layers=n + 1), HeadsConfig(n_future=n)).eval(), seed)
    prompt = torch.randint(0, 16, (length,))
    expected = without_cache(model, prompt, new)
    for heads_used in {1, (n + 1) // 2, n}:
        out = generate(model, prompt, new, heads_used)
        assert out.tokens == expected
        assert [len(s.tokens) for s in out.steps] == block_sizes(model, prompt, expected, heads_used)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_speculative_equals_plain_on_trained_weights_and_pays(trained: dict[int, MTPModel], n: int) -> None:
    rates = []
    for start in range(0, 160, 40):
        prompt = (torch.arange(start, start + 20) ** 2 // 7) % 16
        plain = generate(trained[n], prompt, 40)
        assert plain.tokens == without_cache(trained[n], prompt, 40)
        assert plain.tokens_per_forward == 1.0
        for heads_used in range(2, n + 1):
            out = generate(trained[n], prompt, 40, heads_used)
            assert out.tokens == plain.tokens
            assert [len(s.tokens) for s in out.steps] == block_sizes(trained[n], prompt, plain.tokens, heads_used)
            assert all(1 <= len(s.tokens) <= heads_used for s in out.steps)
        rates.append(out.tokens_per_forward)
    assert sum(rates) / len(rates) > 1.2, "the drafts of a trained model are accepted"
    assert min(rates) < n, "and not always, or rolling back was never tried"


@pytest.mark.parametrize("heads_used", [1, 2, 4])
def test_stop_tokens_end_the_text_where_plain_decoding_ends_it(trained: dict[int, MTPModel], heads_used: int) -> None:
    prompt = torch.arange(10)
    whole = without_cache(trained[4], prompt, 40)
    for stop in set(whole):
        expected = whole[: whole.index(stop) + 1]
        assert generate(trained[4], prompt, 40, heads_used, stop_ids={stop}).tokens == expected


def test_grouped_query_attention_decodes_too(make_model: MakeModel) -> None:
    model = sharpened(make_model(3, n_kv_heads=1), 1)
    prompt = torch.arange(5)
    assert generate(model, prompt, 20, 3).tokens == without_cache(model, prompt, 20)


def test_heads_that_are_not_there_and_empty_prompts_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match="this model has 2 prediction heads"):
        generate(make_model(2), torch.arange(3), 4, heads_used=3)
    with pytest.raises(InputError, match="the prompt is empty"):
        generate(make_model(2), torch.arange(0), 4)
