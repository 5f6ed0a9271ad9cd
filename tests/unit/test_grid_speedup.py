"""Effective speedup: exact without noise, its interval covers as often as it says, and nothing is read far off the
ladder. The order of two arms at the next size holds about as often as its probability says."""

from dataclasses import dataclass

import numpy as np
import pytest

from mtp_lightning.grid.report.ladder.power_law import Array, fit_power_laws
from mtp_lightning.grid.report.ladder.speedup import LEVEL, Worth, order_of, worth

COMPUTE = np.geomspace(1e15, 1e17, 5)


def curve(compute: Array) -> Array:
    return np.asarray(1.5 + 1.0 * (compute / 1e15) ** -0.3)


def exact(speedup: Array | float, arm_compute: Array = COMPUTE, seeds: int = 2) -> Worth:
    """Without noise: seeds whose differences cancel."""
    common = 1e-9 * np.arange(seeds)
    baseline = curve(COMPUTE)[:, None] + common
    arm = curve(arm_compute * speedup)[:, None] + common
    law = fit_power_laws(COMPUTE, baseline.mean(axis=1))
    return worth(COMPUTE, baseline, arm_compute, arm, law, draws=50)


def values(found: Worth) -> list[float]:
    return [one.estimate.value if one.estimate else np.nan for one in found.speedups]


def test_without_noise_it_is_the_factor_of_compute() -> None:
    assert values(exact(1.3)) == pytest.approx([1.3] * 5, rel=1e-4)
    assert values(exact(0.8)) == pytest.approx([0.8] * 5, rel=1e-4)


def test_what_an_arm_costs_more_counts_against_it() -> None:
    """An arm that is on the baseline's curve at its own compute is worth 1, whatever it costs."""
    assert values(exact(1.0, COMPUTE * 1.2)) == pytest.approx([1.0] * 5, rel=1e-4)


def test_the_trend_is_the_factor_with_ten_times_the_compute() -> None:
    found = exact(1.1 ** np.arange(5.0))  # the ladder's step is sqrt(10)
    assert found.trend is not None
    assert found.trend.value == pytest.approx(1.21, rel=1e-3)
    assert found.trend.low <= found.trend.value <= found.trend.high


def test_far_off_the_ladder_nothing_is_read() -> None:
    found = exact(2.5)
    assert values(found)[:4] == pytest.approx([2.5] * 4, rel=1e-4)
    last = found.speedups[4]
    assert last.estimate is None
    assert last.refusal == (
        "outside of the fitted range: the baseline would need 2.50 times the compute of the largest size"
    )
    assert found.trend is None, "of the sizes that are left it would be 1 for an arm that grows out of the range"
    assert exact(1.2 ** np.arange(6.0)[1:]).trend is None
    assert "0.40 times the compute of the smallest size" in str(exact(0.4).speedups[0].refusal)
    below = np.full((5, 2), 1.4)
    baseline = curve(COMPUTE)[:, None] + np.array([0.0, 1e-9])
    law = fit_power_laws(COMPUTE, baseline.mean(axis=1))
    assert "no finite compute" in str(worth(COMPUTE, baseline, COMPUTE, below, law).speedups[2].refusal)


def test_missing_and_diverged_seeds_are_said_and_cost_only_their_size() -> None:
    rng = np.random.default_rng(0)
    baseline = curve(COMPUTE)[:, None] + 0.01 * rng.standard_normal((5, 3))
    arm = curve(COMPUTE * 1.2)[:, None] + 0.01 * rng.standard_normal((5, 3))
    arm[0], arm[1, 2], arm[2, 1] = np.nan, np.inf, np.nan
    law = fit_power_laws(COMPUTE, baseline.mean(axis=1))
    found = worth(COMPUTE, baseline, COMPUTE, arm, law).speedups
    assert found[0].refusal == "missing: no seed in common with the baseline"
    assert found[1].refusal == "not finite: a seed of the arm diverged"
    kept = [0, 2]  # paired: the baseline's mean is over the arm's seeds too
    ratio = (baseline[2, kept].mean() - law.floor) / (arm[2, kept].mean() - law.floor)
    assert values(Worth(found, None))[2] == pytest.approx(float(ratio ** (1 / law.exponent)))
    single = worth(COMPUTE, baseline[:, :1], COMPUTE, arm[:, :1], law).speedups
    assert single[2].refusal == "one seed in common with the baseline: no interval"


