"""Advantages by hand, by property, and groups that can teach nothing."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lib.advantages import (
    BASELINES,
    SCALES,
    group_advantages,
    informative_groups,
    informative_share,
    soft_overlong_punishment,
)
from grpo_lib.lab.statistics import signal_and_noise
from grpo_lib.returns import gae, token_rewards, whiten

BY_GROUP = [s for s in SCALES if s != "mean"]  # those for rewards of either sign
FOUNDING = [1.0, 0.1, 1.0, 0.2]

quick = settings(max_examples=40, deadline=None, derandomize=True)
groups = st.integers(2, 6).flatmap(lambda size: st.lists(
    st.lists(st.floats(-10, 10, width=32), min_size=size, max_size=size),
    min_size=1, max_size=5))


def numbers(rows):
    return torch.tensor(rows, dtype=torch.float64)


def advantages_in_loops(rewards, baseline, scale, std_eps):
    """The docstring's formula with the statistics module, group by group."""
    everything = [r for group in rewards for r in group]
    result = []
    for group in rewards:
        row = []
        for g, r in enumerate(group):
            others = group[:g] + group[g + 1 :]
            base = {"mean": statistics.fmean(group), "leave_one_out": statistics.fmean(others),
                    "batch": statistics.fmean(everything), "none": 0.0}[baseline]
            width = {"group": lambda group=group: statistics.stdev(group) + std_eps,
                     "batch": lambda: statistics.stdev(everything) + std_eps,
                     "mean": lambda group=group: statistics.fmean(group) + std_eps,
                     "none": lambda: 1.0}[scale]()
            row.append((r - base) / width)
        result.append(row)
    return result


def test_the_founding_example_by_hand():
    mean, std = 0.575, math.sqrt((2 * 0.425**2 + 0.475**2 + 0.375**2) / 3)
    expected = [(r - mean) / (std + 1e-4) for r in FOUNDING]
    assert group_advantages(numbers([FOUNDING]))[0].tolist() == pytest.approx(expected)
    assert group_advantages(torch.tensor([FOUNDING]))[0].tolist() == pytest.approx(
        [0.8629, -0.9644, 0.8629, -0.7614], abs=1e-4)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("std_eps", [0.0, 1e-4, 0.5])
def test_every_choice_is_the_formula(baseline, scale, std_eps):
    rewards = [FOUNDING, [0.0, 2.0 if scale == "mean" else -2.0, 5.0, 5.5], [1.0, 0.0, 0.0, 0.0]]
    got = group_advantages(numbers(rewards), baseline=baseline, scale=scale, std_eps=std_eps)
    expected = advantages_in_loops(rewards, baseline, scale, std_eps)
    assert got.shape == (3, 4)
    for row, wanted in zip(got.tolist(), expected):
        assert row == pytest.approx(wanted, abs=1e-12)


def test_defaults_are_the_papers():
    rewards = numbers([FOUNDING])
    assert torch.equal(group_advantages(rewards), group_advantages(
        rewards, baseline="mean", scale="group", std_eps=1e-4))


@pytest.mark.parametrize("size", [2, 3, 7])
def test_leave_one_out_is_the_mean_baseline_times_g_over_g_minus_1(size):
    rewards = torch.rand(3, size, generator=torch.Generator().manual_seed(0)).double()
    for scale in SCALES:
        mean = group_advantages(rewards, scale=scale)
        left_out = group_advantages(rewards, baseline="leave_one_out", scale=scale)
        assert torch.allclose(left_out, mean * size / (size - 1), rtol=1e-12, atol=0)


def test_the_std_is_the_unbiased_one():
    assert group_advantages(numbers([[0.0, 2.0]]), std_eps=0.0)[0, 1].item() == pytest.approx(
        1 / math.sqrt(2))


def test_batch_scale_keeps_the_groups_relative_sizes():
    rewards = numbers([[0.0, 1.0], [0.0, 10.0]])
    by_batch = group_advantages(rewards, scale="batch")
    assert (by_batch[1] / by_batch[0]).tolist() == pytest.approx([10.0, 10.0])


