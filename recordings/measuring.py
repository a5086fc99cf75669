"""What ``python -m recordings`` and ``python -m benchmarks`` do: measure parts, and report them.

A part is a file with ``measure() -> dict`` and ``report(dict) -> str`` (Markdown), and
``why_not() -> str | None`` where it cannot be measured everywhere. What is not measured anew
keeps its numbers. Only the parts that are asked for are imported before they are measured, and
no ``report`` needs more than the library: a machine with a GPU may lack Jupyter.
"""

import argparse
import json
import re
import sys
from importlib import import_module
from pathlib import Path

from grpo_lib.support import threads
from grpo_lib.support.checkpoint import read_json, write_atomically

threads.settle()  # before a part imports torch
LAB_BOOK = "\n# Lab book\n"  # what stands below it in results.md is kept as it is


def as_json(content: dict) -> str:
    """JSON with an entry a line, but a list of numbers on one."""
    text = json.dumps(content, indent=1) + "\n"
    return re.sub(r"\[[-+0-9.eE,\s]*\]",
                  lambda found: f"[{', '.join(found[0][1:-1].replace(',', ' ').split())}]", text)


class Parts:
    """The parts of a package. ``logs`` is the folder that keeps their numbers (None: the
    package's own)."""

    def __init__(self, package: str, title: str, logs: Path | None = None):
        self.package, self.title = package, title
        self.folder = Path(__file__).parent.parent / package
        self.logs = logs or self.folder
        self.names = [path.stem for path in sorted(self.folder.glob("[a-z]*.py"))
                      if "\ndef measure(" in path.read_text(encoding="utf-8")]

    def part(self, name: str):
        return import_module(f"{self.package}.{name}")

    def file_of(self, name: str) -> Path:
        """Where a part's measurements are kept."""
        return self.logs / f"{name}.json"

    def why_not(self, name: str) -> str | None:
        """Why a part cannot be measured here, or None."""
        return getattr(self.part(name), "why_not", lambda: None)()

    def results(self) -> str:
        """What results.md says: the report of every part that was ever measured."""
        sections = [self.part(name).report(read_json(self.file_of(name)))
                    for name in self.names if self.file_of(name).exists()]
        before = (self.folder / "results.md").read_text(encoding="utf-8")
        return (f"# {self.title}\n\nWritten by `python -m {self.package}`.\n\n"
                + "\n".join(sections) + "".join(before.partition(LAB_BOOK)[1:]))

    def main(self, about: str, arguments: list[str] | None = None) -> None:
        """Measure what the arguments name, and write results.md. SystemExit: what is unknown or
        cannot be measured here."""
        names = self.asked(about, arguments)
        parts = self.names if names is None else names
        lacking = {name: why for name in parts if (why := self.why_not(name))}
        if names and lacking:
            sys.exit("\n".join(f"{self.package} {name}: {why}" for name, why in lacking.items()))
        for name, why in lacking.items():
            print(f"left out: {name}, {why}")
        for name in parts:
            if name not in lacking:
                log = {"command": f"python -m {self.package} {name}"} | self.part(name).measure()
                write_atomically(self.file_of(name), as_json(log).encode())
        text = self.results()
        write_atomically(self.folder / "results.md", text.encode())
        print(text)

    def asked(self, about: str, arguments: list[str] | None) -> list[str] | None:
        """The parts that the arguments name; None if they name none, which means all."""
        parser = argparse.ArgumentParser(
            prog=f"python -m {self.package}", description=about.split("\n")[0],
            epilog=f"Parts: {', '.join(self.names)}. What they measure and how long that takes: "
                   f"{self.package}/results.md.")
        parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure; none: all "
                            "that can be measured here; report: nothing, only write results.md")
        names = parser.parse_args(arguments).parts
        unknown = set(names) - {*self.names, "report"}
        if unknown:
            sys.exit(f"{self.package}: got {', '.join(sorted(unknown))}, allowed are report, "
                     f"{', '.join(self.names)}")
        return [name for name in names if name != "report"] if names else None
