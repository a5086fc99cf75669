"""What a run says to a person, once: that nothing can be learned, that a number is not finite, that
it is stopping."""

from __future__ import annotations

import math
import os
import sys
import warnings
from typing import TYPE_CHECKING

from torch import Tensor

from grpo_lib.config import StepMetrics

if TYPE_CHECKING:
    from grpo_lib.training import GRPOTrainer


def warn(text: str) -> None:
    """A UserWarning, shown each time: Python's memory of what was shown already, by the place in
    the code, would keep back that of a second run."""
    warnings.warn_explicit(text, UserWarning, "grpo_lib", 1, registry={})


def say_at_once(text: str) -> None:
    """Print to stderr, from a signal's handler too, which may have interrupted another print."""
    try:
        print(f"\n{text}", file=sys.stderr, flush=True)
    except (RuntimeError, ValueError, OSError, AttributeError):
        os.write(2, f"\n{text}\n".encode())


def nothing_to_learn(metrics: StepMetrics, rewards: Tensor, advantages: Tensor,
                     max_new_tokens: int) -> str | None:
    """Why a step has taught nothing (all its advantages are 0, or all that has one is masked) and
    what to change; None if it has taught something. ``rewards`` (N, G): nan where the reward
    abstained."""
    counted = rewards[~rewards.isnan()]
    if advantages.any() and metrics.grad_norm != 0:
        return None
    start = f"step {metrics.step} taught the policy nothing: "
    if len(counted) == 0:
        return (f"{start}the reward abstained (None) from all {rewards.numel()} completions; it "
                f"has to return a number for some")
    if metrics.finished == 0:
        return (f"{start}no completion came to its end within max_new_tokens = {max_new_tokens}, "
                f"and one that is cut off gets reward 0; give the task a larger max_new_tokens, or "
                f"start from a policy that ends its answers")
    return (f"{start}in no group did the rewards differ (they lie from {counted.min():.3g} to "
            f"{counted.max():.3g}); try easier or harder problems, a larger group_size, a higher "
            f"temperature, or a reward in parts")


def not_finite(metrics: StepMetrics) -> list[str]:
    """Names of the metrics that are nan or inf."""
    return [name for name, value in metrics.to_dict().items()
            if isinstance(value, float) and not math.isfinite(value)]


def notices_of(metrics: StepMetrics, rewards: Tensor, advantages: Tensor,
               max_new_tokens: int) -> dict[str, str]:
    """What a person should know of a step, by its kind."""
    found, abstained = {}, int(rewards.isnan().sum())
    nothing = metrics.step == 1 and nothing_to_learn(metrics, rewards, advantages, max_new_tokens)
    if nothing:
        found["nothing"] = nothing
    elif abstained:
        found["abstained"] = (f"the reward abstained (None) from {abstained} of the "
                              f"{rewards.numel()} completions of step {metrics.step}, which leave "
                              f"their groups")
    return found | {name: f"{name}: got {metrics.to_dict()[name]} at step {metrics.step}; files "
                          f"say null there" for name in not_finite(metrics)}


def doing(trainer: GRPOTrainer) -> tuple[str, str]:
    """What a trainer is doing in its step, and how it would take less memory."""
    config = trainer.config
    what = "the update" if trainer.half_updated else "sampling and scoring"
    advice = (f"prompts_per_step and group_size (now {config.prompts_per_step} x "
              f"{config.group_size}) make it smaller")
    try:
        config.check_parts("micro_batch_size", 1)
    except ValueError:  # rows of a gradient step belong together
        return f"{what} of step {trainer.step_count + 1}", advice
    return f"{what} of step {trainer.step_count + 1}", (
        f"micro_batch_size (now {config.micro_batch_size}) makes updates and scoring smaller "
        f"without changing a number; {advice}, sampling too")
