"""The curve of a ladder: known exponents are found again, and what is no such curve is refused with the reason."""

import numpy as np
import pytest

from mtp_lightning.grid.report.ladder.power_law import ROUGH, Array, fit_ladder, fit_power_laws, spread_of

COMPUTE = np.geomspace(1e15, 1e18, 6)
SIZES = [f"dim={2**k}" for k in range(6)]


def losses(floor: float, exponent: float, compute: Array = COMPUTE) -> Array:
    return np.asarray(floor + 1.5 * (compute / 1e16) ** -exponent)


def seeds(means: Array, sd: float, count: int = 3, seed: int = 0) -> Array:
    return np.asarray(means[:, None] + sd * np.random.default_rng(seed).standard_normal((len(means), count)))


@pytest.mark.parametrize(("floor", "exponent"), [(1.5, 0.3), (1.2, 0.9), (0.0, 0.08), (0.5, 0.05), (2.0, 2.0)])
def test_a_known_curve_is_found_again(floor: float, exponent: float) -> None:
    law = fit_power_laws(COMPUTE, losses(floor, exponent))
    assert float(law.exponent) == pytest.approx(exponent, rel=1e-5)
    assert float(law.floor) == pytest.approx(floor, abs=1e-4)
    assert law.loss(COMPUTE) == pytest.approx(losses(floor, exponent), rel=1e-7)


def test_many_at_once_are_each_as_alone_and_no_grid_of_exponents_fits_better() -> None:
    rng = np.random.default_rng(1)
    noisy = losses(1.0, 0.2) * (1 + 0.02 * rng.standard_normal((5, 6)))
    weights = np.array([3.0, 3, 2, 1, 3, 2])
    law = fit_power_laws(COMPUTE, noisy, weights)
    errors = (weights * (noisy - law.loss(COMPUTE)) ** 2).sum(axis=1)
    for row, exponent, error in zip(noisy, law.exponent, errors):
        alone = fit_power_laws(COMPUTE, row, weights)
        assert float(alone.exponent) == float(exponent)
        for other in np.geomspace(0.01, 4, 400):  # the slow way: least squares for each exponent
            x = np.stack([np.ones(6), (COMPUTE / law.reference) ** -other], axis=1) * np.sqrt(weights)[:, None]
            found, *_ = np.linalg.lstsq(x, row * np.sqrt(weights))
            if found.min() >= 0:
                assert error <= ((x @ found - row * np.sqrt(weights)) ** 2).sum() * (1 + 1e-9)
    rough = fit_power_laws(COMPUTE, noisy, weights, ROUGH)
    assert rough.loss(COMPUTE) == pytest.approx(law.loss(COMPUTE), rel=1e-4)


def test_a_floor_is_never_below_zero_and_a_scale_neither() -> None:
    straight = 3.0 - 0.1 * np.log(COMPUTE / COMPUTE[0])  # a floor far below zero would fit it
    law = fit_power_laws(COMPUTE, np.stack([straight, straight[::-1]]))
    assert law.floor[0] == 0.0
    assert law.scale[0] > 0
    assert law.scale[1] == 0.0
    assert law.floor[1] == pytest.approx(straight.mean())


def test_the_ratio_of_two_losses_is_the_compute_between_them() -> None:
    law = fit_power_laws(COMPUTE, losses(1.5, 0.3))
    worse, better = losses(1.5, 0.3, np.array([2e15, 1e17])), losses(1.5, 0.3, np.array([6e15, 1e16]))
    assert np.exp(law.log_ratio(worse, better)) == pytest.approx([3.0, 0.1], rel=1e-4)
    assert law.log_ratio(np.array([2.0]), np.array([1.4])).tolist() == [np.inf], "no compute leads below the floor"


def test_the_spread_is_that_within_sizes() -> None:
    found = spread_of(np.array([[1.0, 3.0, np.nan], [5.0, 5.0, 5.0], [7.0, np.nan, np.nan]]))
    assert (found.freedom, found.sd) == (3, pytest.approx(np.sqrt(2 / 3)))


def test_a_ladder_that_is_a_curve_is_accepted() -> None:
    fit = fit_ladder(COMPUTE, seeds(losses(1.5, 0.3), 0.01), SIZES)
    assert fit.refusal is None
    assert fit.law is not None
    assert float(fit.law.exponent) == pytest.approx(0.3, abs=0.05)
    assert fit.chance is not None
    assert fit.chance > 0.05


def bent() -> Array:
    return np.asarray(losses(1.5, 0.3) + np.array([0, 0, 0.1, 0.1, 0, 0]))


@pytest.mark.parametrize(
    ("compute", "found", "message"),
    [
        (COMPUTE[:3], seeds(losses(1.5, 0.3), 0.01)[:3], "too few sizes: 3 of at least 4 sizes: three points fit any"),
        (COMPUTE, seeds(losses(1.5, 0.3), 0.01, count=1), "one seed: how far a size may lie from the curve by chance"),
        (COMPUTE, seeds(bent(), 0.01), "bent: dim="),
        (COMPUTE, seeds(bent(), 0.0), "bent: dim="),
        (
            COMPUTE,
            seeds(losses(1.5, 0.3)[[0, 2, 1, 3, 4, 5]], 0.01),
            "not monotone: the loss of dim=4 is not below that",
        ),
        (np.full(6, 1e16), seeds(losses(1.5, 0.3), 0.01), "no ladder: dim=1 and dim=2 cost the same compute"),
    ],
)
def test_what_is_no_curve_is_refused_and_says_why(compute: Array, found: Array, message: str) -> None:
    fit = fit_ladder(compute, found, SIZES[: len(compute)])
    assert fit.law is None
    assert (fit.refusal or "").startswith(message)


def test_a_bend_that_is_certain_and_does_not_matter_is_accepted() -> None:
    nearly = losses(1.5, 0.3) * (1 + 1e-4 * np.array([1, -1, 1, -1, 1, -1]))
    fit = fit_ladder(COMPUTE, seeds(nearly, 1e-6), SIZES)
    assert fit.chance == 0.0
    assert fit.refusal is None
    assert fit.off is not None
    assert 1.0 < fit.off < 1.1


def test_a_bend_within_the_seeds_spread_is_chance() -> None:
    assert fit_ladder(COMPUTE, seeds(bent(), 0.2, seed=3), SIZES).refusal is None


@pytest.mark.slow
def test_a_true_curve_is_called_bent_as_often_as_stated() -> None:
    """5 % of them; less those whose bend is small, which here is none of them."""
    rng, refused = np.random.default_rng(2), 0
    for _ in range(300):
        found = losses(1.5, 0.3)[:, None] + 0.05 * rng.standard_normal((6, 3))
        fit = fit_ladder(COMPUTE, found, SIZES)
        refused += (fit.chance or 1.0) < 0.05
    assert 0.02 <= refused / 300 <= 0.09
