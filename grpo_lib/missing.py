"""In a notebook: what to do about a name that is not there."""

from __future__ import annotations

import sys

ADVICE = ("if a cell above makes it, run that first (menu Run, Run All Above Selected Cell; on "
          "Colab Runtime, Run before); if none does, look at its spelling")


def explain() -> None:
    """Let IPython's NameErrors say what to run first; without IPython nothing happens."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None:
        shell.set_custom_exc((NameError,), told)


def told(shell, kind, error, traceback, tb_offset=None):
    """Shows a NameError as IPython does, with the advice where a cell itself met with it."""
    last = traceback
    while last.tb_next is not None:
        last = last.tb_next
    if kind is NameError and last.tb_frame.f_globals is shell.user_global_ns:
        error.args = (f"{error}; {ADVICE}",)
    return shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
