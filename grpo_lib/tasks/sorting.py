"""Put digits in order: ``7 2 9 4 2 :`` becomes ``2 2 4 7 9``.

Different in kind from the chain: nothing to compute and no thinking, a reward in parts
rather than right or wrong, and no habit to undo. Also the pattern for a task of your own.
"""

from __future__ import annotations

import random

from grpo_lib.support.checks import check_whole
from grpo_lib.tasks.base import Problem, Style, Task
from grpo_lib.tokenizer import Tokenizer


class SortTask(Task):
    """``SortTask(4, 6)``: lists of 4 to 6 digits."""

    name = "sort"
    tokenizer = Tokenizer([*"0123456789", ":"])

    def __init__(self, shortest: int = 4, longest: int = 6):
        shortest = check_whole("shortest", shortest, 1)
        self.shortest, self.longest = shortest, check_whole("longest", longest, shortest)
        self.max_new_tokens = self.longest + 3

    def problem(self, rng: random.Random) -> Problem:
        digits = [str(rng.randrange(10)) for _ in range(rng.randint(self.shortest, self.longest))]
        return Problem(" ".join(digits) + " :", " ".join(sorted(digits)))

    def instruction(self, problem: Problem) -> str:
        digits = ", ".join(problem.prompt.split()[:-1])
        return (f"Put these digits in order, the smallest first: {digits}. Answer with nothing but "
                f"the digits, a space between them, for example: 1 4 4 7")

    def correct(self, problem: Problem, completion: str) -> bool:
        return completion == problem.answer

    def reward(self, problem: Problem, completion: str) -> float:
        """Share of places filled rightly, places too many counting as wrong."""
        wanted, got = problem.answer.split(), completion.split()
        return sum(a == b for a, b in zip(wanted, got)) / max(len(wanted), len(got))

    def example(self, problem: Problem, rng: random.Random, style: Style) -> str:
        """The digits in any order: the base model learns to repeat them, not to sort."""
        digits = problem.answer.split()
        rng.shuffle(digits)
        return " ".join(digits)
