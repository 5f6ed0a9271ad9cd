"""How many heads draft is settled by what pays: simulated acceptance under a clock of our own, and real text."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_decoding import greedy
from test_decoding import random_model
from tiny import VARIANTS

from mtp_lightning.decoding.adaptive import MOST_PATIENCE, Adaptive
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.model.config import HeadsConfig


class World:
    """Text in which the draft of place i + 2 is right with probability `chances[i]` once all before it were, on a
    machine whose forward with k heads takes `seconds(k)`."""

    def __init__(self, chances: Sequence[float], seconds: Callable[[int], float], places: Sequence[int] = ()) -> None:
        self.chances, self.seconds, self.now, self.random = chances, seconds, 0.0, random.Random(0)
        self.places = places or range(1, len(chances) + 2)
        self.adaptive = Adaptive(self.places, len(self.places), clock=lambda: self.now)
        self.verified = self.drafted = len(self.places)

    def run(self, forwards: int, rows: int = 1) -> list[int]:
        """How many heads drafted in each."""
        used = []
        for _ in range(forwards):
            used.append(self.drafted)
            self.now += (self.seconds(self.verified) + self.seconds(self.drafted)) / 2
            accepted = [self.accept() for _ in range(rows)]
            chosen = self.adaptive.next(self.verified, self.drafted, accepted)
            self.verified, self.drafted = self.drafted, chosen
        return used

    def accept(self) -> int:
        count = 1
        while count < self.places[self.verified - 1] and self.random.random() < self.chances[count - 1]:
            count += 1
        return count

    def tokens_a_second(self, heads_used: int) -> float:
        total = reached = 1.0
        for chance in self.chances[: self.places[heads_used - 1] - 1]:
            reached *= chance
            total += reached
        return total / self.seconds(heads_used)


def mostly(used: list[int]) -> int:
    return Counter(used).most_common(1)[0][0]


@pytest.mark.parametrize(
    ("chances", "seconds"),
    [
        ([0.0, 0.0, 0.0], lambda k: 1.0 + 0.1 * k),
        ([0.6, 0.6, 0.6], lambda k: float(k)),
        ([1.0, 1.0, 1.0], lambda k: 1.1 * k if k > 1 else 1.0),
    ],
    ids=["nothing is accepted", "time is proportional", "time is more than proportional"],
)
def test_drafts_that_do_not_pay_are_left_out_and_seldom_tried(
    chances: list[float], seconds: Callable[[int], float]
) -> None:
    used = World(chances, seconds).run(4000)
    settled = used[100:]
    assert sum(k > 1 for k in settled) <= 0.03 * len(settled)
    late = used[-4 * MOST_PATIENCE :]
    assert 0 < sum(k > 1 for k in late) <= 8 * 4, "a trial of three forwards for two numbers, once in MOST_PATIENCE"


def test_drafts_that_are_right_and_free_are_all_taken() -> None:
    used = World([1.0] * 7, lambda k: 1.0).run(2000)
    assert sum(k == 8 for k in used[20:]) > 0.95 * len(used[20:])


@settings(max_examples=25, deadline=None)
@given(
    chances=st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0]), min_size=1, max_size=7),
    slope=st.floats(0.0, 1.0),
    gaps=st.booleans(),
)
def test_what_is_used_is_nearly_as_quick_as_the_best_there_is(chances: list[float], slope: float, gaps: bool) -> None:
    """Time grows evenly with the places verified, so that quickness rises and then falls with the number of heads. An
    eighth may be left lying, where a few unlucky trials end in plain decoding, which tells nothing of drafts."""
    places = [1, *range(2, len(chances) + 2, 2)] if gaps else range(1, len(chances) + 2)
    world = World(chances, lambda k: 1.0 + slope * places[k - 1], places)
    rates = [world.tokens_a_second(k) for k in range(1, len(places) + 1)]
    used = world.run(1000)[200:]
    assert set(used) <= set(range(1, len(places) + 1))
    spent = sum(world.seconds(k) for k in used)
    gained = sum(world.tokens_a_second(k) * world.seconds(k) for k in used)
    assert gained / spent > 0.8 * max(rates)
    ordered = sorted(rates)
    if len(rates) > 1 and ordered[-1] > 1.35 * ordered[-2]:
        assert rates[mostly(used) - 1] == ordered[-1]


def test_the_best_in_between_is_found() -> None:
    world = World([0.95, 0.95, 0.95, 0.0, 0.0, 0.0, 0.0], lambda k: 1.0 + 0.3 * k)
    rates = [world.tokens_a_second(k) for k in range(1, 9)]
    assert rates.index(max(rates)) + 1 == 4
    assert mostly(world.run(1500)[500:]) == 4
    for k, times in world.adaptive.seconds.items():
        assert list(times) == pytest.approx([world.seconds(k)] * len(times)), "no step that drafted for another counts"


def test_text_that_changes_changes_the_number_of_heads_in_time() -> None:
    world = World([0.9, 0.9, 0.9], lambda k: 1.0 + 0.1 * k)
    assert mostly(world.run(500)[100:]) == 4
    world.chances = [0.0, 0.0, 0.0]
    assert mostly(world.run(200)[100:]) == 1
    world.chances = [0.9, 0.9, 0.9]
    assert mostly(world.run(1000)[500:]) == 4


def test_a_machine_that_slows_down_changes_it_too() -> None:
    world = World([0.8, 0.8, 0.8], lambda k: 1.0)
    assert mostly(world.run(300)[50:]) == 4
    world.seconds = float
    assert mostly(world.run(300)[100:]) == 1
    world.seconds = lambda k: 1.0
    assert mostly(world.run(1000)[600:]) == 4


def test_a_batch_that_shrinks_to_half_is_measured_anew() -> None:
    """Drafting does not pay for eight rows, and does for one: nobody waits until the next trial."""
    world = World([0.8, 0.8, 0.8], float)
    assert mostly(world.run(600, rows=8)[300:]) == 1
    world.seconds = lambda k: 1.0
    assert mostly(world.run(20, rows=5)) == 1
    assert {1, 4} <= set(world.run(10, rows=4))
    assert mostly(world.run(30, rows=4)) == 4


@pytest.mark.parametrize("places", [(1,), (1, 3), (1, 3, 4), (1, 2, 9), (1, 5, 6, 13)])
@pytest.mark.parametrize("rows", [1, 5])
def test_heads_that_leap_and_batches_are_counted_by_places(places: tuple[int, ...], rows: int) -> None:
    world = World([0.7] * (places[-1] - 1), lambda k: 1.0 + 0.2 * k, places)
    used = world.run(700, rows)
    assert set(used) <= set(range(1, len(places) + 1))
    assert all(0 <= share <= 1 for share in world.adaptive.acceptance.values())
    assert set(world.adaptive.acceptance) == set(range(2, places[-1] + 1))
    world.adaptive.acceptance = dict.fromkeys(world.adaptive.acceptance, 1.0)
    assert [world.adaptive.tokens(k) for k in range(1, len(places) + 1)] == list(places)


@pytest.mark.parametrize("name", ["parallel", "linear", "anticausal", "sequential", "leap", "none"])
def test_text_is_the_same_whatever_was_tried(name: str) -> None:
    model = random_model(VARIANTS[name], seed=6, vocab_size=6)
    prompts = [torch.randint(0, 6, (length,)) for length in (1, 6, 3)]
    outs = generate(Engine(model), prompts, 40, "auto", {5})
    assert [out.tokens for out in outs] == [greedy(model, prompt, 40, {5}) for prompt in prompts]


def test_plain_and_drafting_forwards_are_both_tried_in_a_text() -> None:
    model = random_model(HeadsConfig(n_future=4), seed=6)
    (out,) = generate(Engine(model), [torch.arange(4)], 60, "auto")
    assert out.tokens == greedy(model, torch.arange(4), 60)
    assert {len(step.block) for step in out.steps} >= {1, 4}
