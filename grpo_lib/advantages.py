"""From the rewards of a group to the advantages of its members."""

from __future__ import annotations

import torch
from torch import Tensor

BASELINES = ("mean", "leave_one_out", "none")
SCALES = ("group", "batch", "none")


def group_advantages(rewards: Tensor, *, baseline: str = "mean", scale: str = "group",
                     std_eps: float = 1e-4) -> Tensor:
    """A_ng = (r_ng - baseline_n) / (std + std_eps): rewards (N, G) -> advantages (N, G).

    ``baseline``: "mean" of the group (GRPO); "leave_one_out", the mean of the *other*
    members (RLOO, 2402.14740), which is the first times G / (G - 1); "none".
    ``scale``: divide by the std of the "group" (GRPO, 2402.03300 section 4.1.2), of the
    "batch" (2508.08221), or by nothing, "none" (Dr. GRPO, 2503.20783). TRL's name is
    ``scale_rewards``. The std is the unbiased one (n - 1), as in TRL and the papers' code.

    With a group baseline or a group std, a group without spread (``informative_groups``)
    gets exactly 0.
    ValueError: not (N, G), not finite, G = 1 with a group baseline, an unknown option.
    """
    spread = informative_groups(rewards)
    if baseline not in BASELINES:
        raise ValueError(f"baseline: got {baseline!r}, allowed are {', '.join(BASELINES)}")
    if scale not in SCALES:
        raise ValueError(f"scale: got {scale!r}, allowed are {', '.join(SCALES)}")
    if not std_eps >= 0:
        raise ValueError(f"std_eps: got {std_eps!r}, allowed is a number from 0")
    group_size = rewards.shape[1]
    if group_size == 1 and (baseline != "none" or scale == "group"):
        raise ValueError("rewards: got groups of 1; a completion can only be compared with others "
                         "of its group, so allowed is a group size of 2 or more (or "
                         "baseline='none' with scale='none')")
    if scale == "batch" and rewards.numel() == 1:
        raise ValueError("rewards: got a single one; allowed with scale='batch' are 2 or more")
    advantages = rewards if baseline == "none" else rewards - rewards.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        advantages = advantages * (group_size / (group_size - 1))
    if scale == "group":
        advantages = advantages / (rewards.std(1, keepdim=True) + std_eps)
    elif scale == "batch":
        advantages = advantages / (rewards.std() + std_eps)
    if baseline != "none" or scale == "group":
        advantages = advantages.masked_fill(~spread[:, None], 0.0)
    return advantages


def informative_groups(rewards: Tensor) -> Tensor:
    """Which groups can teach something: rewards (N, G) -> bool (N,).

    A group has no spread if its rewards differ by at most 8 machine epsilons of its largest
    |reward|: 0.1 + 0.2 equals 0.3 here. Only its mean could be learned from, and the group
    baseline has subtracted that. ValueError: not (N, G), or not finite.
    """
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ValueError(f"rewards: got shape {tuple(rewards.shape)}, allowed is (N, G): one row "
                         f"a prompt, one column a completion")
    if not rewards.is_floating_point():
        raise ValueError(f"rewards: got {rewards.dtype}, allowed is a floating-point dtype")
    if not rewards.isfinite().all():
        n, g = (~rewards.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"rewards: got {rewards[n, g].item()} for prompt {n}, completion {g}; "
                         f"allowed are finite numbers")
    width = rewards.amax(1) - rewards.amin(1)
    return width > 8 * torch.finfo(rewards.dtype).eps * rewards.abs().amax(1)


def informative_share(p: Tensor | float, group_size: int) -> Tensor | float:
    """1 - p^G - (1 - p)^G: how often a group of G is neither all right nor all wrong.

    ``p``, the chance that one answer is right, is a number or a tensor of any shape. The
    answers of a group are independent given p. Over problems of different p, average the
    results, not the p: the formula at the mean p is larger (Jensen's inequality).
    ValueError: a p outside 0 to 1, a group_size that is no whole number from 1.
    """
    values = torch.as_tensor(p)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p: got {p!r}, allowed are numbers from 0 to 1")
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 1:
        raise ValueError(f"group_size: got {group_size!r}, allowed is a whole number from 1")
    return 1 - p**group_size - (1 - p) ** group_size


def signal_and_noise(estimates: Tensor) -> tuple[float, float]:
    """How large a gradient is and how far one estimate of it strays: (|g|^2, E|g_hat - g|^2).

    estimates (N, K, D): K independent estimates of each of N gradients, D numbers long.
    Means over the N, both unbiased: the noise from the variance (K - 1) within each of the
    N, the signal from |mean|^2 less the noise / K that is left in a mean of K. (So a signal
    near 0 may come out below it.) ValueError: not (N, K, D) with K of 2 or more.
    """
    if estimates.dim() != 3 or estimates.shape[1] < 2 or estimates.numel() == 0:
        raise ValueError(f"estimates: got shape {tuple(estimates.shape)}, allowed is (N, K, D) "
                         f"with K of 2 or more")
    noise = estimates.var(1).sum(-1).mean()
    signal = estimates.mean(1).square().sum(-1).mean() - noise / estimates.shape[1]
    return signal.item(), noise.item()
