"""Figures draw what they are given, legibly, and in the palette."""

import itertools
from dataclasses import asdict, fields

import pytest
from matplotlib.colors import to_rgb

from grpo_lib import plots
from grpo_lib.config import StepMetrics

HISTORY = [asdict(StepMetrics(**{f.name: 0.1 * i for f in fields(StepMetrics)} | {
    "step": i, "held_out_accuracy": 0.2 * i if i % 2 else None})) for i in (1, 2, 3, 4)]


def drawn(axis):
    return {line.get_label(): list(map(float, line.get_ydata())) for line in axis.lines}


def test_training_curves_draw_the_metrics():
    figure = plots.training_curves(HISTORY, plots.PANELS)
    accuracy, length, entropy, groups, kl, clip = figure.axes
    assert drawn(accuracy)["completions of this step"] == [m["accuracy"] for m in HISTORY]
    assert drawn(accuracy)["held-out problems"] == [0.2, 0.2 * 3]
    assert drawn(length)["all"] == [m["length"] for m in HISTORY]
    assert next(iter(drawn(entropy).values())) == [m["entropy"] for m in HISTORY]
    assert next(iter(drawn(groups).values())) == [m["zero_variance_groups"] for m in HISTORY]
    assert drawn(kl)["running median of 5"] == plots.running_median([m["kl"] for m in HISTORY])
    assert drawn(clip)["at 1 - epsilon"] == [m["clip_fraction_low"] for m in HISTORY]
    assert all(axis.get_title(loc="left") and axis.get_xlabel() and axis.get_ylabel()
               for axis in figure.axes)


def test_training_curves_of_nothing_and_beside_another_run():
    assert len(plots.training_curves([], steps=5).axes) == 4
    figure = plots.training_curves(HISTORY[:2], ("accuracy",), compare=("other", HISTORY))
    assert drawn(figure.axes[0])["other"] == [m["accuracy"] for m in HISTORY]


def test_an_unknown_panel_is_named():
    with pytest.raises(ValueError, match="panels: got 'weather'"):
        plots.training_curves(HISTORY, ("weather",))


def test_running_median_of_the_last_values():
    assert plots.running_median([1, 100, 2, 3, 4, 5], 3) == [1, 50.5, 2, 3, 3, 4]


def test_text_is_legible_from_the_back():
    figure = plots.training_curves(HISTORY, plots.PANELS)
    for axis in figure.axes:
        texts = [axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label,
                 *axis.get_xticklabels(), *axis.get_yticklabels()]
        assert min(t.get_fontsize() for t in texts) >= 12


def simulate(color, kind):
    """How a colour looks with a kind of dichromacy (Machado et al. 2009, severity 1)."""
    matrices = {"protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
                           (-0.003882, -0.048116, 1.051998)),
                "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
                           (-0.011820, 0.042940, 0.968881)),
                "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
                           (0.004733, 0.691367, 0.303900))}
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return [sum(m * c for m, c in zip(row, linear)) for row in matrices[kind]]


@pytest.mark.parametrize("kind", ["protan", "deutan", "tritan"])
def test_colours_that_meet_in_one_figure_can_be_told_apart(kind):
    together = [(plots.RIGHT, plots.WRONG), (plots.TRAINING, plots.HELD_OUT),
                (plots.BLUE, plots.VERMILION), (plots.BLACK, plots.RIGHT),
                (plots.BLACK, plots.WRONG)]
    for one, other in itertools.chain(together):
        a, b = simulate(one, kind), simulate(other, kind)
        assert sum((x - y) ** 2 for x, y in zip(a, b)) ** 0.5 > 0.1


def test_svg_carries_its_text_and_png_is_a_png():
    figure = plots.lines([1, 2, 4], {"a": [1, 2, 3]}, "t", "x", "y", marks={"m": 2}, log_x=True)
    svg = plots.to_svg(figure, 'a "quoted" <text>')
    assert svg.startswith("<svg") and 'aria-label="a &quot;quoted&quot; &lt;text>"' in svg
    assert plots.to_png(figure).startswith(b"\x89PNG")


def test_group_bars_draw_both_sides():
    figure = plots.group_bars([1.0, 0.0], [0.7, -0.7], "a group")
    left, right = figure.axes
    assert [bar.get_height() for bar in left.patches] == [1.0, 0.0]
    assert [bar.get_height() for bar in right.patches] == [0.7, -0.7]


def test_seed_panels_draw_every_run_and_their_median():
    runs = {"a": [[0.0, 0.2], [0.1, 0.9], [0.5, 1.0]], "b": [[0.3, 0.4]], "c": [[0.1, 0.1]],
            "d": [[1.0, 0.0]]}
    figure = plots.seed_panels(runs, "step", "share", columns=2)
    assert [axis.get_title("left") for axis in figure.axes] == list(runs)
    first = figure.axes[0].lines
    assert [list(line.get_ydata()) for line in first] == [*runs["a"], [0.1, 0.9]]
    assert list(first[-1].get_xdata()) == [1, 2]
    assert first[-1].get_linewidth() > first[0].get_linewidth()
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "step", "step"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["share", "", "share", ""]
