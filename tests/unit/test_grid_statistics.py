"""The intervals against exact enumeration in plain Python, known quantiles, and what they promise."""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from itertools import product

import pytest

from mtp_lightning.grid.report.statistics import (
    Interval,
    difference_of,
    paired_interval,
    pooled_sd,
    summarise,
    t_quantile,
    welch_interval,
)

SIX = [0.31, -0.12, 0.05, 0.22, 0.4, 0.11]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(round(share * len(ordered), 9)) - 1]


def slow_bootstrap_t(values: Sequence[float]) -> tuple[float, float]:
    """All n^n resamples, one by one."""
    n, mean, error = len(values), statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    ts = []
    for chosen in product(values, repeat=n):
        gap = statistics.fmean(chosen) - mean
        if max(chosen) == min(chosen):
            ts.append(math.copysign(math.inf, gap))
        else:
            total = sum(chosen)
            spread = math.sqrt((sum(x * x for x in chosen) - total * total / n) / (n - 1))
            ts.append(gap / (spread / math.sqrt(n)))
    return mean + quantile([-t for t in ts], 0.025) * error, mean - quantile(ts, 0.025) * error


def percentile(values: Sequence[float]) -> tuple[float, float]:
    """The percentile bootstrap, which reports do not use; of three values, from all 27 resamples."""
    means = [statistics.fmean(chosen) for chosen in product(values, repeat=len(values))]
    return quantile(means, 0.025), -quantile([-mean for mean in means], 0.025)


# Two-sided 95 %, from the tables in statistics textbooks.
T_TABLE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 9: 2.2622, 30: 2.0423, 120: 1.9799}


@pytest.mark.parametrize(("freedom", "t"), T_TABLE.items())
def test_students_quantiles(freedom: int, t: float) -> None:
    assert t_quantile(float(freedom)) == pytest.approx(t, abs=5e-5)


@pytest.mark.parametrize(("freedom", "level", "t"), [(2, 0.99, 9.9248), (4, 0.995, 5.5976), (2, 0.998, 22.3271)])
def test_students_quantiles_at_other_levels(freedom: int, level: float, t: float) -> None:
    assert t_quantile(float(freedom), level) == pytest.approx(t, abs=5e-4)


def test_the_best_of_many_is_held_against_an_interval_for_so_many() -> None:
    """Fifteen settings that are all equal to the baseline, three seeds: the best one is ahead of it by chance in one
    grid of ten by the plain interval, and hardly ever by the one for the best of fifteen."""
    rng, found = random.Random(0), []
    for _ in range(400):
        baseline, *arms = ({seed: rng.gauss(0, 1) for seed in range(3)} for _ in range(16))
        best = min(arms, key=lambda arm: sum(arm.values()))
        found.append(difference_of(best, baseline))
    plain = sum(gap is not None and gap.interval is not None and gap.interval.high < 0 for gap in found) / 400
    among = [gap.among(15) for gap in found if gap is not None]
    assert 0.07 < plain < 0.15
    assert sum(one is not None and one.high < 0 for one in among) / 400 < 0.04


def test_the_best_of_one_has_the_plain_interval() -> None:
    gap = difference_of({0: 1.0, 1: 1.2, 2: 1.1}, {0: 2.0, 1: 2.1, 2: 2.3})
    assert gap is not None
    assert gap.among(1) == gap.interval
    unpaired = difference_of({0: 1.0, 1: 1.2, 2: 1.1}, {3: 2.0, 4: 2.1, 5: 2.3})
    assert unpaired is not None
    assert unpaired.interval is not None
    assert unpaired.among(2) is None


def test_quantiles_for_broken_degrees_of_freedom_lie_in_between() -> None:
    assert t_quantile(4.0) < t_quantile(3.4) < t_quantile(3.0)
    assert t_quantile(1e4) == pytest.approx(1.9602, abs=1e-4)  # nearly the normal distribution's


