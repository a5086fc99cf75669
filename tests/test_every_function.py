"""Every public function: right, or an error that names the argument; never a wrong number.

``CASES`` has an entry for each function of numbers: arguments that are allowed, made anew for a
seed, and what is right for them on plain Python numbers. From these come, for all of them at
once: every dtype, huge numbers, padding that holds nan, nan where it counts, masks of every kind,
arguments of another shape, kind or size. ``MODELS`` has, for the functions of policies and files,
arguments that are not allowed.
"""

import inspect
import math
import random
import statistics
import types
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import grpo_lib
from grpo_lib import ALGORITHMS, TinyPolicy, ValueModel
from grpo_lib.rollout import sample_groups
from grpo_lib.tasks import SortTask
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

ERRORS = (ValueError, TypeError, FloatingPointError)
HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float64, torch.float32, *HALF)

quick = settings(max_examples=20, deadline=None, derandomize=True)


class Case(NamedTuple):
    """``make(rng)`` gives allowed arguments, ``by_hand`` what is right for them."""

    make: Callable[[random.Random], dict]
    by_hand: Callable


# --- what arguments are made of -----------------------------------------------------------

def table(rng, rows, columns, low=-3.0, high=0.0):
    return torch.tensor([[rng.uniform(low, high) for _ in range(columns)] for _ in range(rows)],
                        dtype=torch.float64)


def sizes(rng):
    return rng.randint(1, 4), rng.randint(1, 5)


def some_mask(rng, rows, columns):
    """A mask of rows of any length, 0 too, and sometimes with a hole."""
    mask = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        mask[row, : rng.randint(0, columns)] = 1
    if rng.random() < 0.2:
        mask[0, 0] = 0
    return mask


def batch(rng, *names, **more):
    """Tables of those names with a mask, of one shape."""
    rows, columns = sizes(rng)
    made = {name: table(rng, rows, columns) for name in names}
    return made | {"mask": some_mask(rng, rows, columns)} | {
        name: make(rng, rows, columns) for name, make in more.items()}


def advantages_of(rng, rows, columns):
    return table(rng, rows, columns, -2, 2)


def one_a_row(rng, rows, columns):
    return table(rng, rows, 1, -2, 2)


def ratio_of(rng, rows, columns):
    return table(rng, rows, columns, 0.3, 1.9)


def ratio_and_advantages(rng):
    rows, columns = sizes(rng)
    return {"ratio": ratio_of(rng, rows, columns),
            "advantages": rng.choice((advantages_of, one_a_row))(rng, rows, columns),
            "epsilon": 0.2, "epsilon_high": 0.3}


def groups_of(rng):
    return {"rewards": table(rng, rng.randint(1, 3), rng.randint(2, 5), -2, 2),
            "baseline": "mean", "scale": "group", "std_eps": 1e-4}


def two_logits(rng, names=("logits", "ref_logits")):
    shape = rng.randint(1, 3), rng.randint(1, 5)
    return {name: table(rng, *shape, -4, 4) for name in names}


# --- formulas on plain numbers ------------------------------------------------------------

def rows_of(*tensors):
    """Rows of plain numbers side by side, those of one column or row spread over many."""
    if {t.dim() for t in tensors} - {0, 2} or not any(t.dim() for t in tensors):
        raise ValueError("not tables")
    return zip(*(t.double().tolist() for t in torch.broadcast_tensors(*tensors)))


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def each(formula):
    """A formula of single numbers, token by token."""
    def of_tables(*tensors, **options):
        tensors += tuple(v for v in options.values() if isinstance(v, torch.Tensor))
        rest = {k: v for k, v in options.items() if not isinstance(v, torch.Tensor)}
        return [[formula(*values, **rest) for values in zip(*rows)] for rows in rows_of(*tensors)]

    return of_tables


def clipped(r, a, epsilon, epsilon_high):
    return min(r * a, min(max(r, 1 - epsilon), 1 + epsilon_high) * a)


def slope(r, a, epsilon, epsilon_high):
    return 0.0 if (a > 0 and r > 1 + epsilon_high) or (a < 0 and r < 1 - epsilon) else a


def kl_of(log_p, log_q, kl):
    d = log_q - log_p
    return {"k1": -d, "k2": d * d / 2, "k3": math.expm1(d) - d}[kl]


def softmax(row):
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    return [math.exp(x - top) / total for x in row]


def ratio_by_hand(log_probs, old_log_probs, mask, ratio):
    result = []
    for new, old, counts in rows_of(log_probs, old_log_probs, mask):
        moved = [(n - o) if c else 0.0 for n, o, c in zip(new, old, counts)]
        whole = math.fsum(moved) / (1 if ratio == "sequence_sum" else max(sum(counts), 1))
        result.append({"token": [math.exp(m) for m in moved],
                       "sequence_token": [math.exp(whole) if c else 1.0 for c in counts]
                       }.get(ratio, [math.exp(whole)]))
    return result


def weights_by_hand(mask, aggregation, max_length):
    counts = [sum(row) for row in mask.tolist()]
    rows, filled = len(counts), max(sum(n > 0 for n in counts), 1)
    divisor = {"sequence_mean": lambda n: rows * max(n, 1), "sequence_sum": lambda n: rows,
               "token_mean": lambda n: max(sum(counts), 1), "constant": lambda n: rows * max_length,
               "nonempty_sequence_mean": lambda n: filled * max(n, 1)}[aggregation]
    return [[m / divisor(n) for m in row] for row, n in zip(mask.tolist(), counts)]


def aggregate_by_hand(per_token, mask, aggregation, max_length):
    return math.fsum(w * v for weights, values in zip(
        weights_by_hand(mask, aggregation, max_length), per_token.tolist())
        for w, v in zip(weights, values) if w)


