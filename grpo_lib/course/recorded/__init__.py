"""Logs of real runs that are too long for a lesson, and the command that makes each anew.

``python -m benchmarks NAME`` measures and writes ``NAME.json`` here.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from importlib import resources

from grpo_lib.support.checkpoint import read_json


def names() -> list[str]:
    """The logs there are."""
    folder = resources.files("grpo_lib.course.recorded")
    return sorted(f.name.removesuffix(".json") for f in folder.iterdir()
                  if f.name.endswith(".json"))


def load(name: str) -> dict:
    """A log by its name. ValueError lists the names.

    Every log has "command" (what makes it anew), "versions" and "threads" beside its data.
    """
    if name not in names():
        raise ValueError(f"name: got {name!r}, allowed are {', '.join(names())}")
    with resources.as_file(resources.files("grpo_lib.course.recorded") / f"{name}.json") as path:
        return read_json(path)


def tokens_to(run: Mapping, accuracy: float, window: int = 3) -> int | None:
    """Sampled tokens after which the mean accuracy of ``window`` steps reaches a level; None if
    it never does. ``run`` has "accuracy" and the running sum "tokens", a number a step."""
    values = run["accuracy"]
    for step in range(window, len(values) + 1):
        if statistics.fmean(values[step - window: step]) >= accuracy:
            return run["tokens"][step - 1]
    return None
