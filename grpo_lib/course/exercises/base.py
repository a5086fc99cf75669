"""Exercises that ask for a function: how an answer is judged, and its mistake named.

The solution's text is the only source: the reference is that text executed, and a mistake is a
patch of it. A mistake is recognised by what a function *does*: if it agrees with the patched
solution on every case, it has made that mistake. A learner's source text is never read.
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_lib.course.exercises.comparing import (
    Answer,
    Unanswered,
    WrongKind,
    alike,
    as_tensor,
    changed_input,
    is_half,
    joined,
    same,
    short,
)
from grpo_lib.course.exercises.judging import (
    counterexample,
    is_empty,
    own_globals,
    raised_by,
    told,
    where,
)
from grpo_lib.course.exercises.running import LIMIT, OutOfTime, Printed, run_apart

Patch = tuple[str, str] | tuple[tuple[str, str], ...]  # (old, new), or several that go together
Cases = Iterable[tuple[str, tuple]]


@dataclass(frozen=True)
class Mistake:
    """What can be wrong with an answer.

    Args:
        name: for teachers and tests
        says: what learners are told
        patch: puts it into the solution's text
        read: the section to read, if it is not the one that the exercise names
        legitimate: it is right elsewhere, but not what is asked for
        ways: other patches, for the same mistake written differently
    """

    name: str
    says: str
    patch: Patch = ()
    read: str = ""
    legitimate: bool = False
    ways: tuple[Patch, ...] = ()


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


def with_reading(mistakes: Iterable[Mistake], read: str) -> tuple[Mistake, ...]:
    """The mistakes, with ``read`` where they name nothing themselves."""
    return tuple(replace(mistake, read=mistake.read or read) for mistake in mistakes)


def never_raises(check: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """A checker that answers whatever it is given: a learner never sees its stack trace."""
    @functools.wraps(check)
    def guarded(self, *arguments, **options) -> Verdict:
        try:
            return check(self, *arguments, **options)
        except Exception as error:
            return Verdict("error", f"{self.name}: this cannot be judged ({told(error)}).")

    return guarded


# --- a solution's text, and patches of it ---------------------------------------------------------

def patched(text: str, *patches: Patch) -> str:
    """The text with each ``old`` replaced by its ``new``, one after the other. ValueError: an
    ``old`` does not occur exactly once."""
    if () in patches:
        raise ValueError("there is no patch")
    for patch in patches:
        for old, new in [patch] if isinstance(patch[0], str) else patch:
            if text.count(old) != 1:
                raise ValueError(f"{old!r} occurs {text.count(old)} times, must occur exactly "
                                 f"once in\n{text}")
            text = text.replace(old, new)
    return text


@functools.cache
def defined(name: str, text: str) -> Callable:
    """The function of this name that a text defines; it may use math, re and torch."""
    names = {"math": math, "re": re, "torch": torch}
    exec(compile(text, f"<{name}>", "exec"), names)
    if name not in names:
        raise ValueError(f"no {name} is defined in\n{text}")
    return names[name]


@dataclass(frozen=True)
class Exercise:
    """A function to write. ValueError: a mistake's patch does not fit the solution.

    Args:
        read: the section that its mistakes send to, where they name none themselves
        solution: a cell that solves it; the reference is this text, executed
        cases: gives (name, arguments), smallest first, and new arguments each time
        gradient_of: the place of an argument by which the gradient counts too, if the output has
            one
        gradient_asked: the output must have one
        second: what a counterexample calls the gradient
        rtol: a relative difference that comes of another guard against 0 / 0, and is no mistake
    """

    name: str
    lesson: str
    read: str
    task: str
    solution: str
    cases: Callable[[], Cases]
    mistakes: Sequence[Mistake]
    gradient_of: int | None = None
    gradient_asked: bool = False
    second: str = "gradient"
    rtol: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "mistakes", with_reading(self.mistakes, self.read))
        for mistake in self.mistakes:
            try:
                for patch in (mistake.patch, *mistake.ways):
                    self.version(patch)
            except (ValueError, SyntaxError) as error:
                raise ValueError(f"{self.name}, mistake {mistake.name!r}: {error}") from None

    @property
    def reference(self) -> Callable:
        return self.version()

    def version(self, *patches: Patch) -> Callable:
        """The solution's function, patched."""
        return defined(self.name, patched(self.solution, *patches))

    def patches(self, *names: str) -> list[Patch]:
        """Those of the mistakes of these names."""
        by_name = {mistake.name: mistake.patch for mistake in self.mistakes}
        return [by_name[name] for name in names]

    def wrong(self, *names: str) -> Callable:
        """The solution's function with the mistakes of these names in it."""
        return self.version(*self.patches(*names))

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
        return found, self.notes(found, changed, printed)

    def notes(self, found: Sequence[Answer], changed: str, printed: Printed) -> str:
        """What there is to say of a function besides whether its answers are right."""
        notes = (f" It changes its argument{changed}: others may still need it." if changed else "")
        if self.gradient_of is not None and any(a.gradient is None for a in found):
            notes += (" No gradient passes through it: with it in a loss, nothing would be "
                      "learned.")
        if printed.anything:
            notes += (f" (It printed {printed.lines} line{'s' * (printed.lines != 1)}, left out "
                      f"here.)")
        return notes

    def failed(self, function: Callable, error: BaseException, number: int,
               limit: float) -> Verdict:
        """What to say of a function that raised something on the case of this number."""
        on = f"on the case \"{self.case_name(number)}\""
        if (isinstance(error, Unanswered) and number == 0 and is_empty(function)) or (
                isinstance(error, NotImplementedError) and raised_by(error, function)):
            return Verdict("not attempted", f"{self.name}: not attempted yet; the lesson goes on "
                                            f"with the library's version.")
        if isinstance(error, Unanswered):
            says = (f"it returned {error} {on}, allowed is a tensor, an array, a number or a list "
                    f"of these. Is a `return` missing?")
        elif isinstance(error, OutOfTime):
            says = f"stopped after {limit:g} s, {on}. Is there a loop that never ends?"
        elif isinstance(error, WrongKind):
            says = f"{error}, {on}."
        else:
            text = told(error)
            says = f"raised {text} {where(error, function)}{on}."
            if re.search("cuda|device", text, re.IGNORECASE):
                says += " The arguments are on the CPU: the function is to work there."
        return Verdict("error", f"{self.name}: {says}")

    def judge(self, found: Sequence[Answer], notes: str) -> Verdict:
        """The verdict on the answers to all cases."""
        wanted = self.answers(self.reference)
        first = next((i for i, (a, b) in enumerate(zip(found, wanted))
                      if not same(a, b, self.rtol)), None)
        if first is None:
            return Verdict("right", f"{self.name}: right, on {len(found)} cases.{notes}")
        if any(map(is_half, found)) and alike(found, wanted, self.rtol, coarse=True):
            return Verdict("error", f"{self.name}: it returned {found[first].value.dtype}, which "
                                    f"is too coarse to judge; allowed are float32 and "
                                    f"float64.{notes}")
        name, arguments = list(self.cases())[first]
        shown = counterexample(arguments, found[first], wanted[first], self.rtol, self.second)
        text = (f"{self.name}: not yet. Smallest case where it goes wrong, \"{name}\":\n{shown}\n")
        mistake, status = self.recognise(found), "wrong"
        if mistake is None:
            text += ("This is none of the mistakes known here: compare the two numbers by "
                     "hand.")
        elif mistake.legitimate:
            status = "another choice"
            text += (f"No mistake elsewhere, but not what is asked here: {mistake.says} "
                     f"({mistake.read})")
        else:
            text += f"It looks like this: {mistake.says} Read {mistake.read}."
        return Verdict(status, text + notes, mistake.name if mistake else None)

    def recognise(self, found: Sequence[Answer]) -> Mistake | None:
        """The mistake with which the solution gives the same on every case."""
        return next((mistake for mistake in self.mistakes
                     for way in (mistake.patch, *mistake.ways)
                     if self.does(found, way)), None)

    def does(self, found: Sequence[Answer], *patches: Patch) -> bool:
        """Whether these are the answers of the solution, patched."""
        return alike(found, self.answers(self.version(*patches)), self.rtol,
                     coarse=any(map(is_half, found)))

    def case_name(self, number: int) -> str:
        return list(self.cases())[number][0]
