"""How long each notebook takes from a fresh kernel, and which of its cells takes longest."""

from __future__ import annotations

import statistics
import time
from datetime import datetime

from benchmarks.browser import ROOT
from grpo_lib.cli.runs import versions

RUNS = 3


def measure() -> dict:
    """Medians of three runs of each notebook, lessons and solutions, one after the other."""
    taken = {}
    paths = sorted((ROOT / "notebooks").glob("0*.ipynb")) + sorted(
        (ROOT / "notebooks" / "solutions").glob("*.ipynb"))
    for path in paths:
        runs = [run(path) for _ in range(RUNS)]
        slowest = {section: statistics.median(cells[section] for _, cells in runs)
                   for section in runs[0][1]}
        section = max(slowest, key=slowest.get)
        taken[path.relative_to(ROOT / "notebooks").with_suffix("").as_posix()] = {
            "seconds": round(statistics.median(total for total, _ in runs), 1),
            "section": section, "section_seconds": round(slowest[section], 1)}
        print(path.name, taken[path.relative_to(ROOT / "notebooks").with_suffix("").as_posix()],
              flush=True)
    return {"notebooks": taken, "runs": RUNS, "versions": versions()}


def run(path) -> tuple[float, dict[str, float]]:
    """(seconds from the start of the kernel to the end, seconds of each section's cells)."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(notebook, timeout=600, record_timing=True,
                   resources={"metadata": {"path": str(path.parent)}}).execute()
    total, sections, section = time.perf_counter() - start, {}, ""
    for cell in notebook.cells:
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else ():
            if line.startswith("#"):
                section = line.lstrip("# ")
        if cell.cell_type == "code":
            stamps = cell.metadata["execution"]
            begun, ended = (datetime.fromisoformat(stamps[key].replace("Z", "+00:00"))
                            for key in ("iopub.execute_input", "shell.execute_reply"))
            sections[section] = sections.get(section, 0.0) + (ended - begun).total_seconds()
    return total, sections


def table(data: dict) -> list[str]:
    """The measurements as lines of a Markdown table."""
    lines = ["| notebook | seconds | longest section | its seconds |", "|---|---:|---|---:|"]
    return lines + [f"| `{name}` | {taken['seconds']:.0f} | {taken['section']} "
                    f"| {taken['section_seconds']:.0f} |"
                    for name, taken in data["notebooks"].items()]


def report(data: dict) -> str:
    return "\n".join([
        "## Notebooks", "",
        f"From the start of the kernel to the last output, medians of {data['runs']} runs, on "
        f"{data['versions']['cpus']} cores (about eight minutes).", "", *table(data)]) + "\n"