def advantages_by_hand(rewards, baseline, scale, std_eps):
    everything = [r for row in rewards.tolist() for r in row]
    result = []
    for row in rewards.tolist():
        if max(row) == min(row):
            result.append([0.0] * len(row))
            continue
        width = {"group": lambda row=row: statistics.stdev(row) + std_eps, "none": lambda: 1.0,
                 "batch": lambda: statistics.stdev(everything) + std_eps}[scale]()
        result.append([(r - statistics.fmean(row)) / width for r in row])
    return result


def gae_by_hand(rewards, values, mask, gamma, lam):
    result = []
    for r, v, m in rows_of(rewards, values, mask):
        places = [t for t, c in enumerate(m) if c]  # from one token that counts to the next
        r, v = ([row[t] for t in places] for row in (r, v))
        delta = [r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t]
                 for t in range(len(r))]
        row = [0.0] * len(m)
        for t, place in enumerate(places):
            row[place] = math.fsum((gamma * lam) ** (s - t) * delta[s] for s in range(t, len(r)))
        result.append(row)
    return result


def whiten_by_hand(values, mask):
    counted = [v for row, m in rows_of(values, mask) for v, c in zip(row, m) if c]
    mean = statistics.fmean(counted) if counted else 0.0
    spread = math.hypot(statistics.stdev(counted) if len(counted) > 1 else 0.0, 1e-4)
    return [[(v - mean) / spread if c else 0.0 for v, c in zip(row, m)]
            for row, m in rows_of(values, mask)]


def token_rewards_by_hand(rewards, mask, kl, beta):
    result = []
    for reward, k, m in zip(rewards.tolist(), kl.tolist(), mask.tolist()):
        row = [-beta * x if c else 0.0 for x, c in zip(k, m)]
        if any(m):
            row[max(t for t, c in enumerate(m) if c)] += reward
        result.append(row)
    return result


def top_entropy_by_hand(entropies, mask, quantile):
    values = sorted(e for row, m in rows_of(entropies, mask) for e, c in zip(row, m) if c)
    if not values:
        return torch.zeros_like(mask).tolist()
    place = (1 - quantile) * (len(values) - 1)
    low, high = values[math.floor(place)], values[math.ceil(place)]
    # a value that differs from the threshold by rounding alone may be on either side of it
    least = low + (place - math.floor(place)) * (high - low)
    return [[float(c == 1 and e >= least - 1e-12) for e, c in zip(row, m)]
            for row, m in rows_of(entropies, mask)]


def off_policy_by_hand(log_probs, old_log_probs, advantages, mask, threshold):
    result = []
    for new, old, a, m in zip(*(t.tolist() for t in (log_probs, old_log_probs, advantages, mask))):
        moved = math.fsum(o - n for n, o, c in zip(new, old, m) if c) / max(sum(m), 1)
        result.append([float(a[0] >= 0 or moved <= threshold)])
    return result


def sampler_by_hand(old_log_probs, sampler_log_probs, mask, correction, ratio_max):
    result = []
    for old, other, m in rows_of(old_log_probs, sampler_log_probs, mask):
        moved = [o - s if c else 0.0 for o, s, c in zip(old, other, m)]
        moved = [math.fsum(moved)] if correction.startswith("sequence") else moved
        weights = [math.exp(d) for d in moved]
        result.append([1.0 if correction == "none" else
                       min(w, ratio_max) if correction.endswith("truncate") else
                       w if w <= ratio_max else 0.0 for w in weights])
    return result


def gmpo_by_hand(log_probs, old_log_probs, advantages, mask, epsilon, epsilon_high):
    result = []
    tensors = (log_probs, old_log_probs, advantages, mask)
    for new, old, [a], m in zip(*(t.tolist() for t in tensors)):
        moved = [(min(n - o, math.log1p(epsilon_high)) if a > 0
                  else max(n - o, math.log1p(-epsilon))) if c else 0.0
                 for n, o, c in zip(new, old, m)]
        result.append([a * math.exp(math.fsum(moved) / max(sum(m), 1))])
    return result


def loss_by_hand(log_probs, old_log_probs, advantages, mask, *, epsilon, aggregation, max_length,
                 ref_log_probs, beta, **_):
    ratio = double(ratio_by_hand(log_probs, old_log_probs, mask, "token"))
    gain = double(each(clipped)(ratio, advantages[:, None], epsilon=epsilon,
                                epsilon_high=epsilon))
    distance = double(each(kl_of)(log_probs, ref_log_probs, kl="k3"))
    return aggregate_by_hand(beta * distance - gain, mask, aggregation, max_length)


def divergence_by_hand(log_probs_p, log_probs_q):
    return [math.fsum(math.exp(p) * (p - q) for p, q in zip(*rows))
            for rows in rows_of(log_probs_p, log_probs_q)]


def slope_by_hand(log_probs, ref_log_probs, kl):
    return each(lambda p, q: {"k1": 1.0, "k2": p - q, "k3": -math.expm1(q - p)}[kl])(
        log_probs, ref_log_probs)


def divergence_gradient_by_hand(logits, ref_logits):
    result = []
    for row, ref in rows_of(logits, ref_logits):
        p, q = softmax(row), softmax(ref)
        d = [math.log(a) - math.log(b) for a, b in zip(p, q)]
        mean = math.fsum(a * x for a, x in zip(p, d))
        result.append([a * (x - mean) for a, x in zip(p, d)])
    return result


def moments_by_hand(logits, ref_logits, kl):
    means, stds = [], []
    for row, ref in rows_of(logits, ref_logits):
        p, q = softmax(row), softmax(ref)
        values = [kl_of(math.log(a), math.log(b), kl) for a, b in zip(p, q)]
        mean = math.fsum(a * v for a, v in zip(p, values))
        means.append(mean)
        stds.append(math.sqrt(math.fsum(a * (v - mean) ** 2 for a, v in zip(p, values))))
    return means, stds


