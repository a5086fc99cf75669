"""The exact length bias against brute force: every group, every completion, autograd."""

import itertools
import math

import pytest
import torch

from grpo_lib.advantages import group_advantages
from grpo_lib.lab.length_bias import (
    expected_push,
    follow_push,
    length_distribution,
    length_score,
    mean_length,
)
from grpo_lib.objective import PAPER_AGGREGATIONS, grpo_loss

STOPS = (0.05, 0.3, 0.7)


def completions(max_length):
    """Every completion: (tokens, stopped or not)."""
    return [*((n, True) for n in range(1, max_length + 1)), (max_length, False)]


def brute_force(aggregation, group_size, max_length, stop_right, stop_wrong, share_right, prompts,
                scale="group"):
    """Sum over every batch of chance times minus the gradient of ``grpo_loss``."""
    logits = torch.logit(torch.tensor([stop_right, stop_wrong], dtype=torch.float64))
    stops = torch.sigmoid(logits).tolist()
    single = [(kind, tokens, stopped,
               (share_right, 1 - share_right)[kind] * (1 - stops[kind]) ** (tokens - stopped)
               * (stops[kind] if stopped else 1))
              for kind in (0, 1) for tokens, stopped in completions(max_length)]
    total = torch.zeros(2, dtype=torch.float64)
    for batch in itertools.product(single, repeat=group_size * prompts):
        chance = math.prod(row[3] for row in batch)
        leaf = logits.clone().requires_grad_()
        on, off = torch.nn.functional.logsigmoid(leaf), torch.nn.functional.logsigmoid(-leaf)
        log_probs = torch.stack([torch.stack(
            [(on if stopped and t == tokens - 1 else off)[kind] for t in range(max_length)])
            for kind, tokens, stopped, _ in batch])
        mask = torch.tensor([[1.0 * (t < tokens) for t in range(max_length)]
                             for _, tokens, _, _ in batch], dtype=torch.float64)
        rewards = torch.tensor([1.0 - row[0] for row in batch], dtype=torch.float64)
        advantages = group_advantages(rewards.view(prompts, group_size), scale=scale).flatten()
        loss = grpo_loss(log_probs, log_probs.detach(), advantages, mask, aggregation=aggregation,
                         max_length=max_length).loss
        total -= chance * torch.autograd.grad(loss, leaf)[0]
    return total.tolist()


@pytest.mark.parametrize("aggregation", PAPER_AGGREGATIONS)
@pytest.mark.parametrize(("group_size", "max_length", "prompts", "scale"),
                         [(2, 4, 1, "group"), (3, 2, 1, "none"), (2, 1, 2, "group"),
                          (3, 2, 1, "group")])
def test_the_push_is_that_of_all_batches_enumerated(aggregation, group_size, max_length, prompts,
                                                    scale):
    numbers = {"group_size": group_size, "max_length": max_length, "stop_right": 0.35,
               "stop_wrong": 0.2, "share_right": 0.3, "prompts": prompts, "scale": scale}
    expected = brute_force(aggregation, **numbers)
    assert expected_push(aggregation, **numbers) == pytest.approx(expected, abs=1e-12)
    if aggregation != "constant" and max_length > 1:
        assert expected[0] > 0.001 and expected[1] < -0.001


def test_two_prompts_of_two_lengths_are_enumerated_too():
    numbers = {"group_size": 2, "max_length": 2, "stop_right": 0.4, "stop_wrong": 0.25,
               "share_right": 0.6, "prompts": 2}
    expected = brute_force("token_mean", **numbers)
    assert expected_push("token_mean", **numbers) == pytest.approx(expected, abs=1e-12)
    alone = expected_push("token_mean", **{**numbers, "prompts": 1})
    assert 0 < expected[0] < alone[0]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("max_length", [1, 2, 17])
def test_chances_sum_to_one_and_scores_to_zero(stop, max_length):
    chances, scores = length_distribution(stop, max_length), length_score(stop, max_length)
    assert chances.sum().item() == pytest.approx(1)
    assert (chances @ scores).item() == pytest.approx(0, abs=1e-14)
    by_hand = [(1 - stop) ** (n - 1) * stop for n in range(1, max_length)]
    assert chances.tolist() == pytest.approx([*by_hand, (1 - stop) ** (max_length - 1)])
    assert mean_length(stop, max_length) == pytest.approx((1 - (1 - stop) ** max_length) / stop)


