"""What an explorer leaves in a notebook's file, by a real kernel: a picture, a mark, a live view;
and of a run the curves as they are when it ends."""

import importlib.util
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from waiting import PATIENCE

from grpo_lib.config import GRPOConfig
from grpo_lib.course.explorers import LiveCurves, clip_explorer, cockpit_explorer
from grpo_lib.course.explorers.outputs import LIVE, MARK, VIEW

ROOT = Path(__file__).parents[3]
SPEC = importlib.util.spec_from_file_location("grpo_assets", ROOT / "tools" / "assets.py")
assets = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(assets)
SET_UP = """import sys, types
from dataclasses import fields
from grpo_lib import GRPOConfig
from grpo_lib.config import StepMetrics
from grpo_lib.course.explorers import LiveCurves, clip_explorer, cockpit_explorer
def metrics(step):
    return StepMetrics(**{f.name: 0.5 for f in fields(StepMetrics)} | {"step": step})
config = GRPOConfig(steps=4, prompts_per_step=2, group_size=2, eval_every=0)"""
CURVES = """curves = LiveCurves(9, title="Two of three")
display(curves)
for step in range(1, 10):
    curves.add(metrics(step))
    """
SHOWN = "curves.picture()"
STEPS = "_ = cockpit.steps(2)\ncockpit.start()\ncockpit.run.wait()"
CELLS = {
    "set-up": SET_UP, "explorer": "clip = clip_explorer()\nclip", "the same": "clip",
    "to the end": CURVES + "pass", "to the end, shown": SHOWN,
    "left": CURVES + "if step == 4: break", "left, shown": SHOWN,
    "interrupted": CURVES + "if step == 4: raise KeyboardInterrupt", "interrupted, shown": SHOWN,
    "goes on": CURVES + "if step == 2: break", "in a later cell": "curves.add(metrics(3))",
    "and a third": "curves.add(metrics(4))", "goes on, shown": SHOWN,
    "cockpit": "cockpit = cockpit_explorer(config=config)\ncockpit", "cockpit's steps": STEPS,
    "cockpit, shown": "cockpit.picture()",
    "back": "cockpit = cockpit_explorer(config=config)\ndisplay(cockpit)\n" + STEPS,
    "back to the start": "cockpit.back(0)", "back, shown": "cockpit.picture()",
    "Colab": "sys.modules['google.colab'] = types.ModuleType('colab')\nclip"}


@pytest.fixture(scope="module")
def saved():
    """The outputs of each cell after all were run, as tools/save.py runs them."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in CELLS.values()])
    NotebookClient(notebook, kernel_name="python3", timeout=PATIENCE, startup_timeout=PATIENCE,
                   allow_errors=True, store_widget_state=False).execute()
    nbformat.validate(notebook)
    errors = [o.ename for cell in notebook.cells for o in cell.outputs if o.output_type == "error"]
    assert errors == ["KeyboardInterrupt"] and "widgets" not in notebook.metadata
    return dict(zip(CELLS, [[o for o in cell.outputs if o.output_type != "error"]
                            for cell in notebook.cells]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["explorer", "the same"])
def test_an_explorer_is_a_picture_a_mark_and_a_live_view(saved, name):
    picture, mark, view = (output.data for output in saved[name])
    assert set(picture) == {"text/plain", "image/png"}
    assert picture["text/plain"] == clip_explorer().text
    assert mark == {"text/html": MARK}
    assert set(view) == {VIEW, "text/html"} and view["text/html"] == ""
    assert all(output.metadata == {} for output in saved[name])
    assert LIVE in clip_explorer().box._dom_classes and f".{LIVE}" in MARK


@pytest.mark.slow
def test_colab_gets_one_bundle_as_each_output_is_alone_there(saved):
    [output] = saved["Colab"]
    assert set(output.data) == {"text/plain", "image/png", VIEW}


@pytest.mark.parametrize("make", [clip_explorer, lambda: LiveCurves(3)])
def test_outside_a_notebook_it_is_one_bundle(make):
    """IPython's terminal takes what _repr_mimebundle_ gives then, and prints its text."""
    with pytest.raises(NotImplementedError):
        make()._ipython_display_()
    assert set(make()._repr_mimebundle_()) == {"text/plain", "image/png", VIEW}
    assert "google.colab" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize(("name", "last"), [
    ("to the end", "step 9 of 9"), ("left", "step 4 of 9"), ("interrupted", "step 4 of 9"),
    ("goes on", "step 4 of 9")])
def test_live_curves_are_saved_as_they_are_when_their_cell_ends(saved, name, last):
    picture, *others = saved[name]
    assert picture.data["text/plain"] == (
        "Two of three. Curves over 9 steps: accuracy, length, entropy"), "the same in every run"
    assert picture.metadata["image/png"]["alt"].startswith(last)
    assert picture.data["image/png"] == saved[f"{name}, shown"][0].data["image/png"]
    assert [set(output.data) for output in others] == [{"text/html"}, {VIEW, "text/html"}]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "last"), [
    ("cockpit", "finished, step 4 of 4"), ("back", "ready, step 0 of 4")])
def test_a_cockpit_is_saved_as_it_is_when_its_run_rests(saved, name, last):
    picture, *_ = saved[name]
    assert picture.data["text/plain"].startswith("A run of 4 steps to steer: reward, ")
    assert picture.metadata["image/png"]["alt"].startswith(last)
    assert picture.data["image/png"] == saved[f"{name}, shown"][0].data["image/png"]


def test_the_line_of_text_that_is_saved_does_not_follow_the_run():
    curves = LiveCurves(3, ("reward",))
    assert curves.about == "Curves over 3 steps: reward" and curves.text == "0 of 3 steps"
    cockpit = cockpit_explorer(config=GRPOConfig(steps=2, prompts_per_step=2, group_size=2))
    before = cockpit.about
    cockpit.set(steps=1).steps()
    assert cockpit.about == before == cockpit._to_display()[0]["text/plain"]
    assert cockpit._to_display()[1]["image/png"]["alt"] == cockpit.text
    cockpit.close()


@pytest.mark.slow
def test_pages_that_are_only_read_keep_the_pictures(saved):
    """The site's and the slides' way, and what was saved before or in Colab as one bundle."""
    [one] = saved["Colab"]
    table = nbformat.v4.new_output("display_data", {"text/html": "<table></table>"})
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_markdown_cell("x"),
        *(nbformat.v4.new_code_cell("", outputs=outputs)
          for outputs in (saved["explorer"], saved["to the end"], [one, table]))])
    assets.keep_pictures(notebook)
    _, explorer, run, old = notebook.cells
    assert explorer.outputs == saved["explorer"][:1] and old.outputs == [one, table]
    assert len(run.outputs) == 1
    assert run.outputs[0].data["text/plain"].startswith("step 9 of 9")
