"""Recorded runs under each aggregation: how long the wrong answers are, seed by seed."""

from __future__ import annotations

from statistics import mean

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, slider
from grpo_lib.course.plots import BLUE, GREY, ORANGE, PURPLE, label, new_figure
from grpo_lib.objective import PAPER_AGGREGATIONS

LOOKS = dict(zip(PAPER_AGGREGATIONS, ((BLUE, "-"), (ORANGE, "--"), (PURPLE, ":"))))
SETTINGS = {"flagship": ("the default run", "accuracy"),
            "too_long": ("chains too long", "accuracy"),
            "marked": ("marked beforehand", "length_right")}
LABELS = {"accuracy": ("Right answers", "share"), "length_right": ("Right answers", "tokens")}


def aggregation_runs_explorer(record: dict, setting: str = "flagship") -> Explorer:
    """Menus for setting and aggregation, a slider for the step; ``record`` is
    ``grpo_lib.course.recorded.load("aggregation")``."""
    missing = [name for name in SETTINGS if not record.get(name)]
    if missing:
        raise ValueError(f"record: has no {', '.join(missing)}, allowed is load('aggregation')")
    steps = max(len(run["length_wrong"]) for name in SETTINGS for run in record[name])

    def draw(setting: str, aggregation: str, step: int):
        title, beside = SETTINGS[setting]
        runs = record[setting]
        step = min(step, len(runs[0]["length_wrong"]))
        figure, axes = new_figure(2, width=11, height=4.3)
        names = PAPER_AGGREGATIONS if aggregation == "all three" else (aggregation,)
        for axis, field in zip(axes, ("length_wrong", beside)):
            for name in names:
                color, style = LOOKS[name]
                curves = [run[field] for run in runs if run["name"] == name]
                axis.plot(*end_to_end(curves), style, color=color, linewidth=0.8, alpha=0.6)
                average = [mean_of(values) for values in zip(*curves)]
                axis.plot(range(1, len(average) + 1), nan(average), style, color=color,
                          linewidth=2.6, label=name)
            axis.axvline(step, color=GREY, linewidth=1.2)
            axis.set_xlim(0, steps)
            share = field == "accuracy"
            axis.set_ylim(0, 1 if share else 20)
            axis.set_yticks((0, 0.5, 1) if share else (0, 5, 10, 15, 20))
            axis.set_xticks(range(0, steps + 1, 10))
        label(axes[0], f"Wrong answers: {title}", "step", "tokens", legend=False)
        label(axes[1], LABELS[beside][0], "step", LABELS[beside][1])
        said = []
        for name in names:
            chosen = [run for run in runs if run["name"] == name]
            wrong = [run["length_wrong"][step - 1] for run in chosen]
            wrong = [value for value in wrong if value is not None]
            other = mean_of([run[beside][step - 1] for run in chosen])
            said.append(f"{name} {mean(wrong):.1f} ({min(wrong):.1f} to {max(wrong):.1f}), "
                        + (f"accuracy {other:.0%}" if beside == "accuracy"
                           else f"right ones {other:.1f}"))
        text = (f"{title}, step {step}, tokens of a wrong answer (mean and range of "
                f"{len(chosen)} runs): {'; '.join(said)}")
        return figure, text

    return Explorer(
        draw, setting=choice("setting", setting, [(v[0], k) for k, v in SETTINGS.items()]),
        aggregation=choice("aggregation", "all three", ("all three", *PAPER_AGGREGATIONS)),
        step=slider("step", steps, 1, steps, 1))


def mean_of(values) -> float | None:
    """Mean of the numbers among the values; None where there are none."""
    there = [value for value in values if value is not None]
    return mean(there) if there else None


def end_to_end(curves) -> tuple[list, list]:
    """All curves as one line with gaps between them, which is quicker than many lines."""
    steps = [step for curve in curves for step in (*range(1, len(curve) + 1), float("nan"))]
    return steps, nan([value for curve in curves for value in (*curve, None)])


def nan(values) -> list[float]:
    return [float("nan") if value is None else value for value in values]
