"""The plans of docs/teaching/plans.md as data, and the code cells of a lesson that each runs."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
KIT = ROOT / "docs" / "teaching"
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}


def text_of(name):
    return (KIT / name).read_text(encoding="utf-8")


def cells_of(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def plans():
    """[(lesson, minutes promised, [(minutes, section, what to do)])]"""
    found = []
    for part in re.split(r"(?m)^## ", text_of("plans.md"))[1:]:
        for promised, table in re.findall(r"\*\*(\d+) minutes\*\*\n\n((?:\|.*\n)+)", part):
            rows = [cells_of(line) for line in table.splitlines()[2:]]
            found.append((part.split("\n")[0], int(promised),
                          [(int(minutes), section, what) for minutes, section, what in rows]))
    return found


def sections_of(stem):
    """[(the section that a code cell stands in, its source)], in the notebook's order."""
    found, section = [], None
    for cell in json.loads(NOTEBOOKS[stem].read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            found.append((section, source))
        else:
            for heading in re.findall(r"(?m)^#{1,3} (.*)$", source):
                section = heading.strip()
    return found


def path_of(stem, sections):
    """The places of the code cells that a plan runs."""
    return tuple(at for at, (section, _) in enumerate(sections_of(stem)) if section in sections)


def in_class(stem):
    """The path of a lesson's plan for 50 minutes."""
    [rows] = [rows for lesson, minutes, rows in plans() if (lesson, minutes) == (stem, 50)]
    return path_of(stem, {section for _, section, _ in rows})
