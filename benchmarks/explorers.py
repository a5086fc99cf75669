"""From a key on an explorer's slider to the new picture, in a real JupyterLab."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.browser import ROOT, NotebookPage, browser, jupyterlab, why_not  # noqa: F401
from grpo_lib.cli.runs import versions

MOVES = 20


def measure() -> dict:
    """Median and worst time of 20 moves of each control, after 3 to warm up."""
    sliders = []
    with tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder)) as url, \
            browser() as chromium:
        for name in sorted(p.name for p in (ROOT / "notebooks").glob("0*.ipynb")):
            notebook = NotebookPage(chromium, url, name)
            notebook.run_all()
            for box in notebook.explorers():
                box.scroll_into_view_if_needed()
                for label, move in moves_of(notebook, box):
                    times = [move() for _ in range(3 + MOVES)][3:]
                    panels = box.locator("svg[role=img] g[id^=axes_]").count()
                    sliders.append({"notebook": name, "slider": label, "panels": panels,
                                    "said": notebook.said(box)[0][:60],
                                    "median_ms": round(statistics.median(times)),
                                    "worst_ms": round(max(times))})
                    print(sliders[-1], flush=True)
            notebook.close()
    return {"sliders": sliders, "moves": MOVES, "versions": versions()}


def moves_of(notebook: NotebookPage, box) -> Iterator[tuple[str, Callable[[], float]]]:
    """The label of each slider, menu and row of buttons of a box, and what moves it by a key."""
    for number in range(box.locator(".noUi-handle").count()):
        yield (box.locator(".widget-slider .widget-label").nth(number).text_content(),
               lambda number=number: notebook.move_slider(box, number, 1)[0])
    for menu in box.locator(".widget-dropdown").all():
        yield (menu.locator(".widget-label").text_content(),
               lambda menu=menu: notebook.choose_another(box, menu.locator("select")))
    for buttons in box.locator(".widget-toggle-buttons").all():
        yield (buttons.locator(".widget-label").text_content(),
               lambda buttons=buttons: notebook.press_another(box, buttons))


def report(data: dict) -> str:
    lines = ["## Explorers in JupyterLab", "",
             f"From the key press to the first frame with the new picture, {data['moves']} moves "
             f"of each control by keyboard, headless Chromium on the same "
             f"{data['versions']['cpus']} cores (eight minutes, notebooks included).", "",
             "| notebook | slider | panels | median, ms | worst, ms |", "|---|---|---|---|---|"]
    lines += [f"| {s['notebook']} | {s['slider']} | {s['panels']} | {s['median_ms']} "
              f"| {s['worst_ms']} |" for s in data["sliders"]]
    return "\n".join(lines) + "\n"
