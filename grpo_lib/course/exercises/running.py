"""Where a learner's function runs: for so long at most, and nothing that it sets stays set."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import TypeVar

import numpy as np
import torch

LIMIT = 10.0  # seconds that a learner's function may take over all cases
TICK = 0.05  # seconds between two looks at what it is doing
AGAIN = 1e-3  # seconds until a function that has swallowed OutOfTime is told again
DEEPEST = 50_000  # calls inside each other; millions take longer to leave than to enter

T = TypeVar("T")


class OutOfTime(BaseException):
    """Past every ``except Exception`` in the learner's function."""


class Printed(io.TextIOBase):
    """Counts what is printed and keeps none of it, so that endless printing fills no memory."""

    def __init__(self):
        super().__init__()
        self.lines, self.anything = 0, False

    def write(self, text: str) -> int:
        self.lines += text.count("\n")
        self.anything = self.anything or bool(text)
        return len(text)

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Ignored: the learner's function must not close the captured output."""


def run_apart(action: Callable[[], T], seconds: float, printed: Printed, own: dict) -> T:
    """What ``action`` returns: for so long at most, what it prints is caught, and settings and
    random numbers afterwards are what they were. ``own``: the globals of the learner's function.
    """
    with settings_kept(), contextlib.redirect_stdout(printed), \
            contextlib.redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return limited(action, seconds, own)


# --- settings -------------------------------------------------------------------------------

def default_device():
    """None for the CPU: setting that one would slow down every call."""
    try:
        device = torch.get_default_device()
    except AttributeError:  # torch 2.9 knows it no more once it has been set to None
        return None
    return None if device.type == "cpu" else device


def anomaly_mode() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


SETTINGS: tuple[tuple[Callable, Callable], ...] = (
    # the device comes first: it decides where random states are made
    (default_device, lambda device: torch.set_default_device(device)),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_num_threads, torch.set_num_threads),
    (anomaly_mode, lambda mode: torch.autograd.set_detect_anomaly(*mode)),
    (np.geterr, lambda how: np.seterr(**how)),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (os.getcwd, os.chdir),
)
RANDOM: tuple[tuple[Callable, Callable], ...] = (
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
)


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Settings and random states of Python, numpy and torch are afterwards what they were."""
    settings, states = ([get() for get, _ in kept] for kept in (SETTINGS, RANDOM))
    try:
        yield
    finally:
        for before, (get, put) in zip(settings, SETTINGS):
            if get() != before:
                put(before)
        for before, (_, put) in zip(states, RANDOM):
            put(before)


# --- time -----------------------------------------------------------------------------------

def limited(action: Callable[[], T], seconds: float, own: dict) -> T:
    """What ``action`` returns; OutOfTime in it after so many seconds. On Linux and macOS, in the
    main thread (where a notebook's cells run); elsewhere there is no limit, and the stop button
    is the way. A single call that never comes back from C, as sum(itertools.count()), cannot be
    stopped so: Python tells nobody of an alarm before it is over."""
    if not hasattr(signal, "setitimer") or (
            threading.current_thread() is not threading.main_thread()):
        return action()

    end = time.monotonic() + seconds

    def inside() -> T:
        return action()

    def in_the_next_line(frame, event, argument):
        if event == "line":  # the first line after an ``except`` that swallowed OutOfTime
            signal.setitimer(signal.ITIMER_REAL, 1e-6)
            raise OutOfTime
        return in_the_next_line

    def look(signum, frame):
        frames = frames_inside(frame, inside.__code__)
        if frames is None:
            return
        if sys.getrecursionlimit() > DEEPEST:
            sys.setrecursionlimit(DEEPEST)  # RecursionError if it is deeper already
        if time.monotonic() >= end:
            for each in frames:
                if each.f_globals is own:
                    each.f_trace = in_the_next_line
            sys.settrace(lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
            raise OutOfTime

    trace, before = sys.gettrace(), signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, TICK), TICK)
    try:
        return inside()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if sys.gettrace() is not trace:
            sys.settrace(trace)


def frames_inside(frame: FrameType | None, code: CodeType) -> list[FrameType] | None:
    """The frames from this one out to the one that runs ``code``; None if it is outside of it."""
    frames = []
    while frame is not None and frame.f_code is not code:
        frames.append(frame)
        frame = frame.f_back
    return None if frame is None else frames
