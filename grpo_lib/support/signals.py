"""Ctrl-C while a step is being taken: the step is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from grpo_lib.support.notices import say_at_once


@contextmanager
def finish_step_first() -> Iterator[list]:
    """Hold back Ctrl-C until the block ends, and say so; the list is then not empty. A second one
    acts at once. Outside the main thread, where Python delivers no signals, it does nothing.

    Under torchrun, SIGTERM is held back in the same way (``processes.joined``), and a second one is
    ignored: torchrun forwards what the terminal has sent already."""
    interrupts: list = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
        before[signal.SIGTERM] = signal.default_int_handler

    def hold(signum, frame):
        interrupts.append(signum)
        again = "" if signal.SIGTERM in before else "; press Ctrl-C again to stop now"
        if len(interrupts) == 1:
            say_at_once(f"stopping after this step{again}")
        elif again:
            raise KeyboardInterrupt

    for sign in before:
        signal.signal(sign, hold)
    try:
        yield interrupts
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
