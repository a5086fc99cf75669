"""What a notebook asks for in its first cell.

``import grpo_lib`` changes nothing in a session; ``set_up`` does, and only when it is called.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from grpo_lib.support import threads

NEEDED = ("torch", "numpy", "matplotlib", "PIL", "ipywidgets", "safetensors")
INSTALLED_AS = {"PIL": "pillow"}
ADVICE = ("if a cell above makes it, run that first (menu Run, Run All Above Selected Cell; on "
          "Colab Runtime, Run before); if none does, look at its spelling")


class MissingPackages(ImportError):
    """A notebook shows its message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"ImportError: {self}"]


def set_up() -> None:
    """Get a session ready for the lessons: quiet threads, and advice with a NameError.

    Raises ImportError with what to install if a package is missing that the lessons need.
    """
    missing = [INSTALLED_AS.get(name, name) for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingPackages(f"the lessons need {', '.join(missing)}: run the line  %pip install "
                              f"{' '.join(missing)}  in a cell of its own, then this cell again")
    threads.settle()
    advise()


def advise() -> None:
    """Let IPython's NameErrors say what to run first; without IPython nothing happens.

    A handler that the user or the host has installed keeps its errors; one for NameError stays.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or any(issubclass(NameError, kind) for kind in shell.custom_exceptions):
        return
    theirs, handle_theirs = shell.custom_exceptions, shell.CustomTB

    def handle(shell, kind, error, traceback, tb_offset=None):
        if issubclass(kind, theirs):
            return handle_theirs(kind, error, traceback, tb_offset=tb_offset)
        return show_with_advice(shell, kind, error, traceback, tb_offset)

    shell.set_custom_exc((*theirs, NameError), handle)


def show_with_advice(shell, kind, error, traceback, tb_offset=None):
    """Shows a NameError as IPython does, with the advice where a cell itself met with it."""
    last = traceback
    while last.tb_next is not None:
        last = last.tb_next
    if kind is NameError and last.tb_frame.f_globals is shell.user_global_ns:
        error.args = (f"{error}; {ADVICE}",)
    return shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
