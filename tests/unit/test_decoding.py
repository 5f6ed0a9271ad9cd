"""Greedy decoding with caches against none; self-speculative against plain; every block of drafts against the
reference's; ragged batches; what is refused."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import one_in
from tiny import KINDS, VARIANTS, tiny_backbone
from torch import Tensor

from callbacks.decoding import DecodingProbe
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, generate, stream
from mtp_lightning.decoding.measure import acceptance, compare, first_difference, next_logits
from mtp_lightning.decoding.reference import decode_plainly, decode_speculatively
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import ONE_STREAM, HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.loss import multi_token_loss
from mtp_lightning.objective.targets import make_targets

MakeModel = Callable[..., MTPModel]
DRAFTING = {name: heads for name, heads in VARIANTS.items() if heads.max_heads_used > 1} | {
    "leaping causal": HeadsConfig(n_future=3, kind="causal", offsets=(1, 3, 6)),
    "leaping anticausal": HeadsConfig(n_future=3, kind="anticausal", offsets=(1, 3, 6)),
    "leaping linear": HeadsConfig(n_future=3, kind="linear", offsets=(1, 2, 5)),
    "four recurrent": HeadsConfig(n_future=4, kind="recurrent"),
    "deep mixture": HeadsConfig(n_future=3, kind="mixture", mixture_rank=3, layers=2),
}


def random_model(heads: HeadsConfig, seed: int, **backbone: object) -> MTPModel:
    """Weights large enough that no text collapses into one repeated token, norms that matter."""
    torch.manual_seed(seed)
    model = MTPModel(tiny_backbone(**{"n_layers": 3} | backbone), replace(heads, match="none")).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.4)
    return model


def steps_of(generation: Generation) -> list[tuple[list[int], list[int]]]:
    return [(step.tokens, step.block) for step in generation.steps]


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
            targets = make_targets(HeadsConfig(n_future=n), text[starts + torch.arange(24 + n)])
            loss = model.unembedding(
                model(targets.inputs), lambda h, w, t=targets: multi_token_loss(h, w, t.targets, t.valid).total
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        models[n] = model.eval()
    return models


@pytest.mark.usefixtures("shapes_unchecked")
@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 8),
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    new=st.integers(0, 14),
    stop=st.integers(0, 15),
)
def test_any_model_any_batch_drafted_or_not_continues_as_the_definition_says(
    kind: str, n: int, seed: int, lengths: list[int], new: int, stop: int
) -> None:
    model = random_model(HeadsConfig(n_future=n, kind=kind), seed)  # type: ignore[arg-type]
    engine = Engine(model)
    prompts = [torch.randint(0, 16, (length,)) for length in lengths]
    expected = [decode_plainly(model, prompt, new, {stop}) for prompt in prompts]
    for k in sorted({1, (engine.heads_used + 1) // 2, engine.heads_used}):
        assert [out.tokens for out in generate(engine, prompts, new, k, {stop})] == expected


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("name", one_in(3, DRAFTING))
def test_every_forward_verifies_what_the_heads_say_and_accepts_what_is_right(name: str) -> None:
    """A wrong draft costs speed and no text, so it has to be looked at itself."""
    heads = DRAFTING[name]
    model = random_model(heads, seed=1, n_kv_heads=1)
    prompts = [torch.randint(0, 16, (length,)) for length in (1, 5, 3, 12)]
    expected = [decode_plainly(model, prompt, 12) for prompt in prompts]
    for k in range(1, heads.n_future + 1):
        engine = Engine(model, heads_used=k, exact_drafts=True)
        together = generate(engine, prompts, 12)
        for prompt, tokens, out in zip(prompts, expected, together):
            (alone,) = generate(engine, [prompt], 12)
            assert out.tokens == alone.tokens == tokens
            assert steps_of(out) == steps_of(alone) == decode_speculatively(model, prompt, 12, k).forwards


@pytest.mark.parametrize(
    "name", one_in(2, [name for name, heads in DRAFTING.items() if heads.horizon == heads.n_future])
)
def test_steps_of_constant_shape_do_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph replays, run without one: lengths on the device, attention over all slots under a mask."""
    heads = DRAFTING[name]
    engine = Engine(random_model(heads, seed=1), exact_drafts=True)
    prompts = [torch.randint(0, 16, (length,)) for length in (1, 5, 3, 12)]
    for k in (*range(1, heads.n_future + 1), "auto"):
        expected = generate(engine, prompts, 12, k)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr("mtp_lightning.decoding.generate._static", lambda engine: True)
            found = generate(engine, prompts, 12, k)  # type: ignore[arg-type]
        assert [out.tokens for out in found] == [out.tokens for out in expected]
        if k != "auto":
            assert [steps_of(out) for out in found] == [steps_of(out) for out in expected]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_steps_on_a_gpu_do_the_same(trained: dict[int, MTPModel]) -> None:
    prompts = [(torch.arange(start, start + 20) ** 2 // 7) % 16 for start in range(0, 160, 40)]
    expected = [decode_plainly(trained[4], prompt, 40) for prompt in prompts]
    engine = Engine(deepcopy(trained[4]).cuda())
    for k in (1, 2, 4, "auto"):
        found = generate(engine, [prompt.cuda() for prompt in prompts], 40, k)  # type: ignore[arg-type]
        assert [out.tokens for out in found] == expected


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("n", [2, 4, 8])
def test_drafts_of_a_trained_model_are_accepted(trained: dict[int, MTPModel], n: int) -> None:
    engine = Engine(trained[n], exact_drafts=True)
    prompts = [(torch.arange(start, start + 20) ** 2 // 7) % 16 for start in range(0, 160, 40)]
    plain = generate(engine, prompts, 40, 1)
    assert [out.tokens for out in plain] == [decode_plainly(trained[n], prompt, 40) for prompt in prompts]
    assert {out.tokens_per_forward for out in plain} == {1.0}
    for k in range(2, n + 1):
        drafted = generate(engine, prompts, 40, k)
        assert [out.tokens for out in drafted] == [out.tokens for out in plain]
        assert steps_of(drafted[k % 4]) == decode_speculatively(trained[n], prompts[k % 4], 40, k).forwards
    rates = [out.tokens_per_forward for out in drafted]
    assert sum(rates) / len(rates) > 1.2, "the drafts of a trained model are accepted"
    assert min(rates) < n, "and not always, or rolling back was never tried"


@pytest.mark.parametrize("k", [1, 2, 4])
def test_stop_tokens_end_a_text_where_plain_decoding_ends_it(trained: dict[int, MTPModel], k: int) -> None:
    engine, prompt = Engine(trained[4]), torch.arange(10)
    whole = decode_plainly(trained[4], prompt, 40)
    for stop in set(whole):
        (out,) = generate(engine, [prompt], 40, k, stop_ids={stop})
        assert out.tokens == whole[: whole.index(stop) + 1]


def test_rows_of_a_stream_come_as_they_are_made(trained: dict[int, MTPModel]) -> None:
    engine = Engine(trained[4])
    prompts = [torch.arange(4), torch.arange(9)]
    steps = list(stream(engine, prompts, 30))
    for row, out in enumerate(generate(engine, prompts, 30)):
        assert [token for step in steps if step.row == row for token in step.tokens] == out.tokens
    firsts = [step.row for step in steps[:4]]
    assert sorted(firsts) == [0, 0, 1, 1], "both rows advance side by side"


def test_acceptance_counts_drafts_whose_turn_came(trained: dict[int, MTPModel]) -> None:
    engine = Engine(trained[4])
    outs = generate(engine, [(torch.arange(s, s + 20) ** 2 // 7) % 16 for s in range(0, 80, 20)], 60)
    sizes = [len(step.tokens) for out in outs for step in out.steps[:-1]]
    shares = acceptance(outs, (1, 2, 3, 4))
    for head in (2, 3, 4):
        reached = [size for size in sizes if size >= head - 1]
        assert shares[head] == sum(size >= head for size in reached) / len(reached)
    first, *rest = [1.0, *(shares[head] for head in (2, 3, 4))]
    product = [first := first * share for share in rest]
    assert all(a >= b for a, b in pairwise(product))
    assert 1 + sum(product) == pytest.approx(sum(sizes) / len(sizes))


def test_texts_compared_plain_and_drafted_are_the_same(trained: dict[int, MTPModel]) -> None:
    found = compare(Engine(trained[4]), [torch.arange(5), torch.arange(8)], 30)
    assert found.differences == []
    assert 1 <= found.tokens_per_forward <= 4
    assert found.speedup > 0


def test_a_difference_is_found_and_its_gap_measured(trained: dict[int, MTPModel]) -> None:
    model, prompt = trained[4], torch.arange(5)
    engine = Engine(model)
    plain = decode_plainly(model, prompt, 8)
    other = [*plain[:3], (plain[3] + 1) % 16, *plain[4:]]
    difference = first_difference(engine, prompt, plain, other)
    assert difference is not None
    text = torch.cat([prompt, torch.tensor(plain[:3])])
    best, second = model.logits(text[None])[0, 0, -1].topk(2).values.tolist()
    assert (difference.position, difference.tie) == (3, False)
    assert difference.gap == pytest.approx(best - second, abs=1e-4)
    assert first_difference(engine, prompt, plain, plain) is None
    assert first_difference(engine, prompt, plain, plain[:5]) is not None
    torch.testing.assert_close(next_logits(engine, text), model.logits(text[None])[0, 0, -1])


def test_what_is_a_tie_is_said_by_the_lower_precision_of_both(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtp_lightning.decoding.measure.next_logits", lambda *_: torch.tensor([-5.0, 10.0, 9.92]))
    high, low = (Engine(make_model(1), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    for engine, precision, tie in ((high, None, False), (high, torch.bfloat16, True), (low, torch.float32, True)):
        difference = first_difference(engine, torch.arange(3), [1], [2], precision)
        assert difference is not None
        assert difference.tie is tie


def test_bfloat16_differs_from_itself_only_at_ties(trained: dict[int, MTPModel]) -> None:
    engine = Engine(trained[4], dtype=torch.bfloat16)
    prompts = [(torch.arange(s, s + 20) ** 2 // 7) % 16 for s in range(0, 160, 20)]
    found = compare(engine, prompts, 40)
    assert all(difference.tie for difference in found.differences)
    assert found.tokens_per_forward > 1.2


def test_a_text_that_memory_cannot_hold_is_refused_before_it_is_taken(trained: dict[int, MTPModel]) -> None:
    with pytest.raises(InputError, match=r"keys and values of 10,000,000,00\d tokens in 1 texts take .* GiB, and this"):
        generate(Engine(trained[4]), [torch.arange(3)], 10**10)


@pytest.mark.parametrize("kind", ONE_STREAM)
def test_kinds_without_heads_of_their_own_decode_plainly(kind: str) -> None:
    model = random_model(HeadsConfig(n_future=3, kind=kind), seed=0)  # type: ignore[arg-type]
    (out,) = generate(Engine(model), [torch.arange(3)], 6)
    assert out.tokens == decode_plainly(model, torch.arange(3), 6)
    with pytest.raises(InputError, match=f"kind '{kind}' has no head of its own"):
        Engine(model, heads_used=2)


def test_what_cannot_be_decoded_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match="heads_used is 3: this model has 2 prediction heads"):
        Engine(make_model(2), heads_used=3)
    engine = Engine(make_model(3), heads_used=2)
    with pytest.raises(InputError, match="heads_used is 3: the model was prepared for at most 2"):
        generate(engine, [torch.arange(3)], 4, heads_used=3)
    for prompts in ([], [torch.arange(0)], [torch.arange(3), torch.arange(0)]):
        with pytest.raises(InputError, match="the prompt is empty"):
            generate(engine, prompts, 4)


def test_a_model_under_training_is_left_alone(make_model: MakeModel) -> None:
    model = make_model(3).train()
    before: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    generate(Engine(model), [torch.arange(3)], 10)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())


def test_bytes_per_forward_are_those_of_the_accepted_tokens(trained: dict[int, MTPModel]) -> None:
    engine, sizes = Engine(trained[4], dtype=torch.float32), torch.arange(16) % 3
    prompts = [torch.arange(start, start + 6) % 16 for start in (0, 5)]
    steps = [step for prompt in prompts for step in generate(engine, [prompt], 30)[0].steps]
    found = compare(engine, prompts, 30, token_bytes=sizes)
    assert found.bytes_per_forward == sum(token % 3 for step in steps for token in step.tokens) / len(steps)
    assert compare(engine, prompts, 30).bytes_per_forward is None


def test_a_clock_that_stands_still_gives_no_speedup(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's may tick a hundred times a second."""
    monkeypatch.setattr("mtp_lightning.decoding.measure._now", lambda engine: 1.0)
    found = compare(Engine(make_model(2)), [torch.arange(3)], 2)
    assert math.isnan(found.speedup)
    assert found.tokens_per_forward >= 1
    metrics = DecodingProbe().decode(make_model(2), [torch.arange(3)])
    assert "decode/speedup" not in metrics


def test_a_probes_series_of_speedups_is_of_one_engine(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether layers are compiled goes by the prompts of the end, at validations too, which have fewer."""
    asked: list[int] = []
    monkeypatch.setattr("callbacks.decoding.wanted", lambda how, device, forwards: asked.append(forwards) or False)
    probe = DecodingProbe(prompts=3, validation_prompts=1, new_tokens=2)
    for count in (1, 3):
        probe.decode(make_model(1), [torch.arange(3)] * count)
    assert asked == [2 * 3 * 2] * 2
