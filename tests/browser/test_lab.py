"""Every notebook in a real JupyterLab: runs without an error or a warning, and each of its
explorers follows the keyboard.

Needs playwright and a Chromium of the system; left out where either is missing.
"""

from pathlib import Path

import pytest

from benchmarks.browser import NotebookPage, browser, jupyterlab, why_not

NAMES = sorted(p.name for p in (Path(__file__).parents[2] / "notebooks").glob("0*.ipynb"))
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
    """Each control of a box changes the picture, by keyboard alone, in what it says."""
    pixels = box.screenshot()
    for number in range(box.locator(".noUi-handle").count()):
        before = notebook.said(box)
        notebook.move_slider(box, number, 1)
        assert notebook.said(box) != before
    for number in range(box.locator("input[type=checkbox]").count()):
        before = notebook.said(box)
        notebook.press(box, box.locator("input[type=checkbox]").nth(number), "Space")
        assert notebook.said(box) != before
    for number in range(box.locator("input[type=text]").count()):
        before = notebook.said(box)
        notebook.press(box, box.locator("input[type=text]").nth(number), "End")
        assert notebook.said(box) != before
    assert box.screenshot() != pixels