def gradient_moments_by_hand(logits, ref_logits, kl):
    means, stds = [], []
    for row, ref in rows_of(logits, ref_logits):
        p, q = softmax(row), softmax(ref)
        [slopes] = slope_by_hand(double([list(map(math.log, p))]), double([list(map(math.log, q))]),
                                 kl)
        each_token = [[s * ((u == v) - p[u]) for u in range(len(p))] for v, s in enumerate(slopes)]
        mean = [math.fsum(p[v] * g[u] for v, g in enumerate(each_token)) for u in range(len(p))]
        means.append(mean)
        stds.append(math.sqrt(max(0.0, math.fsum(p[v] * math.dist(g, mean) ** 2
                                                 for v, g in enumerate(each_token)))))
    return means, stds


def outside_by_hand(ratio, mask, epsilon, epsilon_high):
    counted = [r for row, m in rows_of(ratio, mask) for r, c in zip(row, m) if c]
    out = [r for r in counted if r < 1 - epsilon or r > 1 + epsilon_high]
    return len(out) / max(len(counted), 1)


def stats_by_hand(ratio, advantages, mask, epsilon, epsilon_high):
    counted = [(r, a) for row, several, m in rows_of(ratio, advantages, mask)
               for r, a, c in zip(row, several, m) if c]
    low = sum(a < 0 and r < 1 - epsilon for r, a in counted) / max(len(counted), 1)
    high = sum(a > 0 and r > 1 + epsilon_high for r, a in counted) / max(len(counted), 1)
    ratios = [r for r, _ in counted]
    return {"clip_fraction": low + high, "clip_fraction_low": low, "clip_fraction_high": high,
            "ratio_min": min(ratios, default=math.inf), "ratio_max": max(ratios, default=-math.inf)}


def signal_by_hand(estimates):
    noise = signal = 0.0
    n, k, _ = estimates.shape
    for of_one in estimates.tolist():
        columns = list(zip(*of_one))
        noise += math.fsum(map(statistics.variance, columns)) / n
        signal += math.fsum(statistics.fmean(c) ** 2 for c in columns) / n
    return signal - noise / k, noise


def log_probs_by_hand(logits, tokens):
    return [[math.log(softmax(scores)[v]) for scores, v in zip(row, chosen)]
            for row, chosen in zip(logits.tolist(), tokens.tolist())]


def over_all(formula, tensor, depth):
    """A formula of single numbers (depth 0) or of rows (1) at every place of a tensor."""
    if tensor.dim() == depth:
        return formula(tensor.tolist())
    return [over_all(formula, part, depth) for part in tensor]


def entropy_by_hand(logits):
    return over_all(lambda row: -math.fsum(p * math.log(p) for p in softmax(row) if p), logits, 1)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def pad_by_hand(sequences, side):
    longest = max(map(len, sequences))
    blank = [[0] * (longest - len(s)) for s in sequences]
    ones = [[1] * len(s) for s in sequences]
    if side == "left":
        return ([b + s for b, s in zip(blank, sequences)], [b + s for b, s in zip(blank, ones)])
    return ([s + b for b, s in zip(blank, sequences)], [s + b for b, s in zip(blank, ones)])


# --- a case for every function ------------------------------------------------------------

def logits_and_tokens(rng):
    rows, columns, words = rng.randint(1, 3), rng.randint(1, 4), rng.randint(1, 5)
    return {"logits": torch.stack([table(rng, columns, words, -4, 4) for _ in range(rows)]),
            "tokens": torch.tensor([[rng.randrange(words) for _ in range(columns)]
                                    for _ in range(rows)])}


def loss_arguments(rng):
    made = batch(rng, "log_probs", "old_log_probs", "ref_log_probs")
    return made | {"advantages": table(rng, 1, len(made["mask"]), -2, 2)[0], "epsilon": 0.2,
                   "aggregation": "sequence_mean", "max_length": 7, "beta": 0.1}


AGGREGATIONS = ("sequence_mean", "token_mean", "constant", "sequence_sum",
                "nonempty_sequence_mean")
