"""What a group of G completions can teach, for G from 2 to 64."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grpo_lib.advantages import group_advantages, informative_groups
from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import stops
from grpo_lib.course.plots import group_bars

SIZES = (2, 4, 8, 16, 32, 64)


def group_size_explorer(rewards: Sequence[float], group_size: int = 4) -> Explorer:
    """A slider for G over the first G of many rewards of one prompt, measured beforehand."""
    if len(rewards) < max(SIZES):
        raise ValueError(f"rewards: got {len(rewards)}, allowed are {max(SIZES)} or more")

    def draw(group_size: int):
        group = torch.as_tensor(rewards[:group_size], dtype=torch.float32)[None]
        advantages = group_advantages(group)[0]
        right = int((group > 0).sum())
        if informative_groups(group)[0]:
            text = (f"G = {group_size}: {right} right, {group_size - right} wrong; a right one "
                    f"gets advantage {advantages.max():+.2f}, a wrong one {advantages.min():+.2f}")
        else:
            text = (f"G = {group_size}: {right} right, {group_size - right} wrong; all advantages "
                    f"are 0, so this group teaches nothing")
        return group_bars(group[0].tolist(), advantages.tolist(), f"A group of {group_size}"), text

    return Explorer(draw, group_size=stops("group size G", group_size, SIZES))
