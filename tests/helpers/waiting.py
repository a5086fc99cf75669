"""How long the tests wait for something before they call it stuck.

It is a limit for what hangs, not a measure of speed: a machine with a load of twenty gives a
process of ours a tenth of the time that it has on an idle one, so that a minute's work takes ten.
Nothing in the tests may wait for less (``test_waiting``).
"""

import time
from collections.abc import Callable

PATIENCE = 1800.0  # seconds


def until(condition: Callable[[], bool], going_on: Callable[[], bool] = lambda: True) -> None:
    """Return once ``condition()`` is true. AssertionError if ``going_on()`` is not before that:
    what is waited for has ended."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert going_on(), "it has ended before that"
        assert time.monotonic() < end, f"nothing came in {PATIENCE:g} s"
        time.sleep(0.01)
