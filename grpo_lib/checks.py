"""Checks of arguments: every error names the argument, what came and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, allowed are {', '.join(allowed)}")


def check_number(name: str, value: object, *, least: float | None = None,
                 above: float | None = None, most: float | None = None) -> None:
    """ValueError unless ``value`` is a finite number, from ``least`` or above ``above``, up to
    ``most``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and (least is None or value >= least)
            and (above is None or value > above) and (most is None or value <= most)):
        start = f" from {least}" if least is not None else f" above {above}" if above is not None \
            else ""
        end = f" to {most}" if most is not None else ""
        raise ValueError(f"{name}: got {value!r}, allowed is a finite number{start}{end}")


def check_whole(name: str, value: object, least: int, why: str = "") -> None:
    """ValueError unless ``value`` is a whole number from ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: got {value!r}, allowed is a whole number from {least}{why}")


def usable_device(name: torch.device | str) -> torch.device:
    """The device of this name, or a ValueError saying that it is not there."""
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device: got {name!r}, which cannot be used here "
                         f"({str(error).splitlines()[0]})") from None
    return device


class OutOfMemory(torch.OutOfMemoryError):
    """Memory did not suffice; says for what, and what would make it suffice."""


@contextmanager
def memory_explained(doing: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Around work that may need much memory; ``doing()`` says what it is, and what takes less."""
    try:
        yield
    except OutOfMemory:  # said already, by what stands nearer to it
        raise
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, (torch.OutOfMemoryError, MemoryError))
                or "can't allocate memory" in str(error)):
            raise
        what, advice = doing()
        raise OutOfMemory(f"out of memory in {what}: {advice}") from None
