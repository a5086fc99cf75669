"""Quiz: recorded runs, each with a fault in it or none. Which made these curves?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grpo_lib.course.exercises.base import Mistake, Verdict, never_raises
from grpo_lib.course.exercises.comparing import NOTHING, short
from grpo_lib.course.exercises.faulty import FAULTS, SILENT
from grpo_lib.course.plots import FONT, Picture, training_curves
from grpo_lib.course.recorded import load

PANELS = ("accuracy", "length", "entropy", "kl", "clip")
RUNS = {"curves_a": ("reference for old", 0), "curves_b": ("sign", 1),
        "curves_c": ("other temperature", 2), "curves_d": ("end masked out", 0)}
# (fault and seed of the recorded run)


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


def run_of(fault: str, seed: int) -> dict:
    """A run of the log "broken". ValueError: there is none."""
    for run in load("broken")["runs"]:
        if (run["fault"], run["seed"]) == (fault, seed):
            return run
    raise ValueError(f"fault, seed: got {fault!r}, {seed!r}; allowed are those of load('broken')")


def steps_of(run: dict) -> list[dict]:
    """A recorded run as a list of steps, as ``training_curves`` takes it."""
    names = [name for name, values in run.items() if isinstance(values, list)]
    return [dict(zip(names, values)) for values in zip(*(run[name] for name in names))]


def picture(fault: str, seed: int, title: str) -> Picture:
    """What the verdicts speak of in a recorded run, a panel each, and in words."""
    history = steps_of(run_of(fault, seed))
    first, last = history[0], history[-1]
    clipped = sum(m["clip_fraction_low"] + m["clip_fraction_high"] for m in history) / len(history)
    figure = training_curves(history, PANELS, title=title, columns=3)
    for axis in figure.axes:
        name_what_is_drawn(axis)
    return Picture(figure,
                   f"{title}: right {first['accuracy']:.0%} to {last['accuracy']:.0%}, length "
                   f"{first['length']:.1f} to {last['length']:.1f}, entropy {first['entropy']:.2f} "
                   f"to {last['entropy']:.2f}, KL {first['kl']:.2f} to {last['kl']:.2f}; blocked "
                   f"{clipped:.1%}", dpi=75)


def name_what_is_drawn(axis) -> None:
    """Take lines without points out of the picture and its legend: these runs measured no
    held-out problems."""
    empty = [line for line in axis.lines if not len(line.get_xdata())]
    for line in empty:
        line.remove()
    if empty and axis.get_legend() is not None:
        axis.legend(fontsize=FONT - 2, frameon=False)


def show(name: str) -> Picture:
    """The curves of a question, without its answer. ValueError lists the questions."""
    if name not in RUNS:
        raise ValueError(f"name: got {name!r}, allowed are {', '.join(RUNS)}")
    return picture(*RUNS[name], name)


def question(name: str, fault: str) -> CurveQuestion:
    answers = frozenset(SILENT if fault in SILENT else [fault])
    return CurveQuestion(
        name, "07", f"show({name!r}): which fault made these curves? One of "
                    f"{', '.join(map(repr, FAULTS))}.",
        answers, {other: FAULTS[other].shows for other in FAULTS})


EXERCISES = tuple(question(name, fault) for name, (fault, _) in RUNS.items())
