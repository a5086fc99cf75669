"""The importance ratio: how much likelier the policy makes a token than the sampling policy did."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from grpo_lib.support.checks import check_choice, check_shapes


def token_ratio(difference: Tensor, mask: Tensor) -> Tensor:
    """r_it = exp(log pi - log pi_old): (B, T); 1 where mask is 0. 2402.03300 Eq. 3."""
    return difference.exp()


def sequence_ratio(difference: Tensor, mask: Tensor) -> Tensor:
    """exp of the mean over a row's tokens of the same difference: (B, 1). GSPO, 2507.18071."""
    return row_mean(difference, mask).exp()


def sequence_token_ratio(difference: Tensor, mask: Tensor) -> Tensor:
    """The value of "sequence", (B, T), whose gradient goes through the token's own log-prob alone:
    GSPO-token, 2507.18071. (TRL 1.16 has dropped it.)"""
    own = row_mean(difference, mask).detach() + difference - difference.detach()
    return own.masked_fill(mask == 0, 0.0).exp()


def sequence_sum_ratio(difference: Tensor, mask: Tensor) -> Tensor:
    """exp of the sum over a row's tokens, the ratio of the two probabilities of the whole
    completion: (B, 1). TRL's RLOOTrainer."""
    return difference.sum(1, keepdim=True).exp()


RatioLevel = Literal["token", "sequence", "sequence_token", "sequence_sum"]
RATIOS = {"token": token_ratio, "sequence": sequence_ratio, "sequence_token": sequence_token_ratio,
          "sequence_sum": sequence_sum_ratio}


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor,
                     ratio: RatioLevel = "token") -> Tensor:
    """How much likelier the policy makes a token than the policy that sampled it did, by one of
    ``RATIOS``: (B, T), or (B, 1). TRL's name is ``importance_sampling_level``."""
    check_shapes(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    check_choice("ratio", ratio, RATIOS)
    return RATIOS[ratio]((log_probs - old_log_probs).masked_fill(mask == 0, 0.0), mask)


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over a row's tokens that count, of values that are 0 elsewhere: (B, T) -> (B, 1)."""
    return values.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