CASES = {
    "token_log_probs": Case(logits_and_tokens, log_probs_by_hand),
    "token_entropy": Case(lambda rng: {"logits": logits_and_tokens(rng)["logits"]},
                          entropy_by_hand),
    "pad": Case(lambda rng: {"sequences": [[rng.randrange(9) for _ in range(rng.randint(1, 4))]
                                           for _ in range(rng.randint(1, 3))],
                             "side": rng.choice(("left", "right"))}, pad_by_hand),
    "group_advantages": Case(groups_of, advantages_by_hand),
    "informative_groups": Case(
        lambda rng: {"rewards": groups_of(rng)["rewards"]},
        lambda rewards: [max(row) > min(row) for row in rewards.tolist()]),
    "informative_share": Case(
        lambda rng: {"p": rng.random(), "group_size": rng.randint(1, 9)},
        lambda p, group_size: 1 - p**group_size - (1 - p) ** group_size),
    "signal_and_noise": Case(
        lambda rng: {"estimates": torch.stack([table(rng, 3, 2, -2, 2) for _ in range(2)])},
        signal_by_hand),
    "token_rewards": Case(lambda rng: (made := batch(rng, "kl")) | {
        "rewards": table(rng, 1, len(made["mask"]), -2, 2)[0], "beta": 0.3},
        token_rewards_by_hand),
    "gae": Case(lambda rng: batch(rng, "rewards", "values") | {"gamma": 0.9, "lam": 0.8},
                gae_by_hand),
    "whiten": Case(lambda rng: batch(rng, "values"), whiten_by_hand),
    "soft_overlong_punishment": Case(
        lambda rng: {"lengths": table(rng, 1, 4, 0, 30)[0], "max_length": 20, "cache": 5},
        lambda lengths, max_length, cache: over_all(
            lambda x: min(0.0, max(-1.0, (max_length - cache - x) / cache)), lengths, 0)),
    "top_entropy_mask": Case(
        # 0.63 (n - 1) is no whole number, so that no token stands on the threshold
        lambda rng: batch(rng, "entropies") | {"quantile": 0.37}, top_entropy_by_hand),
    "off_policy_mask": Case(
        lambda rng: batch(rng, "log_probs", "old_log_probs", advantages=one_a_row)
        | {"threshold": 0.1}, off_policy_by_hand),
    "sampler_weights": Case(
        lambda rng: batch(rng, "old_log_probs", "sampler_log_probs")
        | {"correction": rng.choice(("none", "token_truncate", "token_mask",
                                     "sequence_truncate", "sequence_mask")), "ratio_max": 2.0},
        sampler_by_hand),
    "importance_ratio": Case(
        lambda rng: batch(rng, "log_probs", "old_log_probs")
        | {"ratio": rng.choice(("token", "sequence", "sequence_token", "sequence_sum"))},
        ratio_by_hand),
    "clipped_surrogate": Case(ratio_and_advantages, each(clipped)),
    "cispo_surrogate": Case(
        lambda rng: (made := ratio_and_advantages(rng)) | {
            "log_probs": table(rng, *made["ratio"].shape)},
        lambda log_probs, ratio, advantages, epsilon, epsilon_high: each(
            lambda n, r, a: min(max(r, 1 - epsilon), 1 + epsilon_high) * a * n)(
                log_probs, ratio, advantages)),
    "sapo_surrogate": Case(
        lambda rng: {k: v for k, v in ratio_and_advantages(rng).items() if "epsilon" not in k}
        | {"temperature_pos": 1.0, "temperature_neg": 1.05},
        lambda ratio, advantages, temperature_pos, temperature_neg: each(
            lambda r, a: a * 4 / (tau := temperature_pos if a > 0 else temperature_neg)
            * sigmoid(tau * (r - 1)))(ratio, advantages)),
    "gmpo_surrogate": Case(
        lambda rng: batch(rng, "log_probs", "old_log_probs", advantages=one_a_row)
        | {"epsilon": 0.33, "epsilon_high": 0.49}, gmpo_by_hand),
    "surrogate_gradient": Case(ratio_and_advantages, each(slope)),
    "clip_binds": Case(
        ratio_and_advantages, lambda ratio, advantages, epsilon, epsilon_high: (
            each(lambda r, a: a < 0 and r < 1 - epsilon)(ratio, advantages),
            each(lambda r, a: a > 0 and r > 1 + epsilon_high)(ratio, advantages))),
    "clip_stats": Case(
        lambda rng: batch(rng, ratio=ratio_of, advantages=one_a_row)
        | {"epsilon": 0.2, "epsilon_high": 0.3}, stats_by_hand),
    "outside_fraction": Case(
        lambda rng: batch(rng, ratio=ratio_of) | {"epsilon": 0.2, "epsilon_high": 0.3},
        outside_by_hand),
    "kl_estimate": Case(
        lambda rng: {k: v for k, v in batch(rng, "log_probs", "ref_log_probs").items()
                     if k != "mask"} | {"kl": rng.choice(("k1", "k2", "k3"))}, each(kl_of)),
    "aggregate": Case(lambda rng: batch(rng, "per_token") | {
        "aggregation": rng.choice(AGGREGATIONS), "max_length": 7}, aggregate_by_hand),
    "token_weights": Case(lambda rng: {"mask": batch(rng)["mask"], "max_length": 7,
                                       "aggregation": rng.choice(AGGREGATIONS)},
                          weights_by_hand),
    "grpo_loss": Case(loss_arguments, loss_by_hand),
    "value_loss": Case(lambda rng: batch(rng, "values", "returns"),
                       lambda values, returns, mask: aggregate_by_hand(
                           (values - returns) ** 2 / 2, mask, "token_mean", None)),
    "kl_divergence": Case(lambda rng: {
        f"log_probs_{name}": t.log_softmax(-1) for name, t in two_logits(rng, "pq").items()},
        divergence_by_hand),
    "kl_divergence_gradient": Case(two_logits, divergence_gradient_by_hand),
    "kl_estimator_moments": Case(lambda rng: two_logits(rng) | {
        "kl": rng.choice(("k1", "k2", "k3"))}, moments_by_hand),
    "kl_estimator_slope": Case(lambda rng: two_logits(rng, ("log_probs", "ref_log_probs")) | {
        "kl": rng.choice(("k1", "k2", "k3"))}, slope_by_hand),
    "kl_estimator_gradient": Case(lambda rng: two_logits(rng) | {
        "kl": rng.choice(("k1", "k2", "k3"))}, gradient_moments_by_hand),
    "length_distribution": Case(
        lambda rng: {"stop": rng.uniform(0.05, 0.95), "max_length": rng.randint(1, 6)},
        lambda stop, max_length: [stop * (1 - stop) ** n for n in range(max_length - 1)]
        + [(1 - stop) ** (max_length - 1)]),
    "mean_length": Case(
        lambda rng: {"stop": rng.uniform(0.05, 0.95), "max_length": rng.randint(1, 6)},
        lambda stop, max_length: math.fsum((1 - stop) ** n for n in range(max_length))),
    "pass_at_k": Case(
        lambda rng: {"samples": (n := rng.randint(2, 9)), "right": rng.randint(0, n),
                     "k": rng.randint(1, 2)},
        lambda samples, right, k: 1 - math.prod(
            max(0, samples - right - i) / (samples - i) for i in range(k))),
    "plug_in_pass_at_k": Case(
        lambda rng: {"samples": (n := rng.randint(2, 9)), "right": rng.randint(0, n),
                     "k": rng.randint(1, 2)},
        lambda samples, right, k: 1 - (1 - right / samples) ** k),
    "majority_at_k": Case(
        lambda rng: {"counts": [rng.randint(1, 4) for _ in range(3)], "right": rng.randrange(3),
                     "k": 1}, lambda counts, right, k: counts[right] / sum(counts)),
    "independent_guesses": Case(
        lambda rng: {"p": rng.random(), "k": rng.randint(1, 9)},
        lambda p, k: 1 - (1 - p) ** k),
    "estimate_moments": Case(
        lambda rng: {"estimate": lambda n, c, k: c / n, "p": rng.random(),
                     "samples": rng.randint(1, 9), "k": 1},
        lambda estimate, p, samples, k: (p, math.sqrt(p * (1 - p) / samples))),
    "permutation_test": Case(
        lambda rng: {"first": [1.0, 1.1, 1.2], "second": [9.0, 9.1, 9.2]},
        lambda first, second: 2 / 20),
    "wilson_interval": Case(
        lambda rng: {"share": rng.random(), "count": rng.randint(1, 99), "z": 1.96},
        lambda share, count, z: tuple(
            (share + z * z / (2 * count) + sign * z * math.sqrt(
                share * (1 - share) / count + z * z / (4 * count**2))) / (1 + z * z / count)
            for sign in (-1, 1))),
}

