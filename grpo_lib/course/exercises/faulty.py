"""Training runs with one fault in them, on purpose: what it looks like from outside.

A fault changes what the trainer's update is given, and nothing else, so that everything in the
library stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lib.rollout import Rollouts
from grpo_lib.support.checks import check_choice
from grpo_lib.training import GRPOTrainer

Given = tuple[Rollouts, Tensor, Tensor]  # what ``update`` takes: advantages (N, G), ref (N*G, T)


class Fault(NamedTuple):
    """``change`` damages what the update is given; ``says`` what is wrong, ``shows`` how that
    looks."""

    says: str
    shows: str
    change: Callable[[GRPOTrainer, Rollouts, Tensor, Tensor], Given]


def interleaved(trainer, rollouts, advantages, ref):
    """Groups made of every N-th row: completions of different prompts are compared."""
    mixed = trainer.rewards.flatten().view(trainer.rewards.shape[1], -1).T
    wrong = trainer.algorithm.advantages(mixed, rollouts.mask).view_as(mixed)
    return rollouts, wrong.T.reshape(advantages.shape), ref


def end_masked(trainer, rollouts, advantages, ref):
    """End-of-sequence gets no gradient."""
    last = rollouts.lengths.long() - 1
    mask = rollouts.mask.clone()
    mask[torch.arange(len(mask)), last] = torch.where(
        rollouts.finished & (last > 0), 0.0, 1.0).to(mask)
    return replace(rollouts, mask=mask), advantages, ref


FAULTS = {
    "none": Fault("nothing", "reward and length rise together, entropy falls, nothing is clipped",
                  lambda trainer, rollouts, A, ref: (rollouts, A, ref)),
    "sign": Fault("the sign of the advantages is turned",
                  "accuracy goes to 0 and stays there; length falls",
                  lambda trainer, rollouts, A, ref: (rollouts, -A, ref)),
    "other rows": Fault("every completion gets the advantage of another prompt's",
                        "accuracy stays at guessing, entropy high, however long it runs",
                        lambda trainer, rollouts, A, ref: (rollouts, A.roll(1, 0), ref)),
    "no baseline": Fault("rewards are 1 and 2, and nothing is subtracted",
                         "everything sampled is pushed up: entropy falls before accuracy rises, if "
                         "it rises at all",
                         lambda trainer, rollouts, A, ref: (rollouts, trainer.rewards + 1.0, ref)),
    "reference for old": Fault("the ratio is taken to the base model",
                               "both clip fractions rise at once and the KL distance stays next to "
                               "0: the clip has become a leash",
                               lambda trainer, rollouts, A, ref: (
                                   replace(rollouts, log_probs=ref), A, ref)),
    "other temperature": Fault("sampled at temperature 1, scored at 2",
                               "a fifth of all tokens is clipped at the first step already, where "
                               "the ratio should be 1",
                               lambda trainer, rollouts, A, ref: (replace(
                                   rollouts, temperature=2 * rollouts.temperature), A, ref)),
    "interleaved groups": Fault("completions are compared with those of other prompts",
                                "nothing that the curves would show", interleaved),
    "end masked out": Fault("end-of-sequence gets no gradient",
                            "nothing that the curves would show", end_masked),
}
SILENT = ("none", "interleaved groups", "end masked out")  # whose curves are alike


class FaultyTrainer(GRPOTrainer):
    """``GRPOTrainer`` with a fault of ``FAULTS`` by name. ValueError lists the names."""

    def __init__(self, fault: str, *arguments, **options):
        check_choice("fault", fault, FAULTS)
        super().__init__(*arguments, **options)
        self.fault = fault

    def update(self, rollouts: Rollouts, advantages: Tensor, ref_log_probs: Tensor) -> dict:
        return super().update(*FAULTS[self.fault].change(self, rollouts, advantages,
                                                         ref_log_probs))
