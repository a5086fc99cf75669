"""Figures draw what they are given, legibly, and in the palette."""

import itertools
import re
from dataclasses import asdict, fields

import matplotlib
import pytest
from matplotlib.artist import Artist
from matplotlib.colors import to_rgb

from grpo_lib.config import StepMetrics
from grpo_lib.course import plots

HISTORY = [asdict(StepMetrics(**{f.name: 0.1 * i for f in fields(StepMetrics)} | {
    "step": i, "rewards": {},
    "held_out_accuracy": 0.2 * i if i % 2 else None})) for i in (1, 2, 3, 4)]


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


def test_kl_that_was_not_measured_is_left_out_and_said():
    some = [m | {"kl": None if m["step"] < 3 else m["kl"]} for m in HISTORY]
    none = [m | {"kl": None} for m in HISTORY]
    [axis] = plots.training_curves(some, ("kl",), compare=("other", some[1:])).axes
    values = [m["kl"] for m in some[2:]]
    assert drawn(axis)["each step (k3)"] == values and not axis.texts
    assert drawn(axis)["running median of 5"] == plots.running_median(values)
    assert drawn(axis)["other"] == plots.running_median(values)
    [axis] = plots.training_curves(none, ("kl",), compare=("other", none)).axes
    assert [t.get_text() for t in axis.texts] == ["not measured (measure_kl)"]
    assert set(map(len, drawn(axis).values())) == {0}


def test_the_reward_panel_draws_reward_beside_truth_and_fits_rewards_above_one():
    history = [m | {"reward_mean": 2 * m["accuracy"] + 1} for m in HISTORY]
    [axis] = plots.training_curves(history, ("reward",)).axes
    assert drawn(axis) == {"reward, what GRPO sees": [m["reward_mean"] for m in history],
                           "right answers, what you want": [m["accuracy"] for m in history]}
    assert axis.get_ylim()[1] > max(m["reward_mean"] for m in history)
    assert plots.training_curves([], ("reward",)).axes[0].get_ylim() == (0, 1.03)


def test_training_curves_of_nothing_and_beside_another_run():
    assert len(plots.training_curves([], steps=5).axes) == 4
    figure = plots.training_curves(HISTORY[:2], ("accuracy",), compare=("other", HISTORY))
    assert drawn(figure.axes[0])["other"] == [m["accuracy"] for m in HISTORY]


def test_what_is_drawn_behind_is_the_same_statistic_and_fits():
    longer = [m | {"step": m["step"] + i, "kl": (m["step"] % 2) * 3.0, "reward_mean": 4.0}
              for i, m in enumerate(HISTORY * 2)]
    figure = plots.training_curves(HISTORY, ("kl", "clip", "reward"), compare=("other", longer))
    kl, clip, reward = figure.axes
    assert drawn(kl)["other"] == plots.running_median([m["kl"] for m in longer])
    behind = [line for line in clip.lines if line.get_color() == plots.GREY]
    assert [list(line.get_ydata()) for line in behind] == [
        [m[f"clip_fraction_{side}"] for m in longer] for side in ("high", "low")]
    assert reward.get_ylim()[1] > 4 and reward.get_xlim()[1] >= len(longer)


def test_an_unknown_panel_is_named():
    with pytest.raises(ValueError, match="panels: got 'weather'"):
        plots.training_curves(HISTORY, ("weather",))


def test_a_panel_puts_limits_ticks_and_a_legend_around_curves():
    _, axis = plots.new_figure()
    axis.plot([0, 1], [0.2, 0.4], label="a curve")
    plots.panel(axis, "title", "x", "y", xlim=(0, 5), ylim=(0, None), xticks={0: "none", 5: "all"},
                yticks=(0, 0.5), percent=True, legend="upper left")
    assert (axis.get_title(loc="left"), axis.get_xlabel(), axis.get_ylabel()) == ("title", "x", "y")
    assert axis.get_xlim() == (0, 5) and axis.get_ylim()[0] == 0
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["none", "all"]
    assert list(axis.get_yticks()) == [0, 0.5]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a curve"]
    _, axis = plots.new_figure()
    plots.panel(axis, "no curve has a name", percent="x", legend="best")
    assert axis.get_legend() is None and axis.xaxis.get_major_formatter()(0.5) == "50%"


