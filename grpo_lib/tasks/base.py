"""What a task is: problems, a verifier, and (for a base model) worked examples.

A task of your own needs a tokenizer, ``problem`` and ``correct``: about 30 lines, see
``sorting.py``. Everything else here is derived from those. How rewards are called and what they
may return: ``support/rewards.py``.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_lib.support.checks import check_whole, one_number
from grpo_lib.support.rewards import (
    Scores,
    check_scores,
    check_weights,
    reward_functions,
    scores_of,
    weighted,
)
from grpo_lib.tokenizer import Tokenizer

HELD_OUT_SHARE = 20  # one problem in 20 is held out
Split = Literal["train", "held_out"]
Style = Literal["skill", "habit"]  # of a worked example


@dataclass(frozen=True)
class Problem:
    """A prompt (words of the task's vocabulary) and what its verifier needs to know."""

    prompt: str
    answer: Any


class Task:
    """Base of all tasks. A subclass sets the three attributes and the two functions.

    A problem belongs to one of two splits by its prompt alone (``is_held_out``): about one prompt
    in 20 is held out, to measure on, and never trained on. So all runs, seeds and the base
    model's pre-training agree on the split without sharing a list. A task with very few prompts
    may find all of them on one side: ``holds_out = False`` switches the split off, so that the
    same problems are trained on and measured on. That is the usual test whether a policy can learn
    one prompt by heart, and says nothing about new problems.
    """

    name: str
    tokenizer: Tokenizer
    max_new_tokens: int  # longest completion, end-of-sequence included
    context_length: int = 64  # longest prompt plus completion, for a policy made for this task
    holds_out: bool = True  # False: every prompt is trained on, and measured on too
    reward_funcs: Mapping[str, Callable] | None = None  # several rewards by name (with_reward)
    reward_weights: Sequence[float] | None = None  # of these, in their order; None: 1 each

    def problem(self, rng: random.Random) -> Problem:
        """One random problem, from ``rng`` alone."""
        raise NotImplementedError(f"{type(self).__name__}.problem(rng) is missing")

    def correct(self, problem: Problem, completion: str) -> bool:
        """The verifier: is this completion right? It parses text; it never runs it."""
        raise NotImplementedError(f"{type(self).__name__}.correct(...) is missing")

    def reward(self, problem: Problem, completion: str) -> float | None:
        """The number that GRPO maximises: 1 for a right completion, else 0.

        One of your own may return None to abstain, as in TRL: the completion then leaves its
        group and is not trained on. It, and ``correct``, may also be ``async def``.
        """
        if self.reward_funcs:
            total = self.rewards([problem], [completion], [True]).item()
            return None if math.isnan(total) else total
        right = self.correct(problem, completion)  # or what will be, if that is async
        number = one_number(right)
        return right if number is None else float(number)

    def example(self, problem: Problem, rng: random.Random, style: Style) -> str:
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

    def problems(self, count: int, rng: random.Random, split: Split = "train") -> list[Problem]:
        """``count`` problems of a split: "train" or "held_out". No prompt is in both (but with
        ``holds_out = False`` every prompt is)."""
        if split not in ("train", "held_out"):
            raise ValueError(f"split: got {split!r}, allowed are 'train' and 'held_out'")
        count = check_whole("count", count, 1)
        chosen: list[Problem] = []
        for _ in range(1000 * count):
            problem = self.problem(rng)
            if not self.holds_out or is_held_out(problem.prompt) == (split == "held_out"):
                chosen.append(problem)
            if len(chosen) == count:
                return chosen
        raise ValueError(f"split: of {1000 * count} problems of {type(self).__name__} only "
                         f"{len(chosen)} are in {split!r}; allowed is a task with more "
                         f"different prompts, or one with holds_out = False, whose prompts are "
                         f"all trained on and measured on")

    def held_out(self, count: int = 1000) -> list[Problem]:
        """The first ``count`` of the fixed list of held-out problems, the same every time.

        All are different, so that they count as independent. With ``holds_out = False`` they are
        problems that are trained on, which a warning says, and fewer if there are no more.
        """
        rng, found = random.Random(2402_03300), {}
        count = check_whole("count", count, 1)
        if not self.holds_out:
            warnings.warn(f"held_out: {type(self).__name__} holds no prompt out, so accuracy is "
                          f"measured on problems that are trained on", stacklevel=2)
            found = {problem.prompt: problem for problem in self.problems(100 * count, rng)}
            return list(found.values())[:count]
        for _ in range(100 * count):
            [problem] = self.problems(1, rng, "held_out")
            found.setdefault(problem.prompt, problem)
            if len(found) == count:
                return list(found.values())
        raise ValueError(f"count: got {count}, but {type(self).__name__} seems to have only "
                         f"{len(found)} different held-out problems; must be at most that many "
                         f"(eval_problems in GRPOConfig, --held-out), or set holds_out = False on "
                         f"the task, to measure on the problems that are trained on")

    def rewards(self, problems: Sequence[Problem], completions: Sequence[str],
                finished: Sequence[bool]) -> Tensor:
        """Rewards (N, G) of N problems' completions, given row by row (n * G + g); nan where the
        reward abstained. With several rewards: the weighted sum of those that did not.

        A completion that was cut off (no end-of-sequence) has no final answer: 0. (So a
        task with negative rewards teaches never to finish; keep rewards from 0 up.)
        """
        if self.reward_funcs:
            return weighted(self.reward_parts(problems, completions, finished),
                            self.reward_weights)
        return self._each("reward", problems, completions, finished)

    def grades(self, problems: Sequence[Problem], completions: Sequence[str],
               finished: Sequence[bool]) -> Tensor:
        """1 where the verifier says right, else 0: (N, G), whatever the reward is."""
        return self._each("correct", problems, completions, finished)

    def scores(self, problems: Sequence[Problem], completions: Sequence[str],
               finished: Sequence[bool]) -> Scores:
        """Rewards, grades and, of several rewards, each of them. TypeError, ValueError: a
        ``rewards`` or ``grades`` of one's own returns something else than finite numbers (N, G),
        of any number type."""
        parts, own = {}, vars(self).get("rewards", type(self).rewards) is not Task.rewards
        if self.reward_funcs and not own:
            parts = self.reward_parts(problems, completions, finished)
            rewards = weighted(parts, self.reward_weights)
        else:
            rewards = self.rewards(problems, completions, finished)
        grades = self.grades(problems, completions, finished)
        shape = (len(problems), len(completions) // len(problems))
        rewards = check_scores(f"{type(self).__name__}.rewards", rewards, shape, abstains=not own)
        grades = check_scores(f"{type(self).__name__}.grades", grades, shape, abstains=False)
        return Scores(rewards, grades, parts)

    def reward_parts(self, problems: Sequence[Problem], completions: Sequence[str],
                     finished: Sequence[bool]) -> dict[str, Tensor]:
        """The several rewards by name, before they are weighed: (N, G) each."""
        functions = self.reward_funcs or {}
        scores = scores_of({f"reward: {name}": function for name, function in functions.items()},
                           problems, completions, finished, abstains=True)
        return {name: torch.tensor(row).view(len(problems), -1)
                for name, row in zip(functions, scores)}

    def _each(self, name: str, problems, completions, finished) -> Tensor:
        said = f"{name}: {type(self).__name__}.{name}"
        [scores] = scores_of({said: getattr(self, name)}, problems, completions, finished,
                             abstains=name == "reward")
        return torch.tensor(scores).view(len(problems), -1)

    def with_reward(self, reward: Callable | Sequence[Callable] | Mapping[str, Callable],
                    reward_weights: Sequence[float] | None = None) -> Task:
        """The same task with another reward; ``correct`` still tells the truth.

        ``reward``: a function (problem, completion) -> number, or None to abstain. Or several, as
        a list or as a dict of name: function: their weighted sum is the reward, and each has its
        metrics ``rewards/<name>/mean`` and ``rewards/<name>/std``. ``reward_weights``: a number
        for each of several; None: 1 each. (The names are TRL's.)
        """
        changed = copy.copy(self)
        if callable(reward):
            if reward_weights is not None:
                raise ValueError(f"reward_weights: got {reward_weights!r} with a single reward, "
                                 f"allowed is None")
            changed.reward_funcs = changed.reward_weights = None
            changed.reward = reward  # type: ignore[method-assign]  # of this copy alone
            return changed
        changed.reward_funcs = reward_functions(reward)
        changed.reward_weights = check_weights(reward_weights, list(changed.reward_funcs))
        changed.reward = partial(Task.reward, changed)  # type: ignore[method-assign]  # as above
        return changed


def is_held_out(prompt: str) -> bool:
    """Which split a prompt belongs to: a fixed function of its text, so that pre-training,
    RL and every seed agree without sharing a list."""
    return zlib.crc32(prompt.encode()) % HELD_OUT_SHARE == 0
