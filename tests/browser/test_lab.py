"""Every notebook in a real JupyterLab: its plan for 50 minutes runs as it is written, without an
error or a warning, and each of its explorers follows the keyboard. (All cells are run by nbval.)

Needs playwright and a Chromium of the system; left out where either is missing.
"""

import importlib.util
from pathlib import Path

import nbformat
import pytest
from class_plans import in_class, sections_of

from benchmarks.browser import NotebookPage, browser, jupyterlab, why_not
from benchmarks.cockpit import notebook as notebook_of

LLM = all(importlib.util.find_spec(name) for name in ("transformers", "peft"))
FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(p.name for p in FOLDER.glob("0*.ipynb") if LLM or not p.name.startswith("09"))
EXPLORER = "_explorer("
SLOW = """import sys, pathlib, time
sys.path.insert(0, str(pathlib.Path.cwd().parent))
from grpo_lib.course.explorers import Explorer
from grpo_lib.course.explorers.controls import slider
from grpo_lib.course.plots import lines
drawn = []
def draw(height):
    drawn.append(height)
    time.sleep(0.3)
    return lines([0, 1], {"a": [0, height]}, "slow", "x", "y", y_range=(0, 100)), f"at {height}"
Explorer(draw, height=slider("height", 0, 0, 100, 1))"""
pytestmark = [pytest.mark.browser, pytest.mark.skipif(why_not() is not None,
                                                      reason=str(why_not()))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(folder) as url:
        (folder / "repository/notebooks/97_slow.ipynb").write_text(notebook_of(
            [SLOW, "print(*drawn)"]))
        yield url


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        yield chromium


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_its_explorers_follow_the_keys(lab, chromium, name):
    notebook = NotebookPage(chromium, lab, name)
    try:
        for number in path_with_every_explorer(name):
            notebook.run_cell(number)
        assert notebook.problems() == []
        boxes = notebook.explorers()
        assert len(boxes) >= (0 if name.startswith("07") else 1)
        for box in boxes:
            box.scroll_into_view_if_needed()
            follow_every_control(notebook, box)
        assert notebook.problems() == []
    finally:
        notebook.close()


def path_with_every_explorer(name):
    """The plan's cells, then the sections of the other explorers; counted among all cells."""
    stem, cells = name.removesuffix(".ipynb"), nbformat.read(FOLDER / name, as_version=4).cells
    numbers = [number for number, cell in enumerate(cells) if cell.cell_type == "code"]
    path, sections = in_class(stem), sections_of(stem)
    others = {section for at, (section, source) in enumerate(sections)
              if EXPLORER in source and at not in path}
    return [numbers[at] for at in (*path, *(
        at for at, (section, _) in enumerate(sections) if section in others and at not in path))]


def follow_every_control(notebook, box):
    """Each control of a box redraws the picture, by keyboard alone. At most one of them may
    change nothing in it, since some matter only for some values of others."""
    pixels, heard, silent = box.screenshot(), notebook.said(box), 0
    moves = [lambda i=i: notebook.move_slider(box, i, 1)
             for i in range(box.locator(".noUi-handle").count())]
    for kind, key in (("checkbox", "Space"), ("text", "9")):
        found = box.locator(f"input[type={kind}]")
        moves += [lambda found=found, i=i, key=key: notebook.press(box, found.nth(i), key)
                  for i in range(found.count())]
    moves += [lambda menu=menu: notebook.choose_another(box, menu)
              for menu in box.locator("select").all()]
    moves += [lambda buttons=buttons: notebook.press_another(box, buttons)
              for buttons in box.locator(".widget-toggle-buttons").all()]
    for move in moves:
        move()
        before, heard = heard, notebook.said(box)
        silent += heard == before
    assert box.evaluate("box => !!box.closest('.jp-Cell.jp-mod-active')"), "moved to another cell"
    assert silent <= (len(moves) > 1)
    assert box.screenshot() != pixels


def test_of_a_drag_only_the_newest_value_waits_and_the_last_is_drawn(lab, chromium):
    page = NotebookPage(chromium, lab, "97_slow.ipynb")
    try:
        page.run_cell(0)
        [box], mouse = page.explorers(), page.page.mouse
        track = box.locator(".noUi-target").bounding_box()
        mouse.move(track["x"], track["y"] + 3)
        mouse.down()
        for x in range(40):  # events come ten times as fast as pictures
            mouse.move(track["x"] + track["width"] * x / 39, track["y"] + 3)
            page.page.wait_for_timeout(30)
        mouse.up()
        page.page.wait_for_function("box => box.innerText.includes('at 100')",
                                    arg=box.element_handle())
        drawn = [int(height) for height in page.run_cell(1).split()]
        assert drawn == sorted(drawn) and drawn[-1] == 100 and 3 <= len(drawn) <= 15
    finally:
        page.close()
