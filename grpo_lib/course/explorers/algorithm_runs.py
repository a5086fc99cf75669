"""Recorded runs of every row of the table: two of them side by side, over sampled tokens."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice
from grpo_lib.course.plots import BLUE, VERMILION, new_figure, panel
from grpo_lib.course.recorded import by_field, check_record
from grpo_lib.lab.statistics import permutation_test
from grpo_lib.support.checks import check_choice

SETTINGS = {"rows": "two updates a batch", "reused": "eight updates a batch"}
POINTS = 60
SHOWN = ("reinforce", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "ppo")  # on a page, first


def algorithm_runs_explorer(record: Mapping, first: str = "grpo", second: str = "reinforce",
                            setting: str = "rows") -> Explorer:
    """Menus for the setting and two rows; ``record`` is
    ``grpo_lib.course.recorded.load("algorithms")``. Mean of the seeds, and a band from worst to
    best."""
    check_record(record, SETTINGS, "algorithms")
    runs = {name: by_field(record[name], "name") for name in SETTINGS}
    names = list(dict.fromkeys(row for name in SETTINGS for row in runs[name]))
    check_choice("first", first, names)
    check_choice("second", second, names)

    def draw(setting: str, first: str, second: str):
        budget = record["budget"][setting]
        grid = np.linspace(0, budget, POINTS)[1:]
        figure, (left, right) = new_figure(2, width=11, height=4.4)
        said, ends = [], []
        for name, color, style in ((first, BLUE, "-"), (second, VERMILION, "--")):
            some = runs[setting].get(name)
            if some is None:
                said.append(f"{name} was not run so")
                continue
            for axis, field in ((left, "accuracy"), (right, "length")):
                curves = np.array([np.interp(grid, r["tokens"], r[field]) for r in some])
                axis.fill_between(grid, curves.min(0), curves.max(0), color=color, alpha=0.22,
                                  linewidth=0)
                axis.plot(grid, curves.mean(0), style, color=color, linewidth=2.6, label=name)
            held = [r["held_out_accuracy"] for r in some]
            ends.append(held)
            said.append(f"{name} {fmean(held):.1%} ({min(held):.1%} to {max(held):.1%})")
        x = {"xlim": (0, budget),
             "xticks": {v: f"{v / 1000:g}k" for v in (0, budget / 2, budget)}}
        panel(left, f"Right: {SETTINGS[setting]}", "sampled tokens", "share of completions",
              ylim=(0, 1.03), percent=True, **x)
        panel(right, "Length", "sampled tokens", "tokens", ylim=(0, 20),
              legend="below" if ends else None, ncols=2, **x)
        text = f"{SETTINGS[setting]}, {budget:,} tokens, held out: {'; '.join(said)}"
        if len(ends) == 2 and first != second:
            text += f"; as far apart by chance: {permutation_test(*ends):.0%}"
        return figure, text

    shown = {"first": [name for name in names if name in (*SHOWN, first)]}
    return Explorer(
        draw, shown, setting=choice("setting", setting, [(v, k) for k, v in SETTINGS.items()]),
        first=choice("row, in blue", first, names),
        second=choice("row, dashed", second, names))
