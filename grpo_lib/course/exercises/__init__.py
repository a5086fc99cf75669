"""Exercises, and checkers that name the mistake.

    from grpo_lib.course.exercises import check

    check.group_advantages(my_function)

answers with "right", or with the smallest case where it goes wrong, both numbers and, where it
is one of the mistakes known here, which. ``check`` alone lists what there is.
"""

from __future__ import annotations

from collections.abc import Callable

from grpo_lib.course.exercises import (
    advantages,
    aggregation,
    algorithms,
    clipping,
    curves,
    kl,
    policy,
    questions,
    rewards,
    training,
)
from grpo_lib.course.exercises.base import Exercise, Mistake, Verdict
from grpo_lib.course.exercises.curves import CurveQuestion
from grpo_lib.course.exercises.questions import Question
from grpo_lib.course.exercises.repairs import Repair

ROOMS = (policy, rewards, advantages, clipping, kl, aggregation, training, algorithms, questions,
         curves)
EXERCISES: dict[str, Exercise | Question | CurveQuestion] = {
    e.name: e for room in ROOMS for e in room.EXERCISES}
__all__ = ["EXERCISES", "CurveQuestion", "Exercise", "Mistake", "Question", "Repair", "Verdict",
           "check"]


class Checker:
    """``check.NAME(function)``, or ``check.NAME(number)`` for a question."""

    def __getattr__(self, name: str) -> Callable[..., Verdict]:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in EXERCISES:
            raise AttributeError(f"check: got {name!r}, allowed are {', '.join(EXERCISES)}")
        return EXERCISES[name].check

    def __dir__(self):
        return list(EXERCISES)

    def __repr__(self) -> str:
        return "\n".join(f"check.{e.name:22} lesson {e.lesson}: {e.task}"
                         for e in EXERCISES.values())


check = Checker()
