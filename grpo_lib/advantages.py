"""Advantages: relative to the group, or from a critic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lib.support.checks import (
    check_choice,
    check_device,
    check_floating,
    check_not_empty,
    check_number,
    check_shapes,
    check_whole,
    setting,
)

BASELINES = ("mean", "leave_one_out", "batch", "none")
SCALES = ("group", "batch", "mean", "none")


@dataclass(frozen=True)
class AdvantageChoices:
    """How rewards become advantages; the defaults are GRPO's, as in the paper (2402.03300)."""

    baseline: str = setting("mean", "what a reward is compared with: mean, leave_one_out (both of "
                                   "the group), batch or none", among=BASELINES)
    scale: str = setting("group", "what advantages are divided by: the std of the group or batch, "
                                 "the group's mean, or none", among=SCALES)
    std_eps: float = setting(1e-4, "added to that divisor", least=0)
    whiten: bool = setting(False, "whiten the advantages over all tokens of the batch")
    critic: bool = setting(False, "advantages come from a value model (GAE)")
    gamma: float = setting(1.0, "discount of a critic's GAE, a token", least=0, most=1)
    gae_lambda: float = setting(0.95, "lambda of a critic's GAE", least=0, most=1)


def group_advantages(rewards: Tensor, *, baseline: str = "mean", scale: str = "group",
                     std_eps: float = 1e-4, counted: Tensor | None = None) -> Tensor:
    """A_ng = (r_ng - baseline_n) / (std + std_eps): rewards (N, G) -> advantages (N, G).

    ``baseline``: "mean" of the group (GRPO); "leave_one_out", the mean of the *other*
    members (RLOO, 2402.14740), which is the first times G / (G - 1); "batch", the mean of all
    rewards; "none".
    ``scale``: divide by the std of the "group" (GRPO, 2402.03300 section 4.1.2), of the
    "batch" (2508.08221), or by nothing, "none" (Dr. GRPO, 2503.20783). TRL's name is
    ``scale_rewards``. The std is the unbiased one (n - 1), as in TRL and the papers' code.
    "mean" divides by the group's mean reward instead (MaxRL, 2602.02710, as in its authors'
    code), for rewards from 0 up. ``std_eps`` is 1e-4 in TRL, 1e-6 in verl, 1e-8 in Dr. GRPO's.
    ``counted`` (N, G) bool: False where a reward abstained. The other advantages are then those
    of the rewards without these, whatever number stands there, and theirs is 0. A completion that
    is left alone, with nobody to be compared with, has 0 too.

    With a group baseline or a group std, a group without spread (``informative_groups``)
    gets exactly 0; with scale="mean" a group without any reward does.
    ValueError: not (N, G), not finite, G = 1 with a group baseline, an unknown option, a
    negative reward with scale="mean".
    """
    spread = informative_groups(rewards, counted)
    check_choice("baseline", baseline, BASELINES)
    check_choice("scale", scale, SCALES)
    std_eps = check_number("std_eps", std_eps, least=0)
    group_size = rewards.shape[1]
    by_group = baseline in ("mean", "leave_one_out") or scale == "group"
    if group_size == 1 and (by_group or scale == "mean"):
        raise ValueError("rewards: got groups of 1; a completion can only be compared with others "
                         "of its group, so allowed is a group size of 2 or more (or "
                         "baseline='none' with scale='none')")
    if rewards.numel() == 1 and "batch" in (baseline, scale):
        raise ValueError("rewards: got a single one; allowed with baseline or scale 'batch' are 2 "
                         "or more")
    if counted is None or counted.all():
        counted = None
    else:
        rewards = rewards.masked_fill(~counted, 0.0)
    if scale == "mean" and (rewards < 0).any():
        raise ValueError(f"rewards: got {rewards.min().item()}; scale='mean' divides by the mean "
                         f"reward, allowed are rewards from 0 up")
    if rewards.dtype in (torch.float16, torch.bfloat16):  # whose sums and squares overflow
        return group_advantages(rewards.float(), baseline=baseline, scale=scale,
                                std_eps=std_eps, counted=counted).to(rewards.dtype)
    if rewards.abs().max() > (torch.finfo(rewards.dtype).max / rewards.numel()) ** 0.5 / 2:
        raise ValueError(f"rewards: got {rewards.abs().max().item()} in size, whose squares are "
                         f"beyond {rewards.dtype}; allowed are smaller ones")
    if baseline == "batch":
        advantages = rewards - mean_of(rewards, counted)
    else:
        advantages = rewards if baseline == "none" else rewards - mean_of(rewards, counted, 1)
    if baseline == "leave_one_out":
        members = group_size
        if counted is not None:
            members = counted.sum(1, keepdim=True).clamp(min=2).to(rewards.dtype)
        advantages = advantages * (members / (members - 1))
    if scale == "group":
        advantages = advantages / (std_of(rewards, counted, 1) + std_eps)
    elif scale == "batch":
        advantages = advantages / (std_of(rewards, counted) + std_eps)
    elif scale == "mean":
        mean = mean_of(rewards, counted, 1)
        advantages = (advantages / (mean + std_eps)).masked_fill(mean == 0, 0.0)
    if by_group:
        advantages = advantages.masked_fill(~spread[:, None], 0.0)
    if counted is not None:
        compared = by_group or scale == "mean" or "batch" in (baseline, scale)
        others = counted.sum(1, keepdim=True) if by_group or scale == "mean" else counted.sum()
        advantages = advantages.masked_fill(~counted | ((others < 2) & compared), 0.0)
    if not advantages.isfinite().all():
        raise ValueError(f"std_eps: got {std_eps} with rewards that differ too little to be "
                         f"divided by their spread in {rewards.dtype}; allowed is a larger one")
    return advantages