# --- what holds for all of them -----------------------------------------------------------

def public(name):
    return getattr(grpo_lib, name)


def plain(result):
    """A result as lists of plain numbers."""
    if isinstance(result, torch.Tensor):
        return result.detach().double().tolist()
    if isinstance(result, dict):
        return [plain(result[name]) for name in sorted(result)]
    if isinstance(result, grpo_lib.LossOutput):
        return plain(result.loss)
    return list(map(plain, result)) if isinstance(result, (list, tuple)) else result


def numbers_in(result):
    if isinstance(result, list):
        for part in result:
            yield from numbers_in(part)
    else:
        yield float(result)


def alike(got, wanted, tolerance):
    """Whether lists of numbers have one form and agree but for rounding."""
    if isinstance(got, list) or isinstance(wanted, list):
        return (isinstance(got, list) and isinstance(wanted, list) and len(got) == len(wanted)
                and all(alike(a, b, tolerance) for a, b in zip(got, wanted)))
    return got == wanted or abs(got - wanted) <= tolerance * (1 + abs(wanted))


def tensors_in(arguments, floating=True):
    return [name for name, value in arguments.items() if isinstance(value, torch.Tensor)
            and (value.is_floating_point() or not floating)]


def with_dtype(arguments, dtype):
    return arguments | {name: arguments[name].to(dtype) for name in tensors_in(arguments)}


def outcome(name, arguments):
    """("error", its message), of the kinds that are allowed, or ("result", numbers)."""
    try:
        return "result", plain(public(name)(**arguments))
    except ERRORS as error:
        return "error", str(error)
    except Exception as error:
        return "error", f"another kind: {error!r}"


def right_for(name, arguments):
    """What is right, or None where the arguments make no sense."""
    try:
        return plain(CASES[name].by_hand(**arguments))
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError, KeyError,
            statistics.StatisticsError):
        return None


def named(message, name):
    """Whether a message starts with the argument's name, alone or among others; a config has
    longer names for some."""
    return any(word == name or word.endswith(f"_{name}")
               for word in message.partition(":")[0].replace(",", " ").split())


SHARES = ("clip_stats", "outside_fraction")  # of counts, which are float32


@pytest.mark.parametrize("name", CASES)
@quick
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(DTYPES))
def test_the_result_is_the_formula_in_every_dtype(name, seed, dtype):
    arguments = with_dtype(CASES[name].make(random.Random(seed)), dtype)
    got = plain(public(name)(**arguments))
    wanted = plain(CASES[name].by_hand(**with_dtype(arguments, torch.float64)))
    if name in SHARES:
        dtype = dtype if dtype in HALF else torch.float32
    assert alike(got, wanted, 64 * torch.finfo(dtype).eps), (got, wanted)


WRONG_VALUES = (math.nan, math.inf, -math.inf, -1, 0, 1.5, 10, 1e-300, 1e300, 10**400, "x", "",
                None, True, [], (), {}, 1j, torch.tensor([0.3, 0.4]))


@pytest.mark.parametrize("name", CASES)
def test_a_number_or_choice_of_another_kind_is_right_or_named(name):
    rng, wrong = random.Random(7), []
    for _ in range(3):
        arguments = CASES[name].make(rng)
        usual = inspect.signature(public(name)).parameters
        for argument in arguments.keys() - set(tensors_in(arguments, floating=False)):
            for value in WRONG_VALUES:
                if value is None and usual[argument].default is None:
                    continue
                changed = arguments | {argument: value}
                what, said = outcome(name, changed)
                if what == "error":
                    fine = named(said, argument)
                else:  # an argument that is not used may be anything
                    wanted = right_for(name, changed)
                    fine = said == outcome(name, arguments)[1] or (
                        wanted is not None and alike(said, wanted, 1e-9))
                if not fine:
                    wrong.append((argument, value, said))
    assert not wrong


