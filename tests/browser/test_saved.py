"""What a lesson shows when it is opened again, in a real JupyterLab: the live explorers while its
kernel lives, else a picture at each, be the file trusted or not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from benchmarks.browser import NotebookPage, browser, jupyterlab, why_not
from benchmarks.cockpit import notebook
from grpo_lib.course.explorers.outputs import VIEW

pytestmark = [pytest.mark.browser, pytest.mark.skipif(why_not() is not None,
                                                      reason=str(why_not()))]
LESSON, BARE = "04_clipping.ipynb", "97_bare.ipynb"
CELLS = ["""import sys
sys.path.insert(0, "..")
from grpo_lib.course.explorers import advantages_explorer, clip_explorer
clip_explorer()""", "advantages_explorer()"]
# For each explorer, what is on the screen of its three outputs: "picture", "mark" or "live".
SEEN = """() => [...document.querySelectorAll('.jp-Notebook .grpo-mark')].map(mark => {
  const row = mark.closest('.jp-OutputArea-child'), seen = [];
  const image = row.previousElementSibling.querySelector('img');
  if (image.checkVisibility() && image.naturalWidth > 300) seen.push('picture');
  if (row.checkVisibility()) seen.push('mark');
  if (row.nextElementSibling.checkVisibility()) seen.push(
    row.nextElementSibling.querySelector('.grpo-live svg[role=img], .grpo-live .grpo-tokens')
      ? 'live' : 'broken');
  return seen.join(' and ');
})"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab, and the folder of its notebooks."""
    folder = tmp_path_factory.mktemp("saved")
    with jupyterlab(folder) as url:
        (folder / "repository" / "notebooks" / BARE).write_text(notebook(CELLS))
        yield url, folder / "repository" / "notebooks"


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        yield chromium


@pytest.fixture
def opened(lab, chromium):
    """opened(name): that notebook's page; it and its kernel end with the test."""
    pages = []

    def open_it(name):
        pages.append(NotebookPage(chromium, lab[0], name))
        return pages[-1]

    yield open_it
    for page in pages:
        page.close()


def views(path):
    """How many live views a notebook's file holds; none has anything but empty HTML beside it."""
    found = [output.data for cell in nbformat.read(path, as_version=4).cells
             for output in cell.get("outputs", []) if VIEW in output.get("data", {})]
    assert all(set(data) == {VIEW, "text/html"} and not data["text/html"] for data in found)
    return len(found)


def everywhere(page, what, count):
    """Until each of so many explorers shows this and nothing else; what the page then says of
    errors and of widgets that are not there."""
    page.page.wait_for_function(
        f"([what, count]) => {{ const seen = ({SEEN})();"
        " return seen.length === count && seen.every(s => s === what); }", arg=[what, count])
    page.page.wait_for_timeout(3000)  # for what a dead view says of itself, when it is found out
    said = page.page.evaluate("document.querySelector('.jp-Notebook').textContent")
    return [words for words in ("model not found", "Error displaying", "Loading widget")
            if words in said] + page.problems()


def follows_a_key(page):
    box = page.explorers()[0]
    before = page.said(box)
    page.move_slider(box, 0, 1)
    return page.said(box) != before


def test_run_saved_and_reopened(lab, opened):
    path, page = lab[1] / BARE, opened(BARE)
    page.run_all()
    page.save()
    count = views(path)
    assert count == len(page.explorers()) == len(CELLS)
    assert everywhere(page, "live", count) == [] and follows_a_key(page)
    page.reload()
    assert everywhere(page, "live", count) == [] and follows_a_key(page), "its kernel lives"
    page.restart()
    page.reload()
    assert everywhere(page, "picture", count) == []
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]


def test_as_committed_and_trusted_without_running_it(lab, opened):
    copy = lab[1] / "96_trusted.ipynb"
    shutil.copy(Path(__file__).parents[2] / "notebooks" / LESSON, copy)
    data = {"JUPYTER_DATA_DIR": str(lab[1].parents[1] / "_DATA_DIR")}
    subprocess.run([sys.executable, "-m", "jupyter", "trust", str(copy)], check=True,
                   env=os.environ | data)
    page = opened(copy.name)
    trusted = page.page.locator(".jp-Notebook .jp-RenderedImage.jp-mod-trusted")
    trusted.first.wait_for()
    assert everywhere(page, "picture", views(copy)) == [] and views(copy) >= 3


def test_as_committed_and_not_trusted(lab, opened):
    """As somebody meets it who has downloaded it."""
    sent = nbformat.read(Path(__file__).parents[2] / "notebooks" / LESSON, as_version=4)
    sent.metadata["sent"] = "so that it is not the one that was trusted"
    nbformat.write(sent, lab[1] / "95_sent.ipynb")
    pictures = sum("image/png" in output.get("data", {})
                   for cell in sent.cells for output in cell.get("outputs", [])
                   if not cell.metadata.get("collapsed"))
    page = opened("95_sent.ipynb")
    page.page.wait_for_function(
        "count => [...document.querySelectorAll('.jp-RenderedImage:not(.jp-mod-trusted) img')]"
        ".filter(image => image.checkVisibility()).length === count", arg=pictures)
    assert page.problems() == []
    empty = page.page.evaluate(
        "[...document.querySelectorAll('.jp-OutputArea-child:has(> .jp-RenderedHTML)')]"
        ".filter(row => !row.innerText.trim()).map(row => row.getBoundingClientRect().height)")
    assert len(empty) >= 6 and max(empty) < 2, "a mark and a view leave no gap"


def test_the_answer_to_a_prediction_is_folded_until_its_cell_is_run(lab, opened):
    name = "00_start_here.ipynb"
    cells = nbformat.read(lab[1] / name, as_version=4).cells
    asked = next(i for i, cell in enumerate(cells) if cell.metadata.get("collapsed"))
    page = opened(name)
    answer = page.all_cells()[asked]
    answer.scroll_into_view_if_needed()
    answer.locator(".jp-OutputPlaceholder").wait_for()
    assert answer.locator(".jp-OutputArea-output").count() == 0
    for number in range(asked):
        if cells[number].cell_type == "code":
            page.run_cell(number)
    assert "reward 1" in page.run_cell(asked)
    assert answer.locator(".jp-OutputPlaceholder").count() == 0
