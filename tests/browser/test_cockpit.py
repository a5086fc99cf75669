"""The cockpit in a real JupyterLab: steered by mouse and keys while it trains, other cells free,
the exported text makes the same run, a second cockpit beside it, the stop button."""

import json
from pathlib import Path

import pytest

from benchmarks.browser import KERNEL, NotebookPage, browser, jupyterlab, why_not
from benchmarks.cockpit import NAME, notebook

pytestmark = [pytest.mark.browser, pytest.mark.skipif(why_not() is not None,
                                                      reason=str(why_not()))]
SET_UP = """import sys, pathlib
sys.path.insert(0, str(pathlib.Path.cwd().parent))
import json, threading, time
from dataclasses import asdict
import grpo_lib.course
from grpo_lib import GRPOConfig
from grpo_lib.course.explorers import cockpit_explorer, what_if_explorer
grpo_lib.course.set_up()
config = GRPOConfig(steps=30, prompts_per_step=8, group_size=8, eval_every=0)
def numbers(history):
    return [{k: v for k, v in asdict(m).items() if not k.startswith("seconds")} for m in history]
def training(): return sum(t.name == "grpo-run" for t in threading.enumerate())"""
REPLAY = """seen = []
exec(cockpit.export().code.replace("print(metrics.step, metrics.reward_mean)",
                                   "seen.append(metrics)"))
print(json.dumps([numbers(seen) == numbers(cockpit.run.history), len(seen),
                  sorted({m.field for m in cockpit.run.moves})]))"""
STATE = ("print(json.dumps([cockpit.run.state, len(cockpit.run.history), "
         "training(), other.run.state, len(other.run.moves)]))")
