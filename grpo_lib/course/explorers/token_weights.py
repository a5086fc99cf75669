"""How much every token of a real group counts in the loss, and which way it is pushed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from grpo_lib.advantages import group_advantages
from grpo_lib.course.explorers.base import Explorer, rounded
from grpo_lib.course.explorers.controls import choice, slider, stops
from grpo_lib.course.explorers.tokens import tint
from grpo_lib.course.plots import BLUE, RIGHT, WRONG, token_grid
from grpo_lib.objective import PAPER_AGGREGATIONS, token_weights

SIZES = (4, 6, 8)
WIDTH_OF_A_SIGN = "   "


def token_weights_explorer(words: Sequence[Sequence[str]], mask: Tensor, rewards: Tensor,
                           max_length: int = 19) -> Explorer:
    """Menus for aggregation and mode, sliders for G and the max_length of ``constant``.

    words[i]: the tokens of completion i of one prompt; mask (G, T); rewards (G,). The group is
    the first G of them, and the whole batch; the others keep an empty row, so that nothing moves.
    """
    if not len(words) == len(mask) == len(rewards) >= SIZES[-1]:
        raise ValueError(f"words, mask, rewards: got {len(words)}, {len(mask)}, {len(rewards)} "
                         f"completions, allowed are {SIZES[-1]} or more, the same of each")
    names = ["right" if r > 0 else "wrong" for r in rewards]
    columns = max(map(len, words))

    def draw(aggregation: str, mode: str, group_size: int, max_length: int):
        weights = token_weights(mask[:group_size], aggregation, max_length)
        advantages = group_advantages(rewards[None, :group_size].float())[0]
        lengths, each = mask[:group_size].sum(1), weights.amax(1)
        values = each * advantages if mode == "push" else each
        most = max(values.abs().max().item(), 1e-12)
        colors = [BLUE if mode == "weight" else RIGHT if value > 0 else WRONG for value in values]
        cells = [tint(*pair) for pair in zip(colors, (values.abs() / most).tolist())]
        out = len(words) - group_size
        sign = "+" if mode == "push" else ""
        figure = token_grid(
            [*words[:group_size], *[[]] * out],
            [*([c] * len(row) for c, row in zip(cells, words)), *[[]] * out],
            [*(f"{name}, {'' if sign else WIDTH_OF_A_SIGN}{value:{sign}.4f} each"
               for name, value in zip(names, values.tolist())), *["left out"] * out],
            f"{'Weight of each token' if mode == 'weight' else 'Weight times advantage'}, "
            f"{aggregation}", width=12, font=11)
        figure.axes[0].set_xlim(-0.02, columns)
        short, long = int(lengths.argmin()), int(lengths.argmax())
        text = (f"{aggregation}, G = {group_size}"
                f"{f', max_length {max_length}' if aggregation == 'constant' else ''}: "
                f"a token of the shortest ({int(lengths[short])} tokens) has weight "
                f"{each[short]:.4f}, of the longest ({int(lengths[long])}) {each[long]:.4f}; "
                f"the whole shortest {weights[short].sum():.3f}, the whole longest "
                f"{weights[long].sum():.3f}; all weights sum to {weights.sum():.3f}")
        if mode == "push":
            total = (weights.sum(1) * advantages).sum().item()
            text += (f"; weight times advantage: {values[short]:+.4f} and {values[long]:+.4f}, "
                     f"summed over all tokens {rounded(total, 3, '+')}")
        return figure, text

    return Explorer(
        draw, {"max_length": sorted({*range(10, 61, 10), max_length})},
        aggregation=choice("aggregation", "sequence_mean", PAPER_AGGREGATIONS),
        mode=choice("shown", "weight", [("weight", "weight"), ("weight x advantage", "push")]),
        group_size=stops("group size G", SIZES[-1], SIZES),
        max_length=slider("max_length of constant", max_length, 10, 60, 1))
