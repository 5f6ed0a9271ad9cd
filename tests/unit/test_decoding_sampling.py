"""Sampling: what is out of the question, texts that drafting leaves alone, and the distribution of both ways to accept
against its enumeration."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampled import one_in
from test_decoding import random_model
from torch import Tensor

from mtp_lightning.decoding import choosing
from mtp_lightning.decoding.choosing import FEW, Chooser, Ratio, Sampling, Verdict
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import HeadsUsed, generate
from mtp_lightning.decoding.positions import Tree
from mtp_lightning.decoding.reference import head_logits
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

OUT = -math.inf
HEADS = {
    "parallel": HeadsConfig(n_future=3),
    "markov": HeadsConfig(n_future=3, kind="markov"),
    "mixture": HeadsConfig(n_future=3, kind="mixture", mixture_rank=3),
    "linear": HeadsConfig(n_future=3, kind="linear"),
    "anticausal": HeadsConfig(n_future=3, kind="anticausal"),
    "sequential": HeadsConfig(n_future=3, kind="sequential"),
    "next_latent": HeadsConfig(n_future=3, kind="next_latent"),
    "fetch": HeadsConfig(n_future=3, kind="fetch"),
    "leap": HeadsConfig(n_future=3, offsets=(1, 3, 4)),
}
PLAIN, RESTRICTED = Sampling(1.0, seed=3), Sampling(1.5, top_k=4, top_p=0.85, seed=3)


def nucleus(scaled: Sequence[float]) -> list[tuple[float, float]]:
    """(logit, probability of it and all before), the most probable first."""
    ordered = sorted((x for x in scaled if x > OUT), reverse=True)
    weights = [math.exp(x - ordered[0]) for x in ordered]
    return list(zip(ordered, itertools.accumulate(weight / sum(weights) for weight in weights)))


def by_definition(logits: Sequence[float], sampling: Sampling) -> list[float]:
    """`restrict` of distinct numbers, token by token; of equal ones at the nucleus's border it keeps all."""
    scaled = [x / sampling.temperature for x in logits]
    if sampling.top_k is not None:
        least = sorted(scaled, reverse=True)[: sampling.top_k][-1]
        scaled = [x if x >= least else OUT for x in scaled]
    if sampling.top_p is not None:
        least = next((x for x, share in nucleus(scaled) if share >= sampling.top_p), OUT)
        scaled = [x if x >= least else OUT for x in scaled]
    return scaled


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(1, FEW), size=st.integers(2, 8))
def test_few_rows_are_verified_as_many_are(seed: int, rows: int, size: int) -> None:
    """Few by Python, many by tensors."""
    torch.manual_seed(seed)
    many = FEW + 1
    block_BM, logits_BMV = torch.randint(0, 2, (many, size)), torch.randn(many, size, 2)
    of_many = Chooser().verify(block_BM, logits_BMV, Tree.chain(size), slice(0, many), [0] * many)
    of_few = Chooser().verify(block_BM[:rows], logits_BMV[:rows], Tree.chain(size), slice(0, rows), [0] * rows)
    assert torch.equal(of_few.accepted_B, of_many.accepted_B[:rows])
    assert torch.equal(of_few.certain_B, of_many.certain_B[:rows])


