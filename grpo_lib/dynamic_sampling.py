"""How a step collects its batch; with dynamic sampling, until enough groups teach something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from grpo_lib.advantages import informative_groups
from grpo_lib.batches import Batch
from grpo_lib.support.rewards import RewardError

if TYPE_CHECKING:
    from grpo_lib.support.stopwatch import Stopwatch
    from grpo_lib.training import GRPOTrainer


def collect(trainer: GRPOTrainer, clock: Stopwatch) -> tuple[Batch, Batch]:
    """All that a step samples, and what of it is trained on.

    The two are the same without dynamic sampling (DAPO, 2503.14476 Eq. 11). With it, groups
    without spread are thrown away and as many sampled again, up to ``max_num_gen_batches``
    batches; if there are too few even then, the step makes do with those there are, and with
    everything if there are none. Spread is that of the task's rewards, before long completions
    are punished.
    """
    config, algorithm = trainer.config, trainer.algorithm
    parts, informative = [], torch.zeros(0)
    for _ in range(config.max_num_gen_batches if algorithm.dynamic_sampling else 1):
        with clock("rollout"):
            problems, rollouts = trainer.sample()
        with clock("scoring"), at_step(trainer.step_count + 1):
            scores, ref_log_probs = trainer.judge(problems, rollouts)
            kept = informative_groups(scores.rewards, ~scores.rewards.isnan())
        shaped = algorithm.shaped_rewards(scores.rewards, rollouts.lengths.cpu(),
                                          trainer.task.max_new_tokens)
        parts.append(Batch(problems, rollouts, scores._replace(rewards=shaped), ref_log_probs))
        informative = torch.cat((informative, kept))
        if informative.sum() >= config.prompts_per_step:
            break
    everything = Batch.join(parts)
    which = informative.nonzero().flatten()[: config.prompts_per_step]
    if not algorithm.dynamic_sampling or len(which) == 0:
        return everything, everything
    return everything, everything.groups(which)


@contextmanager
def at_step(step: int) -> Iterator[None]:
    """An error of the reward says at which step it came."""
    try:
        yield
    except (RewardError, TypeError, ValueError) as error:
        if type(error) not in (RewardError, TypeError, ValueError):
            raise  # a subclass, whose constructor may take something else
        raise type(error)(f"{error}, at step {step}") from error.__cause__
