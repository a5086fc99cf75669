"""What samples say of the truth: estimates beside pass@k, how they scatter, and whether two sets of
runs differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import combinations

from torch import Tensor

from grpo_lib.evaluation import pass_at_k
from grpo_lib.support.checks import check_floating, check_number, check_whole, one_number

MOST = 1e300  # beyond it a sum may be beyond a float


def plug_in_pass_at_k(samples: int, right: int, k: int) -> float:
    """1 - (1 - c/n)^k, from c = ``right`` of n = ``samples``: too low on average, for k > 1.

    It takes c/n for the true share p and draws *with* replacement. As a function of c/n it is
    concave, so by Jensen's inequality its mean lies below 1 - (1 - p)^k, which ``pass_at_k``
    meets (2107.03374, section 2.1).
    """
    pass_at_k(samples, right, k)  # the same arguments are allowed
    return 1.0 - (1.0 - one_number(right) / one_number(samples)) ** one_number(k)


def independent_guesses(p: float, k: int) -> float:
    """1 - (1 - p)^k: the chance that one of k independent answers is right.

    This is pass@k of *one* problem whose answers are right with probability p. With p the
    mean over many problems it is at least their pass@k (Jensen): the curve of a policy that is
    equally good at all of them.
    """
    p = check_number("p", p, least=0, most=1)
    k = check_whole("k", k, 1)
    return 1.0 - (1.0 - p) ** k


def estimate_moments(estimate: Callable[[int, int, int], float], p: float, samples: int,
                     k: int) -> tuple[float, float]:
    """Mean and standard deviation of ``estimate(samples, c, k)`` where each of the samples is
    right with probability p, independently: exact sums over c, which is binomial."""
    if not callable(estimate):
        raise TypeError(f"estimate: got {estimate!r}, allowed is a function of (samples, right, k)")
    p = check_number("p", p, least=0, most=1)
    samples = check_whole("samples", samples, 1)
    if samples > 1000:
        raise ValueError(f"samples: got {samples}, allowed are up to 1000, whose binomial "
                         f"coefficients a float can hold")
    chances = [math.comb(samples, c) * p**c * (1 - p) ** (samples - c) for c in range(samples + 1)]
    values = [estimate(samples, c, k) for c in range(samples + 1)]
    mean = math.fsum(w * v for w, v in zip(chances, values))
    return mean, math.sqrt(math.fsum(w * (v - mean) ** 2 for w, v in zip(chances, values)))


def majority_at_k(counts: Sequence[int], right: int, k: int) -> float:
    """Chance that the most frequent of k answers is the right one (self-consistency,
    2203.11171), without bias: the mean over all k-subsets of the n = sum(counts) sampled.

    counts[a] samples gave answer a, and answer ``right`` is right (its count may be 0); a tie
    for first place is broken by drawing among the tied. For j = 1..k votes for the right
    answer and t others with j votes as well, no other having more, the number of subsets is
    C(counts[right], j) * ways(j, t, k - j), and each wins with chance 1 / (t + 1).
    """
    right = check_whole("right", right, 0)
    k = check_whole("k", k, 1)
    if isinstance(counts, Tensor) or type(counts).__module__ == "numpy":
        counts = counts.tolist()
    votes = [one_number(c) for c in counts] if isinstance(counts, (list, tuple)) else []
    if not votes or not all(isinstance(count, int) and count >= 0 for count in votes):
        raise ValueError(f"counts: got {counts!r}, allowed are whole numbers from 0, one for each "
                         f"answer")
    if right >= len(votes):
        raise ValueError(f"right: got {right}, allowed is a place in counts, 0 to "
                         f"{len(votes) - 1}")
    if k > sum(votes):
        raise ValueError(f"k: got {k}, allowed is 1 to the {sum(votes)} samples")
    others = sorted(count for a, count in enumerate(votes) if a != right and count > 0)
    return _majority(votes[right], tuple(others), k)


@lru_cache(maxsize=100_000)
def _majority(right: int, others: tuple[int, ...], k: int) -> float:
    wins = 0.0
    subsets = math.comb(right + sum(others), k)
    for j in range(1, min(right, k) + 1):
        ways = {(0, 0): 1}  # (other answers in the subset, those with j votes) -> subsets
        for count in others:
            longer: dict[tuple[int, int], int] = {}
            for (used, ties), number in ways.items():
                for votes in range(min(count, j, k - j - used) + 1):
                    at = (used + votes, ties + (votes == j))
                    longer[at] = longer.get(at, 0) + number * math.comb(count, votes)
            ways = longer
        wins += sum(math.comb(right, j) * number / subsets / (ties + 1)
                    for (used, ties), number in ways.items() if used == k - j)
    return wins


def permutation_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Exact two-sided permutation p-value for a difference of means.

    If a setting made no difference, its name would be a label stuck on at random: the p-value is
    the share of all ways to deal the numbers out anew in which the means differ at least as much
    (Fisher, 1935). Five runs against five have 252 ways, so no value is below 2 / 252.
    ValueError: fewer than two numbers in one, more than 20 in all, nan.
    """
    for name, numbers in (("first", first), ("second", second)):
        if not isinstance(numbers, Sequence):
            raise TypeError(f"{name}: got {numbers!r}, allowed is a list of numbers")
    values = [one_number(v) for v in (*first, *second)]
    if (min(len(first), len(second)) < 2 or len(values) > 20
            or not all(v is not None and abs(v) < MOST for v in values)):
        raise ValueError(f"first, second: got {len(first)} and {len(second)} numbers; allowed are "
                         f"2 or more finite ones in each, 20 in all")
    total = math.fsum(values)

    def apart(some: Iterable[float]) -> float:
        part = math.fsum(some)
        return abs(part / len(first) - (total - part) / len(second))

    # what differs by rounding alone is as far apart
    least = apart(first) * (1 - 1e-9) - 1e-12 * max(map(abs, values))
    ways = [apart(some) >= least for some in combinations(values, len(first))]
    return sum(ways) / len(ways)


def signal_and_noise(estimates: Tensor) -> tuple[float, float]:
    """How large a gradient is and how far one estimate of it strays: (|g|^2, E|g_hat - g|^2).

    estimates (N, K, D): K independent estimates of each of N gradients, D numbers long.
    Means over the N, both unbiased: the noise from the variance (K - 1) within each of the
    N, the signal from |mean|^2 less the noise / K that is left in a mean of K. (So a signal
    near 0 may come out below it.) ValueError: not (N, K, D) with K of 2 or more, or not finite.
    """
    check_floating("estimates", estimates)
    if estimates.dim() != 3 or estimates.shape[1] < 2 or estimates.numel() == 0:
        raise ValueError(f"estimates: got shape {tuple(estimates.shape)}, allowed is (N, K, D) "
                         f"with K of 2 or more")
    noise = estimates.var(1).sum(-1).mean()
    signal = estimates.mean(1).square().sum(-1).mean() - noise / estimates.shape[1]
    if not (signal.isfinite() and noise.isfinite()):
        raise ValueError(f"estimates: got nan, inf or numbers whose squares are beyond "
                         f"{estimates.dtype}; allowed are finite ones")
    return signal.item(), noise.item()