def test_a_legend_below_covers_nothing_and_is_in_the_picture():
    figure, axis = plots.new_figure()
    axis.plot([0, 1], [0.2, 0.4], label="a curve")
    plots.panel(axis, "title", "x", "y", legend="below")
    figure.draw_without_rendering()
    legend = axis.get_legend().get_window_extent()
    assert 0 <= legend.y0 < legend.y1 <= axis.xaxis.get_tightbbox().y0


def test_what_was_not_measured_has_no_name_in_a_legend():
    def named(history):
        axis = plots.training_curves(history, ("accuracy",), steps=5).axes[0]
        return [text.get_text() for text in axis.get_legend().get_texts()]

    both = ["completions of this step", "held-out problems"]
    assert named([]) == both and named(HISTORY) == both
    assert named([m | {"held_out_accuracy": None} for m in HISTORY]) == both[:1]


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


# --- pictures in HTML ---------------------------------------------------------------------

def a_figure(title="a < title"):
    return plots.lines([1, 2, 4], {"one & two": [1, 2, 3]}, title, "x (tokens)", "y")


def texts_of(svg):
    return [re.sub(r"<[^>]*>", "", t) for t in re.findall(r"<text.*?</text>", svg, re.DOTALL)]


def test_the_text_of_an_svg_is_text():
    texts = texts_of(plots.to_svg(a_figure(), "words"))
    assert {"a &lt; title", "x (tokens)", "one &amp; two", "y"} <= set(map(str.strip, texts))


class Broken(Artist):
    def draw(self, renderer):
        raise RuntimeError("cannot be drawn")


def test_drawing_an_svg_leaves_settings_and_the_figure_as_they_were():
    before = dict(matplotlib.rcParams)
    figure = a_figure()
    figure.dpi = 123
    size = figure.get_size_inches().tolist()
    plots.to_svg(figure, "words")
    assert dict(matplotlib.rcParams) == before
    assert figure.dpi == 123 and figure.get_size_inches().tolist() == size
    figure.axes[0].add_artist(Broken())
    with pytest.raises(RuntimeError, match="cannot be drawn"):
        plots.to_svg(figure, "words")
    assert dict(matplotlib.rcParams) == before
    assert figure.dpi == 123
    assert plots.to_svg(a_figure(), "words").startswith("<svg")  # nothing is left locked


def test_the_same_picture_is_the_same_svg_but_for_its_ids():
    def without_ids(svg):
        ids = {name: str(i) for i, name in enumerate(re.findall(r'\bid="([^"]+)"', svg))}
        return re.sub(r"[\w.-]+", lambda m: ids.get(m[0], m[0]), svg)

    figure = a_figure()
    one, again, other = (without_ids(plots.to_svg(f, "words"))
                         for f in (figure, figure, a_figure()))
    assert one == again == other
    assert one != without_ids(plots.to_svg(a_figure("another"), "words"))


def test_png_after_svg_is_the_png_before():
    figure = a_figure()
    before = plots.to_png(figure)
    plots.to_svg(figure, "words")
    assert plots.to_png(figure) == before


def places(figure):
    return [axis.get_position().bounds for axis in figure.axes]


def test_keep_layout_puts_axes_where_those_of_the_old_figure_stand():
    old, new = a_figure(), a_figure("a title\nof\nmany lines")
    plots.to_svg(old, "")
    free = a_figure("a title\nof\nmany lines")
    plots.to_svg(free, "")
    plots.keep_layout(old, new)
    plots.to_svg(new, "")
    assert places(new) == places(old) != places(free)


@pytest.mark.parametrize("old", [
    plots.Figure(), plots.lines([0, 1], {"y": [0, 1]}, "t", "x", "y", width=5.0),
    plots.new_figure(2)[0],
], ids=["empty", "another_size", "other_axes"])
def test_keep_layout_leaves_a_figure_that_does_not_correspond(old):
    plots.to_svg(old, "")
    free, new = a_figure(), a_figure()
    plots.keep_layout(old, new)
    for figure in (free, new):
        plots.to_svg(figure, "")
    assert places(new) == places(free)


# --- token grids --------------------------------------------------------------------------

PALETTE = (plots.BLACK, plots.ORANGE, plots.SKY, plots.GREEN, plots.YELLOW, plots.BLUE,
           plots.VERMILION, plots.PURPLE, plots.GREY, "white", "#DDDDDD")