def test_an_arm_whose_compute_is_unknown_has_no_speedup() -> None:
    unknown = COMPUTE.copy()
    unknown[1] = np.nan
    baseline = curve(COMPUTE)[:, None] + np.array([0.0, 1e-9])
    law = fit_power_laws(COMPUTE, baseline.mean(axis=1))
    found = worth(COMPUTE, baseline, unknown, baseline, law).speedups
    assert [one.refusal for one in found] == [None, "unknown compute of the arm", None, None, None]


def test_a_wider_spread_is_a_wider_interval_and_the_same_numbers_come_again() -> None:
    def width(sd: float) -> float:
        rng = np.random.default_rng(0)
        baseline = curve(COMPUTE)[:, None] + sd * rng.standard_normal((5, 3))
        law = fit_power_laws(COMPUTE, baseline.mean(axis=1))
        found = worth(COMPUTE, baseline, COMPUTE, baseline + sd * rng.standard_normal((5, 3)), law).speedups[2].estimate
        assert found is not None
        return found.high - found.low

    assert width(0.001) < 0.2 * width(0.01)
    assert width(0.01) == width(0.01)


@dataclass
class Coverage:
    hits: Array
    counts: Array
    trend: float


def coverage(
    simulated: int, draws: int, seeds: int = 3, sizes: int = 5, falls: float = 1.0, common: float = 0.5
) -> Coverage:
    """How often the interval has the true factor, 1.2, of each size.

    Args:
        falls: the seeds' spread at the smallest size over that at the largest; 0.01 in the middle.
    """
    rng, truth, compute = np.random.default_rng(7), 1.2, np.geomspace(1e15, 1e17, sizes)
    sd = 0.01 * np.geomspace(falls**0.5, falls**-0.5, sizes)[:, None]
    hits, counts, trends = np.zeros(sizes), np.zeros(sizes), []
    for _ in range(simulated):
        shared = common * rng.standard_normal((sizes, seeds))
        own = np.sqrt(1 - common**2) * rng.standard_normal((2, sizes, seeds))
        baseline = curve(compute)[:, None] + sd * (shared + own[0])
        arm = curve(compute * truth)[:, None] + sd * (shared + own[1])
        found = worth(compute, baseline, compute, arm, fit_power_laws(compute, baseline.mean(axis=1)), draws)
        for index, one in enumerate(found.speedups):
            if one.estimate is not None:
                counts[index] += 1
                hits[index] += one.estimate.low <= truth <= one.estimate.high
        trends += [found.trend.low <= 1.0 <= found.trend.high] if found.trend else []
    return Coverage(hits, counts, float(np.mean(trends)))


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    """Of all sizes together; the slow test is the exact one."""
    found = coverage(simulated=300, draws=200)
    assert LEVEL == 0.90
    assert 0.87 <= found.hits.sum() / found.counts.sum() <= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3])
def test_the_interval_covers_as_often_as_it_says(seeds: int) -> None:
    """90 % within 87-93 %, over 1,000 simulated experiments, at every size and of the trend."""
    found = coverage(simulated=1_000, draws=500, seeds=seeds)
    share = found.hits / found.counts
    assert found.counts.min() > 950
    assert share.min() >= 0.87, share
    assert share.max() <= 0.93, share
    assert 0.87 <= found.trend <= 0.93


@pytest.mark.slow
@pytest.mark.parametrize(("falls", "least", "most"), [(1.0, 0.87, 0.95), (2.0, 0.79, 0.985), (4.0, 0.68, 1.0)])
def test_what_it_covers_with_few_seeds_and_a_spread_that_falls(falls: float, least: float, most: float) -> None:
    """As 017's ladder: four sizes, two seeds. Residuals of all sizes are drawn together, so a spread that falls costs
    the small sizes what it gives the large ones; of all together it is nearly 90 % still."""
    found = coverage(simulated=1_000, draws=500, seeds=2, sizes=4, falls=falls)
    share = found.hits / found.counts
    assert found.counts.min() > 950
    assert (least <= share.min(), share.max() <= most) == (True, True), share
    assert 0.87 <= found.hits.sum() / found.counts.sum() <= 0.93
    assert falls == 1.0 or (np.diff(share) > 0).all(), share


