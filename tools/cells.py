"""Cells run twice, alone and backwards: what a class does that a notebook's author never does.

    python tools/cells.py                      the ten lessons in all four ways (half an hour)
    python tools/cells.py alone 03 04          some lessons in one way
    python tools/cells.py --list               the ways

Each lesson has a kernel of its own. An error is allowed only where it says what to run first: a
NameError, of a name that an earlier cell makes, with the advice of ``grpo_lib.course``, or an
AssertionError with a sentence. All else is printed and makes the exit status 1.
"""

from __future__ import annotations

import ast
import builtins
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from grpo_lib.course import ADVICE  # noqa: E402

LESSONS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
LONGEST = 1800.0  # seconds of one cell; one that takes more hangs
SET_UP = 2  # the first cells: set-up and device
WAYS = {"twice": "each cell twice in a row, from top to bottom",
        "alone": "each cell alone, after nothing but the set-up cells",
        "reverse": "from the last cell to the first, after the set-up cells",
        "back": "from the last cell to the first, after all have been run"}


class Failure(NamedTuple):
    """What a cell said; ``cell`` counts code cells from 1."""

    way: str
    lesson: str
    cell: int
    error: str
    message: str


def code_cells(path: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type == "code"]


def names_made(source: str) -> set[str]:
    """The names that a cell binds at its top level, loops and withs included."""
    made: set[str] = set()

    def look(node: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
            return
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp,
                             ast.GeneratorExp)):
            made.update(inner.target.id for inner in ast.walk(node)
                        if isinstance(inner, ast.NamedExpr))
            return
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            made.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        for child in ast.iter_child_nodes(node):
            look(child)

    look(ast.parse(source))
    return made


def names_used(source: str) -> set[str]:
    """The names that a cell may look up and does not make or import itself, in a function too:
    those that it needs from somewhere."""
    used, inside = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else inside).add(node.id)
        elif isinstance(node, ast.arg):
            inside.add(node.arg)
        elif isinstance(node, ast.FunctionDef):
            inside.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            inside.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            inside.add(node.name)
    return used - inside - names_made(source) - set(dir(builtins)) - {"get_ipython", "display"}


def names_made_before(source: str, node: ast.AST) -> set[str]:
    """The names that a cell makes above one of its statements."""
    return names_made("\n".join(source.splitlines()[: node.lineno - 1]) or "pass")


def says_what_to_do(error: str, message: str, made_before: set[str]) -> bool:
    """Whether an error of a cell run out of turn is one that a reader can act on."""
    if error == "NameError":
        return message.endswith(ADVICE) and any(f"'{name}'" in message for name in made_before)
    return error == "AssertionError" and " " in message.strip()


class Kernel:
    """A kernel that runs sources and says how each ended."""

    def __init__(self, folder: Path):
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def run(self, source: str, longest: float = LONGEST) -> tuple[str, str] | None:
        """None, or (the error's name, its message)."""
        reply = self.client.execute_interactive(source, timeout=longest, allow_stdin=False,
                                                output_hook=lambda message: None)["content"]
        return None if reply["status"] == "ok" else (reply["ename"], reply["evalue"])

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def runs(way: str, count: int) -> Iterator[tuple[int, bool]]:
    """(place of a cell, whether what was made before it is forgotten first)."""
    if way == "twice":
        for at in range(count):
            yield from ((at, False), (at, False))
    elif way == "alone":
        yield from ((at, True) for at in range(SET_UP, count))
    else:
        if way == "back":
            yield from ((at, False) for at in range(SET_UP, count))
        yield from ((at, False) for at in reversed(range(SET_UP, count)))


def try_out(path: Path, way: str) -> tuple[int, int, list[Failure]]:
    """(cells run, errors that say what to do, all other errors)."""
    cells, kernel = code_cells(path), Kernel(path.parent)
    ran, told, failures = 0, 0, []
    try:
        if way != "twice":
            for source in cells[:SET_UP]:
                kernel.run(source)
        for at, fresh in runs(way, len(cells)):
            if fresh:
                kernel.run("%reset -f")
                for source in cells[:SET_UP]:
                    kernel.run(source)
            error, ran = kernel.run(cells[at]), ran + 1
            if error is None:
                continue
            before = set().union(*map(names_made, cells[:at]))
            if way != "twice" and says_what_to_do(*error, before):
                told += 1
            else:
                failures.append(Failure(way, path.name, at + 1, *error))
    finally:
        kernel.close()
    return ran, told, failures


def main(arguments: list[str]) -> int:
    if "--list" in arguments:
        for way, about in WAYS.items():
            print(f"{way:<8} {about}")
        return 0
    ways = [a for a in arguments if a in WAYS] or list(WAYS)
    wanted = [a for a in arguments if a not in WAYS]
    paths = [p for p in LESSONS if not wanted or p.name[:2] in wanted]
    if wanted and len(paths) != len(wanted):
        print(f"got {' '.join(wanted)}; allowed are {' '.join(WAYS)} and the numbers of lessons")
        return 2
    every: list[Failure] = []
    for way in ways:
        for path in paths:
            start = time.perf_counter()
            ran, told, failures = try_out(path, way)
            print(f"{way:<8} {path.name:<26} {ran:3} cells, {told:3} say what to run first, "
                  f"{len(failures):2} other errors, {time.perf_counter() - start:4.0f} s",
                  flush=True)
            for failure in failures:
                print(f"    cell {failure.cell}: {failure.error}: "
                      f"{' '.join(failure.message.split())[:200]}", flush=True)
            every += failures
    return int(bool(every))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
