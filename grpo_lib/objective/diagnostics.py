"""What the clip does to a batch: where it binds, how often, and the extremes of the ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lib.support.checks import check_beside, check_clip, check_not_empty, check_shapes


def surrogate_gradient(ratio: Tensor, advantages: Tensor, epsilon: float,
                       epsilon_high: float | None = None, delta: float | None = None) -> Tensor:
    """d clipped_surrogate / d r: A where the gradient flows, 0 where it is blocked. Shape of ratio.

    Blocked are A > 0 with r > 1 + epsilon_high, A < 0 with r < 1 - epsilon, and A < 0 with
    r > delta. On an edge itself it flows, as in autograd up to torch 2.13; later ones block half
    of it there, or all. The derivative with respect to log pi is r times this. ValueError: a nan
    ratio.
    """
    epsilon, epsilon_high, delta = check_clip(epsilon, epsilon_high, delta)
    check_beside(ratio=ratio, advantages=advantages)
    if ratio.isnan().any():
        raise ValueError("ratio: contains nan, must be finite")
    low, high = clip_binds(ratio, advantages, epsilon, epsilon_high)
    blocked = low | high
    if delta is not None:
        blocked = blocked | ((advantages < 0) & (ratio > delta))
    return (advantages * torch.ones_like(ratio)).masked_fill(blocked, 0.0)


def clip_binds(ratio: Tensor, advantages: Tensor, epsilon: float,
               epsilon_high: float | None = None) -> tuple[Tensor, Tensor]:
    """Where the clip cuts off the gradient, two bool tensors of the ratio's shape: at 1 - epsilon
    (A < 0), and at 1 + epsilon_high (A > 0). A ratio exactly on the edge, or nan, does not bind (as
    in TRL)."""
    epsilon, epsilon_high, _ = check_clip(epsilon, epsilon_high)
    check_beside(ratio=ratio, advantages=advantages)
    return ((advantages < 0) & (ratio < 1 - epsilon),
            (advantages > 0) & (ratio > 1 + epsilon_high))


def outside_fraction(ratio: Tensor, mask: Tensor, epsilon: float,
                     epsilon_high: float | None = None) -> Tensor:
    """Share of tokens with r outside 1 - epsilon to 1 + epsilon_high, whatever the sign of A.

    Some trainers log this as the clip fraction. It is never below that of ``clip_stats``, since
    it also counts tokens whose gradient flows. ValueError: a nan among the tokens that count.
    """
    epsilon, epsilon_high, _ = check_clip(epsilon, epsilon_high)
    check_shapes("B T", ratio=ratio, mask=mask)
    if ratio.masked_fill(mask == 0, 0.0).isnan().any():
        raise ValueError("ratio: contains nan, must be finite")
    outside = ((ratio < 1 - epsilon) | (ratio > 1 + epsilon_high)) & (mask > 0)
    return share_of(outside, mask > 0, ratio)


def clip_stats(ratio: Tensor, advantages: Tensor, mask: Tensor, epsilon: float,
               epsilon_high: float | None = None) -> dict[str, Tensor]:
    """Share of tokens whose gradient the clip cuts off, and the extremes of the ratio: scalars.

    mask (B, T); ratio and advantages (B, T), or (B, 1) where all tokens of a row share one.
    Counted by the sign of A, since each sign binds on one side; |r - 1| > epsilon alone
    would overstate it. A nan advantage never counts as clipped; a nan ratio shows in ``ratio_min``
    and ``ratio_max``.
    """
    check_shapes("B T", mask=mask, ratio=(ratio, "B T | B 1"),
                 advantages=(advantages, "B T | B 1 | 1 T | 1 1"))
    check_not_empty("mask", mask)
    counts = mask > 0
    low, high = (where & counts
                 for where in clip_binds(ratio, advantages, epsilon, epsilon_high))
    everywhere = ratio.expand_as(mask)
    return {"clip_fraction": share_of(low | high, counts, ratio),
            "clip_fraction_low": share_of(low, counts, ratio),
            "clip_fraction_high": share_of(high, counts, ratio),
            "ratio_min": everywhere.masked_fill(~counts, torch.inf).amin(),
            "ratio_max": everywhere.masked_fill(~counts, -torch.inf).amax()}


def share_of(some: Tensor, counts: Tensor, like: Tensor) -> Tensor:
    """The share of ``some`` in ``counts``, both bool, as precise as ``like``; float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return some.sum(dtype=dtype) / counts.sum().clamp(min=1)
