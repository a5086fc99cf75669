"""What lets some tokens or rows count less, or not at all: weights on the policy's term.

All are pure functions of (B, T) tensors, give weights without gradients, and leave the KL
term and the divisor of the aggregation as they are, as in TRL.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from grpo_lib.support.checks import check_choice, check_number, check_shapes

SamplerCorrection = Literal["none", "token_truncate", "token_mask", "sequence_truncate",
                            "sequence_mask"]
SAMPLER_CORRECTIONS = get_args(SamplerCorrection)


def top_entropy_mask(entropies: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """1 on the share ``quantile`` of the batch's tokens with the highest entropy, else 0:
    (B, T), (B, T) -> (B, T).

    Only where the policy hesitates is there something to decide (2506.01939, which keeps 0.2;
    TRL: ``top_entropy_quantile``). Ties at the threshold are kept. Padding does not count. A
    nan counts as low: its token is dropped.
    """
    quantile = check_number("top_entropy_quantile", quantile, above=0, most=1)
    check_shapes("B T", entropies=entropies, mask=mask)
    if entropies.numel() == 0:
        return torch.zeros_like(entropies)
    wide = entropies.to(torch.promote_types(entropies.dtype, torch.float32))  # as quantile needs
    threshold = torch.nanquantile(wide.masked_fill(mask == 0, torch.nan), 1 - quantile)
    return ((wide >= threshold) & (mask != 0)).to(entropies.dtype)


def off_policy_mask(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor,
                    threshold: float) -> Tensor:
    """0 for rows with A < 0 that the policy has moved away from, else 1: (B, 1).

    Moved away: the row's mean of log pi_old - log pi exceeds ``threshold``
    (DeepSeek-V3.2, 2512.02556 Eq. 9; TRL: ``off_policy_mask_threshold``). A row with A < 0 that
    is far from what the policy would now say teaches it nothing, and can harm. advantages
    (B, 1), or (B, T), of which every token that counts must be below 0: what stands in padding
    keeps no row. A difference that is nan counts as 0.
    """
    threshold = check_number("off_policy_mask_threshold", threshold)
    check_shapes("B T", log_probs=log_probs, old_log_probs=old_log_probs, mask=mask,
                 advantages=(advantages, "B T | B 1"))
    moved = (old_log_probs - log_probs).masked_fill(mask == 0, 0.0).nan_to_num(0.0)
    moved = moved.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    if advantages.shape[1] > 1:
        advantages = advantages.masked_fill(mask == 0, -torch.inf)
    kept = (advantages >= 0).any(1, keepdim=True) | (moved <= threshold)
    return kept.to(log_probs.dtype)


def sampler_weights(old_log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor,
                    correction: SamplerCorrection = "sequence_mask", ratio_max: float = 3.0,
                    ratio_min: float | None = None) -> Tensor:
    """pi_old / pi_sampler, bounded: (B, T), or (B, 1) for the "sequence_" kinds.

    An inference engine's kernels give other probabilities than the trainer's for the same
    weights; this weight makes up for it. "token_truncate" caps each token's ratio at
    ``ratio_max`` (TIS, truncated importance sampling), "token_mask" makes it 0 outside of
    ``ratio_min`` to ``ratio_max`` (IcePop, 2510.18855); "sequence_truncate" and
    "sequence_mask" do so with the product over the row. TRL:
    ``vllm_importance_sampling_mode``, "sequence_mask" with 3.0 by default; verl:
    ``rollout_is``, 2.0. ``ratio_min`` None: no lower bound. A token for which the engine gave
    no number (nan) has ratio 1, as in TRL.
    """
    check_shapes("B T", old_log_probs=old_log_probs, sampler_log_probs=sampler_log_probs, mask=mask)
    check_choice("sampler_correction", correction, SAMPLER_CORRECTIONS)
    ratio_max = check_number("sampler_ratio_max", ratio_max, above=0)
    low = 0.0 if ratio_min is None else ratio_min
    low = check_number("sampler_ratio_min", low, least=0, most=ratio_max)
    difference = (old_log_probs - sampler_log_probs).masked_fill(mask == 0, 0.0).nan_to_num(0.0)
    if correction.startswith("sequence"):
        difference = difference.sum(1, keepdim=True)
    weights = difference.exp()
    if correction == "none":
        return torch.ones_like(weights)
    if correction.endswith("truncate"):
        return weights.clamp(low, ratio_max)
    return weights.masked_fill((weights < low) | (weights > ratio_max), 0.0)
