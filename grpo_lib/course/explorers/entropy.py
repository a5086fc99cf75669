"""Entropy against accuracy: recorded runs that became certain and right, or certain and wrong."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice
from grpo_lib.course.plots import (
    BLACK,
    BLUE,
    FONT,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    new_figure,
    panel,
)
from grpo_lib.course.recorded import by_field
from grpo_lib.support.checks import check_choice

EARLY, LAST = 5, 5  # the step that early signs are read at; steps at the end that are averaged
FIELDS = ("accuracy", "entropy", "zero_variance_groups", "silent_wrong", "unique")
SIGNS = (("accuracy", BLUE, "-", "right answers"),
         ("unique", PURPLE, "--", "different answers in a group"),
         ("zero_variance_groups", ORANGE, ":", "silent groups"),
         ("silent_wrong", BLACK, "-.", "groups that are all wrong"))
AXIS = {"ylim": (0, 1.03), "yticks": (0, 0.5, 1), "legend": "below"}


def entropy_explorer(record: Mapping, run: str | None = None) -> Explorer:
    """A menu of the settings in ``record`` (as in ``recorded.load("entropy")``): its runs among
    all runs, and the signs to watch. ``run`` is the setting to begin with (None: the first)."""
    runs = by_field(record["runs"], "name")
    run = next(iter(runs)) if run is None else run
    check_choice("run", run, runs)
    everyone = path_of(record["runs"])
    arrivals = path_of([end_of(one) for one in record["runs"]])

    def draw(run: str):
        figure, (left, right) = new_figure(2, width=10.6, height=4.9)
        left.plot(*everyone, color=GREY, linewidth=0.7, alpha=0.4)
        left.plot(*arrivals, "x", color=GREY, markersize=6, label="all settings, at the end")
        left.plot(*path_of(runs[run]), color=VERMILION, linewidth=1.8)
        left.plot(*path_of([end_of(one) for one in runs[run]]), "o", color=VERMILION,
                  markersize=9, label=run)
        panel(left, "Runs go from right to left", "entropy (nats)", "right answers",
              xlim=(0, 1.6), xticks=(0, 0.5, 1, 1.5), **AXIS)
        for field, color, style, name in SIGNS:
            middle = [statistics.median(values) for values in zip(*(o[field] for o in runs[run]))]
            right.plot(range(1, len(middle) + 1), middle, style, color=color, linewidth=2.4,
                       label=name)
        panel(right, f"Signs, median of {len(runs[run])} seeds", "step", "share",
              xlim=(1, len(middle)), xticks=(1, 5, 15, 25), ncols=2,
              fontsize=FONT - 2, **AXIS)
        return figure, describe(run, runs[run])

    return Explorer(draw, run=choice("run", run, list(runs)))


def path_of(runs: Sequence[Mapping]) -> tuple[list, list]:
    """Entropy and accuracy of all steps of some runs, as one line with gaps between the runs."""
    return tuple([value for run in runs for value in (*listed(run[field]), float("nan"))]
                 for field in ("entropy", "accuracy"))


def listed(value) -> list:
    return value if isinstance(value, list) else [value]


def end_of(run: Mapping) -> dict[str, float]:
    """Means over the last steps."""
    return {field: statistics.mean(run[field][-LAST:]) for field in FIELDS}


def describe(name: str, runs: Sequence[Mapping]) -> str:
    """Step 5 (median of the seeds) and the end (each seed's held-out accuracy), in words."""
    early = {field: statistics.median(run[field][EARLY - 1] for run in runs) for field in FIELDS}
    late = {field: statistics.median(end_of(run)[field] for run in runs) for field in FIELDS}
    said = [f"{when} {values['accuracy']:.0%} right, entropy {values['entropy']:.2f}, "
            f"{values['zero_variance_groups']:.0%} of groups silent "
            f"({values['silent_wrong']:.0%} all wrong), "
            f"{values['unique']:.0%} of a group's answers different"
            for when, values in ((f"at step {EARLY}", early), ("at the end", late))]
    held_out = ", ".join(f"{run['held_out_accuracy']:.0%}" for run in runs)
    return f"{name}: {said[0]}; {said[1]}; held-out accuracy {held_out}"
