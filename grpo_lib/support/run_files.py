"""What run.json and metrics.jsonl of a run's folder must hold to be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from grpo_lib.config import StepMetrics
from grpo_lib.support.checkpoint import CheckpointError

METRICS = {f.name: f.type for f in fields(StepMetrics) if f.name != "rewards"}


def whole_to(most: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and 1 <= value <= most


def is_scores(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), float) for name in ("accuracy", "length"))


NEEDED = {"task": lambda value: isinstance(value, str),
          "config": lambda value: isinstance(value, dict),
          "policy_config": lambda value: isinstance(value, dict),
          "held_out": whole_to(2**31), "threads": whole_to(1024), "save_every": whole_to(2**31)}
MAY_BE = {"save_total_limit": lambda value: value is None or whole_to(2**31)(value),
          "before": is_scores, "after": is_scores}


def wrong_in(about: dict) -> str | None:
    """The name of what does not describe a run in the content of a run.json."""
    for name, is_right in (NEEDED | MAY_BE).items():
        if (name in NEEDED or name in about) and not is_right(about.get(name)):
            return name
    return None


def read_step(line: str, number: int, path: Path) -> StepMetrics:
    """Line ``number`` of metrics.jsonl. CheckpointError: it does not hold that step's metrics."""
    try:
        values = json.loads(line)
        parts = {name: values.pop(name) for name in list(values) if name.startswith("rewards/")}
        if values.keys() != METRICS.keys() or values["step"] != number:
            raise ValueError("not the metrics of this step")
        for name, value in (values | parts).items():
            kind = METRICS.get(name, "float | None")
            if not fits(value, kind):
                raise ValueError(f"{name}: got {value!r}, allowed is {kind}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: line {number} cannot be read ({error})") from None
    return StepMetrics(**values, rewards=parts)


def fits(value: object, kind: str) -> bool:
    """Whether a value from a file is of the kind of a field: int, float or float | None. (Any
    float may be None there: it was not finite.)"""
    if value is None:
        return kind != "int"
    return not isinstance(value, bool) and isinstance(value, int if kind == "int" else (int, float))