def arms(ratios: Array) -> tuple[Array, Array]:
    """A baseline and an arm whose losses above the floor have the ratios exp(`ratios`), (K, S)."""
    base = np.broadcast_to(curve(COMPUTE)[:, None], ratios.shape)
    return 1.5 + (base - 1.5) * np.exp(ratios), np.asarray(base)


def test_an_order_that_is_clear_holds_and_one_that_turns_does_not() -> None:
    noise = 0.003 * np.random.default_rng(0).standard_normal((5, 3))
    steady = order_of(COMPUTE, *arms(noise - 0.1), floor=1.5)
    assert steady is not None
    assert steady.probability > 0.99
    assert (steady.sizes, steady.held) == (5, 4)
    assert steady.compute == pytest.approx(10**17.5)
    turning = order_of(COMPUTE, *arms(noise + np.array([-0.4, -0.3, -0.2, -0.1, -0.02])[:, None]), floor=1.5)
    assert turning is not None
    assert turning.probability < 0.1, "by its line the other one leads at the next size"
    equal = order_of(COMPUTE, *arms(noise), floor=1.5)
    assert equal is not None
    assert 0.05 < equal.probability < 0.95
    swapped = order_of(COMPUTE, *reversed(arms(noise - 0.1)), floor=1.5)
    assert swapped is not None
    assert swapped.probability == pytest.approx(steady.probability)


def test_a_steady_speedup_keeps_its_order_however_the_differences_shrink() -> None:
    noise = 1e-4 * np.random.default_rng(0).standard_normal((5, 3))
    found = order_of(COMPUTE, curve(COMPUTE * 3)[:, None] + noise, curve(COMPUTE)[:, None] + 0 * noise, floor=1.5)
    assert found is not None
    assert found.probability > 0.99


def test_an_order_needs_three_sizes_and_finite_losses_above_the_floor() -> None:
    one, base = arms(np.full((5, 2), -0.1))
    assert order_of(COMPUTE[:2], one[:2], base[:2], floor=1.5) is None
    assert order_of(COMPUTE, base, base, floor=1.5) is None
    assert order_of(COMPUTE, one, base, floor=1.74) is None
    for value, at, sizes in ((np.inf, 1, None), (np.nan, 1, 4), (np.nan, 4, None)):
        changed = one.copy()
        changed[at] = value
        found = order_of(COMPUTE, changed, base, floor=1.5)
        assert (found and found.sizes) == sizes
        assert found is None or found.compute == pytest.approx(10**17.5), "the ladder's step, whatever is missing"


def orders(level: float, slope: float, simulated: int = 300) -> tuple[Array, Array]:
    """What is said of simulated pairs of arms, and whether it held: their true ratio follows a line over sizes."""
    rng, said, held = np.random.default_rng(5), [], []
    for _ in range(simulated):
        true = rng.normal(0, level) + rng.normal(0, slope) * np.arange(6.0)
        seen = true[:, None] + 0.01 * rng.standard_normal((6, 3))
        order = order_of(COMPUTE, *arms(seen[:5]), floor=1.5)
        assert order is not None
        said.append(order.probability)
        held.append(np.sign(seen[5].mean()) == np.sign(seen[4].mean()))
    return np.array(said), np.array(held)


def test_orders_hold_about_as_often_as_their_probability() -> None:
    """As often as said, or more, since the scatter is taken as no less than the seeds'."""
    said, held = orders(level=0.02, slope=0.006)
    assert said.mean() == pytest.approx(held.mean(), abs=0.08)
    assert held[said > 0.9].mean() > 0.88


def test_of_arms_that_hardly_differ_a_little_too_much_is_said() -> None:
    said, held = orders(level=0.005, slope=0.0)
    assert held[said > 0.8].mean() > 0.65
    assert said.mean() == pytest.approx(held.mean(), abs=0.08)


def test_of_arms_that_are_equal_hardly_an_order_is_said_to_hold() -> None:
    said, held = orders(level=0.0, slope=0.0)
    assert held.mean() == pytest.approx(0.5, abs=0.06)
    assert said.mean() < 0.59, "a line that is not drawn to 0 says 0.63"
    assert (said > 0.8).mean() < 0.1
