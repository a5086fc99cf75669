"""Accuracy and pass@k on held-out problems, with confidence intervals.

Other estimates and a test for differences: ``lab.statistics``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lib.policy import Policy
from grpo_lib.rollout import Rollouts, sample_groups
from grpo_lib.support.checks import check_number, check_whole, explain_out_of_memory
from grpo_lib.support.modules import check_vocabulary, in_eval_mode
from grpo_lib.tasks.base import Problem, Task


@dataclass(frozen=True)
class Evaluation:
    """What a policy does on a list of problems.

    right        (N, S) bool: is sample s of problem n right?
    lengths      (N, S) tokens of each completion
    completions  N * S texts, row n * S + s
    """

    right: Tensor
    lengths: Tensor
    completions: list[str]

    @property
    def accuracy(self) -> float:
        """Share of right samples."""
        return self.right.double().mean().item()

    @property
    def mean_length(self) -> float:
        """Tokens in a completion, on average, end-of-sequence counted."""
        return self.lengths.double().mean().item()

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        return wilson_interval(self.accuracy, len(self.right))

    def pass_at(self, k: int) -> float:
        """Mean over the problems of ``pass_at_k``."""
        samples = self.right.shape[1]
        return sum(pass_at_k(samples, int(c), k) for c in self.right.sum(1)) / len(self.right)


@torch.no_grad()
@in_eval_mode
def evaluate(policy: Policy, task: Task, problems: Sequence[Problem], *, samples: int = 1,
             temperature: float = 1.0, generator: torch.Generator | None = None,
             device: torch.device | str = "cpu", rows_at_once: int = 1024,
             sampler: Callable[..., Rollouts] = sample_groups) -> Evaluation:
    """Sample every problem ``samples`` times and ask the verifier (temperature 0: greedy).

    ``sampler``: ``sample_groups``, or another of its kind."""
    if len(problems) == 0:
        raise ValueError("problems: got none, allowed is one or more")
    samples = check_whole("samples", samples, 1)
    rows_at_once = check_whole("rows_at_once", rows_at_once, 1)
    check_vocabulary(policy, task.tokenizer)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    right, lengths, completions = [], [], []
    at_once = max(1, rows_at_once // samples)
    for start in range(0, len(problems), at_once):
        some = problems[start : start + at_once]
        with explain_out_of_memory(lambda: (
                "evaluate", f"rows_at_once (now {rows_at_once}) samples fewer completions "
                            f"together")):
            rollouts = sampler(policy, [task.encode(p) for p in some], samples,
                               max_new_tokens=task.max_new_tokens, temperature=temperature,
                               generator=generator, eos_id=task.tokenizer.eos_id, device=device)
        texts = task.tokenizer.decode_rows(rollouts.completions, rollouts.mask)
        right.append(task.grades(some, texts, rollouts.finished.tolist()) > 0)
        lengths.append(rollouts.lengths.view(len(some), samples).cpu())
        completions += texts
    return Evaluation(torch.cat(right), torch.cat(lengths), completions)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that at least one of k samples is right: 1 - C(n - c, k) / C(n, k).

    The unbiased estimator of 2107.03374 Eq. 1, from n = ``samples`` of which c = ``right``.
    """
    samples = check_whole("samples", samples, 1)
    right = check_whole("right", right, 0, f" to samples = {samples}", most=samples)
    k = check_whole("k", k, 1, f" to samples = {samples}", most=samples)
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval for a share measured on ``count`` independent problems (Wilson, 1927).

    For means of several samples a problem it is too wide, never too narrow: the spread of
    such a mean is at most that of one yes-or-no sample.
    """
    share = check_number("share", share, least=0, most=1)
    count = check_whole("count", count, 1)
    z = check_number("z", z, least=0, most=100)
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
