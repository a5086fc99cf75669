"""What a saved notebook must and must not contain. That its outputs are true, nbval checks."""

import ast
import json
import re
from itertools import pairwise
from pathlib import Path

import cells
import nbformat
import pytest

from grpo_lib.course.explorers.outputs import MARK, VIEW

FOLDER = Path(__file__).parents[2] / "notebooks"
PATHS = [p for p in sorted(FOLDER.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
IGNORED = "nbval-ignore-output"


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def test_the_notebooks_are_there():
    assert {"00_start_here.ipynb", "07_training_run.ipynb"} <= {p.name for p in PATHS}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
class TestNotebook:
    def test_is_valid_and_small(self, path):
        nbformat.validate(nbformat.read(path, as_version=4))
        assert path.stat().st_size < 1_500_000

    def test_was_run_from_top_to_bottom(self, path):
        cells = code_cells(path)
        assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
        for cell in cells:
            for output in cell.outputs:
                assert output.get("execution_count", cell.execution_count) == cell.execution_count

    def test_has_outputs_to_compare(self, path):
        compared = [c for c in code_cells(path)
                    if c.outputs and IGNORED not in c.metadata.get("tags", [])]
        assert len(compared) >= (len(code_cells(path)) - 2) / 2  # set-up cells print nothing

    def test_shows_no_error_and_no_warning(self, path):
        for cell in code_cells(path):
            for output in cell.outputs:
                assert output.output_type != "error"
                assert output.get("name") != "stderr", output.text
                assert "Warning" not in output.get("text", "")

    def test_keeps_no_widget_state_and_no_timestamps(self, path):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert "widgets" not in notebook["metadata"]
        assert not any("execution" in cell["metadata"] for cell in notebook["cells"])

    def test_has_no_trailing_semicolon_and_no_long_line(self, path):
        for cell in code_cells(path):
            assert not cell.source.rstrip().endswith(";")
            assert max(map(len, cell.source.splitlines())) <= 88

    def test_a_cell_that_is_not_compared_asserts_or_only_shows(self, path):
        """Ignored outputs must be few, and no cell may be skipped."""
        cells = code_cells(path)
        tags = [tag for c in cells for tag in c.metadata.get("tags", [])]
        assert "nbval-skip" not in tags and "NBVAL" not in path.read_text(encoding="utf-8")
        assert tags.count(IGNORED) <= max(1, len(cells) // 5)

    def test_every_picture_has_its_numbers_in_words(self, path):
        for cell in code_cells(path):
            for output in cell.outputs:
                data = output.get("data", {})
                if "image/png" in data:
                    assert "<" not in data["text/plain"] and len(data["text/plain"]) > 10

    def test_a_live_view_stands_two_outputs_after_its_picture(self, path):
        """So that there is something to see where it does not live."""
        for cell in code_cells(path):
            kinds = [set(output.get("data", {})) for output in cell.outputs]
            for at, kind in enumerate(kinds):
                if VIEW in kind:
                    assert kind == {VIEW, "text/html"} and at >= 2
                    assert "image/png" in kinds[at - 2]
                    assert cell.outputs[at - 1].data == {"text/html": MARK}

    def test_what_answers_a_prediction_is_folded(self, path):
        shown = [c for c in nbformat.read(path, as_version=4).cells
                 if c.cell_type == "markdown" or c.outputs]
        for before, cell in pairwise(shown):
            if cell.cell_type == "code":
                asked = before.cell_type == "markdown" and "**Predict" in before.source
                explores = any("grpo_lib" in o.get("metadata", {}) for o in cell.outputs)
                folded = cell.metadata.get("jupyter", {}).get("outputs_hidden", False)
                assert folded or explores or not asked, cell.source
                assert folded == ("hide-output" in cell.metadata.get("tags", []))

    def test_every_details_box_is_closed(self, path):
        text = path.read_text(encoding="utf-8")
        assert text.count("<details>") == text.count("</details>")
        assert not re.search(r"/(home|root|Users|tmp)/", text)


# --- cells out of order -------------------------------------------------------------------

@pytest.mark.parametrize("path", cells.LESSONS, ids=lambda p: p.name)
def test_whatever_a_cell_needs_a_cell_above_it_makes(path):
    """So that the advice to run what is above it is right; and no cell needs what comes after."""
    sources = cells.code_cells(path)
    made = [cells.names_made(source) for source in sources]
    for at, source in enumerate(sources):
        assert cells.names_used(source) <= set().union(*made[:at], {"__file__"}), f"cell {at + 1}"


@pytest.mark.parametrize("path", cells.LESSONS, ids=lambda p: p.name)
def test_no_cell_builds_on_what_it_made_itself(path):
    """``x = x + 1`` at the top of a cell gives another result each time it is run."""
    for source in cells.code_cells(path):
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) for t in node.targets):
                names = {t.id for t in node.targets}
                read = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
                assert not names & read - cells.names_made_before(source, node), source
            assert not (isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
                        and node.target.id not in cells.names_made_before(source, node)), source


@pytest.mark.slow
def test_a_lesson_from_its_last_cell_to_its_first_says_what_to_run_first():
    """One lesson here; tools/cells.py runs them all, in four ways."""
    [path] = [p for p in cells.LESSONS if p.name.startswith("06")]
    ran, told, failures = cells.try_out(path, "reverse")
    assert failures == []
    assert ran == len(cells.code_cells(path)) - cells.SET_UP and told > 5


@pytest.mark.parametrize(("error", "message", "fine"), [
    ("NameError", f"name 'task' is not defined; {cells.ADVICE}", True),
    ("NameError", "name 'task' is not defined", False),
    ("NameError", f"name 'tusk' is not defined; {cells.ADVICE}", False),
    ("AssertionError", "step 3: finish the run", True), ("AssertionError", "", False),
    ("IndexError", f"'task' {cells.ADVICE}", False),
])
def test_what_says_what_to_do(error, message, fine):
    assert cells.says_what_to_do(error, message, {"task"}) is fine


def test_names_that_a_cell_makes_and_uses():
    source = ("import a.b as c, d.e\nfor i in range(3):\n    with x as y:\n"
              "        z, *w = [q for q in p]\ndef f(u):\n    v = u + t\n    return v\n"
              "class C:\n    pass\nlambda k: k + m\n")
    assert cells.names_made(source) == {"c", "d", "i", "y", "z", "w", "f", "C"}
    assert cells.names_used(source) == {"x", "p", "t", "m"}


# Short cells on one batch, each with its own: run again they show a later cell's, without error.
MADE_AGAIN = {"05_kl_and_entropy.ipynb": {"batch", "new", "ref"}}


@pytest.mark.parametrize("path", cells.LESSONS, ids=lambda p: p.name)
def test_no_later_cell_takes_a_name_that_cells_before_it_need(path):
    """Going back to a cell must not judge another run: lesson 07 had a second ``trainer``."""
    sources = cells.code_cells(path)
    made = [cells.names_made("\n".join(
        ast.unparse(node) for node in ast.parse(source).body
        if not isinstance(node, (ast.Import, ast.ImportFrom))) or "pass") for source in sources]
    taken = set()
    for name in set().union(*made):
        first, *later = [at for at, names in enumerate(made) if name in names]
        taken |= {name for end in later for source in sources[first + 1 : end]
                  if name in cells.names_used(source)}
    assert taken == MADE_AGAIN.get(path.name, set())
