"""python -m benchmarks [flagship] [engine] [process]: measure, and write benchmarks/results.md.

``flagship`` takes about 20 minutes, the others a minute each. What is not measured anew keeps
its numbers.
"""

import sys
from pathlib import Path

import grpo_lib  # noqa: F401  before torch
from benchmarks import engine, flagship, process
from grpo_lib.checkpoint import read_json, write_atomically, write_json

HERE = Path(__file__).parent
PARTS = {"flagship": flagship, "engine": engine, "process": process}


def main(names: list[str]) -> None:
    unknown = set(names) - PARTS.keys()
    if unknown:
        sys.exit(f"benchmarks: got {', '.join(sorted(unknown))}, allowed are {', '.join(PARTS)}")
    for name in names or PARTS:
        write_json(HERE / f"{name}.json", PARTS[name].measure())
    sections = [PARTS[name].report(read_json(HERE / f"{name}.json")) for name in PARTS
                if (HERE / f"{name}.json").exists()]
    text = "# Measurements\n\nWritten by `python -m benchmarks`.\n\n" + "\n".join(sections)
    write_atomically(HERE / "results.md", text.encode())
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
