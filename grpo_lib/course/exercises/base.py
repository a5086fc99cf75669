"""How a learner's function is judged against the right one, and told what is wrong.

A mistake is recognised by what a function *does*: the reference is written so that each named
fault can be put into it, and a learner's function that agrees with the faulty reference on every
case has made that mistake. Its source text is never read.
"""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import re
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from grpo_lib.course.exercises.comparing import (
    NOTHING,
    SHOWN,
    Answer,
    Unanswered,
    WrongKind,
    alike,
    as_number,
    as_tensor,
    changed_input,
    close,
    cut,
    first_difference,
    is_half,
    joined,
    place,
    same,
    short,
)
from grpo_lib.course.exercises.running import LIMIT, OutOfTime, Printed, run_apart

# What a function still to be written is made of, as Python compiles it.
EMPTY = {"RESUME", "NOP", "LOAD_CONST", "LOAD_SMALL_INT", "RETURN_CONST", "RETURN_VALUE", "POP_TOP"}
LONGEST = 300  # letters of an error's message

Faults = frozenset[str]
Cases = Iterable[tuple[str, tuple]]


@dataclass(frozen=True)
class Mistake:
    """What can be wrong with an answer; ``legitimate``: right elsewhere, but not asked for.

    ``ways``: other faults of the reference that are the same mistake, written differently.
    """

    name: str
    says: str
    read: str
    legitimate: bool = False
    ways: tuple[str, ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.name, *self.ways)


@dataclass(frozen=True)
class Verdict:
    """What a checker says. True where the answer is right.

    ``status``: "right", "not attempted", "wrong", "another choice" or "error"; ``mistake``: the
    name of what was recognised, if anything was.
    """

    status: str
    text: str
    mistake: str | None = None

    def __bool__(self) -> bool:
        return self.status == "right"

    def __str__(self) -> str:
        """The text in lines of at most 100 letters; what is set in stays as it is."""
        return "\n".join(line if line.startswith("  ") else textwrap.fill(
            line, 100, break_long_words=False, break_on_hyphens=False)
            for line in self.text.splitlines())

    def _repr_pretty_(self, printer, cycle: bool) -> None:
        printer.text(str(self))


