"""What verdicts tell of a learner's function: where it goes wrong, and what it raised."""

from __future__ import annotations

import dis
import inspect
import traceback
from collections.abc import Callable

from grpo_lib.course.exercises.comparing import (
    SHOWN,
    Answer,
    close,
    cut,
    first_difference,
    place,
    short,
)

# What a function still to be written is made of, as Python compiles it.
EMPTY = {"RESUME", "NOP", "LOAD_CONST", "LOAD_SMALL_INT", "RETURN_CONST", "RETURN_VALUE", "POP_TOP"}
LONGEST = 300  # letters of an error's message


def counterexample(arguments: tuple, got: Answer, wanted: Answer, rtol: float, second: str) -> str:
    """A case's arguments, the learner's numbers, the right ones; of many the first that differs.

    ``second``: what the answers' gradient is called.
    """
    lines = [f"  given     {', '.join(map(short, arguments))}"]
    if got.value.shape != wanted.value.shape:
        lines += [f"  yours     of shape {tuple(got.value.shape)}: {short(got.value)}",
                  f"  right     of shape {tuple(wanted.value.shape)}: {short(wanted.value)}"]
        return "\n".join(lines)
    pair, dtypes, name = (got.value, wanted.value), (), "entry"
    if close(*pair, (), rtol) and got.gradient is not None:
        lines.append(f"  value     {short(got.value)}, which is right; its {second} is not:")
        pair, dtypes, name = (got.gradient, wanted.gradient), (got.value.dtype,), second
    if wanted.parts or pair[1].numel() > SHOWN:
        at = first_difference(*pair, dtypes, rtol)
        lines.append(f"  where     {place(at, pair[1].shape, wanted.parts, name)}, the first "
                     f"number that differs")
        pair = tuple(numbers.flatten()[at] for numbers in pair)
    digits = next((d for d in (4, 7, 10) if short(pair[0], d) != short(pair[1], d)), 4)
    lines += [f"  yours     {short(pair[0], digits)}", f"  right     {short(pair[1], digits)}"]
    return "\n".join(lines)


def own_globals(function: Callable) -> dict:
    """Those of the cell that it was written in."""
    return getattr(inspect.unwrap(function), "__globals__", {})


def is_empty(function: Callable) -> bool:
    """Whether nothing stands in it but ``...``, ``pass``, a text or a constant to return."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and all(
        step.opname in EMPTY or step.argval in ("NotImplemented", "Ellipsis")
        for step in dis.get_instructions(code))


def raised_by(error: BaseException, function: Callable) -> bool:
    """Whether a ``raise`` in the learner's own cell made this error, and not something that was
    called there."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return (last is not None and last.tb_frame.f_globals is own_globals(function)
            and last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"])


def told(error: BaseException) -> str:
    """An error's kind and message, cut where that is long."""
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    return cut(f"{type(error).__name__}: {message}", LONGEST)


def where(error: BaseException, function: Callable) -> str:
    """"in line 3 of its cell " where that can be told: the last one that was reached there."""
    cell = getattr(getattr(function, "__code__", None), "co_filename", None)
    reached = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        reached = line if frame.f_code.co_filename == cell else reached
    return "" if reached is None else f"in line {reached} of its cell "
