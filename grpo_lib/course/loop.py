"""The loop of GRPO as a drawing, with the part lit that a lesson is about."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from grpo_lib.course.picture import Picture
from grpo_lib.course.plots import BLACK, BLUE, FONT, new_figure

BOXES = {  # name: (column, row, what stands in the box); in the order of the loop
    "problem": (0, 1, "a problem"),
    "policy": (1, 1, "policy\nsamples G answers"),
    "rewards": (2, 1, "rewards\nright or wrong?"),
    "advantages": (3, 1, "advantages\nbetter than the group?"),
    "clip": (3, 0, "ratio and clip\nmoved too far?"),
    "kl": (2, 0, "KL and entropy\nhow far from the start?"),
    "loss": (1, 0, "loss\naverage over tokens"),
    "step": (0, 0, "one step\nnew weights"),
}
WIDE, HIGH, ACROSS, DOWN = 2.3, 0.9, 2.8, 1.5  # a box, and from one to the next
ARROWS = [*pairwise(BOXES), ("step", "policy")]


def loop(*lit: str) -> Picture:
    """A picture of the loop with the named boxes lit; none named: all of them."""
    unknown = [name for name in lit if name not in BOXES]
    if unknown:
        raise ValueError(f"lit: got {unknown[0]!r}, allowed are {', '.join(BOXES)}")
    figure, axis = new_figure(width=9.6, height=2.3)
    axis.axis("off")
    axis.set_xlim(-WIDE / 2 - 0.1, 3 * ACROSS + WIDE / 2 + 0.1)
    axis.set_ylim(-HIGH / 2 - 0.1, DOWN + HIGH / 2 + 0.1)
    patches = {name: box(axis, name, name in lit or not lit) for name in BOXES}
    for start, end in ARROWS:
        axis.add_patch(FancyArrowPatch(
            center(start), center(end), patchA=patches[start], patchB=patches[end], shrinkA=2,
            shrinkB=2, arrowstyle="-|>", mutation_scale=14, color=BLACK, linewidth=1.3))
    words = [BOXES[name][2].replace("\n", ": ") for name in lit or BOXES]
    return Picture(figure, f"The loop of GRPO. This lesson is about: {'; '.join(words)}")


def center(name: str) -> tuple[float, float]:
    column, row, _ = BOXES[name]
    return column * ACROSS, row * DOWN


def box(axis, name: str, lit: bool) -> FancyBboxPatch:
    x, y = center(name)
    patch = FancyBboxPatch((x - WIDE / 2, y - HIGH / 2), WIDE, HIGH,
                           boxstyle="round,pad=0,rounding_size=0.12", linewidth=1.3,
                           facecolor=BLUE if lit else "white",
                           edgecolor=BLUE if lit else "#999999")
    axis.add_patch(patch)
    title, _, below = BOXES[name][2].partition("\n")
    color = "white" if lit else "#444444"
    if below:
        axis.text(x, y + 0.19, title, ha="center", va="center", fontsize=FONT, color=color,
                  fontweight="bold")
        axis.text(x, y - 0.21, below, ha="center", va="center", fontsize=FONT - 3, color=color)
    else:
        axis.text(x, y, title, ha="center", va="center", fontsize=FONT, color=color,
                  fontweight="bold")
    return patch
