"""Recorded runs of every row of the table: two of them side by side, over sampled tokens."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np
from matplotlib.ticker import PercentFormatter

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice
from grpo_lib.course.plots import BLUE, FONT, VERMILION, label, new_figure
from grpo_lib.lab.statistics import permutation_test

SETTINGS = {"rows": "two updates a batch", "reused": "eight updates a batch"}
POINTS = 60


def algorithm_runs_explorer(record: Mapping, first: str = "grpo", second: str = "reinforce",
                            setting: str = "rows") -> Explorer:
    """Menus for the setting and two rows; ``record`` is
    ``grpo_lib.course.recorded.load("algorithms")``. Mean of the seeds, and a band from worst to
    best."""
    missing = [name for name in SETTINGS if not record.get(name)]
    if missing:
        raise ValueError(f"record: has no {', '.join(missing)}, allowed is load('algorithms')")
    runs = {name: by_row(record[name]) for name in SETTINGS}
    names = list(dict.fromkeys(row for name in SETTINGS for row in runs[name]))
    for name, value in (("first", first), ("second", second)):
        if value not in names:
            raise ValueError(f"{name}: got {value!r}, allowed are {', '.join(names)}")

    def draw(setting: str, first: str, second: str):
        budget = record["budget"][setting]
        grid = np.linspace(0, budget, POINTS)[1:]
        figure, axes = new_figure(2, width=11, height=4.2)
        said, ends = [], []
        for name, color, style in ((first, BLUE, "-"), (second, VERMILION, "--")):
            some = runs[setting].get(name)
            if some is None:
                said.append(f"{name} was not run so")
                continue
            for axis, field in zip(axes, ("accuracy", "length")):
                curves = np.array([np.interp(grid, r["tokens"], r[field]) for r in some])
                axis.fill_between(grid, curves.min(0), curves.max(0), color=color, alpha=0.22,
                                  linewidth=0)
                axis.plot(grid, curves.mean(0), style, color=color, linewidth=2.6, label=name)
            held = [r["held_out_accuracy"] for r in some]
            ends.append(held)
            said.append(f"{name} {fmean(held):.1%} ({min(held):.1%} to {max(held):.1%})")
        for axis in axes:
            axis.set_xlim(0, budget)
            axis.set_xticks([0, budget / 2, budget], [f"{v / 1000:g}k" for v in
                                                      (0, budget / 2, budget)])
        axes[0].set_ylim(0, 1.03)
        axes[0].yaxis.set_major_formatter(PercentFormatter(1))
        axes[1].set_ylim(0, 25)
        label(axes[0], f"Right: {SETTINGS[setting]}", "sampled tokens", "share of completions",
              legend=False)
        label(axes[1], "Length", "sampled tokens", "tokens", legend=False)
        if ends:
            axes[1].legend(loc="upper left", fontsize=FONT - 1, frameon=False, ncols=2)
        text = f"{SETTINGS[setting]}, {budget:,} tokens, held out: {'; '.join(said)}"
        if len(ends) == 2 and first != second:
            text += f"; as far apart by chance: {permutation_test(*ends):.0%}"
        return figure, text

    return Explorer(
        draw, setting=choice("setting", setting, [(v, k) for k, v in SETTINGS.items()]),
        first=choice("row, in blue", first, names),
        second=choice("row, dashed", second, names))


def by_row(runs) -> dict[str, list]:
    """The runs of each row, in the order in which the rows come."""
    found: dict[str, list] = {}
    for run in runs:
        found.setdefault(run["name"], []).append(run)
    return found
