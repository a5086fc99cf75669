"""Entropy against accuracy: recorded runs that became certain and right, or certain and wrong."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from grpo_lib.explorers.base import Explorer
from grpo_lib.explorers.controls import choice
from grpo_lib.plots import BLUE, FONT, GREY, ORANGE, PURPLE, VERMILION, label, new_figure

EARLY, LAST = 5, 5  # the step that early signs are read at; steps at the end that are averaged
FIELDS = ("accuracy", "entropy", "zero_variance_groups", "unique")
SIGNS = (("accuracy", BLUE, "-", "right answers"), ("unique", PURPLE, "--", "different answers"),
         ("zero_variance_groups", ORANGE, ":", "silent groups"))


def entropy_explorer(record: Mapping, run: str | None = None) -> Explorer:
    """A menu of the settings in ``record`` (as in ``recorded.load("entropy")``): its runs among
    all runs, and the signs to watch. ``run`` is the setting to begin with (None: the first)."""
    runs: dict[str, list] = {}
    for one in record["runs"]:
        runs.setdefault(one["name"], []).append(one)
    run = next(iter(runs)) if run is None else run
    if run not in runs:
        raise ValueError(f"run: got {run!r}, allowed are {', '.join(runs)}")

    def draw(run: str):
        figure, (left, right) = new_figure(2, width=10.6, height=4.4)
        for name, some in sorted(runs.items(), key=lambda item: item[0] == run):
            chosen = name == run
            color = VERMILION if chosen else GREY
            for one in some:
                left.plot(one["entropy"], one["accuracy"], color=color, zorder=2 + chosen,
                          linewidth=1.8 if chosen else 0.7, alpha=1 if chosen else 0.35)
            ends = [end_of(one) for one in some]
            left.plot([e["entropy"] for e in ends], [e["accuracy"] for e in ends],
                      "o" if chosen else "x", color=color, markersize=8 if chosen else 5,
                      zorder=2 + chosen, label=run if chosen else None)
        left.plot([], [], "x", color=GREY, label="other settings")
        left.set_xlim(0, 1.3)
        left.set_ylim(0, 1.03)
        label(left, "Each run from right to left", "entropy (nats)", "right answers", legend=False)
        left.legend(fontsize=FONT - 3, frameon=False, loc="upper right")
        for field, color, style, name in SIGNS:
            middle = [statistics.median(values) for values in zip(*(o[field] for o in runs[run]))]
            right.plot(range(1, len(middle) + 1), middle, style, color=color, linewidth=2.4,
                       label=name)
        right.set_xlim(1, len(middle))
        right.set_ylim(0, 1.03)
        label(right, f"{run}: median of {len(runs[run])} seeds", "step", "share", legend=False)
        right.legend(fontsize=FONT - 3, frameon=False, loc="center right")
        return figure, describe(run, runs[run])

    return Explorer(draw, run=choice("run", run, list(runs)))


def end_of(run: Mapping) -> dict[str, float]:
    """Means over the last steps."""
    return {field: statistics.mean(run[field][-LAST:]) for field in FIELDS}


def describe(name: str, runs: Sequence[Mapping]) -> str:
    """Step 5 (median of the seeds) and the end (each seed's held-out accuracy), in words."""
    early = {field: statistics.median(run[field][EARLY - 1] for run in runs) for field in FIELDS}
    late = {field: statistics.median(end_of(run)[field] for run in runs) for field in FIELDS}
    said = [f"{when} {values['accuracy']:.0%} right, entropy {values['entropy']:.2f}, "
            f"{values['zero_variance_groups']:.0%} of groups silent, "
            f"{values['unique']:.0%} of a group's answers different"
            for when, values in ((f"at step {EARLY}", early), ("at the end", late))]
    held_out = ", ".join(f"{run['held_out_accuracy']:.0%}" for run in runs)
    return f"{name}: {said[0]}; {said[1]}; held-out accuracy {held_out}"