# --- groups without spread ----------------------------------------------------------------

FLAT = [
    pytest.param(torch.zeros(1, 4), id="all_zero"), pytest.param(torch.ones(1, 4), id="all_one"),
    pytest.param(numbers([[0.1 + 0.2, 0.3]]), id="0.1+0.2_and_0.3"),
    pytest.param(torch.tensor([[0.1 + 0.2, 0.3]]), id="0.1+0.2_and_0.3_in_float32"),
    pytest.param(numbers([[-1e8, -1e8 - 1e-8]]), id="large_and_negative"),
    *(pytest.param(torch.full((1, size), 0.1), id=f"0.1_times_{size}") for size in range(3, 17)),
    pytest.param(torch.full((1, 12), 0.7), id="0.7_times_12"),
]


@pytest.mark.parametrize("rewards", FLAT)
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", SCALES)
def test_equal_rewards_give_exactly_zero(rewards, baseline, scale):
    if scale == "mean":
        rewards = rewards.abs()
    for std_eps in (0.0, 1e-4):
        advantages = group_advantages(rewards, baseline=baseline, scale=scale, std_eps=std_eps)
        assert (advantages == 0).all()
    assert informative_groups(rewards).tolist() == [False]


def test_float_rounding_alone_would_not_have_given_zero():
    rounded = torch.full((1, 12), 0.7)
    assert (rounded - rounded.mean()).abs().max() > 0


@pytest.mark.parametrize("rewards", [[0.0, 1e-12], [1.0, 1.0 + 1e-12], [0.3, 0.300000001],
                                     [-1e-30, 1e-30]])
def test_a_small_but_real_spread_counts(rewards):
    assert informative_groups(numbers([rewards])).tolist() == [True]
    centred = group_advantages(numbers([rewards]), scale="none")
    assert centred[0, 0] < 0 < centred[0, 1]


def test_each_group_is_judged_by_its_own_rewards():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert informative_groups(rewards).tolist() == [False, True, False]
    for scale in SCALES:
        advantages = group_advantages(rewards, scale=scale)
        assert (advantages != 0).any(1).tolist() == [False, True, False]


def test_without_a_baseline_equal_rewards_still_count():
    advantages = group_advantages(torch.ones(1, 3), baseline="none", scale="none")
    assert advantages.tolist() == [[1.0, 1.0, 1.0]]


# --- properties ---------------------------------------------------------------------------

@quick
@given(groups, st.floats(-5, 5), st.sampled_from(["mean", "leave_one_out"]),
       st.sampled_from(BY_GROUP))
def test_adding_a_constant_changes_nothing(rows, shift, baseline, scale):
    rewards = numbers(rows)
    spread = rewards.amax(1) - rewards.amin(1)
    rewards = rewards[(spread == 0) | (spread > 1e-3)]
    if len(rewards) == 0:
        return
    chosen = {"baseline": baseline, "scale": scale}
    before, after = (group_advantages(r, **chosen) for r in (rewards, rewards + shift))
    assert torch.allclose(before, after, rtol=1e-6, atol=1e-9)


@quick
@given(groups, st.sampled_from(["mean", "leave_one_out"]), st.sampled_from(BY_GROUP))
def test_the_advantages_of_a_group_sum_to_zero(rows, baseline, scale):
    advantages = group_advantages(numbers(rows), baseline=baseline, scale=scale)
    assert advantages.sum(1).abs().max() < 1e-9


@quick
@given(groups, st.randoms(use_true_random=False), st.sampled_from(list(BASELINES)),
       st.sampled_from(BY_GROUP))
def test_reordering_a_group_reorders_its_advantages(rows, rng, baseline, scale):
    order = list(range(len(rows[0])))
    rng.shuffle(order)
    chosen = {"baseline": baseline, "scale": scale}
    one = group_advantages(numbers(rows), **chosen)[:, order]
    other = group_advantages(numbers(rows)[:, order], **chosen)
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@quick
@given(groups, st.sampled_from(["mean", "leave_one_out", "none"]),
       st.sampled_from(["group", "none"]))
