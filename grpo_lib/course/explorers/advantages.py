"""Four rewards become four advantages, under every choice of baseline and scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grpo_lib.advantages import group_advantages
from grpo_lib.course.explorers.base import Explorer, rounded
from grpo_lib.course.explorers.controls import choice, slider
from grpo_lib.course.plots import BLACK, FONT, RIGHT, SKY, WRONG, new_figure, panel

BASELINES = ("mean", "leave_one_out", "none")  # the lesson's, of those there are
SCALES = ("group", "batch", "none")
WIDE_LIMIT = 30.0  # of the y axis, where the usual 3 is too small


def advantages_explorer(rewards: Sequence[float] = (1.0, 0.1, 1.0, 0.2),
                        second: Sequence[float] = (0.0, 0.0, 0.0, 0.0)) -> Explorer:
    """Sliders for four rewards, menus for ``scale`` and ``baseline``; ``second`` is the fixed
    other group that the std of the "batch" also counts."""
    if len(rewards) != 4 or len(second) != 4:
        raise ValueError(f"rewards, second: got {len(rewards)} and {len(second)} numbers, "
                         f"allowed are 4 each")
    other = " ".join(f"{r:g}" for r in second)

    def draw(baseline: str, scale: str, **sliders: float):
        group = [round(r, 1) for r in sliders.values()]
        both = torch.tensor([group, second], dtype=torch.float64)
        values = group_advantages(both, baseline=baseline, scale=scale)[0].tolist()
        first = both[0]
        text = (f"rewards {' '.join(f'{r:.1f}' for r in group)}: mean {first.mean():.3f}, "
                f"std {first.std():.3f} (biased {first.std(correction=0):.3f})"
                + (f", std of both groups {both.std():.3f}" if scale == "batch" else "")
                + f"; advantages {' '.join(f'{a + 0.0:+.2f}' for a in values)}, "
                  f"sum {rounded(sum(values), 2, '+')}")
        return bars(group, values, baseline, scale), text

    controls = {f"r{i + 1}": slider(f"reward {i + 1}", r, 0.0, 1.0, 0.1)
                for i, r in enumerate(rewards)}
    scales = [(f"batch (with a group {other})" if s == "batch" else s, s) for s in SCALES]
    shown = {name: sorted({0.0, 0.5, 1.0, control.value}) if control.value in (0, 1)
             else [0.0, control.value, 1.0] for name, control in controls.items()}
    return Explorer(draw, shown, **controls, baseline=choice("baseline", "mean", BASELINES),
                    scale=choice("scale", "group", scales))


def bars(rewards: Sequence[float], advantages: Sequence[float], baseline: str, scale: str):
    """Rewards (and their mean, where it is the baseline) on the left, advantages with their numbers
    on the right."""
    figure, (left, right) = new_figure(2, width=9.4, height=3.7)
    members, mean = range(1, len(rewards) + 1), sum(rewards) / len(rewards)
    left.bar(members, rewards, color=SKY)
    if baseline == "mean":
        left.axhline(mean, color=BLACK, linestyle="--")
        left.annotate(f"dashed: mean {mean:.3f}", (0.98, 1.18), xycoords=("axes fraction", "data"),
                      ha="right", va="top", fontsize=FONT - 1)
    limit = 3.0 if max(map(abs, advantages)) <= 3 * 0.8 else WIDE_LIMIT
    right.bar(members, advantages, color=[RIGHT if a > 0 else WRONG for a in advantages])
    right.axhline(0, color=BLACK, linewidth=1)
    for member, value in zip(members, advantages):
        up = 2 if value >= 0 else -4  # points between the bar and its number
        right.annotate(f"{value + 0.0:+.2f}", (member, value), (0, up), ha="center",
                       textcoords="offset points", va="bottom" if value >= 0 else "top",
                       fontsize=FONT)
    panel(left, "Rewards of one group", "completion", "reward", ylim=(0, 1.2), xticks=members,
          yticks=(0, 0.5, 1))
    panel(right, f"Baseline {baseline}, scale {scale}", "completion", "advantage",
          ylim=(-limit, limit), xticks=members, yticks=(-limit, 0, limit))
    return figure
