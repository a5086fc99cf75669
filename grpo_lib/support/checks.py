"""Checks of arguments: every error names the argument, what came and what is allowed."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import field, fields
from decimal import Decimal

import torch
from torch import Tensor

HUGE = sys.float_info.max


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """ValueError unless ``value`` is one of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: got {value!r}, allowed are {', '.join(allowed)}")


def one_number(value: object) -> int | float | bool | None:
    """The one number that ``value`` is, as Python's own int, float or bool; None if it is none.

    Numbers of NumPy, a Fraction, a Decimal, and a tensor or array that holds a single number are
    one number; text, complex numbers and lists are not.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, (numbers.Real, Decimal)):
        try:
            return float(value)
        except OverflowError:  # a Fraction beyond what a float holds
            return math.inf if value > 0 else -math.inf
        except ValueError:  # a signalling nan of Decimal
            return math.nan
    if hasattr(value, "item") and math.prod(getattr(value, "shape", (0,))) == 1:
        return one_number(value.item())
    return None


def is_number(value: object) -> bool:
    """Whether it is one finite number and no bool. (A whole number may be beyond what a float
    holds.)"""
    value = one_number(value)
    return value is not None and not isinstance(value, bool) and -HUGE <= value <= HUGE


def check_number(name: str, value: object, *, least: float | None = None,
                 above: float | None = None, most: float | None = None) -> int | float:
    """``value`` as Python's own number (``one_number``). ValueError unless it is finite, from
    ``least`` or above ``above``, up to ``most``."""
    number = one_number(value)
    if not (is_number(number) and (least is None or number >= least)
            and (above is None or number > above) and (most is None or number <= most)):
        start = f" from {least}" if least is not None else f" above {above}" if above is not None \
            else ""
        end = f" to {most}" if most is not None else ""
        raise ValueError(f"{name}: got {value!r}, allowed is a finite number{start}{end}")
    return number


def check_whole(name: str, value: object, least: int, why: str = "",
                most: int = 2**63 - 1) -> int:
    """``value`` as Python's own int (``one_number``). ValueError unless it is a whole number from
    ``least`` to ``most``; a bool is none."""
    number = one_number(value)
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ValueError(f"{name}: got {value!r}, allowed is a whole number from {least}{why}")
    if number > most:
        up_to = f"from {least}{why}" if most < 2**63 - 1 else "below 2**63"
        raise ValueError(f"{name}: got {value!r}, allowed is a whole number {up_to}")
    return number


def check_bool(name: str, value: object) -> bool:
    """``value`` as Python's own bool. ValueError unless it is True or False."""
    answer = one_number(value)
    if not isinstance(answer, bool):
        raise ValueError(f"{name}: got {value!r}, allowed are True and False")
    return answer


def check_clip(epsilon: float, epsilon_high: float | None,
               delta: float | None = None) -> tuple[float, float, float | None]:
    """epsilon, the upper clip width and delta as Python's numbers, after checking all three."""
    epsilon = check_number("epsilon", epsilon, least=0, most=1)
    high = epsilon if epsilon_high is None else one_number(epsilon_high)
    if high != math.inf:  # which is no upper edge
        high = check_number("epsilon_high", epsilon_high if high is None else high, least=0)
    if delta is None:
        return epsilon, high, None
    if not (is_number(delta) and one_number(delta) > 1 + high):
        raise ValueError(f"delta: got {delta!r}, allowed is a number above 1 + epsilon_high = "
                         f"{1 + high}")
    return epsilon, high, one_number(delta)


def setting(default: object, about: str, *, checked: bool = True, **allowed):
    """A field of a dataclass of settings: its default, the sentence that says what it is, and what
    is allowed, which ``check_settings`` checks if it is ``checked`` there."""
    return field(default=default, metadata={"about": about,
                                            "allowed": allowed if checked else None})


def check_settings(settings: object) -> None:
    """Check each ``setting`` of a frozen dataclass by its type and what is allowed: ``among`` some
    names; a number from ``least`` or above ``above``, up to ``most``. None is left alone."""
    for f in fields(settings):
        name, value, allowed = f.name, getattr(settings, f.name), f.metadata.get("allowed")
        if allowed is None or (value is None and "None" in f.type):
            continue
        if "among" in allowed:
            check_choice(name, value, allowed["among"])
        elif f.type.startswith("bool"):
            settle(settings, **{name: check_bool(name, value)})
        elif f.type.startswith("float"):
            settle(settings, **{name: check_number(name, value, **allowed)})
        elif f.type.startswith("int"):
            settle(settings, **{name: check_whole(name, value, **allowed)})


