"""Advantages of single tokens: a reward for each token, GAE over a critic's values, whitening."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lib.support.checks import check_not_empty, check_number, check_shapes


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
