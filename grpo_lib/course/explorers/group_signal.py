"""How many groups teach something, and what one costs, for G from 2 to 64."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from grpo_lib.advantages import informative_groups, informative_share
from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, stops
from grpo_lib.course.explorers.group_size import SIZES
from grpo_lib.course.plots import BLACK, BLUE, GREY, ORANGE, VERMILION, new_figure, panel

PROMPTS = 32  # a step of the default run has so many groups


def group_signal_explorer(measured: Mapping[str, tuple[Tensor, float]],
                          group_size: int = 8) -> Explorer:
    """A slider for G and a menu of policies.

    ``measured``: name -> (rewards (N, 64) of N problems, all 0 or 1; mean tokens of a
    completion). A problem's 64 answers, cut into 64 / G groups in the order in which they
    were sampled, are the measured groups.
    """
    found = {name: table(name, rewards, tokens) for name, (rewards, tokens) in measured.items()}

    def draw(policy: str, group_size: int):
        rows, (mean, tokens) = found[policy], summary[policy]
        one, each, real = rows[group_size]
        size = tokens * group_size
        price = f"{size / real:,.0f} tokens for one that teaches" if real else "none teaches"
        text = (f"{policy}, G = {group_size}: {mean:.1%} right; groups that teach: {one:.1%} by "
                f"the formula at the mean p, {each:.1%} by its mean over problems, {real:.1%} "
                f"measured; a step of {PROMPTS} groups is {PROMPTS * size:,.0f} tokens, a group "
                f"{size:,.0f}, {price}")
        return two_panels(rows, tokens, group_size, policy), text

    summary = {name: (rewards.double().mean().item(), tokens)
               for name, (rewards, tokens) in measured.items()}
    return Explorer(draw, policy=choice("policy", next(iter(measured)), list(measured)),
                    group_size=stops("group size G", group_size, SIZES))


def table(name: str, rewards: Tensor, tokens: float) -> dict[int, tuple[float, float, float]]:
    """G -> share of informative groups: at the mean p, mean over problems, measured."""
    if rewards.dim() != 2 or rewards.shape[1] != max(SIZES):
        raise ValueError(f"measured[{name!r}]: got rewards of shape {tuple(rewards.shape)}, "
                         f"allowed is (N, {max(SIZES)})")
    if not ((rewards == 0) | (rewards == 1)).all():
        raise ValueError(f"measured[{name!r}]: got rewards other than 0 and 1, allowed are those")
    if not tokens > 0:
        raise ValueError(f"measured[{name!r}]: got {tokens!r} tokens, allowed is a number above 0")
    rewards = rewards.double()
    p = rewards.mean(1)
    return {size: (informative_share(p.mean(), size).item(),
                   informative_share(p, size).mean().item(),
                   informative_groups(rewards.reshape(-1, size)).double().mean().item())
            for size in SIZES}


def two_panels(rows: Mapping[int, tuple[float, float, float]], tokens: float, chosen: int,
               policy: str):
    """Shares over G on the left, tokens over G on the right; the chosen G is a dotted line.

    The axes are plain ones with logarithms on them, which draw faster than log axes.
    """
    figure, (left, right) = new_figure(2, width=9.8, height=4.4)
    sizes = list(rows)
    places = range(len(sizes))
    at_mean, by_problem, real = zip(*rows.values())
    left.plot(places, at_mean, "--", color=GREY, linewidth=2, label="formula at the mean p")
    left.plot(places, by_problem, "-", color=BLUE, linewidth=2, label="formula, mean over problems")
    left.plot(places, real, "o", color=BLACK, markersize=7, label="measured")
    costs = [math.log10(tokens * size) for size in sizes]
    priced = [(x, cost - math.log10(share)) for x, cost, share in zip(places, costs, real) if share]
    right.plot(places, costs, "-", color=ORANGE, linewidth=2, label="a group")
    right.plot(*zip(*priced) if priced else ([], []), "s--", color=VERMILION, linewidth=2,
               label="a group that teaches")
    for axis in (left, right):
        axis.axvline(sizes.index(chosen), color=BLACK, linestyle=":", linewidth=1.6)
    x = {"xlim": (-0.3, len(sizes) - 0.7), "xticks": dict(zip(places, map(str, sizes)))}
    panel(left, f"Groups that teach: {policy}", "group size G", "share", ylim=(0, 1.03),
          yticks={0: "0%", 0.5: "50%", 1: "100%"}, legend="below", **x)
    panel(right, "What they cost", "group size G", "tokens", ylim=(0.8, 5.3),
          yticks={power: f"{10 ** power:,}" for power in range(1, 6)}, legend="below", **x)
    return figure