def settle(settings: object, **values) -> None:
    """Put checked values into the fields of a frozen dataclass, in its ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)


def check_floating(name: str, tensor: object) -> None:
    """TypeError unless ``tensor`` is a tensor, ValueError unless its dtype is floating-point: a
    result in an integer dtype would be rounded silently."""
    if not hasattr(tensor, "is_floating_point"):
        raise TypeError(f"{name}: got a {type(tensor).__name__}, allowed is a tensor")
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: got {tensor.dtype}, allowed is a floating-point dtype")


def check_shapes(letters: str | None = None, **tensors: Tensor | tuple[Tensor, str]) -> None:
    """Raise unless the shapes are those of the letters, with one size for each letter, and all are
    on one device; all but ``mask`` must be floating-point.

        check_shapes("B T", log_probs=log_probs, mask=mask, advantages=(advantages, "B | B T"))

    Without letters all must have the first one's shape. Nothing is broadcast: a mask of another
    shape would silently give a wrong number.
    """
    sizes: dict[str, int] = {}
    (first_name, _), *_ = tensors.items()
    for name, given in tensors.items():
        tensor, allowed = given if isinstance(given, tuple) else (given, letters)
        if name != "mask" or not hasattr(tensor, "is_floating_point"):
            check_floating(name, tensor)
        if name == first_name:
            first = tensor
        if allowed is None:
            allowed = " ".join(map(str, first.shape))
        sizes |= match_shape(name, tuple(tensor.shape), allowed, sizes)
        check_device(name, tensor, first_name, first)


def match_shape(name: str, shape: tuple[int, ...], allowed: str, sizes: dict[str, int],
                ) -> dict[str, int]:
    """The size of each letter in the first of the ways, "B | B T", that the shape fits."""
    ways = [way.split() for way in allowed.split("|")]
    for way in ways:
        if len(way) == len(shape) and all(
                size == (int(letter) if letter.isdigit() else sizes.get(letter, size))
                for letter, size in zip(way, shape)):
            return {letter: size for letter, size in zip(way, shape) if letter.isalpha()}
    written = " or ".join(f"({', '.join(way)}{',' * (len(way) == 1)})" for way in ways)
    known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items() if letter in written)
    raise ValueError(f"{name}: got shape {shape}, allowed is {written}"
                     + (f" with {known}" if known else ""))


def check_not_empty(name: str, tensor: Tensor) -> None:
    """ValueError where there is no token at all."""
    if tensor.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, allowed is (B, T) with at "
                         f"least one token")


def at_least_float32(tensor: Tensor) -> Tensor:
    """The same numbers, half precision (16 bits) as float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_beside(**tensors) -> None:
    """ValueError, or TypeError, unless they are floating-point tensors on one device that may be
    spread over each other: as many dimensions each, of one size or of 1, or a single number. (B,)
    beside (B, T) is none of these: a square batch would be read the wrong way round."""
    (first_name, first), *_ = tensors.items()
    for name, tensor in tensors.items():
        check_floating(name, tensor)
        check_device(name, tensor, first_name, first)
    shapes = [tensor.shape for tensor in tensors.values() if tensor.dim()]
    if len({len(shape) for shape in shapes}) > 1 or any(
            len(set(sizes) - {1}) > 1 for sizes in zip(*shapes)):
        shown = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{' and '.join(tensors)}: got shapes {shown}; allowed are equal ones, "
                         f"and (B, 1) beside (B, T)")


def check_device(name: str, tensor, other_name: str, other) -> None:
    """ValueError unless both are on one device."""
    if tensor.device != other.device:
        raise ValueError(f"{name}: is on {tensor.device}, allowed is {other.device}, where "
                         f"{other_name} is")


def usable_device(name: torch.device | str) -> torch.device:
    """The device of this name, or a ValueError saying that it is not there."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: got {name!r}, must be cpu or cuda (cuda:0, cuda:1, ... of "
                         f"several)") from None
    if device.type == "mps":
        raise ValueError(f"device: got {str(name)!r}, must be cpu: a Mac's mps has no float64, in "
                         f"which completions are sampled; the course is made for a CPU")
    try:
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        why = str(error).splitlines()[0].split(". ")[0]  # torch goes on with all that it can do
        raise ValueError(f"device: got {str(name)!r}, which cannot be used here ({why})") from None
    return device


class OutOfMemory(torch.OutOfMemoryError):
    """Memory did not suffice; says for what, and what would make it suffice."""


@contextmanager
def explain_out_of_memory(doing: Callable[[], tuple[str, str]]) -> Iterator[None]:
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