@settings(max_examples=150, deadline=None)
@given(
    halves=st.lists(st.integers(-6, 6), min_size=1, max_size=9),
    temperature=st.sampled_from([0.25, 0.7, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(1e-6, 1.0),
)
def test_what_is_left_to_sample_from_is_what_the_definition_leaves(
    halves: list[int], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    sampling = Sampling(temperature, top_k, top_p)
    logits = [x / 2 for x in halves]
    expected = by_definition(logits, sampling)
    without_nucleus = nucleus(by_definition(logits, Sampling(temperature, top_k)))
    assume(top_p is None or top_p == 1 or all(abs(share - top_p) > 1e-5 for _, share in without_nucleus))
    found = sampling.restrict(torch.tensor([logits, logits[::-1]])).tolist()
    fewest = sum(share < top_p for _, share in without_nucleus) + 1 if top_p not in (None, 1) else len(without_nucleus)
    for row, wanted in zip(found, (expected, expected[::-1])):
        kept = [(x, want) for x, want in zip(row, wanted) if x > OUT]
        assert len(kept) == fewest
        assert sorted((x for x, _ in kept), reverse=True) == pytest.approx([x for x, _ in without_nucleus[:fewest]])
        assert all(x == pytest.approx(want) for x, want in kept)


def test_a_nucleus_ends_with_the_token_that_completes_it() -> None:
    even = torch.zeros(4)
    sizes = {p: int(Sampling(1.0, top_p=p).restrict(even).isfinite().sum()) for p in (1e-9, 0.25, 0.26, 0.5, 0.75, 1.0)}
    assert sizes == {1e-9: 1, 0.25: 1, 0.26: 2, 0.5: 2, 0.75: 3, 1.0: 4}


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"temperature": -0.1}, r"temperature is -0\.1"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0"),
        ({"temperature": 1.0, "top_k": -3}, "top_k is -3"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p is 0\.0"),
        ({"temperature": 1.0, "top_p": 1.01}, r"top_p is 1\.01"),
        ({"temperature": 1.0, "top_p": math.nan}, "top_p is nan"),
        ({"top_k": 3}, "give a temperature above 0"),
        ({"top_p": 0.9}, "give a temperature above 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(numbers: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Sampling(**numbers)


@pytest.mark.parametrize("sampling", [PLAIN, RESTRICTED], ids=["all", "restricted"])
@pytest.mark.parametrize("name", one_in(2, HEADS))
def test_a_seed_is_a_text_however_it_is_drafted_and_batched(name: str, sampling: Sampling) -> None:
    engine = Engine(random_model(HEADS[name], seed=2, vocab_size=6))
    prompts = [torch.tensor(text) for text in ([1, 5, 2], [3], [0, 1, 2, 3, 4, 5, 0])]
    others = [torch.tensor([4] * 9), *prompts[1:], torch.tensor([2, 2])]

    def texts(batch: list[Tensor], k: HeadsUsed | None = None, tree: list[int] | None = None) -> list[list[int]]:
        return [out.tokens for out in generate(engine, batch, 25, k, {5}, sampling, tree)]

    plain = texts(prompts, 1)
    assert len({len(text) for text in plain}) > 1, "rows leave at different times"
    for k in (2, 3, "auto"):
        assert texts(prompts, k) == plain  # type: ignore[arg-type]
    for tree in ([2], [3, 2], [1, 4], [1, 1]):
        assert texts(prompts, None, tree) == plain
    assert texts(prompts[:1]) == plain[:1]
    assert texts(others)[1:3] == texts(others, 1)[1:3] == plain[1:]


def test_other_seeds_and_other_rows_are_other_texts() -> None:
    engine = Engine(random_model(HEADS["parallel"], seed=2))
    prompt = torch.tensor([1, 5, 2])
    for accept in ("match", "ratio"):
        texts = [
            tuple(out.tokens)
            for seed in range(3)
            for out in generate(engine, [prompt] * 3, 20, sampling=Sampling(1.0, seed=seed, accept=accept))
        ]
        assert len(set(texts)) == 9


def test_the_same_seed_accepts_by_ratio_the_same_way_again() -> None:
    engine = Engine(random_model(HEADS["sequential"], seed=2))
    prompts, sampling = [torch.tensor([1, 5, 2]), torch.tensor([7])], Sampling(1.0, seed=5, accept="ratio")
    once = generate(engine, prompts, 30, sampling=sampling)
    assert generate(engine, prompts, 30, sampling=sampling) == once
    assert {len(step.tokens) for out in once for step in out.steps} >= {1, 2}, "drafts are accepted and rejected"


def test_rows_that_leave_do_not_change_what_the_others_accept_by_ratio() -> None:
    engine = Engine(random_model(HEADS["parallel"], seed=2, vocab_size=8))
    prompts, sampling = [torch.tensor([i, 1]) for i in range(6)], Sampling(1.0, seed=1, accept="ratio")
    whole = [out.tokens for out in generate(engine, prompts, 30, sampling=sampling)]
    ended = [out.tokens for out in generate(engine, prompts, 30, stop_ids={5}, sampling=sampling)]
    assert len({len(text) for text in ended}) > 2
    assert ended == [text[: text.index(5) + 1] if 5 in text else text for text in whole]


V, ROWS, NEW = 5, 120, 50


def bigrams(name: str) -> MTPModel:
    """Without attention: a token's distribution depends on the one before it alone, so that every token of a long text
    is a trial. The further heads are often wrong."""
    model = random_model(HEADS[name], seed=0, vocab_size=V, n_layers=2)
    for block in model.blocks():
        torch.nn.init.zeros_(block.attention.wo.weight)
    torch.nn.init.normal_(model.unembedding.weight, std=0.18)
    return model


def p_value(model: MTPModel, sampling: Sampling, heads_used: int) -> float:
    """Pearson's chi-square test of all tokens, given each of the V^2 pairs before them, against what the slow model and
    the definition of `sampling` say: three tokens in a row are as they should be."""
    alone = [head_logits(model, [token], [token])[0, -1].tolist() for token in range(V)]
    chances = torch.tensor([by_definition(logits, sampling) for logits in alone], dtype=torch.float64).softmax(-1)
    prompt = torch.tensor([1, 2])
    seen = torch.zeros(V, V, V, dtype=torch.float64)
    for out in generate(Engine(model), [prompt] * ROWS, NEW, heads_used, sampling=sampling):
        text = torch.tensor([*prompt.tolist(), *out.tokens])
        seen.index_put_((text[:-2], text[1:-1], text[2:]), torch.ones((), dtype=torch.float64), accumulate=True)
    expected = seen.sum(-1, keepdim=True) * chances
    possible = expected > 0
    assert not seen[~possible].any()
    statistic = ((seen - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - possible.any(-1).sum()
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("restricted", [False, True], ids=["all", "restricted"])
@pytest.mark.parametrize(
    ("accept", "name", "heads_used"),
    [
        ("match", "parallel", 1),
        ("match", "parallel", 3),
        ("ratio", "parallel", 1),
        ("ratio", "parallel", 3),
        ("ratio", "sequential", 3),
        ("ratio", "markov", 3),
        ("ratio", "next_latent", 3),
        ("ratio", "fetch", 3),
        pytest.param("ratio", "mixture", 3, marks=pytest.mark.slow),
        ("ratio", "leap", 3),
    ],
)
def test_tokens_come_as_often_as_the_model_says(accept: Any, name: str, heads_used: int, restricted: bool) -> None:
    sampling = Sampling(*((1.5, 4, 0.9) if restricted else (1.0, None, None)), seed=11, accept=accept)
    assert p_value(bigrams(name), sampling, heads_used) > 1e-4


class WithoutResidual(Ratio):
    """The classic mistake: a rejected draft is replaced by a sample from p, which may well be the draft again."""

    def verify(self, block_BM: Tensor, logits_BMV: Tensor, *where: Any) -> Verdict:
        verdict = super().verify(block_BM, logits_BMV, *where)
        at = (torch.arange(len(block_BM)), verdict.accepted_B - 1)
        p_BV = self.sampling.restrict(logits_BMV).softmax(-1)[at]
        return verdict._replace(certain_B=self._sample(p_BV[:, None], where[1])[:, 0])


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_wrong_sampler_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "Ratio", WithoutResidual)
    assert p_value(bigrams("parallel"), Sampling(1.0, seed=11, accept="ratio"), 3) < 1e-8
