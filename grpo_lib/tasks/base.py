"""What a task is: problems, a verifier, and (for a base model) worked examples.

A task of your own needs a tokenizer, ``problem`` and ``correct``: about 30 lines, see
``sorting.py``. Everything else here is derived from those.
"""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_lib.tokenizer import Tokenizer

HELD_OUT_SHARE = 20  # one problem in 20 is held out


@dataclass(frozen=True)
class Problem:
    """A prompt (words of the task's vocabulary) and what its verifier needs to know."""

    prompt: str
    answer: Any


class Task:
    """Base of all tasks. A subclass sets the three attributes and the two functions."""

    name: str
    tokenizer: Tokenizer
    max_new_tokens: int  # longest completion, end-of-sequence included
    context_length: int = 64  # longest prompt plus completion, for a policy made for this task

    def problem(self, rng: random.Random) -> Problem:
        """One random problem, from ``rng`` alone."""
        raise NotImplementedError(f"{type(self).__name__}.problem(rng) is missing")

    def correct(self, problem: Problem, completion: str) -> bool:
        """The verifier: is this completion right? It parses text; it never runs it."""
        raise NotImplementedError(f"{type(self).__name__}.correct(...) is missing")

    def reward(self, problem: Problem, completion: str) -> float:
        """The number that GRPO maximises: 1 for a right completion, else 0."""
        return float(self.correct(problem, completion))

    def example(self, problem: Problem, rng: random.Random, style: str) -> str:
        """A completion to pre-train on, in style "skill" or "habit" (``pretraining``)."""
        raise NotImplementedError(f"{type(self).__name__}.example(...) is missing: this task "
                                  f"has no base model to pre-train")

    def probe(self, rng: random.Random) -> tuple[str, str] | None:
        """A text and its one right next word, to measure whether the base model has the
        skill that RL is to bring out. None: this task names no such skill."""
        return None

    def describe(self, problem: Problem) -> str:
        """The problem as a person would write it."""
        return problem.prompt

    def instruction(self, problem: Problem) -> str:
        """The problem as one would put it to a language model that knows no such task."""
        raise NotImplementedError(f"{type(self).__name__}.instruction(problem) is missing: this "
                                  f"task cannot be put into words")

    def encode(self, problem: Problem) -> list[int]:
        """The token ids that a policy continues."""
        return self.tokenizer.encode(problem.prompt)

    def problems(self, count: int, rng: random.Random, split: str = "train") -> list[Problem]:
        """``count`` problems of a split: "train" or "held_out". No prompt is in both."""
        if split not in ("train", "held_out"):
            raise ValueError(f"split: got {split!r}, allowed are 'train' and 'held_out'")
        if count < 1:
            raise ValueError(f"count: got {count}, allowed is a whole number from 1")
        chosen: list[Problem] = []
        for _ in range(1000 * count):
            problem = self.problem(rng)
            if is_held_out(problem.prompt) == (split == "held_out"):
                chosen.append(problem)
            if len(chosen) == count:
                return chosen
        raise ValueError(f"split: of {1000 * count} problems of {type(self).__name__} only "
                         f"{len(chosen)} are in {split!r}; allowed is a task with more "
                         f"different prompts")

    def held_out(self, count: int = 1000) -> list[Problem]:
        """The first ``count`` of the fixed list of held-out problems, the same every time.

        All are different, so that they count as independent.
        """
        rng, found = random.Random(2402_03300), {}
        for _ in range(100 * count):
            [problem] = self.problems(1, rng, "held_out")
            found.setdefault(problem.prompt, problem)
            if len(found) == count:
                return list(found.values())
        raise ValueError(f"count: got {count}, but {type(self).__name__} seems to have only "
                         f"{len(found)} different held-out problems")

    def rewards(self, problems: Sequence[Problem], completions: Sequence[str],
                finished: Sequence[bool]) -> Tensor:
        """Rewards (N, G) of N problems' completions, given row by row (n * G + g).

        A completion that was cut off (no end-of-sequence) has no final answer: 0. (So a
        task with negative rewards teaches never to finish; keep rewards from 0 up.)
        """
        return self._each(self.reward, problems, completions, finished, "reward")

    def grades(self, problems: Sequence[Problem], completions: Sequence[str],
               finished: Sequence[bool]) -> Tensor:
        """1 where the verifier says right, else 0: (N, G), whatever the reward is."""
        return self._each(self.correct, problems, completions, finished, "correct")

    def _each(self, score: Callable, problems, completions, finished, name: str) -> Tensor:
        group_size, rest = divmod(len(completions), len(problems))
        if rest or len(finished) != len(completions):
            raise ValueError(f"completions: got {len(completions)} (finished: {len(finished)}), "
                             f"allowed is a multiple of the {len(problems)} problems")
        scores = []
        for row, (text, done) in enumerate(zip(completions, finished)):
            value = score(problems[row // group_size], text) if done else 0.0
            if not isinstance(value, (int, float)):
                raise TypeError(f"{name}: {type(self).__name__}.{name} returned {value!r} for "
                                f"{text!r}, allowed is one number")
            scores.append(float(value))
        return torch.tensor(scores).view(len(problems), group_size)

    def with_reward(self, reward: Callable[[Problem, str], float]) -> Task:
        """The same task with another reward; ``correct`` still tells the truth."""
        changed = copy.copy(self)
        changed.reward = reward
        return changed


def is_held_out(prompt: str) -> bool:
    """Which split a prompt belongs to: a fixed function of its text, so that pre-training,
    RL and every seed agree without sharing a list."""
    return zlib.crc32(prompt.encode()) % HELD_OUT_SHARE == 0
