"""What a step's metrics say of its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from grpo_lib.advantages import informative_groups
from grpo_lib.objective import aggregate, kl_estimate

if TYPE_CHECKING:
    from grpo_lib.batches import Batch

# The metrics of a step that made no update.
NO_UPDATE: dict[str, float | None] = {
    "entropy": None, "loss": 0.0, "grad_norm": 0.0, "clip_fraction_low": 0.0,
    "clip_fraction_high": 0.0, "ratio_min": 1.0, "ratio_max": 1.0}


def update_metrics(steps: list[dict[str, float]], tokens: list[int]) -> dict[str, float | None]:
    """The metrics of an update from those of its gradient steps; ``tokens`` of each step of the
    first pass, over which the entropy was measured."""
    mean: dict[str, float | None] = {name: sum(step[name] for step in steps) / len(steps)
                                     for name in steps[0]}
    low, high = min(s["ratio_min"] for s in steps), max(s["ratio_max"] for s in steps)
    if low > high:  # no token counted
        low = high = 1.0
    entropy = sum(step["entropy"] * count for step, count in zip(steps, tokens)) / sum(tokens)
    return mean | {"entropy": entropy, "ratio_min": low, "ratio_max": high}


def mean_and_std(scores: Tensor) -> tuple[float | None, float | None]:
    """Of those that did not abstain; (None, None) if all did."""
    counted = scores[~scores.isnan()]
    if len(counted) == 0:
        return None, None
    return counted.mean().item(), counted.std().item() if len(counted) > 1 else 0.0


def batch_metrics(batch: Batch) -> dict:
    """The metrics that describe a batch of scored rollouts."""
    _, rollouts, (rewards, grades, parts), ref_log_probs = batch
    lengths, right = rollouts.lengths.float().cpu(), grades.flatten() > 0
    kl, counted = None, batch.counted
    if ref_log_probs is not None and counted.any():
        rows = counted.flatten().to(ref_log_probs.device)
        distance = kl_estimate(rollouts.log_probs[rows], ref_log_probs[rows], "k3")
        kl = aggregate(distance, rollouts.mask[rows], "token_mean").item()
    informative = informative_groups(rewards, counted)
    mean, std = mean_and_std(rewards)
    return {
        "reward_mean": mean, "reward_std": std,
        "zero_variance_groups": 1 - informative.float().mean().item(),
        "rewards": {f"rewards/{name}/{of}": value for name, part in parts.items()
                    for of, value in zip(("mean", "std"), mean_and_std(part))},
        "accuracy": grades.mean().item(), "length": lengths.mean().item(),
        "length_right": lengths[right].mean().item() if right.any() else None,
        "length_wrong": lengths[~right].mean().item() if (~right).any() else None,
        "finished": rollouts.finished.float().mean().item(),
        "kl": kl,
        "tokens": int(rollouts.mask.sum())}
