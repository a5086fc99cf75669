"""Figures: numbers in, matplotlib ``Figure`` out. No pyplot, no policies, no maths of GRPO.

The same colour means the same thing in every notebook. The palette is Okabe and Ito's,
which people with any of the common kinds of colour blindness can tell apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from grpo_lib.course.picture import Picture, keep_layout, to_png, to_svg  # noqa: F401

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#777777"

RIGHT, WRONG, TRAINING, HELD_OUT, BEFORE = GREEN, VERMILION, SKY, BLUE, GREY

FONT = 13  # points, legible at the back of a classroom
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind a word that lies over lines
PANELS = ("accuracy", "length", "entropy", "groups", "kl", "clip")
PARTS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)  # of several rewards


def new_figure(columns: int = 1, rows: int = 1, width: float = 7.0, height: float = 4.2):
    """A figure and its axes (one, or a flat list), in the house style."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=FONT - 1)
        for side in (axis.xaxis, axis.yaxis):  # few ticks: legible, and quick to draw
            side.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.grid(True, color="#DDDDDD", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes[0] if len(axes) == 1 else axes


def label(axis, title: str, x: str, y: str, legend: bool = True) -> None:
    """Title and names of the axes, with a legend where curves have names."""
    panel(axis, title, x, y, legend="best" if legend else None, fontsize=FONT - 2)


def panel(axis, title: str, x: str = "", y: str = "", *, xlim=None, ylim=None, xticks=None,
          yticks=None, percent: bool | str = False, legend: str | None = None, **style) -> None:
    """Everything around the curves of an axis: title, labels, limits, ticks and legend.

    ``xlim`` is (left, right), None in it for a limit that the data set. ``xticks`` are values, or
    a dict {value: what stands there}. ``percent``: y is a share, written as such ("x": x is).
    ``legend`` is where it stands ("upper left"; "below": under the axis and over nothing; None:
    there is none), and ``style`` goes to ``axis.legend``.
    """
    axis.set_title(title, fontsize=FONT, loc="left", y=1.0)  # a given y saves a layout pass
    axis.set_xlabel(x, fontsize=FONT)
    axis.set_ylabel(y, fontsize=FONT)
    if percent:
        side = axis.xaxis if percent == "x" else axis.yaxis
        side.set_major_formatter(PercentFormatter(1))
    for limits, set_limits in ((xlim, axis.set_xlim), (ylim, axis.set_ylim)):
        if limits is not None:
            set_limits(*limits)
    for ticks, set_ticks in ((xticks, axis.set_xticks), (yticks, axis.set_yticks)):
        if ticks is not None:  # list() of a dict are its keys
            set_ticks(list(ticks), ticks.values() if isinstance(ticks, Mapping) else None)
    if legend == "below":  # its own labels and ticks are about four letters high
        legend, style = "upper center", {"bbox_to_anchor": (0.5, 0), "borderaxespad": 3.8,
                                         "handlelength": 1.6, "columnspacing": 1.2} | style
    if legend and axis.get_legend_handles_labels()[1]:
        axis.legend(loc=legend, frameon=False, **{"fontsize": FONT - 1} | style)


def training_curves(history: Sequence[Mapping], panels: Sequence[str] = PANELS[:4],
                    steps: int | None = None, title: str | None = None,
                    compare: tuple[str, Sequence[Mapping]] | None = None,
                    marks: Sequence[int] = (), columns: int | None = None) -> Figure:
    """Curves of a run from its metrics (dictionaries as in metrics.jsonl), a panel each.

    ``steps`` fixes the x axis while a run is still going on; ``compare`` draws the main curve
    of a second run, (name, metrics), behind the first; ``marks``: steps before which something
    was changed, as dotted lines; ``columns``: panels in a row at most (None: three, or two if
    there are more than three).
    """
    rows = -(-len(panels) // (columns or 2)) if len(panels) > (columns or 3) else 1
    columns = -(-len(panels) // rows)
    height = 3.8 if rows == 1 else 2.8 * rows + 0.2  # two rows and a slider fit into a laptop
    figure, axes = new_figure(columns, rows, width=4.6 * columns + 0.4, height=height)
    axes = axes if isinstance(axes, list) else [axes]
    for axis, name in zip(axes, panels):
        draw_panel(axis, name, history, compare)
        axis.set_xlim(0, max(steps or 0, len(history), len(compare[1]) if compare else 0, 1))
        for mark in marks:
            axis.axvline(mark - 0.5, color=PURPLE, linewidth=1.8, linestyle=":")
        if not history:
            write_in_the_middle(axis, "drawn while the run goes on")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axis in axes[len(panels):]:
        axis.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=FONT + 2)
    return figure


def draw_panel(axis, name: str, history: Sequence[Mapping], compare=None) -> None:
    """One panel of ``training_curves``: the run to compare with in grey, then the run itself."""
    if name not in DRAWN:
        raise ValueError(f"panels: got {name!r}, allowed are {', '.join(DRAWN)}")
    main, draw = DRAWN[name]
    if compare is not None:
        behind = smooth_kl(compare[1]) if main == "kl" else compare[1]
        curve(axis, behind, main, GREY, compare[0], "--")
        if name == "clip":
            curve(axis, behind, "clip_fraction_low", GREY, "", ":")
    draw(axis, history, compare)


def curve(axis, history: Sequence[Mapping], field: str, color: str, name: str | None,
          style: str = "-") -> None:
    """A field of the metrics over the steps, without the steps that lack it."""
    points = [(m["step"], m[field]) for m in history if m.get(field) is not None]
    axis.plot(*zip(*points) if points else ([], []), style, color=color, linewidth=2.2,
              label=name if points or not history else None)  # none for what is not measured


def write_in_the_middle(axis, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, fontsize=FONT, color=GREY, ha="center")


def of_curves(title: str, unit: str, *curves: tuple, ylim=(0, None), percent: bool = False):
    """What draws a panel of curves, (field, colour, name, line style) each. One that is alone
    needs its name only beside another run."""
    def draw(axis, history, compare):
        for which in curves:
            curve(axis, history, *which)
        panel(axis, title, "step", unit, ylim=ylim, percent=percent, fontsize=FONT - 2,
              legend="best" if compare or len(curves) > 1 else None)
    return draw


def draw_kl(axis, history, compare) -> None:
    measured = [m for m in history if m["kl"] is not None]
    axis.plot([m["step"] for m in measured], [m["kl"] for m in measured], color=BLUE, alpha=0.3,
              linewidth=1, label=None if history and not measured else "each step (k3)")
    curve(axis, smooth_kl(history), "kl", BLUE,
          None if history and not measured else "running median of 5")
    if history and not measured:
        write_in_the_middle(axis, "not measured (measure_kl)")
    panel(axis, "Distance from the base model", "step", "KL, nats a token", ylim=(0, None),
          legend="best", fontsize=FONT - 2)


def smooth_kl(history: Sequence[Mapping]) -> list[dict]:
    """The steps that have a KL, with its running median in its place."""
    measured = [m for m in history if m["kl"] is not None]
    return [m | {"kl": kl} for m, kl in zip(measured, running_median([m["kl"] for m in measured]))]


def draw_reward(axis, history, compare) -> None:
    everything = [*history, *(compare[1] if compare else ())]
    top = max([1.03, *(1.03 * (m["reward_mean"] or 0) for m in everything)])
    of_curves("Reward and truth", "mean of the step",
              ("accuracy", TRAINING, "right answers, what you want"),
              ("reward_mean", ORANGE, "reward, what GRPO sees", "--"),
              ylim=(0, top))(axis, history, compare)


def draw_rewards(axis, history, compare) -> None:
    names = dict.fromkeys(name for m in history for name in m if name.startswith("rewards/")
                          and name.endswith("/mean"))
    for name, color, style in zip(names, cycle(PARTS), cycle(("-", "--", "-.", ":"))):
        curve(axis, history, name, color, name.split("/", 1)[1].removesuffix("/mean"), style)
    curve(axis, history, "reward_mean", BLACK, "their weighted sum" if names else "reward")
    panel(axis, "Several rewards", "step", "mean of the step", legend="best", fontsize=FONT - 2)


DRAWN = {  # panel: (the field of its main curve, what draws it)
    "accuracy": ("accuracy", of_curves(
        "Right answers", "share", ("accuracy", TRAINING, "completions of this step"),
        ("held_out_accuracy", HELD_OUT, "held-out problems", "o-"), ylim=(0, 1.03), percent=True)),
    "length": ("length", of_curves(
        "Completion length", "tokens", ("length_right", RIGHT, "right", ":"),
        ("length_wrong", WRONG, "wrong", ":"), ("length", BLACK, "all"))),
    "entropy": ("entropy", of_curves(
        "Entropy of the next token", "nats", ("entropy", PURPLE, "this run"))),
    "kl": ("kl", draw_kl),
    "groups": ("zero_variance_groups", of_curves(
        "Groups that teach nothing", "share", ("zero_variance_groups", ORANGE, "this run"),
        ylim=(0, 1.03), percent=True)),
    "clip": ("clip_fraction_high", of_curves(
        "Tokens blocked by the clip", "share", ("clip_fraction_high", BLUE, "at 1 + epsilon_high"),
        ("clip_fraction_low", VERMILION, "at 1 - epsilon"), percent=True)),
    "reward": ("reward_mean", draw_reward),
    "rewards": ("reward_mean", draw_rewards)}


def running_median(values: Sequence[float], width: int = 5) -> list[float]:
    """The median of the last ``width`` values, at every place."""
    return [statistics.median(values[max(0, i - width + 1): i + 1]) for i in range(len(values))]


def boxes(axis, corners: Sequence[tuple], linewidth: float = 0.7) -> None:
    """Boxes with an edge, (x, y, x of the other corner, its y, colour) each: one collection for
    all of them, which is much quicker than a patch for each."""
    axis.add_collection(PolyCollection(
        [[(x, y), (right, y), (right, top), (x, top)] for x, y, right, top, _ in corners],
        facecolors=[color for *_, color in corners], edgecolors=BLACK, linewidths=linewidth),
        autolim=False)


def lines(x: Sequence[float], curves: Mapping[str, Sequence[float]], title: str, x_label: str,
          y_label: str, *, marks: Mapping[str, float] | None = None, percent: bool = False,
          log_x: bool = False, colors: Sequence[str] = (BLUE, VERMILION, GREEN, PURPLE),
          y_range: tuple[float, float] | None = None, width: float = 7.0,
          height: float = 4.2, legend: str | None = "best") -> Figure:
    """Named curves over one x axis; ``marks`` are named vertical lines, and ``y_range`` keeps
    the y axis where it is while a slider moves."""
    figure, axis = new_figure(width=width, height=height)
    for (name, y), color, style in zip(curves.items(), colors, ("-", "--", "-.", ":")):
        axis.plot(x, y, style, color=color, linewidth=2.4, label=name)
    for name, at in (marks or {}).items():
        axis.axvline(at, color=GREY, linestyle=":", linewidth=1.6)
        axis.annotate(name, (at, 0.03), xycoords=("data", "axes fraction"), fontsize=FONT - 2,
                      color=GREY, ha="center", va="bottom", bbox=PAPER)
    if log_x:
        axis.set_xscale("log", base=2)
        axis.set_xticks(x, [f"{v:g}" for v in x])
    panel(axis, title, x_label, y_label, ylim=y_range or ((0, 1.03) if percent else None),
          percent=percent, legend=legend, ncols=len(curves) if legend == "below" else 1,
          fontsize=FONT - 2)
    return figure


def token_grid(words: Sequence[Sequence[str]], colors: Sequence[Sequence[str]],
               names: Sequence[str], title: str, legend: Mapping[str, str] | None = None, *,
               numbers: Sequence[Sequence[str]] | None = None, width: float = 11.0,
               font: float | None = None) -> Figure:
    """Completions as rows of coloured cells, a token each: words[i][t] on colors[i][t].

    ``names`` stand before the rows, ``numbers`` (same shape as words) below the words;
    ``legend`` maps what a colour means to the colour. Rows may differ in length. ``font``: size
    of the words in points, None for one that fits wide words.
    """
    columns = max(map(len, words))
    figure, axis = new_figure(width=width, height=0.6 * len(words) + (1.4 if legend else 0.8))
    axis.set_axis_off()
    axis.set_xlim(-0.02, columns)
    axis.set_ylim(len(words), 0)
    size = font or min(FONT - 1, 110 / columns)
    boxes(axis, [(x + 0.03, y + 0.06, x + 0.97, y + 0.94, colors[y][x])
                 for y, row in enumerate(words) for x in range(len(row))], linewidth=0.6)
    for y, row in enumerate(words):
        for x, word in enumerate(row):
            ink = ink_on(colors[y][x])
            axis.text(x + 0.5, y + (0.36 if numbers else 0.5), word, fontsize=size, color=ink,
                      ha="center", va="center", parse_math=False)  # a token may be "$$"
            if numbers:
                axis.text(x + 0.5, y + 0.73, numbers[y][x], fontsize=size - 2, color=ink,
                          ha="center", va="center", parse_math=False)
        axis.text(-0.1, y + 0.5, names[y], fontsize=FONT - 1, ha="right", va="center",
                  parse_math=False)
    axis.set_title(title, fontsize=FONT, loc="left", y=1.0, parse_math=False)  # y: as in label
    if legend:
        axis.legend(handles=[Patch(facecolor=c, edgecolor=BLACK, label=name)
                             for name, c in legend.items()], loc="upper left", frameon=False,
                    bbox_to_anchor=(0, 0), ncols=min(4, len(legend)), fontsize=FONT - 2)
    return figure


def seed_panels(panels: Mapping[str, Sequence[Sequence[float]]], x_label: str, y_label: str, *,
                columns: int = 3, colors: Sequence[str] = (BLUE,)) -> Figure:
    """A panel for each setting, all of one scale from 0% to 100%: a thin line for each run
    (a seed), and the median of the runs thick."""
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(columns, rows, width=3.9 * columns, height=2.8 * rows)
    for i, (axis, (name, runs)) in enumerate(zip(axes, panels.items())):
        color = colors[i % len(colors)]
        steps = range(1, len(runs[0]) + 1)
        for run in runs:
            axis.plot(steps, run, color=color, linewidth=1, alpha=0.6)
        axis.plot(steps, [statistics.median(values) for values in zip(*runs)], color=color,
                  linewidth=3)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel(axis, name, x_label if i >= len(panels) - columns else "",
              y_label if i % columns == 0 else "", ylim=(0, 1.03), percent=True)
    return figure


def seed_dots(lots: Mapping[str, Mapping[str, Sequence[float]]], x_label: str, *,
              width: float = 10.0) -> Figure:
    """Shares of many settings below each other: lots[lot][setting] = a share for each run.

    A setting is a line, a run (a seed) a dot on it, the mean a dash; each lot has a colour, a
    mark and a place on the line of its own.
    """
    names = list(dict.fromkeys(name for lot in lots.values() for name in lot))
    figure, axis = new_figure(width=width, height=1.5 + 0.36 * len(names))
    looks = ((SKY, "o"), (VERMILION, "D"), (GREEN, "s"))
    for i, ((title, lot), (color, mark)) in enumerate(zip(lots.items(), looks)):
        place = 0.4 * (i - (len(lots) - 1) / 2) / max(1, len(lots) - 1)
        for y, name in enumerate(names):
            values = lot.get(name, ())
            axis.plot(values, [y + place] * len(values), mark, color=color, markersize=6,
                      markeredgewidth=0, alpha=0.75, clip_on=False,
                      label=title if name == next(iter(lot)) else None)
            if values:
                axis.plot([statistics.fmean(values)] * 2, [y + place - 0.2, y + place + 0.2],
                          color=BLACK, linewidth=2)
    panel(axis, "", x_label, xlim=(0, 1), ylim=(len(names) - 0.5, -0.5),
          yticks=dict(enumerate(names)), percent="x")
    figure.legend(fontsize=FONT - 1, frameon=False, ncols=len(lots), loc="outside upper center")
    return figure


def luminance(color: str) -> float:
    """Relative luminance of a colour from 0 (black) to 1 (white), as WCAG defines it."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
                        for c in to_rgb(color))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ink_on(color: str) -> str:
    """Black or white, whichever has the higher contrast on a colour: 4.5 to 1 at least."""
    return "white" if luminance(color) < 0.179 else "black"  # (L + .05)^2 = 1.05 * .05
