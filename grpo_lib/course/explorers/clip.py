"""The clipped objective of one token and its gradient, for both signs of the advantage."""

from __future__ import annotations

import torch

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import slider, stops
from grpo_lib.course.plots import BLACK, BLUE, FONT, PAPER, VERMILION, new_figure, panel
from grpo_lib.objective import clipped_surrogate, surrogate_gradient

SAME, NONE = "same as epsilon", "none"
HIGHS = (SAME, *(round(0.04 * i, 2) for i in range(1, 13)), 0.6, 0.8, 1.0, 1.25, 1.5)
DELTAS = (NONE, 2.75, 3.0)
WIDTH = 3.4  # the ratio goes from 0 to this


def clip_explorer(epsilon: float = 0.2) -> Explorer:
    """Sliders for epsilon, epsilon_high and delta. Left the objective over the ratio, right
    its slope; regions without gradient are shaded and named."""
    x = torch.linspace(0, WIDTH, 341, dtype=torch.float64)
    probes = torch.tensor([0.5, 1.5], dtype=torch.float64)

    def draw(epsilon: float, epsilon_high: float | str, delta: float | str):
        high = epsilon if epsilon_high == SAME else epsilon_high
        cap = None if delta == NONE else delta
        figure, axes = new_figure(2, width=11.0, height=4.4)
        said = []
        for sign, color, style in ((1.0, BLUE, "-"), (-1.0, VERMILION, "--")):
            advantage = torch.tensor(sign, dtype=torch.float64)
            for axis, function in zip(axes, (clipped_surrogate, surrogate_gradient)):
                axis.plot(x.tolist(), function(x, advantage, epsilon, high, cap).tolist(), style,
                          color=color, linewidth=2.6, label=f"A = {sign:+.0f}")
            slopes = surrogate_gradient(probes, advantage, epsilon, high, cap).tolist()
            at_half, at_more = (f"{slope:+.0f}" if slope else "0" for slope in slopes)
            said.append(f"A = {sign:+.0f}: gradient {at_half} at r = 0.5, {at_more} at r = 1.5")
        low_edge, high_edge = 1 - epsilon, 1 + high
        value, slope = axes
        panel(value, "Objective of one token", "ratio r", "min(r A, clip(r) A)", xlim=(0, WIDTH),
              ylim=(-3.6, 3.6), xticks=range(4), yticks=(-3, 0, 3), legend="upper left")
        panel(slope, "Its gradient by r", "ratio r", "d / dr", xlim=(0, WIDTH), ylim=(-1.6, 1.6),
              xticks=range(4), yticks=(-1, 0, 1))
        bands = [(high_edge, WIDTH, 0.5, BLUE), (0, low_edge, 0, VERMILION)]
        if cap is not None:
            bands.append((cap, WIDTH, 0, VERMILION))
        for axis in axes:
            axis.axvline(1, color=BLACK, linewidth=1)
            for left, right, bottom, color in bands:  # upper half A = +1, lower A = -1
                axis.axvspan(left, right, bottom, bottom + 0.5, color=color, alpha=0.2,
                             linewidth=0)
        for at, y, name, color in (((high_edge + WIDTH) / 2, 1.35, "A = +1\nblocked", BLUE),
                                   (max(low_edge / 2, 0.3), -1.35, "A = -1\nblocked", VERMILION)):
            slope.text(at, y, name, color=color, fontsize=FONT - 1, ha="center", va="center",
                       bbox=PAPER)
        blocked = f"A = -1 blocked below {low_edge:.2f}"
        blocked += f" and above {cap:.2f}" if cap is not None else ""
        text = (f"epsilon {epsilon:.2f}, epsilon_high {high:.2f}, delta {delta}: "
                f"A = +1 blocked above {high_edge:.2f}, {blocked}\n{'; '.join(said)}")
        return figure, text

    shown = {"epsilon": sorted({0.0, 0.1, 0.2, 0.3, 0.5, 0.9, epsilon}),
             "epsilon_high": (SAME, 0.08, 0.2, 0.28, 0.4, 0.6, 1.0)}
    return Explorer(draw, shown, epsilon=slider("epsilon", epsilon, 0.0, 0.9, 0.05),
                    epsilon_high=stops("epsilon_high", SAME, HIGHS),
                    delta=stops("delta (cap for A < 0)", NONE, DELTAS))
