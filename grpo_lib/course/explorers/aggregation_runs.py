"""Recorded runs under each aggregation: how long the wrong answers are, seed by seed."""

from __future__ import annotations

import math
from statistics import mean

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, slider
from grpo_lib.course.plots import BLUE, FONT, GREY, ORANGE, PURPLE, new_figure, panel
from grpo_lib.course.recorded import by_field, check_record
from grpo_lib.objective import PAPER_AGGREGATIONS

LOOKS = dict(zip(PAPER_AGGREGATIONS, ((BLUE, "-"), (ORANGE, "--"), (PURPLE, ":"))))
SETTINGS = {"flagship": ("the default run", "accuracy"),
            "too_long": ("chains too long", "accuracy"),
            "marked": ("marked beforehand", "length_right")}
LABELS = {"length_wrong": ("Wrong answers: {}", "tokens"), "accuracy": ("Right answers", "share"),
          "length_right": ("Right answers", "tokens")}


def aggregation_runs_explorer(record: dict, setting: str = "flagship") -> Explorer:
    """Menus for setting and aggregation, a slider for the step; ``record`` is
    ``grpo_lib.course.recorded.load("aggregation")``."""
    check_record(record, SETTINGS, "aggregation")
    steps = max(len(run["length_wrong"]) for name in SETTINGS for run in record[name])

    def draw(setting: str, aggregation: str, step: int):
        (title, beside), runs = SETTINGS[setting], by_field(record[setting], "name")
        names = PAPER_AGGREGATIONS if aggregation == "all three" else (aggregation,)
        step = min(step, len(runs[names[0]][0]["length_wrong"]))
        figure, axes = new_figure(2, width=11, height=4.6)
        for axis, field in zip(axes, ("length_wrong", beside)):
            for name in names:
                draw_curves(axis, [run[field] for run in runs[name]], name)
            axis.axvline(step, color=GREY, linewidth=1.2)
            title_of, unit = LABELS[field]
            share = field == "accuracy"
            panel(axis, title_of.format(title), "step", unit, xlim=(0, steps),
                  ylim=(0, 1 if share else 20), xticks=range(0, steps + 1, 10),
                  yticks=(0, 0.5, 1) if share else range(0, 21, 5), legend="below", ncols=3,
                  fontsize=FONT - 2)
        said = "; ".join(f"{name} {describe(runs[name], beside, step)}" for name in names)
        return figure, (f"{title}, step {step}, tokens of a wrong answer (mean and range of "
                        f"{len(runs[names[0]])} runs): {said}")

    return Explorer(
        draw, {"step": sorted({1, steps, *range(5, steps, 5)})},
        setting=choice("setting", setting, [(v[0], k) for k, v in SETTINGS.items()]),
        aggregation=choice("aggregation", "all three", ("all three", *PAPER_AGGREGATIONS)),
        step=slider("step", steps, 1, steps, 1))


def draw_curves(axis, curves: list[list], name: str) -> None:
    """A thin line for each run, which is one line with gaps (quicker than many), and their mean."""
    color, style = LOOKS[name]
    steps = [step for values in curves for step in (*range(1, len(values) + 1), math.nan)]
    axis.plot(steps, nan([value for values in curves for value in (*values, None)]), style,
              color=color, linewidth=0.8, alpha=0.6)
    average = nan([mean_of(values) for values in zip(*curves)])
    axis.plot(range(1, len(average) + 1), average, style, color=color, linewidth=2.6, label=name)


def describe(runs: list[dict], beside: str, step: int) -> str:
    """What the runs of an aggregation have come to at a step."""
    wrong = [v for run in runs if (v := run["length_wrong"][step - 1]) is not None]
    other = mean_of([run[beside][step - 1] for run in runs])
    return (f"{mean(wrong):.1f} ({min(wrong):.1f} to {max(wrong):.1f}), "
            + (f"accuracy {other:.0%}" if beside == "accuracy" else f"right ones {other:.1f}"))


def mean_of(values) -> float | None:
    """Mean of the numbers among the values; None where there are none."""
    there = [value for value in values if value is not None]
    return mean(there) if there else None


def nan(values) -> list[float]:
    return [math.nan if value is None else value for value in values]
