"""What a learner's function returned, as numbers, beside the right ones."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NOTHING = (None, Ellipsis, NotImplemented)
TOLERANCES = {torch.float64: (1e-6, 1e-8), torch.float32: (1e-4, 1e-5)}
# Half precision: as exact as float32 to be right; coarse is what its rounding explains.
COARSE = {torch.float16: (2e-2, 2e-3), torch.bfloat16: (5e-2, 5e-3)}
SHOWN = 24  # numbers of a tensor at most; of a longer one the first that differs


class Answer(NamedTuple):
    """What a function gave for one case: its value, and the gradient where that counts.

    ``parts``: what a flat value is made of, each with its name and how many numbers it has.
    """

    value: Tensor
    gradient: Tensor | None = None
    parts: tuple[tuple[str, int], ...] = ()


class WrongKind(Exception):
    """The function gave what is no number at all."""


class Unanswered(Exception):
    """The function gave nothing."""


# --- what came ------------------------------------------------------------------------------

def as_tensor(value: object) -> Tensor:
    """A learner's output as a tensor on the CPU, cut off its graph."""
    return joined(value).detach()


def joined(value: object) -> Tensor:
    """A learner's output as a tensor on the CPU, with its graph: tensors, arrays, numbers, and
    nested lists of these."""
    if any(value is nothing for nothing in NOTHING):
        raise Unanswered(repr(value))
    if isinstance(value, (list, tuple)):
        return stacked([joined(part) for part in value])
    if isinstance(value, Tensor):
        return plain(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return from_numpy(value)
    if isinstance(value, (numbers.Real, Decimal)):
        return torch.tensor(as_float(value), dtype=torch.float64)
    try:
        return plain(torch.as_tensor(value))
    except (TypeError, ValueError, RuntimeError):
        if inspect.iscoroutine(value):
            value.close()  # or Python warns that nobody waited for it
        raise wrong(named(value)) from None


def wrong(kind: str) -> WrongKind:
    return WrongKind(f"it returned {kind}, allowed is a tensor, an array, a number or a list of "
                     f"these")


def stacked(parts: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise wrong(f"a list whose parts have the shapes {' and '.join(map(str, sorted(shapes)))}")
    return torch.stack(list(parts)) if parts else torch.zeros(0)


def plain(value: Tensor) -> Tensor:
    """Dense, real, on the CPU. WrongKind where there is no such thing."""
    if value.is_nested:
        raise wrong("a nested tensor")
    if value.is_meta:
        raise wrong("a tensor on the device meta, which holds no numbers")
    if value.is_complex():
        raise wrong("complex numbers")
    if value.is_quantized:
        value = value.dequantize()
    return (value if value.layout == torch.strided else value.to_dense()).cpu()


def from_numpy(value: np.ndarray | np.generic) -> Tensor:
    """Whatever its strides, byte order and width are."""
    array = np.array(value, order="C")
    if array.dtype == object:
        return joined(array.tolist())
    if array.dtype.kind not in "fiub":
        raise wrong("complex numbers" if array.dtype.kind == "c" else
                    f"an array of {array.dtype}")
    exact = {"f": np.float64, "i": np.int64, "u": np.int64, "b": np.bool_}[array.dtype.kind]
    known = array.dtype.kind == "f" and array.dtype.itemsize <= 8
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=") if known else exact))


def as_float(value: numbers.Real | Decimal) -> float:
    """Infinite where it is too large for a float."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def as_number(value: object) -> float | None:
    """A number of any type, or a tensor or array of one; None if it is none."""
    if isinstance(value, (Tensor, np.ndarray)):
        size = value.numel() if isinstance(value, Tensor) else value.size
        value = value.item() if size == 1 else None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, Decimal)):
        return None
    number = as_float(value)
    return None if math.isnan(number) else number


def named(value: object) -> str:
    """A value's type with its article."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


# --- comparing ------------------------------------------------------------------------------

def tolerance(dtypes: Sequence[torch.dtype], rtol: float = 0.0,
              coarse: bool = False) -> tuple[float, float]:
    """(relative, absolute) of the least exact dtype, relative at least ``rtol``."""
    half = COARSE if coarse else dict.fromkeys(COARSE, TOLERANCES[torch.float32])
    known = TOLERANCES | half
    found = max(known.get(dtype, TOLERANCES[torch.float64]) for dtype in dtypes)
    return max(found[0], rtol), found[1]


def close(a: Tensor, b: Tensor, dtypes: Sequence[torch.dtype] = (), rtol: float = 0.0,
          coarse: bool = False) -> bool:
    """Equal but for the rounding of the least exact dtype, theirs or one of ``dtypes``; nan
    equals nan."""
    if a.shape != b.shape:
        return False
    rtol, atol = tolerance((a.dtype, b.dtype, *dtypes), rtol, coarse)
    return torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True)


def same(a: Answer | Exception, b: Answer | Exception, rtol: float = 0.0,
         coarse: bool = False) -> bool:
    """A gradient counts where both have one."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return isinstance(a, Exception) and isinstance(b, Exception)
    if not close(a.value, b.value, (), rtol, coarse):
        return False
    if a.gradient is None or b.gradient is None:
        return True
    return close(a.gradient, b.gradient, (a.value.dtype, b.value.dtype), rtol, coarse)


def alike(some: Sequence[Answer | Exception], others: Sequence[Answer | Exception],
          rtol: float = 0.0, coarse: bool = False) -> bool:
    """The same on every case."""
    return len(some) == len(others) and all(
        same(a, b, rtol, coarse) for a, b in zip(some, others))


def is_half(answer: Answer) -> bool:
    return answer.value.dtype in COARSE


def first_difference(a: Tensor, b: Tensor, dtypes: Sequence[torch.dtype],
                     rtol: float) -> int:
    """The place of the first number that differs, counted row by row."""
    rtol, atol = tolerance((a.dtype, b.dtype, *dtypes), rtol)
    equal = torch.isclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True)
    return int((~equal).flatten().long().argmax())


def place(at: int, shape: Sequence[int], parts: Sequence[tuple[str, int]], name: str) -> str:
    """A number's place in words: "loss", "weight [3]", "entry [1, 2]"."""
    for part, count in parts:
        if at < count:
            return part if count == 1 else f"{part} [{at}]"
        at -= count
    index = [int(i) for i in np.unravel_index(at, tuple(shape))] if shape else []
    return f"{name} {index}"


def changed_input(after: tuple, before: tuple) -> str:
    """" 2" if the second argument is no longer what it was."""
    for number, (a, b) in enumerate(zip(after, before), start=1):
        if isinstance(a, Tensor) and not torch.equal(a.detach().nan_to_num(),
                                                     b.detach().nan_to_num()):
            return f" {number}"
    return ""


# --- in words -------------------------------------------------------------------------------

def short(value: object, digits: int = 4) -> str:
    """A value in one line, its numbers rounded to so many digits behind the point."""
    if isinstance(value, Tensor):
        entries = value.detach().cpu()
        if entries.numel() > SHOWN:
            return f"a tensor {tuple(entries.shape)}"
        return str(rounded(entries.tolist(), digits))
    if isinstance(value, torch.optim.Optimizer):
        return f"{type(value).__name__}(lr={value.defaults.get('lr')})"
    try:
        text = repr(value)
    except Exception:
        return named(value)
    if "\n" in text or " at 0x" in text:
        return getattr(value, "__name__", type(value).__name__)
    return cut(text, 60)


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length - 3] + "..."


def rounded(value, digits: int):
    if isinstance(value, list):
        return [rounded(part, digits) for part in value]
    return round(value, digits) if isinstance(value, float) else value