def contrast(one, other):
    high, low = sorted((plots.luminance(one), plots.luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_luminance_has_its_known_values():
    known = {"black": 0, "white": 1, "#FF0000": 0.2126, "#00FF00": 0.7152, "#0000FF": 0.0722,
             "#808080": 0.2159}
    assert {c: plots.luminance(c) for c in known} == pytest.approx(known, abs=1e-4)
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("color", [*PALETTE, *(f"#{i:02X}{i:02X}{i:02X}" for i in range(256))])
def test_ink_reads_on_every_colour(color):
    ink = plots.ink_on(color)
    assert contrast(ink, color) == max(contrast(c, color) for c in ("black", "white")) >= 4.5


WORDS = [["7", "*3", ":", "=>"], ["1"], ["s1=", "2"]]
COLORS = [[plots.SKY, plots.BLUE, plots.GREEN, "white"], [plots.BLACK], [plots.GREY, "#FFFFFF"]]
NUMBERS = [["0.1", "0.2", "0.3", "0.4"], ["-1"], ["5", "6"]]


def inks(figure):
    """What is written where: (column, row) of the cell -> texts and their colours."""
    cells = {}
    for text in figure.axes[0].texts:
        x, y = text.get_position()
        cells.setdefault((int(x // 1), int(y)), []).append((text.get_text(), text.get_color()))
    return cells


@pytest.mark.parametrize("numbers", [None, NUMBERS])
def test_a_token_grid_writes_every_token_on_its_colour(numbers):
    figure = plots.token_grid(WORDS, COLORS, ["first", "second", "third"], "a title",
                              {"right": plots.GREEN, "wrong": plots.VERMILION}, numbers=numbers)
    [axis] = figure.axes
    written = inks(figure)
    [cells] = axis.collections
    boxes = [path.get_extents() for path in cells.get_paths()]
    patches = {(int(box.x0), int(box.y0)): to_rgb(color[:3])
               for box, color in zip(boxes, cells.get_facecolors(), strict=True)}
    assert len(patches) == len(boxes) == sum(map(len, WORDS))
    assert all(0.8 < side < 1 for box in boxes for side in (box.width, box.height))
    for y, row in enumerate(WORDS):
        assert [t for t, _ in written.pop((-1, y))] == [["first", "second", "third"][y]]
        for x, word in enumerate(row):
            assert patches[x, y] == to_rgb(COLORS[y][x])
            ink = plots.ink_on(COLORS[y][x])
            assert written.pop((x, y)) == [(word, ink)] + (
                [(numbers[y][x], ink)] if numbers else [])
    assert not written
    assert axis.get_title(loc="left") == "a title"
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["right", "wrong"]
    assert axis.yaxis_inverted()  # the first row is on top


def test_a_token_grid_needs_no_legend_and_shrinks_its_letters_to_many_columns():
    few, many = (plots.token_grid([["9"] * n], [[plots.SKY] * n], ["row"], "t") for n in (3, 40))
    assert few.axes[0].get_legend() is None
    size = {n: figure.axes[0].texts[0].get_fontsize() for n, figure in ((3, few), (40, many))}
    assert size[3] == plots.FONT - 1 > size[40]
    for figure in (few, many):
        assert "row" in "".join(texts_of(plots.to_svg(figure, "words")))


def test_seed_dots_have_a_dot_a_run_and_a_dash_at_the_mean():
    lots = {"one": {"grpo": [0.2, 0.4], "ppo": [0.9]}, "two": {"ppo": [0.5, 0.7]}}
    figure = plots.seed_dots(lots, "right")
    [axis] = figure.axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["grpo", "ppo"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["one", "two"]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]
    wanted = [([0.2, 0.4], [-0.2, -0.2]), ([0.3, 0.3], [-0.4, 0.0]), ([0.9], [0.8]),
              ([0.9, 0.9], [0.6, 1.0]), ([], []), ([0.5, 0.7], [1.2, 1.2]),
              ([0.6, 0.6], [1.0, 1.4])]  # a setting that a lot has not leaves its place empty
    assert [(pytest.approx(x), pytest.approx(y)) for x, y in wanted] == drawn
    [alone] = plots.seed_dots({"one": {"a": [0.5]}}, "x").axes
    assert list(alone.lines[0].get_ydata()) == [0]
