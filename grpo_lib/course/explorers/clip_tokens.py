"""Tokens of real completions: which of them the clip blocks, after 0, 1, 2, ... updates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.clip import HIGHS, SAME
from grpo_lib.course.explorers.controls import slider, stops
from grpo_lib.course.plots import BLUE, FONT, VERMILION, token_grid
from grpo_lib.objective import clip_binds, clip_stats, outside_fraction

FLOWS, SILENT = "#FFFFFF", "#BBBBBB"
SIGNS = {FLOWS: "", SILENT: " o", BLUE: " ^", VERMILION: " v"}
LEGEND = {"flows": FLOWS, "^ blocked at 1 + epsilon_high": BLUE,
          "v blocked at 1 - epsilon": VERMILION, "o advantage 0": SILENT}


def clip_tokens_explorer(words: Sequence[Sequence[str]], rows: Sequence[int], ratios: Tensor,
                         advantages: Tensor, mask: Tensor, epsilon: float = 0.2) -> Explorer:
    """Sliders for epsilon, epsilon_high and the updates taken on one batch.

    ratios (U + 1, B, T) after 0 to U updates, advantages (B,), mask (B, T) of the batch;
    ``rows`` of it are shown, with their tokens in ``words``. Both epsilons start above 0:
    there, rounding would decide about tokens that have not moved.
    """
    if ratios.dim() != 3 or ratios.shape[1:] != mask.shape:
        raise ValueError(f"ratios: got shape {tuple(ratios.shape)}, allowed is (U + 1, B, T) with "
                         f"(B, T) = {tuple(mask.shape)}")
    lengths = mask.sum(1).long().tolist()
    for i, row in enumerate(rows):
        if len(words[i]) != lengths[row]:
            raise ValueError(f"words: got {len(words[i])} for row {row}, allowed are its "
                             f"{lengths[row]} tokens")
    some = torch.as_tensor(rows)
    column = advantages[:, None]
    names = [f"A {advantages[row]:+.2f}" for row in rows]

    def draw(epsilon: float, epsilon_high: float | str, updates: int):
        high = epsilon if epsilon_high == SAME else epsilon_high
        ratio = ratios[updates]
        low, above = (t[some] for t in clip_binds(ratio, column, epsilon, high))
        colors, cells = [], []
        for i, row in enumerate(rows):
            colors.append([VERMILION if low[i, t] else BLUE if above[i, t]
                           else SILENT if advantages[row] == 0 else FLOWS
                           for t in range(lengths[row])])
            cells.append([f"{words[i][t]}\n{ratio[row, t]:.2f}{SIGNS[colors[i][t]]}"
                          for t in range(lengths[row])])  # one text a cell is quicker than two
        figure = token_grid(cells, colors, names,
                            f"Ratios after {updates} updates on one batch", LEGEND, font=FONT - 1)
        shown = sum(len(row) for row in words)
        stopped = int((low | above)[mask[some] > 0].sum())
        stats = clip_stats(ratio, column, mask, epsilon, high)
        naive = outside_fraction(ratio, mask, epsilon, high)
        text = (f"{updates} updates, epsilon {epsilon:.2f}, epsilon_high {high:.2f}: blocked "
                f"{stopped} of the {shown} tokens shown\nwhole batch: blocked "
                f"{stats['clip_fraction']:.1%} ({stats['clip_fraction_low']:.1%} at 1 - epsilon, "
                f"{stats['clip_fraction_high']:.1%} at 1 + epsilon_high); outside the range, "
                f"whatever the sign of A: {naive:.1%}")
        return figure, text

    shown = {"epsilon": sorted({0.05, 0.1, 0.2, 0.3, 0.5, 0.9, epsilon}),
             "epsilon_high": (SAME, 0.08, 0.2, 0.28, 0.4, 0.6, 1.0)}
    return Explorer(draw, shown, epsilon=slider("epsilon", epsilon, 0.05, 0.9, 0.05),
                    epsilon_high=stops("epsilon_high", SAME, HIGHS),
                    updates=slider("updates taken", len(ratios) - 1, 0, len(ratios) - 1, 1))
