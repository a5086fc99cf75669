"""How a learner's function is run, compared with the right one, and told what is wrong.

A mistake is recognised by what a function *does*: the reference is written so that each named
fault can be put into it, and a learner's function that agrees with the faulty reference on every
case has made that mistake. Its source text is never read.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import re
import signal
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

LIMIT = 10.0  # seconds that a learner's function may take over all cases
NOTHING = (None, Ellipsis, NotImplemented)
TOLERANCES = {torch.float64: (1e-6, 1e-8), torch.float32: (1e-4, 1e-5),
              torch.float16: (2e-2, 2e-3), torch.bfloat16: (5e-2, 5e-3)}

Faults = frozenset[str]
Cases = Iterable[tuple[str, tuple]]


@dataclass(frozen=True)
class Mistake:
    """What can be wrong with an answer; ``legitimate``: right elsewhere, but not asked for."""

    name: str
    says: str
    read: str
    legitimate: bool = False


class Answer(NamedTuple):
    """What a function gave for one case: its value, and the gradient where that counts."""

    value: Tensor
    gradient: Tensor | None = None


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


@dataclass(frozen=True)
class Exercise:
    """A function to write.

    ``write(faults)`` gives the reference with the named faults in it; ``cases()`` gives
    (name, arguments), smallest first, and new arguments each time. ``gradient_of`` is the place
    of an argument by which the gradient counts too, as ``second`` calls it. ``solution`` is a
    cell that solves it.
    """

    name: str
    lesson: str
    task: str
    write: Callable[[Faults], Callable]
    cases: Callable[[], Cases]
    mistakes: Sequence[Mistake]
    solution: str
    gradient_of: int | None = None
    second: str = "gradient"

    @property
    def reference(self) -> Callable:
        return self.write(frozenset())

    def answers(self, function: Callable) -> list[Answer | Exception]:
        """What a function gives for every case; where it raises, what it raises."""
        found: list[Answer | Exception] = []
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
        leaf = arguments[self.gradient_of].clone().requires_grad_()
        arguments = (*arguments[: self.gradient_of], leaf, *arguments[self.gradient_of + 1:])
        value = function(*arguments)
        gradient = torch.zeros_like(leaf)
        if isinstance(value, Tensor) and value.requires_grad:
            gradient = torch.autograd.grad(value.sum(), leaf, materialize_grads=True)[0]
        return Answer(as_tensor(value), gradient)

    def check(self, function: Callable, limit: float = LIMIT) -> Verdict:
        """Run a learner's function on all cases and say what came of it."""
        if not callable(function):
            return Verdict("error", f"{self.name}: got {short(function)}, allowed is a function. "
                                    f"{self.task}")
        printed = io.StringIO()
        found: list[Answer] = []
        changed = ""
        try:
            with apart(limit, printed):
                for (_, arguments), (_, before) in zip(self.cases(), self.cases()):
                    found.append(self.answer(function, arguments))
                    changed = changed or changed_input(arguments, before)
        except (Unanswered, NotImplementedError):
            return Verdict("not attempted", f"{self.name}: not attempted yet; the lesson goes on "
                                            f"with the library's version.")
        except OutOfTime:
            return Verdict("error", f"{self.name}: stopped after {limit:g} s, on the case "
                                    f"\"{self.case_name(len(found))}\". Is there a loop that "
                                    f"never ends?")
        except KeyboardInterrupt:
            raise
        except WrongKind as error:
            return Verdict("error", f"{self.name}: {error}, on the case "
                                    f"\"{self.case_name(len(found))}\".")
        except BaseException as error:
            device = (" The arguments are on the CPU: the function is to work there."
                      if re.search("cuda|device", str(error), re.IGNORECASE) else "")
            return Verdict("error", f"{self.name}: raised {type(error).__name__}: {error} "
                                    f"{where(error, function)}on the case "
                                    f"\"{self.case_name(len(found))}\".{device}")
        notes = (f" It changes its argument{changed}: others may still need it." if changed else "")
        if printed.getvalue():
            lines = printed.getvalue().count("\n")
            notes += f" (It printed {lines} line{'s' * (lines != 1)}, left out here.)"
        return self.judge(found, notes)

    def judge(self, found: Sequence[Answer], notes: str) -> Verdict:
        wanted = self.answers(self.reference)
        first = next((i for i, (a, b) in enumerate(zip(found, wanted)) if not same(a, b)), None)
        if first is None:
            return Verdict("right", f"{self.name}: right, on {len(found)} cases.{notes}")
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
            if alike(found, self.answers(self.write(frozenset([mistake.name])))):
                return mistake
        return None

    def case_name(self, number: int) -> str:
        return list(self.cases())[number][0]

    def show(self, number: int, got: Answer, wanted: Answer) -> str:
        """The case's arguments, the learner's numbers, the right ones."""
        arguments = list(self.cases())[number][1]
        lines = [f"  given     {', '.join(map(short, arguments))}"]
        if got.value.shape != wanted.value.shape:
            lines += [f"  yours     of shape {tuple(got.value.shape)}: {short(got.value)}",
                      f"  right     of shape {tuple(wanted.value.shape)}: {short(wanted.value)}"]
        else:
            pair = got.value, wanted.value
            if close(*pair) and got.gradient is not None:
                lines.append(f"  value     {short(got.value)}, which is right; its {self.second} "
                             f"is not:")
                pair = got.gradient, wanted.gradient
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
        if self.shows is not None and verdict.status != "error":
            with contextlib.suppress(Exception, OutOfTime), apart(limit, io.StringIO()):
                return replace(verdict, text=f"{verdict.text}\n{self.shows(function)}")
        return verdict

    def judge(self, found: Sequence[Answer], notes: str) -> Verdict:
        if alike(found, self.answers(self.write(frozenset(self.faults)))):
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
            if alike(found, self.answers(self.write(frozenset(left)))):
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

    def check(self, guess: object) -> Verdict:
        """Say whether a number is right."""
        if any(guess is nothing for nothing in NOTHING):
            return Verdict("not attempted", f"{self.name}: not attempted yet.")
        if isinstance(guess, Tensor) and guess.numel() == 1:
            guess = guess.item()
        if isinstance(guess, bool) or not isinstance(guess, (int, float)) or guess != guess:
            return Verdict("error", f"{self.name}: got {short(guess)}, allowed is a number. "
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

    def check(self, guess: object) -> Verdict:
        """Say whether the name of a fault is right."""
        if any(guess is nothing for nothing in NOTHING):
            return Verdict("not attempted", f"{self.name}: not attempted yet.")
        if guess not in self.shows:
            return Verdict("error", f"{self.name}: got {short(guess)}, allowed are "
                                    f"{', '.join(map(repr, self.shows))}.")
        alike = sorted(self.answers - {guess})
        if guess in self.answers:
            also = (f" So may be {' and '.join(map(repr, alike))}: these curves cannot tell them "
                    f"apart, only a test of the function can." if alike else "")
            return Verdict("right", f"{self.name}: right: {self.shows[guess]}.{also}")
        return Verdict("wrong", f"{self.name}: not yet. With {guess!r} one would see this: "
                                f"{self.shows[guess]}.", str(guess))


# --- comparing ------------------------------------------------------------------------------

class WrongKind(Exception):
    """The function gave what is no number at all."""


class Unanswered(Exception):
    """The function gave nothing."""


def as_tensor(value: object) -> Tensor:
    """A learner's output as a tensor on the CPU: tensors, arrays, numbers, and nested lists."""
    if any(value is nothing for nothing in NOTHING):
        raise Unanswered
    if isinstance(value, (list, tuple)):
        parts = [as_tensor(part) for part in value]
        return torch.stack(parts) if parts else torch.zeros(0)
    if not isinstance(value, Tensor):
        kind = {"dtype": torch.float64} if isinstance(value, (float, int, bool)) else {}
        try:
            value = torch.as_tensor(value, **kind)
        except (TypeError, ValueError, RuntimeError):
            if inspect.iscoroutine(value):
                value.close()  # or Python warns that nobody waited for it
            raise WrongKind(f"it returned {named(value)}, allowed is a tensor, an array, a number "
                            f"or a list of these") from None
    return value.detach().cpu()


def named(value: object) -> str:
    """A value's type with its article."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def close(a: Tensor, b: Tensor, dtypes: Sequence[torch.dtype] = ()) -> bool:
    """Equal but for the rounding of the least exact dtype, theirs or one of ``dtypes``; nan
    equals nan."""
    if a.shape != b.shape:
        return False
    rtol, atol = max(TOLERANCES.get(dtype, TOLERANCES[torch.float64])
                     for dtype in (a.dtype, b.dtype, *dtypes))
    return torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True)


def same(a: Answer | Exception, b: Answer | Exception) -> bool:
    if isinstance(a, Exception) or isinstance(b, Exception):
        return isinstance(a, Exception) and isinstance(b, Exception)
    if (a.gradient is None) != (b.gradient is None):
        return False
    return close(a.value, b.value) and (a.gradient is None or close(
        a.gradient, b.gradient, (a.value.dtype, b.value.dtype)))


def alike(some: Sequence[Answer | Exception], others: Sequence[Answer | Exception]) -> bool:
    """The same on every case."""
    return len(some) == len(others) and all(map(same, some, others))


def changed_input(after: tuple, before: tuple) -> str:
    """" 2" if the second argument is no longer what it was."""
    for number, (a, b) in enumerate(zip(after, before), start=1):
        if isinstance(a, Tensor) and not torch.equal(a.detach().nan_to_num(),
                                                     b.detach().nan_to_num()):
            return f" {number}"
    return ""


def short(value: object, digits: int = 4) -> str:
    """A value in one line, its numbers rounded to so many digits behind the point."""
    if isinstance(value, Tensor):
        numbers = value.detach().cpu()
        if numbers.numel() > 24:
            return f"a tensor {tuple(numbers.shape)}"
        return str(rounded(numbers.tolist(), digits))
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."


def rounded(value, digits: int):
    if isinstance(value, list):
        return [rounded(part, digits) for part in value]
    return round(value, digits) if isinstance(value, float) else value


def where(error: BaseException, function: Callable) -> str:
    """"in line 3 of its cell " where that can be told: the last one that was reached there."""
    cell = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == cell]
    return f"in line {lines[-1]} of its cell " if lines else ""


# --- time -----------------------------------------------------------------------------------

class OutOfTime(BaseException):
    """Past every ``except Exception`` in the learner's function."""


@contextlib.contextmanager
def apart(seconds: float, printed: io.StringIO) -> Iterator[None]:
    """A learner's function runs here: for so long at most, what it prints is caught, and the
    random numbers and the default dtype afterwards are what they were."""
    dtype = torch.get_default_dtype()
    try:
        with time_limit(seconds), contextlib.redirect_stdout(printed), \
                torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """OutOfTime in the block after so many seconds. Linux and macOS, in the main thread (where
    a notebook's cells run); elsewhere there is no limit, and the stop button is the way."""
    if not hasattr(signal, "setitimer") or (
            threading.current_thread() is not threading.main_thread()):
        yield
        return

    def stop(signum, frame):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