def test_three_to_five_pairs_have_students_interval() -> None:
    found = paired_interval([1.0, 2.0, 6.0])
    reach = 4.30265 * math.sqrt(7) / math.sqrt(3)
    assert found is not None
    assert (found.low, found.high, found.method) == (
        pytest.approx(3 - reach, rel=1e-5),
        pytest.approx(3 + reach, rel=1e-5),
        "t",
    )
    assert [(found := paired_interval(SIX[:n])) and found.method for n in (3, 4, 5, 6)] == [
        "t",
        "t",
        "t",
        "bootstrap-t",
    ]


def test_the_studentized_bootstrap_is_the_one_of_all_resamples() -> None:
    found = paired_interval(SIX)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(slow_bootstrap_t(SIX), rel=1e-9)
    assert found.method == "bootstrap-t"


def test_it_is_the_same_again_whatever_the_order_of_the_seeds() -> None:
    chance = random.Random(1)
    values = [chance.gauss(0, 1) for _ in range(12)]
    first = paired_interval(values)
    chance.shuffle(values)
    assert paired_interval(values) == first


def test_drawn_resamples_come_near_to_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = paired_interval([*SIX, 0.18, 0.02])
    monkeypatch.setattr("mtp_lightning.grid.report.statistics.MOST_ENUMERATED", 7)
    monkeypatch.setattr("mtp_lightning.grid.report.statistics._resamples", _uncached())
    drawn = paired_interval([*SIX, 0.18, 0.02])
    assert drawn is not None
    assert exact is not None
    assert drawn != exact
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.02 * (exact.high - exact.low))


def _uncached() -> Callable[..., object]:
    from mtp_lightning.grid.report import statistics as ours

    return ours._resamples.__wrapped__


def test_units_do_not_matter() -> None:
    plain, scaled, turned = (paired_interval([f * value for value in SIX]) for f in (1.0, 1e9, -1.0))
    assert plain is not None
    assert scaled is not None
    assert turned is not None
    assert (scaled.low, scaled.high) == pytest.approx((1e9 * plain.low, 1e9 * plain.high), rel=1e-9)
    assert (-turned.high, -turned.low) == pytest.approx((plain.low, plain.high), rel=1e-9)


def test_no_interval_where_nothing_is_known_of_the_spread() -> None:
    assert [paired_interval(values) for values in ([], [1.0], [1.0, 2.0], [0.5] * 7, [1.0, 2.0, math.nan])] == [
        None
    ] * 5
    assert paired_interval([2.5 - 2.0, 2.7 - 2.2, 2.6 - 2.1]) is None  # equal but for the last digit


