"""Whole completions, enumerated: against loops over plain numbers, and against each other."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from grpo_lib.algorithms import ALGORITHMS, Algorithm
from grpo_lib.lab.exact import (
    Estimator,
    all_groups,
    completion_probabilities,
    enumerate_completions,
    estimator,
    expected_reward,
    flat_gradient,
    group_gradients,
    kl_divergence,
    mean_of_prompts,
    score_matrix,
    sequence_kl,
)
from grpo_lib.objective import grpo_loss
from grpo_lib.policy import TinyPolicy
from grpo_lib.rollout import completion_log_probs
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

EOS = 1
SEEDS = range(24)
CRITICLESS = [name for name, row in ALGORITHMS.items() if not row.critic]
UNBIASED = [  # (name, choices, factor of the exact gradient for a group of G)
    ("reinforce", {}, lambda G: 1),
    ("reinforce", {"aggregation": "constant"}, lambda G: 1 / 2),  # of the longest completion
    ("rloo", {}, lambda G: 1),
    ("rloo", {"surrogate": "log_prob", "ratio": "token", "aggregation": "sequence_sum"},
     lambda G: 1),
    ("rloo", {"ratio": "token", "aggregation": "constant"}, lambda G: 1 / 2),
    ("rloo", {"ratio": "token", "aggregation": "sequence_sum"}, lambda G: 1),
    ("reinforce_baseline", {}, lambda G: (G - 1) / G),
    ("dr_grpo", {}, lambda G: (G - 1) / G / 2),
    ("dr_grpo", {"aggregation": "sequence_sum"}, lambda G: (G - 1) / G),
    ("cispo", {"aggregation": "sequence_sum", "scale": "none"}, lambda G: (G - 1) / G),
    ("sapo", {"aggregation": "sequence_sum", "scale": "none"}, lambda G: (G - 1) / G),
]


def tiny(seed, vocab_size=3, transformer=True):
    """A policy in float64 whose next-token probabilities are far from equal."""
    generator = torch.Generator().manual_seed(seed)
    if transformer:
        config = PolicyConfig(vocab_size=vocab_size, d_model=4, n_layers=1, n_heads=1, d_hidden=4,
                              context_length=8, init_std=0.7)
        return TransformerPolicy(config, generator).double()
    policy = TinyPolicy(vocab_size, 3).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(0, 0.8, generator=generator)
    return policy


def moved(policy, seed, size=0.3):
    """Another policy nearby, as an older one would be."""
    other = tiny(0)
    other.load_state_dict(policy.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn(parameter.shape, dtype=torch.float64,
                                              generator=torch.Generator().manual_seed(seed)))
    return other


def some_rewards(count, seed, binary=False):
    rewards = torch.rand(count, generator=torch.Generator().manual_seed(seed)).double()
    rewards = (rewards > 0.6).double() if binary else rewards
    rewards[:2] = torch.tensor([0.0, 1.0])
    return rewards


def setting(seed, binary=False):
    policy = tiny(seed)
    completions = enumerate_completions(policy, [2, 0], 2, vocab_size=3)
    return policy, completions, some_rewards(len(completions.mask), seed, binary)


# --- all completions ----------------------------------------------------------------------

@pytest.mark.parametrize(("vocab_size", "length"), [(3, 1), (3, 2), (3, 3), (4, 2), (2, 3)])
def test_every_completion_is_there_once(vocab_size, length):
    rollouts = enumerate_completions(tiny(0, vocab_size), [2 % vocab_size], length,
                                     vocab_size=vocab_size)
    others = vocab_size - 1
    assert len(rollouts.mask) == sum(others**n for n in range(length + 1))
    seen = set()
    for tokens, mask, finished in zip(rollouts.completions.tolist(), rollouts.mask.tolist(),
                                      rollouts.finished.tolist()):
        used = int(sum(mask))
        assert mask == [1.0] * used + [0.0] * (length - used)
        body = tokens[:used]
        assert finished == (body[-1] == EOS)
        assert EOS not in body[:-1]
        assert finished or used == length
        seen.add(tuple(body))
    assert len(seen) == len(rollouts.mask)
    assert rollouts.group_size == len(rollouts.mask)


@pytest.mark.parametrize("transformer", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_probabilities_are_products_of_softmaxes_and_sum_to_one(transformer, temperature):
    policy, prompt = tiny(3, transformer=transformer), [2, 0]
    completions = enumerate_completions(policy, prompt, 3, vocab_size=3, temperature=temperature)
    probabilities = completion_probabilities(policy, completions)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    for row, mask, got in zip(completions.completions.tolist(), completions.mask.tolist(),
                              probabilities.tolist()):
        product, text = 1.0, list(prompt)
        for token in row[: int(sum(mask))]:
            logits = (policy(torch.tensor([text]))[0, -1] / temperature).tolist()
            product *= math.exp(logits[token]) / sum(map(math.exp, logits))
            text.append(token)
        assert got == pytest.approx(product, rel=1e-10)
    assert torch.allclose(completions.log_probs.sum(1).exp(), probabilities)


def test_sampling_agrees_with_the_enumeration(seeded):
    from grpo_lib.rollout import sample_groups

    policy = tiny(5)
    completions = enumerate_completions(policy, [2, 0], 2, vocab_size=3)
    drawn = sample_groups(policy, [[2, 0]], 20_000, max_new_tokens=2, generator=seeded(0))
    texts = [tuple(t[: int(m)]) for t, m in zip(drawn.completions.tolist(), drawn.lengths)]
    probabilities = completion_probabilities(policy, completions).tolist()
    for row, mask, p in zip(completions.completions.tolist(), completions.mask, probabilities):
        share = texts.count(tuple(row[: int(mask.sum())])) / 20_000
        assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / 20_000) + 1e-9


def finite_differences(value, policy, step=1e-6):
    slopes = []
    for parameter in policy.parameters():
        flat = parameter.data.view(-1)
        for i in range(len(flat)):
            around = []
            for sign in (1, -1):
                flat[i] += sign * step
                around.append(value().item())
                flat[i] -= sign * step
            slopes.append((around[0] - around[1]) / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_expected_reward_and_its_gradient(seed):
    policy, completions, rewards = setting(seed)
    value = expected_reward(policy, completions, rewards)
    by_hand = sum(p * r for p, r in zip(completion_probabilities(policy, completions).tolist(),
                                        rewards.tolist()))
    assert value.item() == pytest.approx(by_hand, abs=1e-14)
    slopes = finite_differences(lambda: expected_reward(policy, completions, rewards), policy)
    assert (flat_gradient(value, policy) - slopes).abs().max() < 1e-8
    exact = estimator(policy, completions, rewards, ALGORITHMS["grpo"], 2).exact
    assert (exact - slopes).abs().max() < 1e-8
    assert slopes.abs().max() > 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_the_kl_of_completions_is_the_sum_over_places_and_has_its_gradient(seed):
    policy, prompt = tiny(seed), [2, 0]
    ref = moved(policy, seed + 7)
    completions = enumerate_completions(policy, prompt, 3, vocab_size=3)
    value = sequence_kl(policy, ref, completions)
    total = 0.0  # chain rule: the expected KL of the next token, over all places reached
    for length in range(3):
        for body in itertools.product([0, 2], repeat=length):
            reached, text = 1.0, list(prompt)
            for token in body:
                reached *= policy(torch.tensor([text]))[0, -1].softmax(-1)[token].item()
                text.append(token)
            p, q = (m(torch.tensor([text]))[0, -1].log_softmax(-1) for m in (policy, ref))
            total += reached * kl_divergence(p, q).item()
    assert value.item() == pytest.approx(total, abs=1e-12)
    assert value > 1e-3
    assert sequence_kl(policy, policy, completions).abs() < 1e-15
    slopes = finite_differences(lambda: sequence_kl(policy, ref, completions), policy)
    assert (flat_gradient(value, policy) - slopes).abs().max() < 1e-8


def test_the_score_matrix_holds_the_slopes_of_every_token():
    policy, completions, _ = setting(2)
    scores = score_matrix(policy, completions)
    slopes = finite_differences(lambda: completion_log_probs(policy, completions)[4, 1], policy)
    assert (scores[4, 1] - slopes).abs().max() < 1e-8
    assert (scores[completions.mask == 0] == 0).all()
    expected = (completion_probabilities(policy, completions)[:, None] * scores.sum(1)).sum(0)
    assert expected.abs().max() < 1e-12  # the mean score is 0


# --- all groups ---------------------------------------------------------------------------

@pytest.mark.parametrize("group_size", [1, 2, 3, 4])
def test_groups_are_those_of_independent_draws(group_size):
    p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    members, weights = all_groups(p, group_size)
    expected = {}
    for drawn in itertools.product(range(4), repeat=group_size):
        key = tuple(sorted(drawn))
        expected[key] = expected.get(key, 0.0) + math.prod(p[i].item() for i in drawn)
    got = dict(zip(map(tuple, members.tolist()), weights.tolist()))
    assert got.keys() == expected.keys()
    assert all(got[key] == pytest.approx(expected[key], abs=1e-14) for key in got)
    assert weights.sum().item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("name", CRITICLESS)
def test_the_mean_is_that_of_the_trainers_own_loss_over_all_ordered_groups(name):
    policy, completions, rewards = setting(1)
    old, ref = moved(policy, 3), moved(policy, 4)
    algorithm = replace(ALGORITHMS[name], beta=0.1)
    got = estimator(policy, completions, rewards, algorithm, 2, old_policy=old, ref_policy=ref)
    log_probs = completion_log_probs(policy, completions)
    before, base = (completion_log_probs(p, completions).detach() for p in (old, ref))
    drawn_with = before.sum(1).exp()
    kl = {"k1": before - base, "k2": (before - base) ** 2 / 2,
          "k3": (base - before).exp() - (base - before) - 1}[algorithm.kl]
    mean = torch.zeros_like(got.mean)
    second = 0.0
    for i, j in itertools.product(range(7), repeat=2):
        rows = [i, j]
        mask, finished = completions.mask[rows], completions.finished[rows]
        given = rewards[rows][None]
        if algorithm.overlong_share:  # a cache of 1 of 2 tokens: the full length costs 1
            given = given - (mask.sum(1) == 2).double()
        advantages = algorithm.advantages(given, mask, kl=kl[rows])
        if algorithm.mask_truncated_completions:
            mask = mask * finished[:, None]
        loss = algorithm.loss(log_probs[rows], before[rows], advantages, mask, max_length=2,
                              ref_log_probs=base[rows]).loss
        gradient = -flat_gradient(loss, policy)
        mean += drawn_with[i] * drawn_with[j] * gradient
        second += drawn_with[i] * drawn_with[j] * gradient.square().sum()
    assert (got.mean - mean).abs().max() < 1e-12
    assert got.variance.item() == pytest.approx((second - mean.square().sum()).item(), rel=1e-9)


# --- which of them are unbiased -----------------------------------------------------------

@pytest.mark.parametrize("seed", SEEDS)
def test_unbiased_rows_give_the_exact_gradient(seed):
    policy, completions, rewards = setting(seed)
    worst, size = 0.0, 0.0
    for (name, choices, factor), group_size in itertools.product(UNBIASED, (2, 3)):
        got = estimator(policy, completions, rewards, replace(ALGORITHMS[name], **choices),
                        group_size)
        worst = max(worst, (got.mean - factor(group_size) * got.exact).abs().max().item())
        size = max(size, got.exact.abs().max().item())
    assert worst < 1e-10 < 1e-3 < size


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_reinforce_needs_no_group(group_size):
    policy, completions, rewards = setting(3)
    got = estimator(policy, completions, rewards, ALGORITHMS["reinforce"], group_size)
    assert (got.mean - got.exact).abs().max() < 1e-10
    alone = estimator(policy, completions, rewards, ALGORITHMS["reinforce"], 1)
    assert got.variance.item() == pytest.approx(alone.variance.item() / group_size)


@pytest.mark.parametrize("name", ["grpo", "bnpo"])
def test_the_divisors_by_length_bias_the_direction(name):
    policy, completions, rewards = setting(0)
    plain = replace(ALGORITHMS[name], scale="none")
    assert estimator(policy, completions, rewards, plain, 2).bias > 0.01
    assert estimator(policy, completions, rewards,
                     replace(plain, aggregation="constant"), 2).bias < 1e-10


def test_the_std_biases_graded_rewards_and_of_binary_ones_only_the_weights_of_prompts():
    std = Algorithm(aggregation="sequence_sum", std_eps=0.0)
    policy, completions, graded = setting(0)
    assert estimator(policy, completions, graded, std, 3).bias > 0.01
    assert estimator(policy, completions, graded, replace(std, scale="none"), 3).bias < 1e-10
    each = []
    for seed, right in ((0, [0, 3]), (0, [0, 1, 2, 3, 4])):
        policy, completions, _ = setting(seed)
        rewards = torch.zeros(7, dtype=torch.float64)
        rewards[right] = 1.0
        each.append(estimator(policy, completions, rewards, std, 4))
        assert each[-1].bias < 1e-10
        # of 3 completions 1 or 2 are right: the std is the same, and divides like a constant
        of_three = estimator(policy, completions, rewards, std, 3)
        assert of_three.scale == pytest.approx(2 / 3 * math.sqrt(3))
    assert each[0].scale != pytest.approx(each[1].scale, rel=0.01)
    both = mean_of_prompts(each)
    assert both.bias > 1e-3  # small: of 4, the std is 0.50 with one right and 0.58 with two
    assert torch.allclose(both.mean, (each[0].mean + each[1].mean) / 2)
    assert both.variance.item() == pytest.approx(
        (each[0].variance + each[1].variance).item() / 4)


def test_maxrl_climbs_pass_at_k_up_to_g_minus_1():
    """Its gradient is that of sum_k (1/k) pass@k over k < G: (1 - p)^(k - 1) grad p each."""
    policy, completions, rewards = setting(4, binary=True)
    p = expected_reward(policy, completions, rewards).item()
    row = replace(ALGORITHMS["maxrl"], std_eps=0.0)
    for group_size in (2, 3, 4):
        got = estimator(policy, completions, rewards, row, group_size)
        factor = sum((1 - p) ** (k - 1) for k in range(1, group_size))
        assert (got.mean - factor * got.exact).abs().max() < 1e-10
        bare = estimator(policy, completions, rewards, replace(row, baseline="none"), group_size)
        factor += (1 - p) ** (group_size - 1)  # without the baseline: up to G
        assert (bare.mean - factor * bare.exact).abs().max() < 1e-10


# --- stale rollouts -----------------------------------------------------------------------

def test_stale_rollouts_bias_all_but_the_ratio_of_whole_completions():
    policy, completions, rewards = setting(6)
    old = moved(policy, 1)
    free = {"epsilon": 1.0, "epsilon_high": math.inf, "scale": "none", "baseline": "none"}

    def of(**choices):
        return estimator(policy, completions, rewards, Algorithm(**free | choices), 2,
                         old_policy=old)

    whole = of(ratio="sequence_sum")
    assert (whole.mean - whole.exact).abs().max() < 1e-10
    assert of(ratio="token", aggregation="sequence_sum").bias > 1e-3
    assert of(surrogate="log_prob", aggregation="sequence_sum").bias > 1e-3


def test_scale_bias_and_noise_of_given_moments():
    """mean = 2 along the exact gradient of length 3, and 1.5 beside it: by hand."""
    exact, mean = torch.tensor([3.0, 0.0]), torch.tensor([2.0, 1.5])
    got = Estimator(exact, mean, torch.tensor(9.0))
    assert got.scale == pytest.approx(2 / 3)
    assert got.bias == pytest.approx(1.5 / 2.5)
    assert got.noise == pytest.approx(3 / 2.5)


def test_a_clip_that_binds_adds_bias_and_takes_noise():
    policy, completions, rewards = setting(6)
    old = moved(policy, 1)
    row = replace(ALGORITHMS["rloo"], epsilon=1.0, epsilon_high=math.inf)
    free, tight = (estimator(policy, completions, rewards, replace(row, **clip), 2, old_policy=old)
                   for clip in ({}, {"epsilon": 0.1, "epsilon_high": 0.1}))
    assert free.bias < 1e-10 < 0.01 < tight.bias
    assert tight.variance < free.variance


def test_the_kl_terms_expected_gradient():
    """In the loss: ratio-corrected k3 gives that of KL(pi || ref), summed over tokens."""
    policy, completions, rewards = setting(8)
    ref = moved(policy, 2)
    row = replace(ALGORITHMS["reinforce"], beta=0.5, use_bias_correction_kl=True)
    got = estimator(policy, completions, rewards, row, 2, ref_policy=ref)
    kl = flat_gradient(sequence_kl(policy, ref, completions), policy)
    in_reward = estimator(policy, completions, rewards, replace(
        row, kl="k1", kl_in_reward=True, use_bias_correction_kl=False), 2, ref_policy=ref)
    assert (in_reward.mean - (got.exact - 0.5 * kl)).abs().max() < 1e-10
    # the ratio of a token sees not what its choice leads to: a part of the whole gradient
    assert (got.mean - (got.exact - 0.5 * kl)).abs().max() > 1e-4


# --- errors -------------------------------------------------------------------------------

@pytest.mark.parametrize(("call", "named"), [
    (lambda p, c, r: estimator(p, c, r[:-1], ALGORITHMS["grpo"], 2), "rewards: got shape"),
    (lambda p, c, r: estimator(p, c, r, ALGORITHMS["ppo"], 2), "algorithm: got critic=True"),
    (lambda p, c, r: estimator(p, c, r, Algorithm(entropy_coef=0.1), 2), "algorithm: got critic"),
    (lambda p, c, r: estimator(p, c, r, ALGORITHMS["grpo"], 1), "rewards: got groups of 1"),
    (lambda p, c, r: estimator(p, c, r, ALGORITHMS["grpo"], 0), "group_size: got 0"),
    (lambda p, c, r: group_gradients(p, c, r, ALGORITHMS["grpo"], 30), "group_size: got 30"),
    (lambda p, c, r: enumerate_completions(p, [2], 0, vocab_size=3), "max_new_tokens: got 0"),
    (lambda p, c, r: enumerate_completions(p, [2], 30, vocab_size=3), "max_new_tokens: got 30"),
    (lambda p, c, r: enumerate_completions(p, [0], 2, vocab_size=1), "vocab_size: got 1"),
])
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=f"^{named}") as caught:
        call(*setting(0))
    assert "allowed" in str(caught.value)


def test_the_unchecked_loss_is_the_checked_one():
    log_probs = torch.tensor([[-1.0, -0.5]], requires_grad=True)
    given = log_probs, log_probs.detach() - 0.1, torch.tensor([1.0])
    assert grpo_loss(*given, check=False).loss == grpo_loss(*given).loss
