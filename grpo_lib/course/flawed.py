"""Verifiers for the chain that look reasonable, and what is wrong with each.

Every one is a function (problem, completion) -> bool, as ``ChainTask.correct`` is, which is
the right one: nothing but the right digit after the first ``=>``. None of these is to train
on. A flaw shows in what a verifier accepts beside right answers, or in what it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from grpo_lib.tasks.base import Problem
from grpo_lib.tasks.chain import ChainTask


def contains(problem: Problem, completion: str) -> bool:
    """Flawed: the right digit stands anywhere, be it in a step or in a marker such as ``s4=``."""
    return problem.answer in completion


def last_digit(problem: Problem, completion: str) -> bool:
    """Flawed: the last digit of the text is right; no ``=>`` is asked for, and a corrected
    wrong answer (``=> 3 => 4``) counts."""
    digits = re.findall("[0-9]", completion)
    return digits[-1:] == [problem.answer]


def first_digit(problem: Problem, completion: str) -> bool:
    """Flawed: the first digit of the text is right; in a worked answer that is the 1 of ``s1=``."""
    digits = re.findall("[0-9]", completion)
    return digits[:1] == [problem.answer]


def first_after_arrow(problem: Problem, completion: str) -> bool:
    """Flawed: the first digit after ``=>`` is right, whatever follows it (``=> 4 7``)."""
    digits = re.findall("[0-9]", completion.partition("=>")[2])
    return digits[:1] == [problem.answer]


def any_after_arrow(problem: Problem, completion: str) -> bool:
    """Flawed: one of the words after ``=>`` is right, so that naming all ten always is."""
    return problem.answer in completion.partition("=>")[2].split()


def nothing_wrong(problem: Problem, completion: str) -> bool:
    """Flawed: what follows ``=>`` is *in* the right answer; Python finds "" in every string."""
    return completion.partition("=>")[2].strip() in problem.answer


def neat(problem: Problem, completion: str) -> bool:
    """Flawed: there is working, and the answer is what its last step came to; it never looks
    at the right answer."""
    working, _, answer = completion.partition(" => ")
    return answer != "" and working.endswith(f"={answer}")


class Verifier(NamedTuple):
    """A verifier with its name and the sentence that says what it looks at."""

    name: str
    accepts: Callable[[Problem, str], bool]
    looks_at: str


VERIFIERS = (
    Verifier("strict", ChainTask().correct, "one digit after the first =>, right, then the end"),
    Verifier("contains", contains, "the digit is anywhere in the text"),
    Verifier("last digit", last_digit, "the last digit of the text"),
    Verifier("first digit", first_digit, "the first digit of the text"),
    Verifier("first after =>", first_after_arrow, "the first digit after =>"),
    Verifier("any after =>", any_after_arrow, "one of the words after =>"),
    Verifier("nothing wrong", nothing_wrong, "the text after => is part of the right answer"),
    Verifier("neat", neat, "the answer is what the last step came to"),
)


def verdicts(problem: Problem, completion: str,
             verifiers: Sequence[Verifier] = VERIFIERS) -> list[bool]:
    """What each verifier says of a completion."""
    return [bool(verifier.accepts(problem, completion)) for verifier in verifiers]
