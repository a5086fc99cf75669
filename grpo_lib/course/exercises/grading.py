"""Points for an exercise, judged in a process of its own.

    python -m grpo_lib.course.exercises.grading NAME < answers     exit status 0 if they are right

The kernel of a submitted notebook has run all that its student wrote: ``check`` may be another
function there, and so may every function that it calls. So the kernel only computes an attempt's
answers to the cases, and a fresh Python, in which none of it has run, compares them.

Left out: cells that rewrite Python itself, such as ``subprocess``. The grade is what the kernel
says of a locked cell, and against these there is only reading what was handed in.
"""

from __future__ import annotations

import io
import sys

import torch

from grpo_lib.course.exercises import EXERCISES
from grpo_lib.course.exercises.base import Exercise, Verdict
from grpo_lib.course.exercises.comparing import NOTHING, Answer, as_number


def answers(name: str, attempt: object) -> bytes:
    """What an attempt at an exercise gives, for the process that judges: its answers to all cases
    or what kept them from coming; of a question's, the guess."""
    exercise = EXERCISES[name]
    sent: object
    if isinstance(exercise, Exercise):
        tried = exercise.tried(attempt)  # type: ignore[arg-type]
        sent = tried.text if isinstance(tried, Verdict) else (list(map(tuple, tried[0])), tried[1])
    elif any(attempt is nothing for nothing in NOTHING):
        sent = None
    else:
        number = as_number(attempt)
        sent = str(attempt) if number is None else number
    buffer = io.BytesIO()
    torch.save(sent, buffer)
    return buffer.getvalue()


def judged(name: str, sent: bytes) -> Verdict:
    """The verdict on what ``answers`` gave. An attempt without answers is never right."""
    exercise, given = EXERCISES[name], torch.load(io.BytesIO(sent), weights_only=True)
    if not isinstance(exercise, Exercise):
        return exercise.check(given)
    if isinstance(given, str):
        return Verdict("error", given)
    found, notes = given
    if len(found) != len(list(exercise.cases())):
        return Verdict("error", f"{name}: {len(found)} answers came, for "
                                f"{len(list(exercise.cases()))} cases.")
    return exercise.judge([Answer(*answer) for answer in found], notes)


def main() -> int:
    verdict = judged(sys.argv[1], sys.stdin.buffer.read())
    sys.stdout.buffer.write(str(verdict).encode())
    return 0 if verdict else 1


if __name__ == "__main__":
    sys.exit(main())