@pytest.mark.parametrize("stop", STOPS)
def test_the_score_is_the_slope_of_the_log_chance(stop):
    logit = torch.tensor(math.log(stop / (1 - stop)), dtype=torch.float64)
    q = torch.sigmoid(logit.requires_grad_())
    for length, score in enumerate(length_score(stop, 6).tolist(), 1):
        chance = (1 - q) ** (length - 1) * (q if length < 6 else 1)
        assert torch.autograd.grad(chance.log(), logit, retain_graph=True)[0].item() == (
            pytest.approx(score, abs=1e-12))


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("group_size", [2, 16])
def test_sequence_mean_climbs_advantage_over_length(stop, group_size):
    """E[A] times the slope of E[1 / L], by finite differences."""
    def mean_inverse(logit):
        chances = length_distribution(1 / (1 + math.exp(-logit)), 12)
        return (chances / torch.arange(1, 13)).sum().item()

    logit = math.log(stop / (1 - stop))
    slope = (mean_inverse(logit + 1e-5) - mean_inverse(logit - 1e-5)) / 2e-5
    right, wrong = expected_push("sequence_mean", group_size=group_size, max_length=12,
                                 stop_right=stop, stop_wrong=stop)
    assert right == pytest.approx(-wrong) and right > 0
    if group_size == 2:  # one right, one wrong, half of the time: advantages 1 / sqrt(2)
        advantage = 0.5 * 0.5 * 0.5 / (math.sqrt(0.5) + 1e-4)
        assert right == pytest.approx(advantage * slope, rel=1e-6)


@pytest.mark.parametrize("group_size", [2, 8])
def test_constant_pushes_nothing_and_token_mean_less_the_more_prompts(group_size):
    settings = {"group_size": group_size, "max_length": 20, "stop_right": 0.15, "stop_wrong": 0.15}
    assert expected_push("constant", **settings) == pytest.approx((0, 0), abs=1e-15)
    pushes = [expected_push("token_mean", prompts=n, **settings)[0] for n in (1, 4, 32)]
    assert pushes[0] > 2 * pushes[1] > 4 * pushes[2] > 0
    assert pushes[0] < expected_push("sequence_mean", **settings)[0]


@pytest.mark.parametrize("aggregation", PAPER_AGGREGATIONS)
def test_a_policy_that_cannot_tell_right_from_wrong_is_not_pushed(aggregation):
    for share in (0.1, 0.5):
        push = expected_push(aggregation, group_size=4, max_length=9, stop_right=0.2,
                             stop_wrong=0.2, share_right=share)
        assert sum(push) == pytest.approx(0, abs=1e-14)  # one shared logit gets the sum
    for share in (0, 1):
        assert expected_push(aggregation, group_size=4, max_length=9, stop_right=0.2,
                             stop_wrong=0.2, share_right=share) == pytest.approx((0, 0))


def test_following_the_push_lengthens_wrong_answers_and_shortens_right_ones():
    course = follow_push("sequence_mean", 10, 2.0, group_size=8, max_length=20, stop=0.15)
    assert course.shape == (11, 2)
    assert course[0].tolist() == pytest.approx([mean_length(0.15, 20)] * 2)
    assert (course[1:, 0] < course[:-1, 0]).all() and (course[1:, 1] > course[:-1, 1]).all()
    push = expected_push("sequence_mean", group_size=8, max_length=20, stop_right=0.15,
                         stop_wrong=0.15)
    stops = [1 / (1 + math.exp(-(math.log(0.15 / 0.85) + 2 * p))) for p in push]
    assert course[1].tolist() == pytest.approx([mean_length(q, 20) for q in stops])
    still = follow_push("constant", 10, 2.0, group_size=8, max_length=20, stop=0.15)
    assert (still - still[0]).abs().max() < 1e-9


@pytest.mark.parametrize(("change", "message"), [
    ({"stop_right": 0}, "stop: got 0, allowed is a number between 0 and 1"),
    ({"stop_wrong": 1.0}, "stop: got 1.0"),
    ({"group_size": 1}, "group_size: got 1, allowed is a whole number from 2"),
    ({"max_length": 0}, "max_length: got 0, allowed is a whole number from 1"),
    ({"max_length": 2.5}, "max_length: got 2.5"),
    ({"prompts": 0}, "prompts: got 0"),
    ({"share_right": 1.5}, "share_right: got 1.5, allowed is a finite number from 0 to 1"),
    ({"scale": "row"}, "scale: got 'row'"),
])
def test_bad_settings_are_named(change, message):
    settings = {"group_size": 4, "max_length": 5, "stop_right": 0.2, "stop_wrong": 0.2} | change
    with pytest.raises(ValueError, match=message):
        expected_push("token_mean", **settings)
    with pytest.raises(ValueError, match="aggregation: got 'mean'"):
        expected_push("mean", group_size=4, max_length=5, stop_right=0.2, stop_wrong=0.2)
