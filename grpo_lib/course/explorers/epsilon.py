"""The clipped objective of one token, and how many tokens of a real update it blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import slider
from grpo_lib.course.plots import BLUE, VERMILION, lines
from grpo_lib.objective import clip_stats, clipped_surrogate


def epsilon_explorer(ratio: Tensor, advantages: Tensor, mask: Tensor,
                     epsilon: float = 0.2) -> Explorer:
    """A slider for epsilon; ratio (B, T), advantages (B,), mask (B, T) of a measured update."""
    x = torch.linspace(0, 2, 201)

    def draw(epsilon: float):
        stats = clip_stats(ratio, advantages[:, None], mask, epsilon)
        curves = {f"A = {sign:+.0f}": clipped_surrogate(x, torch.tensor(sign), epsilon).tolist()
                  for sign in (1.0, -1.0)}
        figure = lines(x.tolist(), curves, f"Objective of one token, epsilon = {epsilon:.2f}",
                       "ratio r = new probability / old probability", "min(r A, clip(r) A)",
                       marks={"1 - epsilon": 1 - epsilon, "1 + epsilon": 1 + epsilon},
                       colors=(BLUE, VERMILION), y_range=(-2.1, 2.1))
        blocked = stats["clip_fraction"]
        text = (f"epsilon = {epsilon:.2f} blocks {blocked:.2%} of the tokens of this update: "
                f"{stats['clip_fraction_low']:.2%} at 1 - epsilon, "
                f"{stats['clip_fraction_high']:.2%} at 1 + epsilon")
        return figure, text

    return Explorer(draw, epsilon=slider("epsilon", epsilon, 0.0, 0.9, 0.05))
