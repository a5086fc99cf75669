"""A first gradient step whose ratios are not 1: told once, with the likely cause.

Nothing has been learned between sampling and a step's first gradient step, so each ratio there
is 1 up to rounding. If it is not, the loss is that of another policy than the one that sampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from grpo_lib.policy import Policy
from grpo_lib.rollout import Rollouts, completion_log_probs
from grpo_lib.support.modules import unwrapped

# how far from 1 rounding may bring a ratio: in float32 about a thousandth of it, in 16 bits most
TOLERANCE, TOLERANCE_16_BITS = 0.05, 0.5


def off_policy(policy: Policy, rollouts: Rollouts, step: Mapping[str, float]) -> str | None:
    """What is wrong with a first gradient step (its ratio_min, ratio_max), and the likely cause;
    None if nothing is."""
    low, high = step["ratio_min"], step["ratio_max"]
    bound = 1 + (TOLERANCE_16_BITS if in_16_bits(policy) else TOLERANCE)
    if not (math.isfinite(low) and math.isfinite(high)) or 1 / bound <= low <= high <= bound:
        return None
    return (f"policy: right after sampling, before anything was learned, ratios go from "
            f"{low:.3g} to {high:.3g}, must be 1; likely cause: {likely_cause(policy, rollouts)}")


def in_16_bits(policy: Policy) -> bool:
    """Whether a policy multiplies in 16 bits."""
    return getattr(unwrapped(policy), "autocast", None) is not None or any(
        p.dtype in (torch.float16, torch.bfloat16) for p in policy.parameters())


@torch.no_grad()
def likely_cause(policy: Policy, rollouts: Rollouts) -> str:
    """Why scoring does not give the log-probs that sampling gave, by scoring again."""
    some = rollouts.select(torch.arange(min(4, len(rollouts.mask)), device=rollouts.mask.device))
    first = some.select(torch.arange(1, device=some.mask.device))
    once, again, alone = (completion_log_probs(policy, part) for part in (some, some, first))
    if not torch.allclose(once, again, rtol=0, atol=1e-3):
        return ("the policy answers differently each time, also in eval mode (dropout or noise "
                "that eval mode does not switch off)")
    if not torch.allclose(once[:1, : alone.shape[1]], alone, rtol=0, atol=1e-2):
        return ("a row's log-probs depend on the rows beside it (statistics of the batch), which "
                "are others in a minibatch than in sampling")
    return ("the log-probs that the sampler kept are not this policy's (an older copy, another "
            "temperature, top-p or top-k, or a cache that changes the numbers)")
