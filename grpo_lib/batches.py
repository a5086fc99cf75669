"""A batch: problems with their scored groups of completions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lib.rollout import Rollouts
from grpo_lib.support.rewards import Scores
from grpo_lib.tasks.base import Problem


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
