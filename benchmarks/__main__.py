"""Measure, and write benchmarks/results.md.

A part is a file here with ``measure() -> dict`` and ``report(dict) -> str`` (Markdown), and
``why_not() -> str | None`` where it cannot be measured everywhere; one with
``IN_LESSONS = True`` is shown by a notebook, and its log ships with the library. What is
not measured anew keeps its numbers. Only the parts that are asked for are imported before they
are measured, and no ``report`` needs more than the library: a machine with a GPU may lack Jupyter.
"""

import argparse
import json
import re
import sys
from importlib import import_module
from pathlib import Path

from grpo_lib.course import recorded
from grpo_lib.support import threads
from grpo_lib.support.checkpoint import read_json, write_atomically

threads.settle()  # before a part imports torch
HERE = Path(__file__).parent
PARTS = [path.stem for path in sorted(HERE.glob("[a-z]*.py"))
         if "\ndef measure(" in path.read_text(encoding="utf-8")]


def part(name: str):
    return import_module(f"benchmarks.{name}")


def file_of(name: str) -> Path:
    """Where a part's measurements are kept."""
    shipped = getattr(part(name), "IN_LESSONS", False)
    return (Path(recorded.__file__).parent if shipped else HERE) / f"{name}.json"


def why_not(name: str) -> str | None:
    """Why a part cannot be measured here, or None."""
    return getattr(part(name), "why_not", lambda: None)()


def as_json(content: dict) -> str:
    """JSON with an entry a line, but a list of numbers on one."""
    text = json.dumps(content, indent=1) + "\n"
    return re.sub(r"\[[-+0-9.eE,\s]*\]",
                  lambda found: f"[{', '.join(found[0][1:-1].replace(',', ' ').split())}]", text)


def results() -> str:
    """What results.md says: the report of every part that was ever measured."""
    sections = [part(name).report(read_json(file_of(name))) for name in PARTS
                if file_of(name).exists()]
    return "# Measurements\n\nWritten by `python -m benchmarks`.\n\n" + "\n".join(sections)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0],
        epilog=f"Parts: {', '.join(PARTS)}. What they measure and how long that takes: "
               f"benchmarks/results.md.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure; none: all that "
                        "can be measured here; report: nothing, only write results.md")
    names = parser.parse_args(arguments).parts
    unknown = set(names) - {*PARTS, "report"}
    if unknown:
        sys.exit(f"benchmarks: got {', '.join(sorted(unknown))}, allowed are report, "
                 f"{', '.join(PARTS)}")
    asked = [name for name in names or PARTS if name != "report"]
    lacking = {name: why for name in asked if (why := why_not(name))}
    if names and lacking:
        sys.exit("\n".join(f"benchmarks {name}: {why}" for name, why in lacking.items()))
    for name, why in lacking.items():
        print(f"left out: {name}, {why}")
    for name in asked:
        if name not in lacking:
            log = {"command": f"python -m benchmarks {name}"} | part(name).measure()
            write_atomically(file_of(name), as_json(log).encode())
    text = results()
    write_atomically(HERE / "results.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