def test_a_group_does_not_depend_on_the_others(rows, baseline, scale):
    chosen = {"baseline": baseline, "scale": scale}
    together = group_advantages(numbers(rows), **chosen)
    for n, row in enumerate(rows):
        alone = group_advantages(numbers([row]), **chosen)[0]
        assert torch.allclose(together[n], alone, rtol=1e-12, atol=0)


# --- errors -------------------------------------------------------------------------------

@pytest.mark.parametrize(("rewards", "options", "named"), [
    (torch.tensor([1.0, 2.0]), {}, r"rewards: got shape \(2,\)"),
    (torch.zeros(1, 2, 2), {}, "rewards: got shape"), (torch.zeros(0, 4), {}, "rewards: got shape"),
    (torch.zeros(4, 0), {}, "rewards: got shape"), (torch.tensor(1.0), {}, "rewards: got shape"),
    (torch.tensor([[1, 0]]), {}, "rewards: got torch.int64"),
    (torch.tensor([[True, False]]), {}, "rewards: got torch.bool"),
    (torch.tensor([[1.0, 0.0], [0.0, math.nan]]), {},
     "rewards: got nan for prompt 1, completion 1"),
    (torch.tensor([[math.inf, 0.0]]), {}, "rewards: got inf for prompt 0, completion 0"),
    (torch.ones(2, 1), {}, "rewards: got groups of 1"),
    (torch.ones(2, 1), {"baseline": "leave_one_out", "scale": "none"}, "rewards: got groups of 1"),
    (torch.ones(2, 1), {"baseline": "none"}, "rewards: got groups of 1"),
    (torch.ones(2, 1), {"scale": "none"}, "rewards: got groups of 1"),
    (torch.ones(1, 1), {"baseline": "none", "scale": "batch"}, "rewards: got a single one"),
    (torch.ones(2, 2), {"baseline": "median"}, "baseline: got 'median'"),
    (torch.ones(2, 2), {"scale": True}, "scale: got True"),
    (torch.ones(2, 2), {"std_eps": -1e-4}, "std_eps: got"),
    (torch.ones(2, 2), {"std_eps": math.nan}, "std_eps: got nan"),
])
def test_a_bad_argument_is_named(rewards, options, named):
    with pytest.raises(ValueError, match=named) as caught:
        group_advantages(rewards, **options)
    assert "allowed" in str(caught.value)


def test_groups_of_one_are_allowed_where_nothing_is_compared():
    rewards = torch.tensor([[2.0], [3.0]])
    assert torch.equal(group_advantages(rewards, baseline="none", scale="none"), rewards)


# --- how many groups teach, and how far a gradient strays ---------------------------------

@pytest.mark.parametrize("p", [0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_informative_share_is_what_going_through_all_groups_gives(p, size):
    chance = sum(math.prod(p if right else 1 - p for right in group)
                 for group in itertools.product([0, 1], repeat=size) if len(set(group)) > 1)
    assert informative_share(p, size) == pytest.approx(chance, abs=1e-12)
    one = informative_share(torch.tensor([[p, 0.5]], dtype=torch.float64), size)
    assert one.tolist() == [[pytest.approx(chance, abs=1e-12),
                             pytest.approx(1 - 2 * 0.5**size)]]


def test_the_informative_share_by_hand():
    shares = [informative_share(0.05, size) for size in (2, 8, 16, 64)]
    assert shares == pytest.approx([0.095, 0.337, 0.560, 0.962], abs=5e-4)


def test_at_the_mean_p_the_informative_share_is_larger():
    p = torch.tensor([0.1, 0.3], dtype=torch.float64)
    for size in (2, 4, 8):
        assert informative_share(p.mean(), size) > informative_share(p, size).mean()


@pytest.mark.parametrize(("p", "size", "named"), [
    (-0.1, 4, "p: got -0.1"), (1.1, 4, "p: got 1.1"), (math.nan, 4, "p: got nan"),
    (torch.tensor([0.5, 2.0]), 4, "p: got tensor"), (0.5, 0, "group_size: got 0"),
    (0.5, 2.0, "group_size: got 2.0"), (0.5, True, "group_size: got True"),
])
def test_a_bad_share_is_named(p, size, named):
    with pytest.raises(ValueError, match=named) as caught:
        informative_share(p, size)
    assert "allowed" in str(caught.value)


def test_signal_and_noise_by_hand():
    estimates = numbers([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [0.0, 2.0]]])
    # within: variances 2 and 0; means (2, 0) and (0, 2)
    assert signal_and_noise(estimates) == (pytest.approx(4 - 1 / 2), pytest.approx(1.0))


def test_signal_and_noise_are_unbiased():
    generator = torch.Generator().manual_seed(0)
    true = numbers([[3.0, -4.0, 0.0], [0.0, 1.0, 0.0]])[:, None]
    drawn = torch.randn(2, 60_000, 3, dtype=torch.float64, generator=generator) * 2 + true
    looks = [signal_and_noise(part) for part in drawn.split(3, 1)]
    signal, noise = (statistics.fmean(x) for x in zip(*looks))
    assert signal == pytest.approx((25 + 1) / 2, rel=0.01)
    assert noise == pytest.approx(3 * 4, rel=0.01)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 1, 3), (0, 2, 3), (2, 2, 0)])