def other_shapes(tensor):
    """The same numbers, or some of them, in other shapes, and other things in its place."""
    yield from (tensor[:0], tensor[:, :0] if tensor.dim() > 1 else tensor[0], tensor[None],
                tensor[..., None], tensor.flatten(), torch.cat((tensor, tensor)),
                torch.cat((tensor, tensor), -1), tensor.new_zeros(()), tensor.new_zeros(7, 1),
                tensor.new_zeros(1, 7), tensor.new_zeros(7))
    if tensor.dim() > 1:
        yield from (tensor.transpose(0, 1), tensor[:1], tensor[:, :1], tensor[0])
    yield from (tensor.tolist(), "x", 0.5, tensor.to("meta"), tensor.numpy())
    if tensor.is_floating_point():
        yield from (tensor.long(), tensor.bool(), tensor.to(torch.uint8))
    else:
        yield from (tensor + 100, tensor - 100, tensor.double() + 0.5)


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_of_another_shape_or_kind_is_right_or_named(name):
    rng, wrong = random.Random(8), []
    for _ in range(4):
        arguments = CASES[name].make(rng)
        for argument in tensors_in(arguments, floating=False):
            for value in other_shapes(arguments[argument]):
                if getattr(value, "is_meta", False) and len(tensors_in(arguments, False)) == 1:
                    continue  # alone on another device it is right there
                changed = arguments | {argument: value}
                what, said = outcome(name, changed)
                if what == "error":
                    fine = any(named(said, one) for one in tensors_in(arguments, floating=False))
                else:
                    wanted = right_for(name, changed)
                    fine = wanted is not None and alike(said, wanted, 1e-6)
                if not fine:
                    wrong.append((argument, value, said))
    assert not wrong


MASKED = [name for name, case in CASES.items()
          if "mask" in (made := case.make(random.Random(0))) and len(tensors_in(made)) > 1]
DROPS_NAN = {"top_entropy_mask", "off_policy_mask", "sampler_weights", "clip_binds"}  # and says so


def of_the_masks_shape(arguments):
    return [name for name in tensors_in(arguments)
            if name != "mask" and arguments[name].shape == arguments["mask"].shape]


@pytest.mark.parametrize("name", MASKED)
@quick
@given(seed=st.integers(0, 2**32), rubbish=st.sampled_from((math.nan, math.inf, -math.inf, 1e300)))
def test_padding_may_hold_anything_in_result_and_gradient(name, seed, rubbish):
    arguments = CASES[name].make(random.Random(seed))
    if name == "grpo_loss" or "advantages" not in arguments:
        of_tokens = of_the_masks_shape(arguments)
    else:
        of_tokens = [n for n in of_the_masks_shape(arguments) if n != "advantages"]
    dirty = arguments | {n: arguments[n].masked_fill(arguments["mask"] == 0, rubbish)
                         for n in of_tokens}
    seen = []
    for given_arguments in (arguments, dirty):
        leaves = {n: given_arguments[n].clone().requires_grad_() for n in of_tokens}
        result = public(name)(**given_arguments | leaves)
        numbers = list(numbers_in(plain(result)))
        value = next((t for t in ([result.loss] if hasattr(result, "loss") else
                                  [result] if isinstance(result, torch.Tensor) else [])), None)
        if value is not None and value.requires_grad:
            slopes = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
            numbers += [x for t in slopes if t is not None for x in t.flatten().tolist()]
        seen.append(numbers)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", [name for name in CASES if name not in DROPS_NAN])
@quick
@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_nan_that_counts_is_never_lost(name, seed, data):
    arguments = CASES[name].make(random.Random(seed))
    names = [n for n in tensors_in(arguments) if n not in ("mask", "part", "whole")
             and (name, n) != ("clip_stats", "advantages")]
    if not names:
        return
    spoiled = data.draw(st.sampled_from(names))
    tensor = arguments[spoiled].clone()
    counts = torch.ones_like(tensor, dtype=torch.bool)
    if "mask" in arguments and tensor.shape == arguments["mask"].shape:
        counts = arguments["mask"] != 0
    elif "mask" in arguments:  # one number a row
        counts = (arguments["mask"] != 0).any(1).view(tensor.shape)
    places = counts.nonzero().tolist()
    if not places:
        return
    tensor[tuple(data.draw(st.sampled_from(places)))] = math.nan
    what, said = outcome(name, arguments | {spoiled: tensor})
    if what == "error":
        assert named(said, spoiled), said
    else:
        assert any(map(math.isnan, numbers_in(said))), (spoiled, said)


@pytest.mark.parametrize("name", [n for n, case in CASES.items()
                                  if {"mask", "whole"} & case.make(random.Random(0)).keys()])
def test_a_mask_may_be_of_any_dtype_and_says_0_or_1(name):
    rng = random.Random(3)
    for _ in range(5):
        arguments = CASES[name].make(rng)
        masks = [n for n in ("mask", "part", "whole") if n in arguments]
        whole = plain(public(name)(**arguments))
        for dtype in (torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16):
            changed = arguments | {n: arguments[n].to(dtype) for n in masks}
            assert alike(plain(public(name)(**changed)), whole, 1e-6), dtype


GROWS = {"group_advantages": "rewards", "informative_groups": "rewards", "whiten": "values",
         "signal_and_noise": "estimates", "aggregate": "per_token", "value_loss": "values",
         "token_rewards": "rewards", "gae": "rewards", "clipped_surrogate": "advantages",
         "grpo_loss": "advantages", "soft_overlong_punishment": "lengths",
         "top_entropy_mask": "entropies"}


@pytest.mark.parametrize("name", GROWS)
@quick
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(DTYPES), size=st.integers(1, 300))
def test_huge_numbers_are_right_or_infinite_or_named(name, seed, dtype, size):
    """Not 0, which is what dividing by a sum of squares that ran over would give."""
    arguments = with_dtype(CASES[name].make(random.Random(seed)), torch.float64)
    factor = min(10.0**size, torch.finfo(dtype).max / 4)
    arguments[GROWS[name]] = arguments[GROWS[name]] * factor
    arguments = with_dtype(arguments, dtype)
    what, said = outcome(name, arguments)
    if what == "error":
        assert named(said, GROWS[name]), said
        return
    wanted = right_for(name, with_dtype(arguments, torch.float64))
    if wanted is None:  # beyond plain numbers too
        assert not all(map(math.isfinite, numbers_in(said)))
        return
    sums = name in ("gae", "aggregate", "grpo_loss")  # which may cancel
    for got, right in zip(numbers_in(said), numbers_in(wanted)):
        assert not math.isfinite(got) or abs(got - right) <= 64 * torch.finfo(dtype).eps * (
            1 + abs(right) + factor * sums), (got, right)


