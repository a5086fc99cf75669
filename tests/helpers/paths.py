"""Runs several paths through a notebook's cells, in a process without a kernel.

    python tests/helpers/paths.py LESSON.ipynb "[[0, 1, 2], [0, 1, 4]]"

Cells that paths begin with together run once; where they part, each goes on in a fork. Exit status
1: a cell failed, and its error is the last that was printed. There must be no GPU: torch cannot use
one after a fork.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence

import nbformat
from IPython.core.interactiveshell import InteractiveShell

Path = Sequence[int]  # places of code cells, from 0


def follow(shell: InteractiveShell, sources: list[str], paths: list[Path], done: int = 0) -> bool:
    """Whether all paths, which agree in the cells done, run to their ends."""
    ways: dict[int, list[Path]] = {}
    for path in paths:
        if len(path) > done:
            ways.setdefault(path[done], []).append(path)

    def go(at: int) -> bool:
        if shell.run_cell(sources[at]).success:
            return follow(shell, sources, ways[at], done + 1)
        print(f"Cell {at} failed, after {list(ways[at][0][:done])}")
        return False

    *forked, last = [*ways] or [None]
    return all(in_a_fork(go, at) for at in forked) and (last is None or go(last))


def in_a_fork(action: Callable[[int], bool], argument: int) -> bool:
    """What the action returns, run in a copy of this process so that it changes nothing here."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = action(argument)
        finally:
            sys.stdout.flush()
            os._exit(0 if good else 1)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    cells = nbformat.read(sys.argv[1], as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    sys.exit(not follow(InteractiveShell.instance(), code, json.loads(sys.argv[2])))
