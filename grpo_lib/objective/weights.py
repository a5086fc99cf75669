"""What divides the loss: the weight of each token.

In the table's functions counts (B, T) is 1.0 on the tokens that count, else 0.0, and max_length is
the limit of a completion.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from grpo_lib.support.checks import (
    at_least_float32,
    check_choice,
    check_not_empty,
    check_shapes,
    check_whole,
)


def sequence_mean(counts: Tensor, max_length: int | None) -> Tensor:
    """1 / (B |o_i|), the mean over a row's tokens, then over rows (GRPO, 2402.03300 Eq. 3). A row
    with nothing to count weighs 0 and stays in B. TRL: "grpo"."""
    return counts / counts.sum(1, keepdim=True).clamp(min=1) / len(counts)


def token_mean(counts: Tensor, max_length: int | None) -> Tensor:
    """1 / sum_j |o_j|, the mean over all tokens of the batch (DAPO, 2503.14476). TRL: "dapo",
    "bnpo"."""
    return counts / counts.sum().clamp(min=1)


def constant(counts: Tensor, max_length: int | None) -> Tensor:
    """1 / (B max_length), the same for every token (Dr. GRPO, 2503.20783). TRL: "dr_grpo"."""
    limit = check_whole("max_length", max_length, 1, "; aggregation='constant' divides by it")
    return counts / (len(counts) * limit)


def sequence_sum(counts: Tensor, max_length: int | None) -> Tensor:
    """1 / B, a row's sum and the mean over rows: what REINFORCE derives. TRL: "luspo"; verl:
    "seq-mean-token-sum"."""
    return counts / len(counts)


def nonempty_sequence_mean(counts: Tensor, max_length: int | None) -> Tensor:
    """As "sequence_mean", over the rows that have something to count; verl's
    "seq-mean-token-mean"."""
    lengths = counts.sum(1, keepdim=True)
    return counts / lengths.clamp(min=1) / (lengths > 0).sum().clamp(min=1)


Aggregation = Literal["sequence_mean", "token_mean", "constant", "sequence_sum",
                      "nonempty_sequence_mean"]
WEIGHTS = {"sequence_mean": sequence_mean, "token_mean": token_mean, "constant": constant,
           "sequence_sum": sequence_sum, "nonempty_sequence_mean": nonempty_sequence_mean}
AGGREGATIONS = tuple(WEIGHTS)
PAPER_AGGREGATIONS = AGGREGATIONS[:3]  # GRPO's, DAPO's and Dr. GRPO's, which lessons compare


def token_weights(mask: Tensor, aggregation: Aggregation, max_length: int | None = None, *,
                  dtype: torch.dtype | None = None) -> Tensor:
    """The weight w of each token in the loss, by one of ``WEIGHTS``: (B, T) -> (B, T), 0 where
    mask is 0. The loss is -sum(w * gain).

    A part of a batch takes its rows of the *whole* batch's weights; the losses of the parts then
    add up to the loss of the whole. Weights made anew for each part would not: the mean of the
    parts' means differs wherever the parts hold different numbers of tokens (the bug of many
    trainers: unsloth.ai/blog/gradient, transformers #34191). ``dtype``: None is the mask's where
    it is floating-point, else torch's default.
    """
    check_shapes("B T", mask=mask)
    check_choice("aggregation", aggregation, WEIGHTS)
    if dtype is None:
        floating = mask.is_floating_point()
        dtype = at_least_float32(mask).dtype if floating else torch.get_default_dtype()
    return WEIGHTS[aggregation]((mask != 0).to(dtype), max_length)


def aggregate(per_token: Tensor, mask: Tensor, aggregation: Aggregation,
              max_length: int | None = None) -> Tensor:
    """sum_it w_it x_it, one number from per-token values: (B, T), (B, T) -> scalar, with w the
    ``token_weights``. Half precision is added up in float32: a sum of 16 bits would count tokens
    wrongly."""
    check_shapes("B T", per_token=per_token, mask=mask)
    check_not_empty("per_token", per_token)
    values = at_least_float32(per_token).masked_fill(mask == 0, 0.0)
    return (values * token_weights(mask, aggregation, max_length, dtype=values.dtype)).sum()
