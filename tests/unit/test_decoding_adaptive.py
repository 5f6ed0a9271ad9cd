"""How many heads draft is settled by what pays: simulated acceptance under a clock of our own, and real text."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoding import random_model
from tiny import VARIANTS

from mtp_lightning.decoding.adaptive import SHARE, TRIAL, Adaptive, Experience
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.decoding.reference import decode_plainly
from mtp_lightning.model.config import HeadsConfig


class World:
    """Text in which the draft at offset i + 2 is right with probability `chances[i]` once all before it were, on a
    machine whose forward with k heads takes `seconds(k)`, and `reading` more where k is more than it was."""

    def __init__(
        self, chances: Sequence[float], seconds: Callable[[int], float], offsets: Sequence[int] = (), reading: float = 1
    ) -> None:
        self.chances, self.seconds, self.reading, self.random = chances, seconds, reading, random.Random(0)
        self.offsets = offsets or range(1, len(chances) + 2)
        self.known = Experience(self.offsets)
        self.now = self.plain = 0.0

    def texts(self, count: int, rows: int = 1, length: int = 250) -> list[int]:
        """How many heads drafted in each forward of so many batches; `now` and `plain` are what they took, and what
        plain decoding would have taken."""
        return [k for _ in range(count) for k in self.batch([length] * rows)]

    def batch(self, left: list[int]) -> list[int]:
        adaptive = Adaptive(self.known, len(left), clock=lambda: self.now)
        verified = drafted = adaptive.used
        self.now += self.reading * (drafted > 1)
        self.plain += max(left) * self.seconds(1)
        used = []
        while left:
            used.append(drafted)
            adaptive.start()
            self.now += (self.seconds(verified) + self.seconds(drafted)) / 2 + self.reading * (drafted > verified)
            accepted = [self.accept(verified) for _ in left]
            left = [most - count for most, count in zip(left, accepted)]
            chosen = adaptive.next(verified, drafted, accepted, max(left))
            verified, drafted = drafted, chosen
            left = [most for most in left if most > 0]
        return used

    def accept(self, verified: int) -> int:
        count = 1
        while count < self.offsets[verified - 1] and self.random.random() < self.chances[count - 1]:
            count += 1
        return count

    def gain(self, heads_used: int) -> float:
        total = reached = 1.0
        for chance in self.chances[: self.offsets[heads_used - 1] - 1]:
            reached *= chance
            total += reached
        return total / self.seconds(heads_used) * self.seconds(1)


def mostly(used: list[int]) -> int:
    return Counter(used).most_common(1)[0][0]


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize(
    ("chances", "seconds"),
    [
        ([0.0, 0.0, 0.0], lambda k: 1.0 + 0.1 * k),
        ([0.6, 0.6, 0.6], lambda k: float(k)),
        ([1.0, 1.0, 1.0], lambda k: 1.1 * k if k > 1 else 1.0),
        ([0.5], lambda k: 0.5 + 0.5 * k),
        ([0.6] * 7, lambda k: 1.0 + 0.6 * (k > 1) + 0.3 * k),
    ],
    ids=["nothing is accepted", "proportional", "more than proportional", "as quick as plain", "a dear first head"],
)
def test_drafts_that_do_not_pay_cost_next_to_nothing(
    chances: list[float], seconds: Callable[[int], float], rows: int
) -> None:
    world = World(chances, seconds)
    world.texts(1, rows)
    assert world.plain / world.now > 0.95, "in an engine's first text"
    world.now = world.plain = 0.0
    used = world.texts(20, rows)
    assert world.plain / world.now > 0.975
    assert max(used[-5000:]) > 1, "they are tried all the same"


def test_a_debt_is_paid_off_before_the_next_trial() -> None:
    """Drafts are all wrong, so a trial of two heads loses all of its time but what its forwards would plainly take."""
    world = World([0.0], lambda k: 1.0 if k == 1 else 9.0, reading=0)
    used = world.texts(60)
    trials = sum(k == 2 for k in used) / (TRIAL + 1)
    lost = (4 + 8 * TRIAL + 4) * (trials - 1)
    assert trials >= 3
    assert SHARE * world.now * 0.8 - 40 < lost < SHARE * world.now * 1.05


def test_no_trial_begins_where_the_text_ends() -> None:
    world = World([1.0, 1.0, 1.0], lambda k: 1.0)
    assert set(world.texts(50, length=4 * TRIAL)) == {1}
    assert mostly(world.texts(1)) == 4


def test_drafts_that_are_right_and_free_are_all_taken_from_the_next_text_on() -> None:
    world = World([1.0] * 7, lambda k: 1.0, reading=0)
    used = world.texts(1, length=400)
    assert used[:TRIAL] == [1] * TRIAL
    assert mostly(used) == 8
    later = world.texts(20)
    assert later[0] == 8, "the prompts are read with them already"
    assert sum(k == 8 for k in later) > 0.85 * len(later)


@pytest.mark.usefixtures("shapes_unchecked")
@settings(max_examples=15, deadline=None)
@given(
    chances=st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0]), min_size=1, max_size=7),
    slope=st.floats(0.0, 1.0),
    gaps=st.booleans(),
    rows=st.sampled_from([1, 3]),
)
def test_what_is_used_is_nearly_as_quick_as_the_best_there_is(
    chances: list[float], slope: float, gaps: bool, rows: int
) -> None:
    """Time grows evenly with the tokens verified, so that quickness rises and then falls with the number of heads. A
    seventh may be left lying, where one head more does not pay and two more would."""
    offsets = [1, *range(2, len(chances) + 2, 2)] if gaps else range(1, len(chances) + 2)
    world = World(chances, lambda k: 1.0 + slope * offsets[k - 1], offsets)
    gains = [world.gain(k) for k in range(1, len(offsets) + 1)]
    world.texts(5)
    used = world.texts(5, rows)
    assert set(used) <= set(range(1, len(offsets) + 1))
    spent = sum(world.seconds(k) for k in used)
    gained = sum(world.gain(k) * world.seconds(k) for k in used)
    assert gained / spent > max(0.86 * max(gains), 0.96)
    ordered = sorted(gains)
    if len(gains) > 1 and ordered[-1] > 1.35 * ordered[-2]:
        assert gains[mostly(used) - 1] == ordered[-1]


def test_the_best_in_between_is_found() -> None:
    world = World([0.95, 0.95, 0.95, 0.0, 0.0, 0.0, 0.0], lambda k: 1.0 + 0.3 * k)
    gains = [world.gain(k) for k in range(1, 9)]
    assert gains.index(max(gains)) + 1 == 4
    assert mostly(world.texts(10)) == 4
    for (_, k), costs in world.known.costs.items():
        found = [world.seconds(k) / world.seconds(1)] * len(costs)
        assert list(costs) == pytest.approx(found), "no step that drafted for another counts"


def test_text_that_changes_changes_the_number_of_heads_in_time() -> None:
    world = World([0.9, 0.9, 0.9], lambda k: 1.0 + 0.1 * k)
    assert mostly(world.texts(3)) == 4
    world.chances = [0.0, 0.0, 0.0]
    world.texts(2)
    assert mostly(world.texts(3)) == 1
    world.chances = [0.9, 0.9, 0.9]
    world.texts(12)
    assert mostly(world.texts(2)) == 4


def test_a_machine_that_slows_down_changes_it_too() -> None:
    world = World([0.8, 0.8, 0.8], lambda k: 1.0)
    assert mostly(world.texts(4)) == 4
    world.seconds = float
    world.texts(20)
    assert mostly(world.texts(3)) == 1
    world.seconds = lambda k: 1.0
    world.texts(25)
    assert mostly(world.texts(3)) >= 3


def test_costs_belong_to_a_size_of_batch_and_a_new_one_borrows_the_nearest() -> None:
    """Drafting pays for one row, and does not for eight: the first forwards of these still draft."""
    world = World([0.8, 0.8, 0.8], lambda k: 1.0)
    world.texts(5)
    assert mostly(world.texts(1)) == 4
    world.seconds = float
    used = world.texts(1, rows=8)
    assert used[:TRIAL] == [4] * TRIAL
    assert 1 in used[: 3 * TRIAL], "what was borrowed is checked against plain decoding at once"
    assert mostly(world.texts(2, rows=8)) == 1
    assert mostly(world.texts(2, rows=7)) == 1, "7 count as 8"
    world.seconds = lambda k: 1.0
    assert mostly(world.texts(1)) == 4, "nothing of one row is forgotten"


def test_rows_that_leave_leave_the_number_of_heads_that_is_best_for_the_others() -> None:
    world = World([0.8, 0.8, 0.8], lambda k: 1.0)
    world.texts(5)
    world.seconds = float
    world.texts(2, rows=8)
    used = world.batch([400] + [100] * 7)
    assert mostly(used[:100]) == 1
    assert mostly(used[110:130]) == 4


@pytest.mark.parametrize("offsets", [(1,), (1, 3), (1, 3, 4), (1, 2, 9), (1, 5, 6, 13)])
@pytest.mark.parametrize("rows", [1, 5])
def test_heads_that_leap_and_batches_are_counted_by_offsets(offsets: tuple[int, ...], rows: int) -> None:
    world = World([0.7] * (offsets[-1] - 1), lambda k: 1.0 + 0.2 * k, offsets)
    used = world.texts(4, rows)
    assert set(used) <= set(range(1, len(offsets) + 1))
    known = world.known
    assert set(known.right) == set(known.reached) == set(range(2, offsets[-1] + 1))
    assert all(0 <= known.right[offset] <= known.reached[offset] for offset in known.right)
    known.right = known.reached = dict.fromkeys(known.right, 1e9)
    assert [known.tokens(k) for k in range(1, len(offsets) + 1)] == pytest.approx(offsets)


def test_a_place_that_was_never_reached_is_believed_to_fare_as_the_one_before() -> None:
    known = Experience(range(1, 5))
    assert known.tokens(4) == pytest.approx(1 + 1 / 2 + 1 / 4 + 1 / 8)
    for _ in range(1000):
        known.observe(2, [2, 2, 1, 2])
    assert known.tokens(4) == pytest.approx(1 + 0.75 + 0.75**2 + 0.75**3, abs=0.05)
    known.observe(4, [1, 1])
    assert known.reached[3] == known.reached[4] == 0, "their turn did not come"
    known.observe(4, [2, 4])
    assert (known.right[3], known.reached[3], known.right[4], known.reached[4]) == (1, 2, 1, 1)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("name", ["parallel", "linear", "anticausal", "sequential", "leap", "none"])
def test_text_is_the_same_whatever_was_tried(name: str) -> None:
    model = random_model(VARIANTS[name], seed=6, vocab_size=6)
    prompts = [torch.randint(0, 6, (length,)) for length in (1, 6, 3)]
    engine = Engine(model)
    for _ in range(2):
        outs = generate(engine, prompts, 40, "auto", {5})
        assert [out.tokens for out in outs] == [decode_plainly(model, prompt, 40, {5}) for prompt in prompts]


def test_an_engine_begins_plainly_tries_drafts_and_keeps_what_it_has_learned() -> None:
    model = random_model(HeadsConfig(n_future=4), seed=6)
    engine, expected = Engine(model), decode_plainly(model, torch.arange(4), 60)
    (out,) = generate(engine, [torch.arange(4)], 60, "auto")
    assert out.tokens == expected
    blocks = [len(step.block) for step in out.steps]
    assert blocks[0] == 1
    assert 2 in blocks
    known = engine.experience
    assert {k for _, k in known.costs} >= {2}
    known.right, known.reached = dict.fromkeys(known.right, 1e9), dict.fromkeys(known.right, 1e9)
    known.learn(1, 1, 4, 1.0)
    (out,) = generate(engine, [torch.arange(4)], 60, "auto")
    assert out.tokens == expected
    assert len(out.steps[0].block) == 4