def test_many_equal_differences_fall_back_to_students() -> None:
    """Nearly half of all resamples of these are six zeros: their t is infinite."""
    found = paired_interval([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert found is not None
    assert found.method == "t"
    assert math.isfinite(found.low + found.high)


def test_welch_for_unlike_spreads() -> None:
    """Against the formulas, with the degrees of freedom by hand: 1 and 1/48 of variance give 2.084."""
    mine, theirs = [1.0, 2.0, 6.0], [0.0, 0.25, 0.5]
    a, b = 7 / 3, 0.0625 / 3
    freedom = (a + b) ** 2 / (a**2 / 2 + b**2 / 2)
    found = welch_interval(mine, theirs)
    assert found is not None
    assert freedom == pytest.approx(2.0357, abs=1e-4)
    assert found.low == pytest.approx(2.75 - t_quantile(freedom) * math.sqrt(a + b))
    assert found.high == pytest.approx(2.75 + t_quantile(freedom) * math.sqrt(a + b))
    assert [welch_interval(*few) for few in (([1.0, 2.0], theirs), (mine, [1.0]), ([1.0] * 3, [2.0] * 3))] == [None] * 3


def test_pairs_are_of_one_seed_and_without_one_it_is_unpaired() -> None:
    found = difference_of({0: 1.0, 1: 2.0, 2: 4.0, 9: 100.0}, {2: 1.0, 0: 0.5, 1: 1.0, 7: 50.0})
    assert found is not None
    assert (found.mean, found.seeds) == (1.5, 3)
    assert found.interval == paired_interval([0.5, 1.0, 3.0])
    apart = difference_of({0: 1.0, 1: 2.0, 2: 4.0}, {3: 0.5, 4: 1.0, 5: 1.2})
    assert apart is not None
    assert (apart.seeds, apart.sd, apart.interval) == (0, None, welch_interval([1.0, 2.0, 4.0], [0.5, 1.0, 1.2]))
    assert difference_of({}, {0: 1.0}) is None


def test_a_value_that_is_not_finite_is_not_left_out() -> None:
    found = difference_of({0: 1.0, 1: math.inf, 2: 1.0, 3: 1.0}, dict.fromkeys(range(4), 0.0))
    assert found is not None
    assert math.isnan(found.mean)
    assert (found.sd, found.interval, found.seeds) == (None, None, 4)
    assert summarise([1.0, 2.0]) == summarise([2.0, 1.0])


EXTREME = [0.0, 1.0, -1e200, 1.7e308, -1.7e308, 3.4e38, 5e-324, 1e-200, math.inf, math.nan]


@pytest.mark.parametrize("seeds", [2, 3])
def test_numbers_that_no_square_holds_are_no_error(seeds: int) -> None:
    """A metric of one's own may have any: what comes out is a number, or nan, or nothing."""
    for values in product(EXTREME, repeat=seeds):
        mine, theirs = dict(enumerate(values)), dict(enumerate(values[::-1]))
        gap = difference_of(mine, theirs)
        assert gap is not None
        gap.among(3)
        for times in (1, 2, 3):  # what is divided by the root of enough seeds is 0
            welch_interval(values * times, values[::-1] * times)
        found = summarise(values)
        assert found is not None
        assert math.isfinite(found.mean) == all(abs(value) < 1e150 for value in values)
        assert (pooled_sd([mine]) is None) == (found.sd is None)


@pytest.mark.parametrize(("low", "high", "excludes"), [(-1.0, 1.0, False), (0.1, 2.0, True), (-2.0, -0.1, True)])
def test_zero_is_in_or_out(low: float, high: float, excludes: bool) -> None:
    assert Interval(low, high, "t").excludes_zero is excludes


def coverage(n: int, draw: Callable[[], float], samples: int, ends: Callable[..., tuple[float, float]]) -> float:
    """The share of samples whose interval has the true mean, 0, in it."""
    found = [ends([draw() for _ in range(n)]) for _ in range(samples)]
    return sum(low <= 0 <= high for low, high in found) / samples


def ours(values: Sequence[float]) -> tuple[float, float]:
    found = paired_interval(values)
    assert found is not None
    return found.low, found.high


@pytest.mark.parametrize("n", [3, 5, 6])
def test_the_interval_keeps_its_promise_where_the_percentiles_do_not(n: int) -> None:
    chance = random.Random(n)
    assert coverage(n, lambda: chance.gauss(0, 1), 600, ours) > 0.95 - 3 * 0.009  # three standard errors
    if n == 3:
        assert coverage(n, lambda: chance.gauss(0, 1), 600, percentile) < 0.80


# Seeds -> coverage of normal and of exponential differences, as the docstring of the module has them.
MEASURED = {3: (0.95, 0.88), 5: (0.95, 0.89), 6: (0.95, 0.93), 8: (0.95, 0.94), 10: (0.95, 0.95)}


@pytest.mark.slow
@pytest.mark.parametrize(("n", "shares"), MEASURED.items())
def test_coverage_is_what_the_docstring_says(n: int, shares: tuple[float, float]) -> None:
    chance = random.Random(n)
    draws = (lambda: chance.gauss(0, 1), lambda: chance.expovariate(1.0) - 1)
    assert [coverage(n, draw, 1500, ours) for draw in draws] == pytest.approx(shares, abs=0.02)