def test_many_tokens_are_counted_in_half_precision_too():
    """A sum of 16 bits ends at 65504, or at 256 where it rounds to 8 bits."""
    for dtype in HALF:
        ones = torch.ones(2, 40_000, dtype=dtype)
        assert grpo_lib.aggregate(ones, ones, "token_mean").item() == pytest.approx(1, abs=1e-6)
        assert grpo_lib.token_weights(ones, "token_mean").sum().item() == pytest.approx(1)
        uneven = torch.ones(1, 257, dtype=dtype)
        loss = grpo_lib.grpo_loss(0 * uneven, 0 * uneven, torch.tensor([1.0]), uneven).loss
        assert loss.item() == -1


def test_a_mask_that_weighs_is_refused_by_the_loss():
    zeros = torch.zeros(2, 3)
    for value in (0.5, 2.0, math.nan):
        with pytest.raises(ValueError, match=r"^mask: got other numbers, allowed are only 0 and 1"):
            grpo_lib.grpo_loss(zeros, zeros, torch.ones(2), torch.full((2, 3), value))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (), (2, 1, 3), (3, 2)])
def test_a_surrogate_of_ones_own_returns_a_number_for_each_token_or_row(shape):
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"^surrogate: returned shape"):
        grpo_lib.grpo_loss(zeros, zeros, torch.ones(2), surrogate=lambda *_: torch.zeros(shape))


@pytest.mark.parametrize("ids", [[1.7], [True], [1, 2.0], [math.nan]])
def test_token_ids_are_whole_numbers(ids):
    with pytest.raises(ValueError, match=r"^sequences: got torch\.\w+ in row 1"):
        grpo_lib.pad([[3, 4], ids], "left")


def test_the_likeliest_token_of_no_numbers_is_not_taken(world):
    class Nowhere(torch.nn.Module):
        def new_cache(self, batch, length):
            return None

        def forward(self, tokens, mask=None, cache=None):
            return torch.full((*tokens.shape, 5), math.nan)

    for temperature in (0, 1.0):
        with pytest.raises(FloatingPointError, match=r"^logits: "):
            grpo_lib.sample_groups(Nowhere(), [[2]], 2, max_new_tokens=2, temperature=temperature)


def test_lengths_of_few_bits_do_not_run_over():
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int64):
        lengths = torch.tensor([0, 100, 127], dtype=dtype)
        assert grpo_lib.soft_overlong_punishment(lengths, 120, 40).tolist() == [0, -0.5, -1]


def test_groups_of_half_precision_have_the_advantages_of_all_others():
    rewards = torch.tensor([[60000.0, -60000.0, 0.0]])
    wanted = grpo_lib.group_advantages(rewards)
    for dtype in HALF:
        got = grpo_lib.group_advantages(rewards.to(dtype))
        assert got.dtype == dtype and torch.allclose(got.float(), wanted, rtol=0.02)


def test_a_permutation_test_does_not_depend_on_the_unit():
    first, second = [1.0, 2.0, 3.0], [2.5, 9.0, 9.5]
    for unit in (1e-20, 1e-9, 1.0, 1e12):
        scaled = [[x * unit for x in numbers] for numbers in (first, second)]
        assert grpo_lib.permutation_test(*scaled) == grpo_lib.permutation_test(first, second)


# --- functions of policies, tasks and files -----------------------------------------------

