"""Advantages relative to the group, or to the batch; those of single tokens are in ``returns``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_lib.support.checks import (
    check_choice,
    check_device,
    check_floating,
    check_number,
    check_whole,
    setting,
)


def group_mean(rewards: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of each group: (N, 1). GRPO's."""
    return mean_of(rewards, counted, 1)


def leave_one_out_mean(rewards: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of the *other* members: (N, G). RLOO's (2402.14740)."""
    members = torch.tensor(rewards.shape[1]) if counted is None else counted.sum(1, keepdim=True)
    return (rewards.sum(1, keepdim=True) - rewards) / (members.to(rewards) - 1).clamp(min=1)


def batch_mean(rewards: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of all rewards: (1, 1)."""
    return mean_of(rewards, counted)


def group_std(rewards: Tensor, counted: Tensor | None) -> Tensor:
    """The sample std (n - 1) of each group, as in TRL and the papers' code: (N, 1)."""
    return std_of(rewards, counted, 1)


def batch_std(rewards: Tensor, counted: Tensor | None) -> Tensor:
    """The sample std (n - 1) of all rewards (2508.08221): (1, 1)."""
    return std_of(rewards, counted)


Baseline = Literal["mean", "leave_one_out", "batch", "none"]
Scale = Literal["group", "batch", "mean", "none"]
BASELINES = {"mean": group_mean, "leave_one_out": leave_one_out_mean, "batch": batch_mean,
             "none": lambda rewards, counted: torch.zeros_like(rewards)}
SCALES = {"group": group_std, "batch": batch_std, "mean": group_mean, "none": None}


@dataclass(frozen=True)
class AdvantageChoices:
    """How rewards become advantages; the defaults are GRPO's, as in the paper (2402.03300)."""

    baseline: Baseline = setting("mean", "what a reward is compared with: mean, leave_one_out "
                                        "(both of the group), batch or none", among=BASELINES)
    scale: Scale = setting("group", "what advantages are divided by: the std of the group or "
                                   "batch, the group's mean, or none", among=SCALES)
    std_eps: float = setting(1e-4, "added to that divisor, so that it is never 0", least=0)
    whiten: bool = setting(False, "whiten the advantages over all tokens of the batch")
    critic: bool = setting(False, "advantages come from a value model (GAE)")
    gamma: float = setting(1.0, "discount of a critic's GAE, a token", least=0, most=1)
    gae_lambda: float = setting(0.95, "lambda of a critic's GAE", least=0, most=1)


def group_advantages(rewards: Tensor, *, baseline: Baseline = "mean", scale: Scale = "group",
                     std_eps: float = 1e-4, counted: Tensor | None = None) -> Tensor:
    """A_ng = (r_ng - baseline_n) / (scale_n + std_eps): rewards (N, G) -> advantages (N, G).

    ``baseline``: the "mean" of the group (GRPO); "leave_one_out", the mean of the *other*
    members (RLOO, 2402.14740), which gives G / (G - 1) times the first; "batch", the mean of all
    rewards; "none".
    ``scale``: divide by the std of the "group" (GRPO, 2402.03300 section 4.1.2), of the
    "batch" (2508.08221), or by nothing, "none" (Dr. GRPO, 2503.20783). TRL's name is
    ``scale_rewards``. "mean" divides by the group's mean reward instead (MaxRL, 2602.02710, as in
    its authors' code), for rewards from 0 up. ``std_eps`` is 1e-4 in TRL, 1e-6 in verl, 1e-8 in
    Dr. GRPO's.
    ``counted`` (N, G) bool: False where a reward abstained. Those rewards are ignored, whatever
    number stands there, and their advantage is 0. So is that of a completion that is the only one
    counted in its group.

    With a group baseline or a group std, a group without spread (``informative_groups``)
    gets exactly 0; with scale="mean" a group whose mean reward is 0 does.
    ValueError: not (N, G), not finite, G = 1 with a group baseline, an unknown option, a
    negative reward with scale="mean".
    """
    spread = informative_groups(rewards, counted)
    check_choice("baseline", baseline, BASELINES)
    check_choice("scale", scale, SCALES)
    std_eps = check_number("std_eps", std_eps, least=0)
    counted = None if counted is None or counted.all() else counted
    if counted is not None:
        rewards = rewards.masked_fill(~counted, 0.0)
    check_group_rewards(rewards, baseline, scale)
    if rewards.dtype in (torch.float16, torch.bfloat16):  # overflow, or lose digits, in sums
        return group_advantages(rewards.float(), baseline=baseline, scale=scale,
                                std_eps=std_eps, counted=counted).to(rewards.dtype)
    advantages = rewards - BASELINES[baseline](rewards, counted)
    divisor = SCALES[scale]
    if divisor is not None:
        advantages = advantages / (divisor(rewards, counted) + std_eps)
    if scale == "mean":
        advantages = advantages.masked_fill(group_mean(rewards, counted) == 0, 0.0)
    zero_without_spread = baseline in ("mean", "leave_one_out") or scale == "group"
    if zero_without_spread:
        advantages = advantages.masked_fill(~spread[:, None], 0.0)
    if counted is not None:
        per_group = zero_without_spread or scale == "mean"
        peers = counted.sum(1, keepdim=True) if per_group else counted.sum()
        alone = (peers < 2) & (per_group or "batch" in (baseline, scale))
        advantages = advantages.masked_fill(~counted | alone, 0.0)
    if not advantages.isfinite().all():
        raise ValueError(f"std_eps: got {std_eps} with rewards that differ too little to be "
                         f"divided by their spread in {rewards.dtype}; allowed is a larger one")
    return advantages


def check_group_rewards(rewards: Tensor, baseline: Baseline, scale: Scale) -> None:
    """ValueError where rewards (N, G) do not suit ``baseline`` and ``scale``."""
    needs_peers = baseline in ("mean", "leave_one_out") or scale in ("group", "mean")
    if rewards.shape[1] == 1 and needs_peers:
        raise ValueError("rewards: got groups of 1; a completion can only be compared with others "
                         "of its group, so allowed is a group size of 2 or more (or "
                         "baseline='none' with scale='none')")
    if rewards.numel() == 1 and "batch" in (baseline, scale):
        raise ValueError("rewards: got a single one; allowed with baseline or scale 'batch' are 2 "
                         "or more")
    if scale == "mean" and (rewards < 0).any():
        raise ValueError(f"rewards: got {rewards.min().item()}; scale='mean' divides by the mean "
                         f"reward, allowed are rewards from 0 up")
    if rewards.dtype in (torch.float16, torch.bfloat16):
        return
    if rewards.abs().max() > (torch.finfo(rewards.dtype).max / rewards.numel()) ** 0.5 / 2:
        raise ValueError(f"rewards: got {rewards.abs().max().item()} in size, whose squares are "
                         f"beyond {rewards.dtype}; allowed are smaller ones")


def mean_of(rewards: Tensor, counted: Tensor | None, *dim: int) -> Tensor:
    """Mean over ``dim`` (all if none is given), with keepdim; uncounted rewards are 0 already."""
    if counted is None:
        return rewards.mean(dim or None, keepdim=True)
    return rewards.sum(dim or None, keepdim=True) / counted.sum(dim or None, keepdim=True).clamp(
        min=1)


def std_of(rewards: Tensor, counted: Tensor | None, *dim: int) -> Tensor:
    """The sample standard deviation (n - 1), as ``mean_of``; 0 where a single one is counted."""
    if counted is None:
        return rewards.std(dim or None, keepdim=True)
    squares = (rewards - mean_of(rewards, counted, *dim)).masked_fill(~counted, 0.0).square()
    members = counted.sum(dim or None, keepdim=True)
    return (squares.sum(dim or None, keepdim=True) / (members - 1).clamp(min=1)).sqrt()


def soft_overlong_punishment(lengths: Tensor, max_length: int, cache: int) -> Tensor:
    """What is added to the reward of a long completion, from 0 down to -1: (B,) -> (B,).

    0 up to max_length - cache tokens, then falling in a line to -1 at max_length, and -1
    beyond (DAPO, 2503.14476 Eq. 13; TRL: ``get_soft_overlong_punishment``). ValueError: a cache
    that is not from 1 to max_length.
    """
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: got a {type(lengths).__name__}, allowed is a tensor")
    max_length = check_whole("max_length", max_length, 1)
    cache = check_whole("cache", cache, 1, f" to max_length = {max_length}", most=max_length)
    if not lengths.is_floating_point():  # int8 would overflow
        lengths = lengths.to(torch.get_default_dtype())
    return ((max_length - cache - lengths) / cache).clamp(-1.0, 0.0)


def informative_groups(rewards: Tensor, counted: Tensor | None = None) -> Tensor:
    """Which groups can teach something: rewards (N, G) -> bool (N,).

    A group has no spread if its rewards differ by at most 8 machine epsilons of its largest
    |reward|: 0.1 + 0.2 equals 0.3 here. All its advantages are 0. ``counted`` (N, G) bool: False
    where a reward abstained, whose number is ignored. ValueError: not (N, G), or not finite.
    """
    check_floating("rewards", rewards)
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ValueError(f"rewards: got shape {tuple(rewards.shape)}, allowed is (N, G): one row "
                         f"a prompt, one column a completion")
    check_counted(counted, rewards)
    wrong = ~rewards.isfinite() if counted is None else counted & ~rewards.isfinite()
    if wrong.any():
        n, g = wrong.nonzero()[0].tolist()
        raise ValueError(f"rewards: got {rewards[n, g].item()} for prompt {n}, completion {g}; "
                         f"allowed are finite numbers")
    if counted is None:
        width = rewards.amax(1) - rewards.amin(1)
    else:
        width = (rewards.masked_fill(~counted, -torch.inf).amax(1)
                 - rewards.masked_fill(~counted, torch.inf).amin(1))
        rewards = rewards.masked_fill(~counted, 0.0)
    return width > 8 * torch.finfo(rewards.dtype).eps * rewards.abs().amax(1)


def check_counted(counted: Tensor | None, rewards: Tensor) -> None:
    """TypeError, ValueError unless it is None or a bool for each reward."""
    if counted is None:
        return
    if not isinstance(counted, Tensor) or counted.dtype != torch.bool:
        raise TypeError(f"counted: got {getattr(counted, 'dtype', type(counted).__name__)}, "
                        f"allowed is a tensor of bool")
    check_device("counted", counted, "rewards", rewards)
    if counted.shape != rewards.shape:
        raise ValueError(f"counted: got shape {tuple(counted.shape)}, allowed is that of rewards, "
                         f"{tuple(rewards.shape)}")


def informative_share(p: Tensor | float, group_size: int) -> Tensor | float:
    """1 - p^G - (1 - p)^G: how often a group of G is neither all right nor all wrong.

    ``p``, the chance that one answer is right, is a number or a tensor of any shape. The
    answers of a group are independent given p. Over problems of different p, average the
    results, not the p: the formula at the mean p is larger (Jensen's inequality).
    ValueError: a p outside 0 to 1, a group_size that is no whole number from 1.
    """
    if isinstance(p, Tensor):
        check_floating("p", p)
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"p: got {p!r}, allowed are numbers from 0 to 1")
    else:
        p = check_number("p", p, least=0, most=1)
    group_size = check_whole("group_size", group_size, 1)
    return 1 - p**group_size - (1 - p) ** group_size
