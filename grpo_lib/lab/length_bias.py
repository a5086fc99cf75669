"""The length bias of an aggregation, exactly, for a policy that only decides when to stop.

Each completion's mark is settled before it is written: right with probability
``share_right``, whatever follows. What follows is tokens that all mean nothing, up to a stop:
after each token the policy stops with probability ``stop_right`` in a right completion and
``stop_wrong`` in a wrong one, each the sigmoid of a logit of its own; at ``max_length`` tokens
it is cut off. No length is better than another, so any push on those logits is a bias.

All sums are over all groups and lengths, with no sampling; float64.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from grpo_lib.advantages import group_advantages
from grpo_lib.objective import PAPER_AGGREGATIONS
from grpo_lib.support.checks import check_choice, check_number, check_whole, one_number

PaperAggregation = Literal["sequence_mean", "token_mean", "constant"]
GroupScale = Literal["group", "mean", "none"]
GROUP_SCALES = get_args(GroupScale)  # a std of the batch would be of all groups there are


def length_distribution(stop: float, max_length: int) -> Tensor:
    """P(L = l) for l = 1 .. max_length: stop (1 - stop)^(l - 1), and all the rest at the end."""
    stop = check_stop("stop", stop)
    max_length = check_whole("max_length", max_length, 1)
    chances = stop * (1 - stop) ** torch.arange(max_length, dtype=torch.float64)
    chances[-1] = (1 - stop) ** (max_length - 1)
    return chances


def mean_length(stop: float, max_length: int) -> float:
    """Expected tokens in a completion."""
    max_length = check_whole("max_length", max_length, 1)
    lengths = torch.arange(1, max_length + 1, dtype=torch.float64)
    return (length_distribution(stop, max_length) @ lengths).item()


def length_score(stop: float, max_length: int) -> Tensor:
    """d log P(L = l) / d stop logit, for l = 1 .. max_length: (max_length,).

    1 - stop l for a completion that stopped: long ones lower the logit, short ones raise it.
    At the cut, where stopping and going on give the same length, -stop (max_length - 1).
    """
    stop = check_stop("stop", stop)
    max_length = check_whole("max_length", max_length, 1)
    lengths = torch.arange(1, max_length + 1, dtype=torch.float64)
    score = 1 - stop * lengths
    score[-1] = -stop * (max_length - 1)
    return score


def expected_push(aggregation: PaperAggregation, *, group_size: int, max_length: int,
                  stop_right: float, stop_wrong: float, share_right: float = 0.5, prompts: int = 1,
                  scale: GroupScale = "group") -> tuple[float, float]:
    """Expected gradient, at ratio 1, of what GRPO maximises: (right, wrong) stop logit.

    E sum_i w_i A_i d log P(L_i) / d logit, with w the ``token_weights`` of ``aggregation`` for a
    batch of ``prompts`` groups, A by ``group_advantages``, over every number of right ones in
    a group and every length. Above 0: completions get shorter. With constant weights it is 0,
    since E d log P = 0; sequence_mean gives E[A] d E[1/L] / d logit: it maximises A / L.
    """
    check_choice("aggregation", aggregation, PAPER_AGGREGATIONS)
    group_size = check_whole("group_size", group_size, 2)
    prompts = check_whole("prompts", prompts, 1)
    share_right = check_number("share_right", share_right, least=0, most=1)
    check_choice("scale", scale, GROUP_SCALES)
    chances = [length_distribution(stop, max_length) for stop in (stop_right, stop_wrong)]
    scores = [chance * length_score(stop, max_length)
              for chance, stop in zip(chances, (stop_right, stop_wrong))]
    right, wrong = expected_advantages(group_size, share_right, scale)
    if aggregation == "token_mean":
        return token_mean_push(right, wrong, chances, scores, share_right, prompts)
    lengths = torch.arange(1, max_length + 1, dtype=torch.float64)
    divisor = lengths if aggregation == "sequence_mean" else torch.full_like(lengths, max_length)
    return tuple((total.sum() / group_size * (score / divisor).sum()).item()
                 for total, score in zip((right, wrong), scores))


@lru_cache(maxsize=256)
def expected_advantages(group_size: int, share_right: float,
                        scale: GroupScale) -> tuple[Tensor, Tensor]:
    """P(k right) times the summed advantage of the right ones, and of the wrong ones, for
    k = 0 .. group_size: two (group_size + 1,)."""
    right = torch.arange(group_size + 1, dtype=torch.float64)
    rewards = (torch.arange(group_size) < right[:, None]).double()
    advantages = group_advantages(rewards, scale=scale)
    chance = torch.exp(torch.lgamma(torch.tensor(group_size + 1.0, dtype=torch.float64))
                       - torch.lgamma(right + 1) - torch.lgamma(group_size - right + 1)
                       + torch.xlogy(right, torch.tensor(share_right, dtype=torch.float64))
                       + torch.xlogy(group_size - right,
                                     torch.tensor(1.0 - share_right, dtype=torch.float64)))
    return chance * (advantages * rewards).sum(1), chance * (advantages * (1 - rewards)).sum(1)


def token_mean_push(right: Tensor, wrong: Tensor, chances: list[Tensor], scores: list[Tensor],
                    share_right: float, prompts: int) -> tuple[float, float]:
    """``expected_push`` of token_mean: E A_1 score_1 / (L_1 + all other lengths).

    The lengths' sum is distributed as a convolution, taken as a product of Fourier
    transforms: k - 1 right and G - k wrong ones in the own group, any in the other groups.
    """
    group_size, longest = len(right) - 1, prompts * (len(right) - 1) * len(chances[0])
    size = 1 << longest.bit_length()  # powers of two have the quickest transforms
    one, other, one_scored, other_scored = torch.fft.rfft(
        torch.nn.functional.pad(torch.stack((*chances, *scores)), (1, 0)), n=size)
    by_right, by_wrong, rest = torch.zeros_like(one), torch.zeros_like(one), torch.ones_like(one)
    for k in range(group_size - 1, 0, -1):  # only groups with both kinds have advantages
        by_wrong = by_wrong * one + wrong[k] * rest
        rest = rest * other
        by_right = by_right * one + right[k] * rest
    elsewhere = (share_right * one + (1 - share_right) * other) ** (group_size * (prompts - 1))
    totals = torch.arange(size, dtype=torch.float64).clamp(min=1)
    spectra = torch.stack((by_right * one_scored, by_wrong * one * other_scored)) * elsewhere
    pushes = prompts * (torch.fft.irfft(spectra, n=size) / totals).sum(1)
    return tuple(pushes.tolist())


def follow_push(aggregation: PaperAggregation, steps: int, rate: float, *, group_size: int,
                max_length: int, stop: float, share_right: float = 0.5, prompts: int = 1,
                scale: GroupScale = "group") -> Tensor:
    """Mean length of right and of wrong completions while both stop logits, equal at first,
    climb the expected push in steps of ``rate``: (steps + 1, 2)."""
    stop = check_stop("stop", stop)
    steps = check_whole("steps", steps, 0)
    rate = check_number("rate", rate)
    logits = torch.logit(torch.tensor([stop, stop], dtype=torch.float64))
    course = []
    for _ in range(steps + 1):
        stops = torch.sigmoid(logits).clamp(1e-9, 1 - 1e-9).tolist()
        course.append([mean_length(one, max_length) for one in stops])
        logits = logits + rate * torch.tensor(expected_push(
            aggregation, group_size=group_size, max_length=max_length, stop_right=stops[0],
            stop_wrong=stops[1], share_right=share_right, prompts=prompts, scale=scale))
    return torch.tensor(course)


def check_stop(name: str, value: float) -> float:
    number = one_number(value)
    if number is None or not 0 < number < 1:
        raise ValueError(f"{name}: got {value!r}, allowed is a number between 0 and 1")
    return number
