"""The shift by one: what a policy's output at a place says of the token after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grpo_lib.fast.packing import packed_outputs, packs
from grpo_lib.policy import Policy, token_log_probs
from grpo_lib.rollout.rollouts import Rollouts
from grpo_lib.support.checks import check_whole
from grpo_lib.support.modules import eval_mode


def completion_outputs(model: Callable[..., Tensor], rollouts: Rollouts) -> Tensor:
    """What a model says just before each completion token: (N*G, T, ...).

    The shift by one is the last line: the token in column P + t is scored by the output at
    column P + t - 1, the last place that has not seen it. Where padding stands inside completions
    (``attention_mask``), it is moved behind them first. Where ``packs`` says so, padding is
    not computed at all (``fast.packing`` makes the same shift in its own layout).
    """
    there = rollouts.attended
    if rollouts.attention_mask is not None and (there[:, 1:] & ~there[:, :-1]).any():
        closed, back = without_gaps(rollouts)
        return completion_outputs(model, closed)[torch.arange(len(back))[:, None], back]
    mask = torch.cat((rollouts.prompt_mask, there), 1).long()
    with eval_mode(model):
        if packs(model, mask.shape[1] - 1):
            return packed_outputs(model, rollouts.tokens, mask, rollouts.prompt_length)
        return model(rollouts.tokens[:, :-1], mask[:, :-1])[:, rollouts.prompt_length - 1 :]


def without_gaps(rollouts: Rollouts) -> tuple[Rollouts, Tensor]:
    """The completions with all padding behind them, cut to the longest, and where each token
    stands now: (N*G, T)."""
    there = rollouts.attended
    every, width = (~there).long().argsort(dim=1, stable=True), int(there.sum(1).max())
    order = every[:, :width]
    tokens = torch.cat((rollouts.tokens[:, : rollouts.prompt_length],
                        rollouts.completions.gather(1, order)), 1)
    return replace(rollouts, tokens=tokens, mask=rollouts.mask.gather(1, order),
                   log_probs=rollouts.log_probs.gather(1, order),
                   attention_mask=there.gather(1, order)), every.argsort(1).clamp(max=width - 1)


def completion_logits(policy: Callable[..., Tensor], rollouts: Rollouts) -> Tensor:
    """Logits / temperature that score each completion token: (N*G, T, V)."""
    if rollouts.temperature <= 0:
        raise ValueError(f"rollouts: sampled at temperature {rollouts.temperature}; only a "
                         f"temperature above 0 has log-probs to score")
    return completion_outputs(policy, rollouts) / rollouts.temperature


class CompletionLogits(nn.Module):
    """``completion_logits`` of a policy as the forward of a module, for DistributedDataParallel,
    which adds up only the gradients of what went through a module's forward."""

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    def forward(self, rollouts: Rollouts) -> Tensor:
        return completion_logits(self.policy, rollouts)


def completion_log_probs(policy: Callable[..., Tensor], rollouts: Rollouts,
                         rows_at_once: int | None = None) -> Tensor:
    """log pi of every completion token under ``policy``: (N*G, T), 0 where mask is 0.

    Differentiable. Under the policy that sampled them it equals ``rollouts.log_probs``.
    ``rows_at_once``: so many rows go through the policy together (None: all), which takes less
    memory where no gradient is kept.
    """
    if rows_at_once is not None:
        rows_at_once = check_whole("rows_at_once", rows_at_once, 1)
        width = rollouts.mask.shape[1]
        rows = torch.arange(len(rollouts.mask), device=rollouts.mask.device).split(rows_at_once)
        parts = [completion_log_probs(policy, rollouts.select(some)) for some in rows]
        return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])
    log_probs = token_log_probs(completion_logits(policy, rollouts), rollouts.completions)
    return log_probs.masked_fill(~rollouts.mask, 0.0)


def offset_log_probs(policy: Policy, rollouts: Rollouts, offset: int) -> Tensor:
    """log pi of every completion token by the logits ``offset`` columns away: (N*G, T).

    The token in column c is scored by the logits at column c + offset. Offset -1 is right and
    equals ``completion_log_probs``; every other offset is a mistake, made to be looked
    at. 0 where mask is 0; nan where there is no such column.
    """
    width, start = rollouts.tokens.shape[1], rollouts.prompt_length
    offset = check_whole("offset", offset, -start, f" to {width - start}", most=width - start)
    seen_mask = torch.cat((rollouts.prompt_mask, rollouts.attended), 1).long()
    with eval_mode(policy):
        logits = policy(rollouts.tokens, seen_mask) / rollouts.temperature
    logits = logits[:, start + offset :][:, : width - start]
    scored = rollouts.completions[:, : logits.shape[1]]
    missing = logits.new_full((len(logits), width - start - logits.shape[1]), torch.nan)
    log_probs = torch.cat((token_log_probs(logits, scored), missing), 1)
    return log_probs.masked_fill(~rollouts.mask, 0.0)
