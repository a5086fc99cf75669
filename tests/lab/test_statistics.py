"""Estimates from samples against listing all subsets, and a test for differences."""

import itertools
import math
import random
from collections import Counter
from fractions import Fraction

import pytest

from grpo_lib.evaluation import pass_at_k
from grpo_lib.lab.statistics import (
    estimate_moments,
    independent_guesses,
    majority_at_k,
    permutation_test,
    plug_in_pass_at_k,
)


def share_of_subsets_won(counts, right, k):
    """majority@k by listing every subset, with exact fractions."""
    votes = [answer for answer, count in enumerate(counts) for _ in range(count)]
    won = subsets = 0
    for subset in itertools.combinations(votes, k):
        said = Counter(subset)
        first = [answer for answer in said if said[answer] == max(said.values())]
        won += Fraction(int(right in first), len(first))
        subsets += 1
    return float(won / subsets)


@pytest.mark.parametrize("counts", [
    (3,), (0, 2), (2, 0), (1, 1), (2, 2, 2), (4, 3, 2, 1), (1, 5), (3, 1, 1, 1, 1), (2, 3, 3),
    (5, 2, 0, 2), (1, 1, 1, 1, 1, 1)])
def test_majority_at_k_is_the_share_of_subsets_that_vote_right(counts):
    for k in range(1, sum(counts) + 1):
        shares = [majority_at_k(counts, right, k) for right in range(len(counts))]
        for right, share in enumerate(shares):
            assert share == pytest.approx(share_of_subsets_won(counts, right, k), abs=1e-12)
        assert sum(shares) == pytest.approx(1)  # some answer wins


def test_majority_of_one_and_of_two_is_one_answer_and_of_all_is_the_first_place():
    counts = [5, 9, 3, 7]
    for right, count in enumerate(counts):
        assert majority_at_k(counts, right, 1) == pytest.approx(count / 24)
        assert majority_at_k(counts, right, 2) == pytest.approx(count / 24)
        assert majority_at_k(counts, right, 24) == (count == 9)


def test_majority_at_k_is_exact_for_large_numbers():
    assert majority_at_k([33, 31], 0, 64) == 1
    assert majority_at_k([32, 32], 0, 33) == pytest.approx(0.5)
    votes = range(32, 64)  # of 63 drawn from 64 + 36, hypergeometric
    share = sum(math.comb(64, j) * math.comb(36, 63 - j) for j in votes) / math.comb(100, 63)
    assert majority_at_k([64, 36], 0, 63) == pytest.approx(share)


def test_the_unbiased_estimate_meets_the_truth_and_the_plug_in_falls_short():
    for p, n, k in itertools.product((0.0, 0.12, 0.5, 1.0), (1, 5, 16), (1, 2, 5, 16)):
        if k > n:
            continue
        truth = independent_guesses(p, k)
        assert estimate_moments(pass_at_k, p, n, k)[0] == pytest.approx(truth, abs=1e-12)
        short = truth - estimate_moments(plug_in_pass_at_k, p, n, k)[0]
        assert short == pytest.approx(0, abs=1e-12) if k == 1 or p in (0, 1) else short > 1e-5


def test_the_moments_are_those_of_the_binomial_distribution():
    mean, spread = estimate_moments(lambda n, c, k: c, 0.3, 20, 1)
    assert mean == pytest.approx(6) and spread == pytest.approx(math.sqrt(20 * 0.3 * 0.7))
    mean, spread = estimate_moments(pass_at_k, 0.12, 8, 8)  # any of the 8: yes or no
    assert spread == pytest.approx(math.sqrt(mean * (1 - mean)))


def test_the_plug_in_draws_with_replacement():
    assert plug_in_pass_at_k(4, 1, 2) == 1 - (3 / 4) ** 2
    assert plug_in_pass_at_k(4, 0, 4) == 0 and plug_in_pass_at_k(4, 4, 1) == 1


@pytest.mark.parametrize(("call", "named"), [
    (lambda: majority_at_k([], 0, 1), r"counts: got \[\]"),
    (lambda: majority_at_k([2, -1], 0, 1), r"counts: got \[2, -1\]"),
    (lambda: majority_at_k([2, 0.5], 0, 1), "counts: got"),
    (lambda: majority_at_k([2, 1], 2, 1), "right: got 2"),
    (lambda: majority_at_k([2, 1], -1, 1), "right: got -1"),
    (lambda: majority_at_k([2, 1], 0, 4), "k: got 4, allowed is 1 to the 3 samples"),
    (lambda: majority_at_k([2, 1], 0, 0), "k: got 0"),
    (lambda: plug_in_pass_at_k(4, 5, 1), "right: got 5"),
    (lambda: plug_in_pass_at_k(4, 1, 5), "k: got 5"),
    (lambda: independent_guesses(1.5, 1), "p: got 1.5"),
    (lambda: independent_guesses(0.5, 0), "k: got 0"),
    (lambda: estimate_moments(pass_at_k, math.nan, 4, 1), "p: got nan"),
    (lambda: estimate_moments(pass_at_k, 0.5, 4, 5), "k: got 5"),
])
def test_a_bad_argument_of_an_estimate_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


# --- telling a difference from noise --------------------------------------------------------

def test_permutation_test_counts_the_ways_to_deal():
    assert permutation_test([1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]) == 2 / 252
    assert permutation_test([3.0, 4.0], [1.0, 2.0]) == 2 / 6
    assert permutation_test([1.0, 4.0], [2.0, 3.0]) == 1.0  # equal means
    assert permutation_test([0.1 + 0.2, 0.3], [0.3, 0.3]) == 1.0  # equal but for rounding
    # all pairs of 1, 2, 2, 9 against the rest: 4, 4, 3, 3, 4, 4 apart
    assert permutation_test([1.0, 2.0], [2.0, 9.0]) == 4 / 6


def test_permutation_test_of_lots_of_unequal_size():
    with pytest.raises(ValueError, match="got 1 and 4 numbers"):
        permutation_test([7.0], [1.0, 2.0, 3.0, 4.0])
    # of ten pairs only (7, 4) differs from the others by 3.5
    assert permutation_test([7.0, 4.0], [1.0, 2.0, 3.0]) == 1 / 10


def test_permutation_test_is_right_on_average_when_nothing_differs():
    """Where both lots are drawn alike, a p-value of at most 10% comes in at most 10% of draws."""
    rng = random.Random(0)
    values = [permutation_test([rng.random() for _ in range(4)], [rng.random() for _ in range(4)])
              for _ in range(400)]
    assert 0.05 < sum(v <= 0.1 for v in values) / len(values) <= 0.1 + 0.03


@pytest.mark.parametrize("wrong", [([1.0, math.nan], [1.0, 2.0]), ([1.0] * 11, [1.0] * 10),
                                   ([], [1.0, 2.0])])
def test_permutation_test_refuses(wrong):
    with pytest.raises(ValueError, match="first, second: got"):
        permutation_test(*wrong)
