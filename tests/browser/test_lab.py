"""Every notebook in a real JupyterLab: runs without an error or a warning, and each of its
explorers follows the keyboard.

Needs playwright and a Chromium of the system; left out where either is missing.
"""

import importlib.util
from pathlib import Path

import pytest

from benchmarks.browser import NotebookPage, browser, jupyterlab, why_not

LLM = all(importlib.util.find_spec(name) for name in ("transformers", "peft"))
NAMES = sorted(p.name for p in (Path(__file__).parents[2] / "notebooks").glob("0*.ipynb")
               if LLM or not p.name.startswith("09"))
pytestmark = [pytest.mark.browser, pytest.mark.skipif(why_not() is not None,
                                                      reason=str(why_not()))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with jupyterlab(tmp_path_factory.mktemp("lab")) as url:
        yield url


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        yield chromium


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_its_explorers_follow_the_keys(lab, chromium, name):
    notebook = NotebookPage(chromium, lab, name)
    try:
        notebook.run_all()
        assert notebook.problems() == []
        boxes = notebook.explorers()
        assert len(boxes) >= (0 if name.startswith("07") else 1)
        for box in boxes:
            box.scroll_into_view_if_needed()
            follow_every_control(notebook, box)
        assert notebook.problems() == []
    finally:
        notebook.close()


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
    for move in moves:
        move()
        before, heard = heard, notebook.said(box)
        silent += heard == before
    assert silent <= (len(moves) > 1)
    assert box.screenshot() != pixels
