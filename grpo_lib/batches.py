"""Scored groups of completions, and how a step collects those that it trains on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from grpo_lib.advantages import informative_groups
from grpo_lib.rollout import Rollouts
from grpo_lib.tasks.base import Problem
from grpo_lib.tasks.scoring import RewardError, Scores

if TYPE_CHECKING:
    from grpo_lib.support.stopwatch import Stopwatch
    from grpo_lib.training import GRPOTrainer


class Batch(NamedTuple):
    """N problems with their scored completions; row n * G + g."""

    problems: list[Problem]
    rollouts: Rollouts
    scores: Scores
    ref_log_probs: Tensor | None  # (N * G, T)

    @property
    def counted(self) -> Tensor:
        """Where the reward did not abstain: bool (N, G)."""
        return ~self.scores.rewards.isnan()

    @staticmethod
    def join(parts: list[Batch]) -> Batch:
        """Several batches as one."""
        rollouts = Rollouts.join([part.rollouts for part in parts])
        width = rollouts.mask.shape[1]
        ref = [torch.nn.functional.pad(p.ref_log_probs, (0, width - p.ref_log_probs.shape[1]))
               for p in parts if p.ref_log_probs is not None]
        return Batch([problem for p in parts for problem in p.problems], rollouts,
                     Scores.join([p.scores for p in parts]), torch.cat(ref) if ref else None)

    def groups(self, which: Tensor) -> Batch:
        """Some of its groups: indices (n,)."""
        size = self.rollouts.group_size
        rows = (which[:, None] * size + torch.arange(size)).flatten().to(self.rollouts.mask.device)
        rollouts = self.rollouts.select(rows)
        ref = self.ref_log_probs
        return Batch([self.problems[n] for n in which.tolist()], rollouts,
                     self.scores.groups(which),
                     None if ref is None else ref[rows, : rollouts.mask.shape[1]])


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
            raise  # one of another making
        raise type(error)(f"{error}, at step {step}") from error.__cause__