TASK = SortTask(2, 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What they take: a small policy, rollouts of it, all completions of it, a file."""
    policy = TransformerPolicy(PolicyConfig(len(TASK.tokenizer), 8, 1, 2, 8),
                               torch.Generator().manual_seed(0))
    tiny = TinyPolicy(3, 4).double()
    rollouts = sample_groups(policy, [[2, 3], [4]], 2, max_new_tokens=3,
                             generator=torch.Generator().manual_seed(0))
    every = grpo_lib.enumerate_completions(tiny, [2], 2, vocab_size=3)
    estimators = [grpo_lib.estimator(tiny, every, torch.rand(len(every.mask)).double(),
                                     ALGORITHMS["rloo"], 2)]
    folder = tmp_path_factory.mktemp("world")
    grpo_lib.save_policy(folder / "policy", policy, TASK.name)
    return {"policy": policy, "tiny": tiny, "rollouts": rollouts, "every": every,
            "estimators": estimators, "folder": folder, "task": TASK,
            "rewards": torch.arange(len(every.mask)).double(), "problems": TASK.held_out(2)}


PUSH = {"group_size": 2, "max_length": 3, "stop_right": 0.2, "stop_wrong": 0.3}
FOLLOW = {"steps": 1, "rate": 0.1, "group_size": 2, "max_length": 3, "stop": 0.2}
SAMPLING = {"prompts": [[2, 3], [4]], "group_size": 2, "max_new_tokens": 3}
EVERY = {"prompt": [2], "max_new_tokens": 2, "vocab_size": 3}
NOT_WHOLE = (0, -1, 1.5, math.nan, "x", None, True, 10**400)
NOT_A_NUMBER = (math.nan, math.inf, "x", None, True, 10**400)
# name -> (how it is called with changes, {argument: what is not allowed})
MODELS = {
    "sample_groups": (lambda w, **c: public("sample_groups")(w["policy"], **SAMPLING | c), {
        "prompts": ([], [[]], [[2], []]), "group_size": NOT_WHOLE, "max_new_tokens": NOT_WHOLE,
        "temperature": (*NOT_A_NUMBER, -1), "part": ((0, 0), (2, 2), (-1, 1), (0, 3))}),
    "completion_logits": (lambda w, **c: public("completion_logits")(
        w["policy"], replace(w["rollouts"], **c)), {"temperature": (0, -1)}),
    "completion_log_probs": (lambda w, **c: public("completion_log_probs")(
        w["policy"], w["rollouts"], **c), {"rows_at_once": (*NOT_WHOLE[:-3], True)}),
    "completion_values": (lambda w, **c: ValueModel(**{"policy": w["policy"]} | c), {
        "policy": (None, "x", torch.nn.Linear(2, 2))}),
    "evaluate": (lambda w, **c: public("evaluate")(
        w["policy"], w["task"], **{"problems": w["problems"]} | c), {
        "problems": ([],), "samples": NOT_WHOLE, "rows_at_once": NOT_WHOLE,
        "temperature": (*NOT_A_NUMBER, -1)}),
    "enumerate_completions": (lambda w, **c: public("enumerate_completions")(
        w["tiny"], **EVERY | c), {"max_new_tokens": (*NOT_WHOLE, 30),
                                  "vocab_size": (*NOT_WHOLE, 1, 2, 4)}),
    "expected_reward": (lambda w, **c: public("expected_reward")(
        w["tiny"], w["every"], **{"rewards": w["rewards"]} | c), {
        "rewards": (torch.ones(2), torch.ones(7, 1), torch.ones(1, 7), torch.ones(()), [1.0] * 7,
                    torch.ones(7).long(), torch.full((7,), math.nan), None)}),
    "estimator": (lambda w, **c: public("estimator")(
        w["tiny"], w["every"], **{"rewards": w["rewards"], "algorithm": ALGORITHMS["rloo"],
                                  "group_size": 2} | c), {
        "rewards": (torch.ones(2), torch.ones(7, 1), torch.ones(7).long(),
                    torch.full((7,), math.inf).double()),
        "group_size": (*NOT_WHOLE, 60), "algorithm": (ALGORITHMS["ppo"],)}),
    "sequence_kl": (lambda w, **c: public("sequence_kl")(
        w["tiny"], w["tiny"], replace(w["every"], **c)), {"temperature": (0,)}),
    "mean_of_prompts": (lambda w, **c: public("mean_of_prompts")(**{
        "estimators": w["estimators"]} | c), {"estimators": ([], ())}),
    "expected_push": (lambda w, **c: public("expected_push")(**{"aggregation": "token_mean"}
                                                             | PUSH | c), {
        "aggregation": ("sequence_sum", "x", None, 1), "group_size": (*NOT_WHOLE, 1),
        "max_length": NOT_WHOLE, "stop_right": (*NOT_A_NUMBER, 0, 1, -1), "stop_wrong": (0, 1, 2),
        "share_right": (*NOT_A_NUMBER, -0.1, 1.1), "prompts": NOT_WHOLE,
        "scale": ("batch", "x", None, 1)}),
    "follow_push": (lambda w, **c: public("follow_push")(**{"aggregation": "constant"}
                                                         | FOLLOW | c), {
        "steps": (-1, *NOT_WHOLE[2:]), "rate": NOT_A_NUMBER, "stop": (*NOT_A_NUMBER, 0, 1),
        "group_size": (*NOT_WHOLE, 1), "aggregation": ("x", None), "scale": ("batch",)}),
    "save_policy": (lambda w, **c: public("save_policy")(**{
        "path": w["folder"] / "again", "policy": w["policy"], "task_name": "sort"} | c), {
        "policy": (None, "x", torch.nn.Linear(2, 2))}),
    "load_policy": (lambda w, **c: public("load_policy")(**{"path": w["folder"] / "policy"} | c), {
        "path": ("nowhere", "."), "task_name": ("chain", "", 1)}),
    "load_base_model": (lambda w, **c: public("load_base_model")(**{"task_name": "chain"} | c), {
        "task_name": ("sort", "x", "", None)}),
    "get_task": (lambda w, **c: public("get_task")(**{"name": "sort"} | c), {
        "name": ("x", "", None, 1, [])}),
    "pretrain": (lambda w, **c: next(public("pretrain")(w["task"], grpo_lib.PretrainConfig(
        **{"skill_steps": 1, "batch_size": 2} | c))), {
        "skill_steps": NOT_WHOLE, "batch_size": NOT_WHOLE, "warmup_steps": NOT_WHOLE,
        "habit_steps": (-1, *NOT_WHOLE[2:]), "seed": (-1, *NOT_WHOLE[2:]),
        "skill_share": (*NOT_A_NUMBER, -0.1, 1.1), "muon_lr": (*NOT_A_NUMBER, 0, -1),
        "adamw_lr": (*NOT_A_NUMBER, 0, -1), "habit_rate": (*NOT_A_NUMBER, 0, -1)}),
    "one_step_accuracy": (lambda w, **c: public("one_step_accuracy")(
        w["policy"], w["task"], **{"count": 2} | c), {"count": NOT_WHOLE}),
}
HEADS = {"temperature": ("temperature", "rollouts", "logits"), "name": ("task",),
         "path": ("nowhere", "."), "stop_right": ("stop",), "stop_wrong": ("stop",),
         "task_name": ("policy",)}
ANYTHING = {"is_held_out"}  # takes any text


@pytest.mark.parametrize("name", MODELS)
def test_a_function_of_policies_works_and_names_what_it_cannot_use(world, name):
    call, forbidden = MODELS[name]
    call(world)
    wrong = []
    for argument, values in forbidden.items():
        for value in values:
            try:
                wrong.append((argument, value, call(world, **{argument: value})))
            except (*ERRORS, grpo_lib.CheckpointError) as error:
                said = str(error).partition(":")[0]
                heads = (argument, *HEADS.get(argument, ()))
                if not any(head in said for head in heads):
                    wrong.append((argument, value, str(error)))
    assert not wrong


def test_every_public_function_is_here():
    functions = {name for name in grpo_lib._HOME
                 if isinstance(public(name), types.FunctionType)}
    assert functions == CASES.keys() | MODELS.keys() | ANYTHING
    assert len(functions) >= 60