def test_too_few_estimates_are_named(shape):
    with pytest.raises(ValueError, match=r"estimates: got shape .* allowed"):
        signal_and_noise(torch.zeros(shape))


# --- the estimate of the gradient, exactly, for a policy of two answers --------------------

def mean_estimate(p, size, **choices):
    """Mean of (1/G) sum_i A_i d log pi(o_i) / d theta over all groups, p = sigmoid(theta)."""
    total = 0.0
    for group in itertools.product([0.0, 1.0], repeat=size):
        values = group_advantages(numbers([list(group)]), **choices)[0].tolist()
        chance = math.prod(p if right else 1 - p for right in group)
        total += chance * sum(a * (r - p) for a, r in zip(values, group)) / size
    return total


@pytest.mark.parametrize("p", [0.05, 0.5, 0.8])
@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_leave_one_out_is_unbiased_and_the_mean_is_so_but_for_one_factor(p, size):
    exact = p * (1 - p)
    for baseline, factor in (("none", 1), ("mean", 1 - 1 / size), ("leave_one_out", 1)):
        got = mean_estimate(p, size, baseline=baseline, scale="none")
        assert got == pytest.approx(factor * exact, abs=1e-10)


def test_the_std_weighs_hard_problems_more_from_groups_of_four_on():
    def factor(p, size):
        return mean_estimate(p, size, std_eps=0.0) / (p * (1 - p))

    for size in (2, 3):
        assert factor(0.05, size) == pytest.approx(factor(0.5, size))
    for size in (4, 6):
        assert factor(0.05, size) > 1.02 * factor(0.5, size)


# --- per token: rewards, GAE, whitening ----------------------------------------------------

LENGTHS = [3, 1, 2, 0]
MASK = (torch.arange(3) < torch.tensor(LENGTHS)[:, None]).double()
VALUES = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).double() + 7 * (1 - MASK)


def test_the_reward_stands_at_the_last_token_and_kl_at_every_one():
    kl = numbers([[0.1, 0.2, 0.3], [0.4, 9, 9], [0.5, 0.6, 9], [9, 9, 9]])
    given = numbers([1.0, 2.0, 3.0, 4.0])
    assert token_rewards(given, MASK).tolist() == [[0, 0, 1], [2, 0, 0], [0, 3, 0], [0, 0, 0]]
    with_kl = token_rewards(given, MASK, kl, beta=0.5)
    expected = [[-0.05, -0.1, 0.85], [1.8, 0, 0], [-0.25, 2.7, 0], [0, 0, 0]]
    assert torch.allclose(with_kl, numbers(expected))
    kl[MASK == 0] = torch.nan  # padding may hold anything
    assert torch.equal(token_rewards(given, MASK, kl, beta=0.5), with_kl)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_gae_in_loops(gamma, lam):
    rewards = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()
    got = gae(rewards, VALUES, MASK, gamma, lam)
    for i, n in enumerate(LENGTHS):
        v = [*VALUES[i, :n].tolist(), 0.0]
        delta = [rewards[i, t].item() + gamma * v[t + 1] - v[t] for t in range(n)]
        wanted = [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]
        assert got[i].tolist() == pytest.approx(wanted + [0.0] * (3 - n))


