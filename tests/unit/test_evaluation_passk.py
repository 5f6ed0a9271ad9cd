"""pass@k, n@k, oracle temperature and majority vote against exact combinatorics and all subsets."""

import math
import random
from fractions import Fraction
from itertools import combinations
from statistics import mean

import pytest

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.passk import majority, majority_at_k, mean_pass_at_k, n_at_k, oracle, pass_at_k


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


def test_the_oracle_is_the_best_temperature() -> None:
    generator = random.Random(0)
    counts = {t: [(20, generator.randint(0, 20)) for _ in range(30)] for t in (0.8, 0.1, 0.4)}
    for k in (1, 10):
        found = oracle(counts, k, resamples=200)
        means = {t: mean_pass_at_k(problems, k) for t, problems in counts.items()}
        assert found.value == pytest.approx(max(means.values()))
        assert means[found.temperature] == max(means.values())
        assert found.low <= found.value <= found.high
    assert oracle(counts, 1, fixed=0.4).value == pytest.approx(mean_pass_at_k(counts[0.4], 1))
    assert oracle({0.2: [(2, 1)], 0.1: [(2, 1)]}, 1).temperature == 0.1
    with pytest.raises(InputError, match="fixed temperature is 0.3"):
        oracle(counts, 1, fixed=0.3)


def test_the_bootstrap_chooses_anew() -> None:
    """Two problems, each solved at one temperature alone: the best of a resample is 1 where it drew one problem twice,
    whichever it is. With the temperature held, half of those would be 0."""
    counts = {0.2: [(1, 1), (1, 0)], 0.8: [(1, 0), (1, 1)]}
    found = oracle(counts, 1, resamples=400)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 1.0)
    held = oracle(counts, 1, resamples=400, fixed=0.2)
    assert (held.low, held.high) == (0.0, 1.0)


def test_majority() -> None:
    assert majority(["a", None, "b", "b", None, None, "a"]) == "a"  # the first of equally frequent ones
    assert majority([None, "7"]) == "7"
    assert majority([None, None]) is None
    answers = ["1", "2", "2", None, "3", "2", "1"]
    exact = mean(float(majority(list(subset)) == "2") for subset in combinations(answers, 3))
    assert majority_at_k(answers, "2", 3, draws=4000) == pytest.approx(exact, abs=0.03)
    assert majority_at_k(answers, "2", 7) == 1.0
    with pytest.raises(InputError, match="at most 7"):
        majority_at_k(answers, "2", 8)
