"""Logs of real runs that are too long for a lesson, and the command that makes each anew.

``python -m recordings NAME`` measures and writes ``NAME.json`` here.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
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


def check_record(record: Mapping, settings: Iterable[str], name: str) -> None:
    """ValueError unless a log has runs for each of these settings."""
    missing = [setting for setting in settings if not record.get(setting)]
    if missing:
        raise ValueError(f"record: has no {', '.join(missing)}, allowed is load({name!r})")


def by_field(runs: Iterable[Mapping], field: str) -> dict[str, list]:
    """The runs of a log by a field of theirs, in the order in which its values come."""
    found: dict[str, list] = {}
    for run in runs:
        found.setdefault(run[field], []).append(run)
    return found


def tokens_to(run: Mapping, accuracy: float, window: int = 3) -> int | None:
    """Sampled tokens after which the mean accuracy of ``window`` steps reaches a level; None if
    it never does. ``run`` has "accuracy" and the running sum "tokens", a number a step."""
    values = run["accuracy"]
    for step in range(window, len(values) + 1):
        if statistics.fmean(values[step - window: step]) >= accuracy:
            return run["tokens"][step - 1]
    return None
