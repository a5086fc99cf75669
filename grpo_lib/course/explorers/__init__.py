"""Widgets for the notebooks, an explorer a file; ``base`` is what they stand on.

The file ``clip.py`` offers ``clip_explorer``, and so on for each.
"""

from importlib import import_module
from pathlib import Path

from grpo_lib.course.explorers.base import Explorer, LiveCurves

_SHARED = {"__init__", "base", "cockpit_view", "controls", "frames", "outputs", "tokens"}
_FILES = sorted(f.stem for f in Path(__file__).parent.glob("*.py") if f.stem not in _SHARED)

__all__ = ["Explorer", "LiveCurves", *(f"{name}_explorer" for name in _FILES)]


def __getattr__(name: str):
    file = name.removesuffix("_explorer")
    if name != file and file in _FILES:
        return getattr(import_module(f"grpo_lib.course.explorers.{file}"), name)
    raise AttributeError(f"module 'grpo_lib.course.explorers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
