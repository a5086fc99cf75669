"""Which column of logits scores which token, and what the wrong one makes of a completion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from grpo_lib.course.explorers.base import Explorer, rounded
from grpo_lib.course.explorers.controls import choice, slider
from grpo_lib.course.plots import BLACK, FONT, GREY, SKY, VERMILION, boxes, new_figure
from grpo_lib.policy import Policy
from grpo_lib.rollout import Rollouts, offset_log_probs, up_to_last

OFFSETS = {-1: "t - 1 (right)", 0: "t (wrong, the usual mistake)", 1: "t + 1 (wrong)"}
PAPER, PALE = "#FFFFFF", "#E4E4E4"


def shift_explorer(policy: Policy, rollouts: Rollouts, words: Sequence[str],
                   offset: int = -1, row: int = 0) -> Explorer:
    """A slider for the offset between a token and the logits that score it, and a menu of the
    rollouts' completions. ``words`` are the tokenizer's."""
    with torch.no_grad():
        scores = {o: offset_log_probs(policy, rollouts, o).cpu() for o in OFFSETS}
    tokens = rollouts.tokens.tolist()
    names = [[short(words[i]) for i in line] for line in tokens]
    start, lengths = rollouts.prompt_length, up_to_last(rollouts.mask).sum(1).tolist()
    padding = [int(n) for n in (rollouts.prompt_mask == 0).sum(1)]
    finite = torch.stack(list(scores.values()))
    lowest = finite[finite.isfinite()].min().item()

    def draw(offset: int, completion: int):
        values = scores[offset][completion, : lengths[completion]]
        figure = score_strip(names[completion], values, offset, padding[completion], start,
                             lengths[completion], lowest)
        return figure, describe(names[completion][start:], values, OFFSETS[offset])

    menu = [(f"{i + 1}: {' '.join(line[start:start + n])}", i)
            for i, (line, n) in enumerate(zip(names, lengths))]
    return Explorer(draw, offset=slider("offset (columns)", offset, -1, 1, 1),
                    completion=choice("completion", row, menu))


def short(word: str) -> str:
    return word.strip("<>") if word in ("<eos>", "<pad>") else word


def number(value: float | None, digits: int) -> str:
    """A log-prob in words; "none" where there is none, and no minus before a zero."""
    return "none" if value is None or value != value else rounded(value, digits)


def describe(names: Sequence[str], values: Tensor, where: str) -> str:
    """The log-prob of every token, and the mean of those that there are."""
    each = ", ".join(f"{name} {number(value, 2)}" for name, value in zip(names, values.tolist()))
    return f"logits at {where}: {each}; mean {number(values.nanmean().item(), 2)}"


def score_strip(names: Sequence[str], values: Tensor, offset: int, padding: int, start: int,
                length: int, lowest: float) -> Figure:
    """A row of tokens; below each completion token the token after which the logits that score
    it stand, with a line from the one to the other; below that its log-prob as a bar."""
    width, end, scale = len(names), start + length, 2.6 / -lowest
    color = SKY if offset == -1 else VERMILION
    values = [None if v != v else v for v in values.tolist()]
    figure, axis = new_figure(width=0.46 * width + 1.5, height=4.2)
    axis.set_axis_off()
    axis.set(xlim=(-0.1, width + 0.1), ylim=(6.0, -.9))
    columns = range(start, end)
    cells = [(x, 0, 0.9, PALE if padding <= x < start else SKY if start <= x < end else PAPER)
             for x in range(width)]
    cells += [(x, 1.7, 0.9, color) for x in columns]
    cells += [(x, 2.8, -scale * (v or 0), color) for x, v in zip(columns, values)]
    boxes(axis, [(x + .05, y, x + .95, y + h, c) for x, y, h, c in cells])
    axis.add_collection(LineCollection(
        [[(x + offset + .5, .95), (x + .5, 1.65)] for x in columns if x + offset < width],
        colors=BLACK, linewidths=1.4), autolim=False)

    def write(x, y, text, color=BLACK, **style):
        axis.text(x, y, text, fontsize=FONT - 1, color=color, **{"ha": "center", "va": "center"}
                  | style)

    for x, name in enumerate(names):
        write(x + .5, .47, name, BLACK if padding <= x < end else GREY)
    for x, value in zip(columns, values):
        write(x + .5, 2.17, names[x + offset] if x + offset < width else "none")
        write(x + .5, 2.92 - scale * (value or 0), number(value, 1), va="top")
    for left, right, name in ((0, padding, "padding: 0"), (padding, start, "prompt: 0"),
                              (start, end, "completion: 1"), (end, width, "after the end: 0")):
        if right > left:
            axis.plot([left + .1, right - .1], [-.15, -.15], color=BLACK, linewidth=1.4)
            write((left + right) / 2, -.25, name, va="bottom")
    write(-.2, -.25, "mask", ha="right", va="bottom")
    for x, y, name in ((0, .47, "token"), (start, 2.17, "scored after"),
                       (start, 3.1, "log-prob (nats)")):
        write(x - .2, y, name, ha="right")
    axis.set_title(f"Each token scored by the logits at {OFFSETS[offset]}", fontsize=FONT,
                   loc="left")
    return figure
