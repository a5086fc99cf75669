"""Widgets for the notebooks, an explorer a file; ``base`` is what they stand on."""

from grpo_lib.explorers.base import Explorer, LiveCurves
from grpo_lib.explorers.epsilon import epsilon_explorer
from grpo_lib.explorers.group_size import group_size_explorer

__all__ = ["Explorer", "LiveCurves", "epsilon_explorer", "group_size_explorer"]
