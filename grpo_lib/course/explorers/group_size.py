"""What a group of G completions can teach, for G from 2 to 64: one group, and what G does to many.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from grpo_lib.advantages import group_advantages, informative_groups
from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import again, stops
from grpo_lib.course.plots import BLACK, BLUE, FONT, GREY, RIGHT, WRONG, panel

SIZES = (2, 4, 8, 16, 32, 64)
DRAWS = 8  # groups of each size to look at, where there are answers enough
WRITTEN, LETTERS = 16, 34  # answers with their words beside them at most, and letters of each
LIMIT = 4.0  # of the axis of advantages; a longer bar is cut there, its number says how long it is


def group_size_explorer(rewards: Sequence[float], texts: Sequence[str] | None = None,
                        lengths: Sequence[int] | None = None, group_size: int = 4) -> Explorer:
    """A slider for G, and a button that draws another group.

    ``rewards``: of many answers to one prompt, all 0 or 1, measured beforehand, with the answers'
    ``texts`` and their ``lengths`` in tokens where these are known. A group is the first G of 64
    answers, the next draw that of the next 64. What is said of many groups counts all answers, cut
    into groups of G. ValueError: fewer than 64 rewards.
    """
    if len(rewards) < max(SIZES):
        raise ValueError(f"rewards: got {len(rewards)}, allowed are {max(SIZES)} or more")
    for name, given in (("texts", texts), ("lengths", lengths)):
        if given is not None and len(given) != len(rewards):
            raise ValueError(f"{name}: got {len(given)}, allowed are {len(rewards)}, as many as "
                             f"rewards")
    pool = torch.as_tensor(rewards, dtype=torch.float32)
    draws = min(DRAWS, len(pool) // max(SIZES))
    mean_length = sum(lengths) / len(lengths) if lengths else None
    many = {size: of_many(pool, size) for size in SIZES}

    def draw(group_size: int, draw: int = 0):
        first = draw * max(SIZES)
        group = pool[first : first + group_size]
        advantages = group_advantages(group[None])[0]
        right = int((group > 0).sum())
        number = f", draw {draw + 1}" if draw else ""
        text = f"G = {group_size}{number}: {right} right, {group_size - right} wrong; "
        if informative_groups(group[None])[0]:
            text += (f"a right one gets advantage {advantages.max():+.2f}, a wrong one "
                     f"{advantages.min():+.2f}")
        else:
            text += "all advantages are 0, so this group teaches nothing"
        share, mean, spread = many[group_size]
        text += (f"\nof all {len(pool) // group_size} groups of {group_size} answers {share:.0%} "
                 f"teach; in them a right answer gets {mean:+.2f} on average, give or take "
                 f"{spread:.2f}" if share else
                 f"\nof all {len(pool) // group_size} groups of {group_size} answers none teaches")
        if mean_length:
            text += f"; a group costs {group_size * mean_length:.0f} tokens"
        words = texts[first : first + group_size] if texts else None
        return picture(group, advantages, words, many, group_size, mean_length), text

    controls = {"group_size": stops("group size G", group_size, SIZES)}
    if draws > 1:
        controls["draw"] = again("Draw another group", draws)
    return Explorer(draw, **controls)


def of_many(pool: Tensor, size: int) -> tuple[float, float, float]:
    """Of all answers, cut into groups: the share of groups that teach, and the mean and the spread
    (standard deviation) of a right answer's advantage in those."""
    groups = pool[: len(pool) // size * size].view(-1, size)
    teaches = informative_groups(groups)
    some = groups[teaches]
    right = group_advantages(some)[some > 0].double()
    if not len(right):
        return 0.0, 0.0, 0.0
    return teaches.double().mean().item(), right.mean().item(), right.std(correction=0).item()


def picture(group: Tensor, advantages: Tensor, words: Sequence[str] | None, many: dict, size: int,
            mean_length: float | None) -> Figure:
    """Left the group, a bar for each answer; right what becomes of many such groups, over G."""
    figure = Figure(figsize=(12.0, 4.9), facecolor="white")
    written = words is not None and size <= WRITTEN
    bars = figure.add_axes((0.35, 0.12, 0.27, 0.78))
    bars.spines[["top", "right", "left"]].set_visible(False)
    colors = [RIGHT if reward > 0 else WRONG for reward in group.tolist()]
    places = range(size)
    bars.barh(places, advantages.clamp(-LIMIT, LIMIT).tolist(), 0.8, color=colors)
    bars.axvline(0, color=BLACK, linewidth=1)
    teaches = bool(informative_groups(group[None])[0])
    title = "Advantages of one group" if teaches else "All answers alike: nothing to learn"
    panel(bars, title, "advantage", xlim=(-1.3 * LIMIT, 1.3 * LIMIT),
          ylim=(max(size, 4) - 0.4, -0.6), xticks=(-4, -2, 0, 2, 4), yticks=())
    for place, (value, reward, color) in enumerate(zip(advantages.tolist(), group.tolist(),
                                                       colors)):
        if size <= WRITTEN:
            end, side = max(-LIMIT, min(value, LIMIT)), 1 if value > 0 else -1
            bars.annotate(f"{value:+.2f}" if value else "0", (end, place), (4 * side, 0),
                          textcoords="offset points", va="center", fontsize=FONT - 3,
                          ha="left" if value > 0 else "right")
        if written:
            told = words[place] if len(words[place]) <= LETTERS else words[place][:LETTERS] + "…"
            bars.text(-0.04, place, f"{told or '(nothing)'}  {'✓' if reward > 0 else '✗'}",
                      transform=bars.get_yaxis_transform(), ha="right", va="center", color=color,
                      fontsize=FONT - 2, parse_math=False)
    if not written:
        right = int((group > 0).sum())
        for y, told, color in ((0.55, f"{right} right", RIGHT),
                               (0.45, f"{size - right} wrong", WRONG)):
            figure.text(0.17, y, told, color=color, fontsize=FONT + 9, ha="center", va="center")
    draw_many(figure, many, size, mean_length)
    return figure


def draw_many(figure: Figure, many: dict, size: int, mean_length: float | None) -> None:
    """What becomes of many groups over G, a small panel for each number, with G marked."""
    panels = [("Groups that teach", [many[g][0] for g in SIZES], None, (0, 1), True),
              ("A right answer's advantage", [many[g][1] for g in SIZES],
               [many[g][2] for g in SIZES], (0, 8), False)]
    if mean_length:
        panels.append(("Tokens of a group", [mean_length * g for g in SIZES], None,
                       (0, mean_length * max(SIZES) * 1.1), False))
    at, height = SIZES.index(size), 0.78 / len(panels)
    for i, (name, values, spread, limits, percent) in enumerate(panels):
        axis = figure.add_axes((0.70, 0.12 + (len(panels) - 1 - i) * height, 0.28, height - 0.1))
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=FONT - 3)
        axis.plot(range(len(SIZES)), values, "o-", color=GREY, markersize=4)
        if spread:
            axis.fill_between(range(len(SIZES)), [v - s for v, s in zip(values, spread)],
                              [v + s for v, s in zip(values, spread)], color=GREY, alpha=0.25,
                              linewidth=0)
        axis.plot([at], [values[at]], "o", color=BLUE, markersize=10, clip_on=False)
        last = i == len(panels) - 1
        panel(axis, name, "group size G" if last else "", xlim=(-0.3, len(SIZES) - 0.7),
              ylim=limits, percent=percent,
              xticks=dict(enumerate(map(str, SIZES))) if last else dict.fromkeys(
                  range(len(SIZES)), ""))