CELLS = [SET_UP, "cockpit = cockpit_explorer(config=config)\ncockpit",
         "other = cockpit_explorer(config=config)\nother", STATE, REPLAY,
         "cockpit.steps()", "cockpit.xray()", "what_if_explorer(cockpit.run.trainer)", "cockpit"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cockpit")
    with jupyterlab(folder) as url, browser() as chromium:
        Path(folder / "repository" / "notebooks" / NAME).write_text(notebook(CELLS))
        opened = NotebookPage(chromium, url, NAME)
        for number in range(3):
            opened.run_cell(number)
        yield opened
        opened.close()


@pytest.fixture
def box(page):
    return page.page.locator(".grpo-cockpit").first


def wait(page, box, *words):
    """Until the cockpit's line holds all these words."""
    page.page.wait_for_function(
        "([box, words]) => words.every(w => box.querySelector('[role=status]').innerText"
        ".includes(w))", arg=[box.element_handle(), list(words)])


def slider(box, name):
    return box.locator(".widget-slider", has_text=name).locator(".noUi-handle")


def state(page):
    return json.loads(page.run_cell(3))


def test_it_is_steered_while_it_trains_and_other_cells_run(page, box):
    press = page.page.keyboard.press
    box.get_by_role("button", name="Start").click()
    wait(page, box, "running, step 2")
    now, steps, *_ = state(page)
    assert now == "running" and 2 <= steps < 30, "a cell ran beside it"
    box.get_by_text("More: the algorithm").click()
    slider(box, "epsilon_high").focus()
    press("ArrowRight")
    wait(page, box, "epsilon_high 0.05")
    slider(box, "group size").focus()
    press("ArrowRight")
    wait(page, box, "group_size 16 from step", "epsilon_high 0.05 from step")
    box.get_by_role("button", name="Pause").click()
    wait(page, box, "paused")
    now, paused, threads, *_ = state(page)
    assert (now, threads) == ("paused", 0) and paused < 30
    box.get_by_role("button", name="One step").click()
    wait(page, box, f"paused, step {paused + 1} of 30")
    assert page.problems() == []


def test_what_is_exported_makes_the_same_run(page, box):
    box.get_by_role("button", name="Export").click()
    box.get_by_text("metrics.jsonl").wait_for()
    assert "moves = [(" in box.inner_text() and "config = GRPOConfig(steps=30" in box.inner_text()
    link = box.get_by_text("metrics.jsonl")
    with page.page.expect_download() as download:
        link.click()
    steps = int(state(page)[1])
    assert len(Path(download.value.path()).read_text().splitlines()) == steps
    assert json.loads(page.run_cell(4)) == [True, steps, ["epsilon_high", "group_size"]]


def test_back_keep_reset_and_the_curves_behind(page, box):
    box.get_by_role("button", name="Keep behind").click()
    box.get_by_role("button", name="Reset").click()
    wait(page, box, "ready, step 0 of 30")
    box.get_by_role("button", name="One step").click()
    wait(page, box, "paused, step 1 of 30")
    assert "kept, 2 moves" in box.locator("svg[role=img]").first.text_content()
    slider(box, "back to step").focus()
    page.page.keyboard.press("Home")
    box.get_by_role("button", name="Back").click()
    wait(page, box, "ready, step 0 of 30")


def test_the_other_cockpit_was_not_disturbed_and_a_cell_run_again_replaces_its_own(page, box):
    assert state(page)[3:] == ["ready", 0]
    page.run_cell(2)
    assert page.page.locator(".grpo-cockpit").count() == 2
    assert state(page)[2:] == [0, "ready", 0]


def test_starts_and_resets_leave_no_thread(page, box):
    for _ in range(3):
        box.get_by_role("button", name="Start").click()
        wait(page, box, "running, step 1")
        box.get_by_role("button", name="Reset").click()
        wait(page, box, "ready, step 0")
    assert state(page)[:3] == ["ready", 0, 0]


def test_the_stop_button_pauses_a_cell_that_steps_the_run(page, box):
    cell = page.page.locator(".jp-Notebook .jp-Cell").nth(5)
    for at_least in (3, 8, 13):
        page.page.evaluate("""() => {
          const panel = window.jupyterapp.shell.currentWidget;
          panel.content.activeCellIndex = 5;
          window.jupyterapp.commands.execute('notebook:run-cell');
        }""")
        page.page.wait_for_function(
            "([box, least]) => (box.querySelector('[role=status]').innerText.match("
            "/running, step ([0-9]+)/) ?? [0, 0])[1] >= least",
            arg=[box.element_handle(), at_least])
        page.page.evaluate("window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
        wait(page, box, "paused")
        cell.get_by_text("KeyboardInterrupt").first.wait_for()  # only then is the kernel free
        page.page.wait_for_function(f"{KERNEL} === 'idle'")
        now, steps, threads, *_ = state(page)
        assert (now, threads) == ("paused", 0) and at_least <= steps < 30
    page.run_cell(5)
    wait(page, box, "finished, step 30 of 30")
    assert json.loads(page.run_cell(4))[0] is True, "and it is the run that its moves describe"


def test_the_xray_and_the_what_if_follow_keys_and_give_numbers_on_focus(page, box):
    for number, words in ((6, "after the step"), (7, "B: cispo")):
        page.run_cell(number)
        view = page.page.locator(".jp-Notebook .jp-Cell").nth(number)
        times = page.move_slider(view, 0, 2)
        assert len(times) == 2
        page.press_another(view, view.locator(".widget-toggle-buttons").first)
        assert words in view.inner_text()
        token = view.locator(".token[tabindex]").first
        token.focus()
        shown = token.evaluate("t => getComputedStyle(t, '::after').content")
        assert "advantage" in shown and "ratio" in shown and "push" in shown
    # a cell that was interrupted has its KeyboardInterrupt, and nothing else went wrong
    assert [p for p in page.problems() if "KeyboardInterrupt" not in p] == []


def test_a_page_that_was_left_finds_the_run_by_its_name(page, box):
    """Never saved, so that the page itself has forgotten the cockpit."""
    box.get_by_role("button", name="Reset").click()
    box.get_by_role("button", name="Start").click()
    wait(page, box, "running, step 2")
    page.page.evaluate("window.onbeforeunload = null")
    page.page.once("dialog", lambda dialog: dialog.accept())
    page.page.reload()
    page.page.wait_for_function(f"{KERNEL} === 'idle'")
    page.run_cell(8)
    again = page.page.locator(".jp-Notebook .jp-Cell").nth(8).locator(".grpo-cockpit")
    wait(page, again, "finished, step 30 of 30")
    now, steps, *_ = state(page)
    assert (now, steps) == ("finished", 30)


def test_a_cell_run_again_keeps_what_the_old_run_did(page):
    page.run_cell(1)
    box = page.page.locator(".jp-Notebook .jp-Cell").nth(1).locator(".grpo-cockpit")
    wait(page, box, "ready, step 0", "(30 steps) was closed", "behind this one")
    assert "before" in box.locator("svg[role=img]").first.text_content()
