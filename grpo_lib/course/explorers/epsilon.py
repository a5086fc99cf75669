"""The tokens of a real update: which of them the clip blocks as epsilon changes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from torch import Tensor

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import slider
from grpo_lib.course.plots import (
    BLACK,
    BLUE,
    FONT,
    GREY,
    ORANGE,
    PAPER,
    VERMILION,
    new_figure,
    panel,
)
from grpo_lib.objective import clip_binds, clip_stats

DOTS = 500  # tokens that are drawn; the numbers count all
WIDEST, HIGHEST = 2.0, 3.2  # of the ratio and the advantage that are drawn; others at the edge
UPDATES = 8  # on each batch of the recorded runs that are shown
NO_CLIP = 10.0  # an epsilon above which a recorded run counts as one without a clip


def epsilon_explorer(ratio: Tensor, advantages: Tensor, mask: Tensor, epsilon: float = 0.2,
                     runs: Sequence[Mapping] | None = None) -> Explorer:
    """A slider for epsilon; ratio (B, T), advantages (B,), mask (B, T) of a measured update.

    Each dot is a token at its ratio and advantage: blue where a gradient flows, grey where the clip
    blocks it. (Tokens of advantage 0 never have one; they are counted and not drawn.)
    ``runs``, those of ``grpo_lib.course.recorded.load("clipping")``: beside the dots, what the
    recorded epsilon nearest to the slider's made of whole runs.
    """
    column = advantages[:, None].expand_as(ratio)
    places = ((mask > 0) & (column != 0)).flatten().nonzero().squeeze(1)
    few = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:DOTS]
    few = places[few.sort().values]
    jitter = torch.rand(len(few), generator=torch.Generator().manual_seed(1)) - 0.5
    x = ratio.flatten()[few].clamp(0, WIDEST)
    y = (column.flatten()[few].clamp(-HIGHEST, HIGHEST) + 0.3 * jitter)
    recorded = by_epsilon(runs or ())

    def draw(epsilon: float):
        stats = clip_stats(ratio, advantages[:, None], mask, epsilon)
        low, high = clip_binds(ratio, column, epsilon)
        stopped = (low | high).flatten()[few]
        figure, axes = new_figure(2 if recorded else 1, width=12.0 if recorded else 7.6, height=4.6)
        dots, beside = axes if recorded else (axes, None)
        draw_dots(dots, x, y, stopped, epsilon, stats["clip_fraction"])
        text = (f"epsilon = {epsilon:.2f} blocks {stats['clip_fraction']:.2%} of the tokens of "
                f"this update: {stats['clip_fraction_low']:.2%} at 1 - epsilon, "
                f"{stats['clip_fraction_high']:.2%} at 1 + epsilon")
        if recorded:
            text += "\n" + draw_runs(beside, recorded, epsilon)
        return figure, text

    return Explorer(draw, epsilon=slider("epsilon", epsilon, 0.0, 0.9, 0.05))


def draw_dots(axis: Axes, x: Tensor, y: Tensor, stopped: Tensor, epsilon: float,
              blocked: float) -> None:
    """Tokens over their ratio; what the clip blocks is shaded."""
    low, high = 1 - epsilon, 1 + epsilon
    top = HIGHEST + 0.3
    axis.fill_between((high, WIDEST + 0.06), 0, top, color=GREY, alpha=0.14, linewidth=0)
    axis.fill_between((-0.06, low), -top, 0, color=GREY, alpha=0.14, linewidth=0)
    for here, color in ((~stopped, BLUE), (stopped, "#9A9A9A")):
        # a dot is a line of no length with round ends: one path in all, quick to draw
        ends = torch.stack((x[here], y[here], x[here] + 1e-3, y[here]), 1).view(-1, 2)
        path = Path(ends.numpy(), [Path.MOVETO, Path.LINETO] * (len(ends) // 2))
        path.should_simplify = False
        axis.add_patch(PathPatch(path, fill=False, edgecolor=color, linewidth=4.5,
                                 capstyle="round", alpha=0.75, snap=False))
    axis.axvline(1, color=BLACK, linewidth=1)
    axis.axhline(0, color=BLACK, linewidth=1)
    for at in (low, high):
        axis.axvline(at, color=VERMILION, linewidth=2, linestyle=(0, (4, 2)))
    for at, height, told, side in ((WIDEST, top, "blocked: good and\nalready likelier", "right"),
                                   (0, -top, "blocked: bad and\nalready less likely", "left")):
        axis.text(at, height * 0.97, told, fontsize=FONT - 3, color="#555555", ha=side,
                  va="top" if height > 0 else "bottom", bbox=PAPER | {"alpha": 0.85})
    panel(axis, f"Tokens of one update: epsilon {epsilon:.2f} blocks {blocked:.0%}",
          "ratio r = new probability / old probability", "advantage A",
          xlim=(-0.06, WIDEST + 0.06), ylim=(-top, top), xticks=(0, 0.5, 1, 1.5, 2),
          yticks=(-3, 0, 3))


def by_epsilon(runs: Sequence[Mapping]) -> dict[float, list[Mapping]]:
    """The recorded runs of each epsilon that is the same on both sides, smallest first."""
    found: dict[float, list[Mapping]] = {}
    for run in runs:
        config = run["config"]
        low, high = config["epsilon"], config["epsilon_high"] or config["epsilon"]
        many = config["num_iterations"] * config["minibatches"] == UPDATES
        if many and (low == high or high > NO_CLIP):
            found.setdefault(high, []).append(run)
    return dict(sorted(found.items()))


def draw_runs(axis: Axes, recorded: Mapping[float, Sequence[Mapping]], epsilon: float) -> str:
    """Share right over the steps of each recorded epsilon, the nearest one in front; in words."""
    def name(value: float) -> str:
        return "no clip" if value > NO_CLIP else f"epsilon {value:g}"

    nearest = min(recorded, key=lambda value: abs(min(value, 0.9) - epsilon))
    said = []
    for value in sorted(recorded, key=lambda value: value == nearest):
        curves = [run["accuracy"] for run in recorded[value]]
        mean = [statistics.fmean(step) for step in zip(*curves)]
        front = value == nearest
        for curve in curves if front else ():
            axis.plot(range(1, len(curve) + 1), curve, color=ORANGE, linewidth=1, alpha=0.6)
        axis.plot(range(1, len(mean) + 1), mean, color=ORANGE if front else "#BBBBBB",
                  linewidth=3.2 if front else 1.6, label=name(value) if front else None)
        said.append((value, f"{name(value)} {mean[-1]:.0%}"))
    length = len(next(iter(recorded.values()))[0]["accuracy"])
    panel(axis, f"Whole runs, eight updates a batch: {name(nearest)} in orange", "step",
          "right answers", xlim=(1, length), ylim=(0, 1), percent=True)
    return (f"right at the end of recorded runs with eight updates a batch: "
            f"{', '.join(words for _, words in sorted(said))}; in orange {name(nearest)}")
