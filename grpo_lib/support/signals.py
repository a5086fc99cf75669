"""Ctrl-C while a step is being taken, or a run is being saved: that is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from grpo_lib.support.notices import say_at_once


@contextmanager
def handled_by(handlers: dict) -> Iterator[None]:
    """Signals with other handlers, {signal: handler}, until the block ends."""
    before = {sign: signal.signal(sign, handler) for sign, handler in handlers.items()}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler or signal.SIG_DFL)


def signals_ignored():
    """Without Ctrl-C and SIGTERM: torchrun sends one a moment after a process was lost, while the
    others are saving."""
    return handled_by({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN})


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
    held = [signal.SIGINT]
    if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
        held.append(signal.SIGTERM)

    def hold(signum, frame):
        interrupts.append(signum)
        again = "" if signal.SIGTERM in held else "; press Ctrl-C again to stop now"
        if len(interrupts) == 1:
            say_at_once(f"stopping after this step{again}")
        elif again:
            raise KeyboardInterrupt

    with handled_by(dict.fromkeys(held, hold)):
        yield interrupts
