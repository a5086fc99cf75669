"""python -m benchmarks [NAME ...]: measure, and write benchmarks/results.md.

A part is a file here with ``measure() -> dict`` and ``report(dict) -> str`` (Markdown); one
with ``IN_LESSONS = True`` is shown by a notebook, and its log ships with the library. What is
not measured anew keeps its numbers; ``python -m benchmarks report`` measures nothing and only
writes results.md, which says what the parts are and how long they take.
"""

import json
import re
import sys
from importlib import import_module
from pathlib import Path

from grpo_lib import recorded, threads
from grpo_lib.checkpoint import read_json, write_atomically

threads.settle()  # before a part imports torch
HERE = Path(__file__).parent
PARTS = {name: module for name in sorted(f.stem for f in HERE.glob("[a-z]*.py"))
         if hasattr(module := import_module(f"benchmarks.{name}"), "measure")}


def file_of(name: str) -> Path:
    """Where a part's measurements are kept."""
    shipped = getattr(PARTS[name], "IN_LESSONS", False)
    return (Path(recorded.__file__).parent if shipped else HERE) / f"{name}.json"


def as_json(content: dict) -> str:
    """JSON with an entry a line, but a list of numbers on one."""
    text = json.dumps(content, indent=1) + "\n"
    return re.sub(r"\[[-+0-9.eE,\s]*\]",
                  lambda found: f"[{', '.join(found[0][1:-1].replace(',', ' ').split())}]", text)


def main(names: list[str]) -> None:
    unknown = set(names) - PARTS.keys() - {"report"}
    if unknown:
        sys.exit(f"benchmarks: got {', '.join(sorted(unknown))}, allowed are report, "
                 f"{', '.join(PARTS)}")
    if not names:  # everything that can be measured here
        lacking = {name: why() for name, part in PARTS.items()
                   if (why := getattr(part, "why_not", None)) and why()}
        for name, why in lacking.items():
            print(f"left out: {name}, {why}")
        names = [name for name in PARTS if name not in lacking]
    for name in [n for n in names if n != "report"]:
        log = {"command": f"python -m benchmarks {name}"} | PARTS[name].measure()
        write_atomically(file_of(name), as_json(log).encode())
    sections = [PARTS[name].report(read_json(file_of(name))) for name in PARTS
                if file_of(name).exists()]
    text = "# Measurements\n\nWritten by `python -m benchmarks`.\n\n" + "\n".join(sections)
    write_atomically(HERE / "results.md", text.encode())
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
