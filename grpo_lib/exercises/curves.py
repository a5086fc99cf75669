"""Quiz: recorded runs, each with a fault in it or none. Which made these curves?"""

from __future__ import annotations

from grpo_lib.exercises.base import CurveQuestion
from grpo_lib.exercises.faulty import FAULTS, SILENT
from grpo_lib.plots import Picture, training_curves
from grpo_lib.recorded import load

PANELS = ("accuracy", "entropy", "clip")
RUNS = {"curves_a": ("reference for old", 0), "curves_b": ("sign", 1),
        "curves_c": ("other temperature", 2), "curves_d": ("end masked out", 0)}
# (fault and seed of the recorded run)


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
    """Four panels of a recorded run, with what they show in words."""
    history = steps_of(run_of(fault, seed))
    first, last = history[0], history[-1]
    clipped = sum(m["clip_fraction_low"] + m["clip_fraction_high"] for m in history) / len(history)
    return Picture(training_curves(history, PANELS, title=title),
                   f"{title}: right {first['accuracy']:.0%} to {last['accuracy']:.0%}, length "
                   f"{first['length']:.1f} to {last['length']:.1f}, entropy {first['entropy']:.2f} "
                   f"to {last['entropy']:.2f}; blocked {clipped:.1%}", dpi=75)


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
