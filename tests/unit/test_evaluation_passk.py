"""pass@k and n@k against exact combinatorics and all subsets."""

import math
from fractions import Fraction
from itertools import combinations
from statistics import mean

import pytest

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.passk import mean_pass_at_k, n_at_k, pass_at_k


def test_pass_at_k_is_the_mean_over_all_subsets() -> None:
    for samples in range(1, 8):
        for passed in range(samples + 1):
            for k in range(1, samples + 1):
                outcomes = [True] * passed + [False] * (samples - passed)
                expected = mean(float(any(subset)) for subset in combinations(outcomes, k))
                assert pass_at_k(samples, passed, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("samples", "passed", "k"), [(200, 1, 100), (200, 37, 10), (1000, 999, 2), (1000, 3, 1000)])
def test_pass_at_k_of_many_samples_is_exact(samples: int, passed: int, k: int) -> None:
    exact = 1 - Fraction(math.comb(samples - passed, k), math.comb(samples, k))
    assert pass_at_k(samples, passed, k) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("k", [0, 21, -1])
def test_k_above_the_samples_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"k is {k}: .* at most 20"):
        pass_at_k(20, 3, k)


def test_problems_count_alike() -> None:
    assert mean_pass_at_k([(10, 5), (2, 2), (4, 0)], 1) == pytest.approx((0.5 + 1 + 0) / 3)


def test_n_at_k_is_the_mean_over_all_choices() -> None:
    """Enumerated: every subset of k, in it every choice of n of those that pass the public tests."""
    for samples, public, passed in ((5, 3, 1), (6, 4, 2), (5, 5, 2), (4, 0, 0), (6, 2, 2)):
        kinds = ["right"] * passed + ["public"] * (public - passed) + ["wrong"] * (samples - public)
        for k in range(1, samples + 1):
            for n in range(1, k + 1):
                chances = []
                for subset in combinations(kinds, k):
                    kept = [kind for kind in subset if kind != "wrong"]
                    choices = list(combinations(kept, min(n, len(kept))))
                    chances.append(mean(float("right" in choice) for choice in choices))
                assert n_at_k(samples, passed, n, k, public) == pytest.approx(mean(chances)), (samples, public, k, n)
    assert n_at_k(20, 3, 5, 5) == pytest.approx(pass_at_k(20, 3, 5))
    with pytest.raises(InputError, match="4@3 of 20"):
        n_at_k(20, 3, 4, 3)
