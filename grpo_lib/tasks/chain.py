"""Chains of single-digit arithmetic modulo 10, with or without thinking step by step.

A person writes ``7 *3 +8 *2 -5``: start at 7, apply each operation, keep the last digit.
The prompt writes the operations like composed functions, the first one nearest to the
start: ``-5 *2 +8 *3 7 :``. So step k stands at the same distance from its operation in a
chain of any length, which is what rotary positions can learn quickly.

A completion ends in ``=> 4``; before it may stand steps such as ``s2=9``, the value after
two operations. The reward looks at the final answer and its form, never at the steps.
"""

from __future__ import annotations

import random

from grpo_lib.support.checks import one_number
from grpo_lib.tasks.base import Problem, Style, Task
from grpo_lib.tokenizer import Tokenizer

OPERATIONS = {"+": lambda a, b: (a + b) % 10, "-": lambda a, b: (a - b) % 10,
              "*": lambda a, b: (a * b) % 10}
LONGEST = 10  # the vocabulary has step markers up to here
JUMPS = ((1, 2, 3, 4), (45, 25, 15, 15))  # how far the habit leaps, and how often (per cent)
DIRECT = 0.40  # how often the habit answers at once


def chain_values(prompt: str) -> list[int]:
    """The value after each operation of a prompt, the start first: n + 1 digits."""
    *operations, start, _ = prompt.split()
    values = [int(start)]
    for operation in reversed(operations):
        values.append(OPERATIONS[operation[0]](values[-1], int(operation[1])))
    return values


class ChainTask(Task):
    """``ChainTask(5, 8)``: chains of 5 to 8 operations; the answer is a digit."""

    name = "chain"
    tokenizer = Tokenizer([str(d) for d in range(10)]
                          + [f"{op}{d}" for op in OPERATIONS for d in range(10)]
                          + [f"s{k}=" for k in range(1, LONGEST + 1)] + [":", "=>"])

    def __init__(self, shortest: int = 5, longest: int = 8):
        least, most = one_number(shortest), one_number(longest)
        if not (type(least) is int and type(most) is int and 1 <= least <= most <= LONGEST):
            raise ValueError(f"shortest, longest: got {shortest}, {longest}; allowed is "
                             f"1 <= shortest <= longest <= {LONGEST}")
        self.shortest, self.longest = least, most
        self.max_new_tokens = 2 * most + 3  # every step, the answer, end-of-sequence

    def problem(self, rng: random.Random) -> Problem:
        operations = [rng.choice("+-*") + str(rng.randrange(10))
                      for _ in range(rng.randint(self.shortest, self.longest))]
        prompt = f"{' '.join(operations)} {rng.randrange(10)} :"
        return Problem(prompt, str(chain_values(prompt)[-1]))

    def correct(self, problem: Problem, completion: str) -> bool:
        """Whether nothing but the right digit follows the first ``=>``, whatever precedes it."""
        return completion.partition("=>")[2] == f" {problem.answer}"

    def example(self, problem: Problem, rng: random.Random, style: Style) -> str:
        """"skill": every step written down. "habit": the answer at once, or some steps
        skipped (never none of them). All labels are right."""
        values = chain_values(problem.prompt)
        last = len(values) - 1
        if style == "skill":
            kept = list(range(1, last + 1))
        elif rng.random() < DIRECT:
            kept = []
        else:
            kept = list(range(1, last + 1))
            while len(kept) == last:
                kept, at = [], 0
                while (at := at + rng.choices(*JUMPS)[0]) <= last:
                    kept.append(at)
        steps = "".join(f"s{k}={values[k]} " for k in kept)
        return f"{steps}=> {values[-1]}"

    def probe(self, rng: random.Random) -> tuple[str, str]:
        """A worked text up to one step's marker, and that step's value."""
        [problem] = self.problems(1, rng, "held_out")
        values = chain_values(problem.prompt)
        step = rng.randint(1, len(values) - 1)
        done = "".join(f"s{k}={values[k]} " for k in range(1, step))
        return f"{problem.prompt} {done}s{step}=", str(values[step])

    def instruction(self, problem: Problem) -> str:
        operations, start = problem.prompt.split()[-3::-1], problem.prompt.split()[-2]
        named = {"+": "add", "-": "subtract", "*": "multiply by"}
        steps = ", ".join(f"{named[operation[0]]} {operation[1]}" for operation in operations)
        return (f"Start with {start}. Then, in this order: {steps}. After every operation keep "
                f"only the last digit (below 0: add 10 first). Write down the value after each "
                f"operation, then end with => and the last value, for example: => 4")

    def describe(self, problem: Problem) -> str:
        *operations, start, _ = problem.prompt.split()
        return " ".join([start, *reversed(operations)])