def never_raises(check: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """A checker that answers whatever it is given: a learner never sees its stack trace."""
    @functools.wraps(check)
    def guarded(self, *arguments, **options) -> Verdict:
        try:
            return check(self, *arguments, **options)
        except Exception as error:
            return Verdict("error", f"{self.name}: this cannot be judged ({told(error)}).")

    return guarded


@dataclass(frozen=True)
class Exercise:
    """A function to write.

    ``write(faults)`` gives the reference with the named faults in it; ``cases()`` gives
    (name, arguments), smallest first, and new arguments each time. ``gradient_of`` is the place
    of an argument by which the gradient counts too, as ``second`` calls it: with
    ``gradient_asked`` always, otherwise where the output has one. ``rtol``: differences so small,
    relatively, are another guard against 0 / 0 and no mistake. ``solution`` is a cell that solves
    it.
    """

    name: str
    lesson: str
    task: str
    write: Callable[[Faults], Callable]
    cases: Callable[[], Cases]
    mistakes: Sequence[Mistake]
    solution: str
    gradient_of: int | None = None
    gradient_asked: bool = False
    second: str = "gradient"
    rtol: float = 0.0

    @property
    def reference(self) -> Callable:
        return self.write(frozenset())

    def answers(self, function: Callable) -> list[Answer | Exception]:
        """What a function gives for every case; where it raises, what it raises."""
        found: list[Answer | Exception] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _, arguments in self.cases():
                try:
                    found.append(self.answer(function, arguments))
                except Exception as error:
                    found.append(error)
        return found

    @torch.enable_grad()
    def answer(self, function: Callable, arguments: tuple) -> Answer:
        if self.gradient_of is None:
            return Answer(as_tensor(function(*arguments)))
        try:
            return self.with_gradient(function, arguments)
        except Exception:
            if self.gradient_asked:
                raise
        return Answer(as_tensor(function(*arguments)))  # by numpy, or in place: its value counts

    def with_gradient(self, function: Callable, arguments: tuple) -> Answer:
        """The value, and its gradient, 0 or (where it is not asked for) None without a graph."""
        leaf = arguments[self.gradient_of].clone().requires_grad_()
        passed = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        passed[self.gradient_of] = leaf.clone()  # no leaf: it may be changed in place
        value = joined(function(*passed))
        gradient = torch.zeros_like(leaf) if self.gradient_asked else None
        if value.requires_grad:
            [gradient] = torch.autograd.grad(value.sum(), leaf, materialize_grads=True)
        for given, after in zip(arguments, passed):
            if isinstance(given, Tensor):
                given.data = after.detach()  # as the function left it
        return Answer(value.detach().clone(), gradient)

    @never_raises
    def check(self, function: Callable, limit: float = LIMIT) -> Verdict:
        """Run a learner's function on all cases and say what came of it."""
        tried = self.tried(function, limit)
        return tried if isinstance(tried, Verdict) else self.judge(*tried)

    def tried(self, function: Callable,
              limit: float = LIMIT) -> Verdict | tuple[list[Answer], str]:
        """A learner's answers to all cases, and notes on them; or what kept them from coming."""
        if not callable(function):
            return Verdict("error", f"{self.name}: got {short(function)}, allowed is a function. "
                                    f"{self.task}")
        printed = Printed()
        found: list[Answer] = []
        given, before = ([a for _, a in self.cases()] for _ in range(2))

        def run():
            for arguments in given:
                found.append(self.answer(function, arguments))

        try:
            run_apart(run, limit, printed, own_globals(function))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self.failed(function, error, len(found), limit)
        changed = next(filter(None, map(changed_input, given, before)), "")
        notes = (f" It changes its argument{changed}: others may still need it." if changed else "")
        if self.gradient_of is not None and any(a.gradient is None for a in found):
            notes += (" No gradient passes through it: with it in a loss, nothing would be "
                      "learned.")
        if printed.anything:
            notes += (f" (It printed {printed.lines} line{'s' * (printed.lines != 1)}, left out "
                      f"here.)")
        return found, notes

    def failed(self, function: Callable, error: BaseException, number: int,
               limit: float) -> Verdict:
        """What to say of a function that raised something on the case of this number."""
        on = f"on the case \"{self.case_name(number)}\""
        if (isinstance(error, Unanswered) and number == 0 and is_empty(function)) or (
                isinstance(error, NotImplementedError) and raised_by(error, function)):
            return Verdict("not attempted", f"{self.name}: not attempted yet; the lesson goes on "
                                            f"with the library's version.")
        if isinstance(error, Unanswered):
            return Verdict("error", f"{self.name}: it returned {error} {on}, allowed is a tensor, "
                                    f"an array, a number or a list of these. Is a `return` "
                                    f"missing?")
        if isinstance(error, OutOfTime):
            return Verdict("error", f"{self.name}: stopped after {limit:g} s, {on}. Is there a "
                                    f"loop that never ends?")
        if isinstance(error, WrongKind):
            return Verdict("error", f"{self.name}: {error}, {on}.")
        text = told(error)
        device = (" The arguments are on the CPU: the function is to work there."
                  if re.search("cuda|device", text, re.IGNORECASE) else "")
        return Verdict("error", f"{self.name}: raised {text} {where(error, function)}{on}."
                                f"{device}")

    def judge(self, found: Sequence[Answer], notes: str) -> Verdict:
        wanted = self.answers(self.reference)
        first = next((i for i, (a, b) in enumerate(zip(found, wanted))
                      if not same(a, b, self.rtol)), None)
        if first is None:
            return Verdict("right", f"{self.name}: right, on {len(found)} cases.{notes}")
        if any(map(is_half, found)) and alike(found, wanted, self.rtol, coarse=True):
            return Verdict("error", f"{self.name}: it returned {found[first].value.dtype}, which "
                                    f"is too coarse to judge; allowed are float32 and "
                                    f"float64.{notes}")
        text = (f"{self.name}: not yet. Smallest case where it goes wrong, "
                f"\"{self.case_name(first)}\":\n{self.show(first, found[first], wanted[first])}")
        mistake = self.recognise(found)
        if mistake is None:
            return Verdict("wrong", f"{text}\nThis is none of the mistakes known here: compare the "
                                    f"two numbers by hand.{notes}")
        if mistake.legitimate:
            return Verdict("another choice", f"{text}\nNo mistake elsewhere, but not what is asked "
                                             f"here: {mistake.says} ({mistake.read}){notes}",
                           mistake.name)
        return Verdict("wrong", f"{text}\nIt looks like this: {mistake.says} Read "
                                f"{mistake.read}.{notes}", mistake.name)

    def recognise(self, found: Sequence[Answer]) -> Mistake | None:
        """The mistake whose faulty reference gives the same on every case."""
        for mistake in self.mistakes:
            for way in mistake.spellings:
                if self.does(found, frozenset([way])):
                    return mistake
        return None

    def does(self, found: Sequence[Answer], faults: Faults) -> bool:
        """Whether these are the answers of the reference with these faults in it."""
        return alike(found, self.answers(self.write(faults)), self.rtol,
                     coarse=any(map(is_half, found)))

    def case_name(self, number: int) -> str:
        return list(self.cases())[number][0]

    def show(self, number: int, got: Answer, wanted: Answer) -> str:
        """The case's arguments, the learner's numbers, the right ones; of many the first that
        differs."""
        arguments = list(self.cases())[number][1]
        lines = [f"  given     {', '.join(map(short, arguments))}"]
        if got.value.shape != wanted.value.shape:
            lines += [f"  yours     of shape {tuple(got.value.shape)}: {short(got.value)}",
                      f"  right     of shape {tuple(wanted.value.shape)}: {short(wanted.value)}"]
            return "\n".join(lines)
        pair, dtypes, name = (got.value, wanted.value), (), "entry"
        if close(*pair, (), self.rtol) and got.gradient is not None:
            lines.append(f"  value     {short(got.value)}, which is right; its {self.second} "
                         f"is not:")
            pair, dtypes = (got.gradient, wanted.gradient), (got.value.dtype,)
            name = self.second
        if wanted.parts or pair[1].numel() > SHOWN:
            at = first_difference(*pair, dtypes, self.rtol)
            lines.append(f"  where     {place(at, pair[1].shape, wanted.parts, name)}, the first "
                         f"number that differs")
            pair = tuple(numbers.flatten()[at] for numbers in pair)
        digits = next((d for d in (4, 7, 10) if short(pair[0], d) != short(pair[1], d)), 4)
        lines += [f"  yours     {short(pair[0], digits)}",
                  f"  right     {short(pair[1], digits)}"]
        return "\n".join(lines)


@dataclass(frozen=True)
class Repair(Exercise):
    """A function to mend: ``broken`` is its source, with the mistakes ``faults`` in it.

    As it was is "not attempted"; with some of its faults mended, the first that is left is named.
    ``shows(function)`` runs it and says in a line how that went.
    """

    broken: str = ""
    faults: tuple[str, ...] = ()
    shows: Callable[[Callable], str] | None = None

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
        if self.does(found, frozenset(self.faults)):
            one = len(self.faults) == 1
            return Verdict("not attempted", f"{self.name}: not attempted yet, it does what it did. "
                           f"{'1 fault is' if one else f'{len(self.faults)} faults are'} in it.",
                           self.faults[0] if one else None)
        return super().judge(found, notes)

    def recognise(self, found: Sequence[Answer]) -> Mistake | None:
        """A mistake alone; or, of the faults that it came with, the first of those left."""
        alone = super().recognise(found)
        if alone is not None:
            return alone
        for left in itertools.combinations(self.faults, len(self.faults) - 1):
            if self.does(found, frozenset(left)):
                return next(m for m in self.mistakes if m.name == left[0])
        return None


@dataclass(frozen=True)
class Question:
    """A number to predict, within ``tolerance``; ``wrong``: numbers that tell a mistake."""

    name: str
    lesson: str
    task: str
    answer: float
    tolerance: float
    wrong: Sequence[tuple[float, Mistake]]

    @property
    def mistakes(self) -> list[Mistake]:
        return [mistake for _, mistake in self.wrong]

    @property
    def solution(self) -> str:
        return f"{self.name} = {self.answer:.6g}"

    @never_raises
    def check(self, guess: object) -> Verdict:
        """Say whether a number is right."""
        if any(guess is nothing for nothing in NOTHING):
            return Verdict("not attempted", f"{self.name}: not attempted yet.")
        given, guess = guess, as_number(guess)
        if guess is None:
            return Verdict("error", f"{self.name}: got {short(given)}, allowed is a number. "
                                    f"{self.task}")
        if abs(guess - self.answer) <= self.tolerance:
            return Verdict("right", f"{self.name}: right ({self.answer:.4g}).")
        for number, mistake in self.wrong:
            if abs(guess - number) <= self.tolerance:
                return Verdict("wrong", f"{self.name}: not yet. It looks like this: {mistake.says} "
                                        f"Read {mistake.read}.", mistake.name)
        return Verdict("wrong", f"{self.name}: not yet; {guess:.4g} is too "
                                f"{'large' if guess > self.answer else 'small'}.")


@dataclass(frozen=True)
class CurveQuestion:
    """Which fault made these curves? ``answers`` cannot be told from each other by them;
    ``shows[fault]`` is how each fault would look."""

    name: str
    lesson: str
    task: str
    answers: frozenset[str]
    shows: Mapping[str, str]
    mistakes: Sequence[Mistake] = ()

    @property
    def solution(self) -> str:
        return f"{self.name} = {sorted(self.answers)[-1]!r}"

    @never_raises
    def check(self, guess: object) -> Verdict:
        """Say whether the name of a fault is right."""
        if any(guess is nothing for nothing in NOTHING):
            return Verdict("not attempted", f"{self.name}: not attempted yet.")
        if isinstance(guess, np.ndarray) and guess.ndim == 0:
            guess = guess.item()
        if not isinstance(guess, str) or guess not in self.shows:
            return Verdict("error", f"{self.name}: got {short(guess)}, allowed is one of "
                                    f"{', '.join(map(repr, self.shows))}.")
        alike = sorted(self.answers - {guess})
        if guess in self.answers:
            also = (f" So may be {' and '.join(map(repr, alike))}: these curves cannot tell them "
                    f"apart, only a test of the function can." if alike else "")
            return Verdict("right", f"{self.name}: right: {self.shows[guess]}.{also}")
        return Verdict("wrong", f"{self.name}: not yet. With {guess!r} one would see this: "
                                f"{self.shows[guess]}.", str(guess))


# --- a learner's function -------------------------------------------------------------------

def own_globals(function: Callable) -> dict:
    """Those of the cell that it was written in."""
    return getattr(inspect.unwrap(function), "__globals__", {})


def is_empty(function: Callable) -> bool:
    """Whether nothing stands in it but ``...``, ``pass``, a text or a constant to return."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and all(
        step.opname in EMPTY or step.argval in ("NotImplemented", "Ellipsis")
        for step in dis.get_instructions(code))


def raised_by(error: BaseException, function: Callable) -> bool:
    """Whether a ``raise`` in the learner's own cell made this error, and not something that was
    called there."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return (last is not None and last.tb_frame.f_globals is own_globals(function)
            and last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"])


def told(error: BaseException) -> str:
    """An error's kind and message, cut where that is long."""
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    return cut(f"{type(error).__name__}: {message}", LONGEST)


def where(error: BaseException, function: Callable) -> str:
    """"in line 3 of its cell " where that can be told: the last one that was reached there."""
    cell = getattr(getattr(function, "__code__", None), "co_filename", None)
    reached = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        reached = line if frame.f_code.co_filename == cell else reached
    return "" if reached is None else f"in line {reached} of its cell "