def test_gae_at_its_ends():
    rewards = token_rewards(numbers([1.0, 2.0, 3.0, 4.0]), MASK)
    with_lambda_one = gae(rewards, VALUES, MASK, 1.0, 1.0)
    returns = numbers([1.0, 2.0, 3.0, 4.0])[:, None] * MASK
    assert torch.allclose(with_lambda_one, returns - VALUES * MASK)
    assert torch.allclose(gae(rewards, 0 * VALUES, MASK, 1.0, 1.0), returns)


@pytest.mark.parametrize(("change", "named"), [
    ({"gamma": 1.1}, "gamma: got 1.1"), ({"lam": -0.1}, "lam: got -0.1"),
    ({"values": torch.zeros(4, 2)}, "values: got shape"), ({"mask": torch.ones(4)}, "mask: got"),
])
def test_gae_names_bad_input(change, named):
    with pytest.raises(ValueError, match=named):
        gae(**({"rewards": MASK, "values": VALUES, "mask": MASK} | change))


def test_whitened_values_have_mean_zero_and_variance_one_over_tokens():
    values = whiten(VALUES, MASK)
    counted = values[MASK == 1].tolist()
    assert statistics.fmean(counted) == pytest.approx(0, abs=1e-12)
    assert statistics.variance(counted) == pytest.approx(1, abs=1e-6)
    assert (values[MASK == 0] == 0).all()
    raw = VALUES[MASK == 1]
    assert torch.allclose(values[MASK == 1], (raw - raw.mean()) / (raw.var() + 1e-8).sqrt())
    assert (whiten(VALUES[:1, :1], MASK[:1, :1]) == 0).all()  # one token: nothing to compare with
    assert (whiten(VALUES, 0 * MASK) == 0).all()


def test_the_overlong_punishment_is_a_ramp():
    lengths = torch.tensor([1.0, 14, 15, 16, 17, 19, 20, 50])
    expected = [0, 0, 0, -0.2, -0.4, -0.8, -1, -1]
    assert soft_overlong_punishment(lengths, 20, 5).tolist() == pytest.approx(expected)
    for cache in (0, 21, -1):
        with pytest.raises(ValueError, match=f"cache: got {cache}, allowed is a whole"):
            soft_overlong_punishment(lengths, 20, cache)


def test_the_mean_reward_as_a_divisor_wants_rewards_from_zero_up():
    with pytest.raises(ValueError, match=r"rewards: got -1\.0; scale='mean' divides by the mean"):
        group_advantages(numbers([[1.0, -1.0]]), scale="mean")
    all_right = group_advantages(torch.ones(1, 3), baseline="none", scale="mean", std_eps=0.0)
    assert all_right.tolist() == [[1.0, 1.0, 1.0]]
    none_right = group_advantages(torch.zeros(1, 3), baseline="none", scale="mean", std_eps=0.0)
    assert none_right.tolist() == [[0.0, 0.0, 0.0]]


def test_the_batchs_mean_is_a_baseline_for_silent_groups_too():
    rewards = numbers([[1.0, 1.0], [0.0, 0.0]])
    got = group_advantages(rewards, baseline="batch", scale="none")
    assert got.tolist() == [[0.5, 0.5], [-0.5, -0.5]]
    with pytest.raises(ValueError, match="rewards: got a single one"):
        group_advantages(numbers([[1.0]]), baseline="batch", scale="none")


@pytest.mark.parametrize("bad", [1e30, math.inf, math.nan])
def test_whitening_what_is_too_large_to_square_is_refused(bad):
    """Its spread would be infinite, and all of it 0."""
    values = torch.tensor([[bad, -1.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match="values: got nan, inf or numbers whose squares"):
        whiten(values, torch.ones(2, 2))