def mean_of(rewards: Tensor, counted: Tensor | None, *dim: int) -> Tensor:
    """Mean over ``dim`` (all if none is given), kept; of those that are counted, the others being
    0."""
    if counted is None:
        return rewards.mean(dim or None, keepdim=True)
    return rewards.sum(dim or None, keepdim=True) / counted.sum(dim or None, keepdim=True).clamp(
        min=1)


def std_of(rewards: Tensor, counted: Tensor | None, *dim: int) -> Tensor:
    """The unbiased standard deviation, as ``mean_of``; 0 of a single number."""
    if counted is None:
        return rewards.std(dim or None, keepdim=True)
    squares = (rewards - mean_of(rewards, counted, *dim)).masked_fill(~counted, 0.0).square()
    members = counted.sum(dim or None, keepdim=True)
    return (squares.sum(dim or None, keepdim=True) / (members - 1).clamp(min=1)).sqrt()


def token_rewards(rewards: Tensor, mask: Tensor, kl: Tensor | None = None,
                  beta: float = 0.0) -> Tensor:
    """A reward for each token: rewards (B,), mask (B, T) -> (B, T).

    -beta * kl at every token (``kl``: per-token estimates, (B, T)), and the completion's reward
    on top at its last token, as PPO for language models has it (2203.02155). A completion
    without a token has none to put it at.
    """
    check_shapes("B T", mask=mask, rewards=(rewards, "B"))
    check_not_empty("mask", mask)
    beta = check_number("beta", beta)
    counts = mask != 0
    per_token = rewards.new_zeros(mask.shape)
    if kl is not None:
        check_shapes("B T", kl=kl, mask=mask)
        per_token = -beta * kl.masked_fill(~counts, 0.0)
    places = torch.arange(mask.shape[1], device=mask.device)
    last = places == places.masked_fill(~counts, -1).amax(1, keepdim=True)
    return per_token + torch.where(last, rewards[:, None], 0.0).to(per_token.dtype)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0,
        lam: float = 0.95) -> Tensor:
    """Generalized advantage estimation (1506.02438 Eq. 16): (B, T) each -> (B, T).

    A_t = sum_l (gamma lam)^l delta_(t+l), with delta_t = r_t + gamma V_(t+1) - V_t. ``values``
    V_t are of the state *before* token t; the value after a completion's last token is 0. With
    lam = 1 A_t is the discounted return less V_t; with values of 0, the return itself. 0 where
    mask is 0. Steps are the tokens that count: t + 1 is the next of them, whatever a tool has
    written in between (as in verl). ValueError: shapes that differ, gamma or lam outside 0 to 1.
    """
    gamma = check_number("gamma", gamma, least=0, most=1)
    lam = check_number("lam", lam, least=0, most=1)
    check_shapes("B T", rewards=rewards, values=values, mask=mask)
    counts = mask != 0
    advantages = torch.zeros_like(rewards + values)
    running = after = torch.zeros_like(values[:, 0])  # advantage and value of the next token
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * after - values[:, t]
        running = torch.where(counts[:, t], delta + gamma * lam * running, running)
        after = torch.where(counts[:, t], values[:, t], after)
        advantages[:, t] = running
    return advantages.masked_fill(~counts, 0.0)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over all tokens of the batch: (B, T), (B, T) -> (B, T).

    The variance is the unbiased one (n - 1), as in verl; REINFORCE++ (2501.03262) and most PPO
    codes do so. A long completion counts once for each of its tokens. 0 where mask is 0.
    ValueError: shapes that differ, or values that are not finite or whose squares are not.
    """
    check_shapes("B T", values=values, mask=mask)
    if values.dtype in (torch.float16, torch.bfloat16):  # whose sums and squares overflow
        return whiten(values.float(), mask).to(values.dtype)
    mask = (mask != 0).to(values.dtype)
    values = values.masked_fill(mask == 0, 0.0)
    tokens = mask.sum()
    mean = (values * mask).sum() / tokens.clamp(min=1)
    variance = ((values - mean).square() * mask).sum() / (tokens - 1).clamp(min=1)
    if not variance.isfinite():
        raise ValueError(f"values: got nan, inf or numbers whose squares are beyond "
                         f"{values.dtype}; allowed are finite ones")
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


def soft_overlong_punishment(lengths: Tensor, max_length: int, cache: int) -> Tensor:
    """What is added to the reward of a long completion, from 0 down to -1: (B,) -> (B,).

    0 up to max_length - cache tokens, then falling in a line to -1 at max_length, and -1
    beyond (DAPO, 2503.14476 Eq. 13; TRL: ``get_soft_overlong_punishment``).
    """
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: got a {type(lengths).__name__}, allowed is a tensor")
    max_length = check_whole("max_length", max_length, 1)
    cache = check_whole("cache", cache, 1, f" to max_length = {max_length}", most=max_length)
    if not lengths.is_floating_point():  # small whole numbers would run over
        lengths = lengths.to(torch.get_default_dtype())
    return ((max_length - cache - lengths) / cache).clamp(-1.0, 0.0)


def informative_groups(rewards: Tensor, counted: Tensor | None = None) -> Tensor:
    """Which groups can teach something: rewards (N, G) -> bool (N,).

    A group has no spread if its rewards differ by at most 8 machine epsilons of its largest
    |reward|: 0.1 + 0.2 equals 0.3 here. Only its mean could be learned from, and the group
    baseline has subtracted that. ``counted`` (N, G) bool: False where a reward abstained, whose
    number is not looked at. ValueError: not (N, G), or not finite.
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
