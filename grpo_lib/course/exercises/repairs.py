"""Functions to mend. None of them raises anything; what is wrong shows in what a run does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from grpo_lib.course.exercises.base import Exercise, Mistake, Verdict, patched
from grpo_lib.course.exercises.comparing import Answer, as_tensor
from grpo_lib.course.exercises.judging import own_globals
from grpo_lib.course.exercises.running import LIMIT, Printed, run_apart


@dataclass(frozen=True)
class Repair(Exercise):
    """A function to mend: what learners get is ``broken``, the solution with the mistakes
    ``faults`` in it.

    As it was is "not attempted"; with some of its faults mended, the first that is left is named.
    ``shows(function)`` runs it and says in a line how that went.
    """

    faults: tuple[str, ...] = ()
    shows: Callable[[Callable], str] | None = None

    @property
    def broken(self) -> str:
        return patched(self.solution, *self.patches(*self.faults))

    def check(self, function: Callable, limit: float = LIMIT) -> Verdict:
        """As for any exercise, and what a run with this function does."""
        verdict = super().check(function, limit)
        if self.shows is None or verdict.status == "error":
            return verdict
        try:
            shown = run_apart(lambda: self.shows(function), limit, Printed(),
                              own_globals(function))
        except KeyboardInterrupt:
            raise
        except BaseException:
            return verdict
        return replace(verdict, text=f"{verdict.text}\n{shown}")

    def judge(self, found: Sequence[Answer], notes: str) -> Verdict:
        if self.does(found, *self.patches(*self.faults)):
            count = len(self.faults)
            return Verdict("not attempted", f"{self.name}: unchanged so far; it still has {count} "
                           f"bug{'s' * (count != 1)}.", self.faults[0] if count == 1 else None)
        return super().judge(found, notes)

    def recognise(self, found: Sequence[Answer]) -> Mistake | None:
        """A mistake alone; or, of the faults that it came with, the first of those left."""
        alone = super().recognise(found)
        if alone is not None:
            return alone
        for left in itertools.combinations(self.faults, len(self.faults) - 1):
            if self.does(found, *self.patches(*left)):
                return next(m for m in self.mistakes if m.name == left[0])
        return None


class RunRepair(Repair):
    """What counts is what the function returns, and the weights of the policy, its first
    argument, after it."""

    @torch.enable_grad()
    def answer(self, function, arguments):
        value = as_tensor(function(*arguments))
        weights = [p.detach().flatten().clone() for p in arguments[0].parameters()]
        return Answer(value.double(), torch.cat(weights))
