"""Every plan of docs/teaching/plans.md is run as it is written: its sections' cells, and no others.

A class that leaves a section out has not run its cells. tests/browser runs the plans for 50 minutes
in JupyterLab; a plan that leaves nothing out is the notebook, which is run as such; all others are
run here, what they begin with together only once. This takes ten minutes, so it is done before a
release. That every name is made by a cell of the plan, and that no section borrows an import from
an optional one, is looked up every time.
"""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cells
import nbformat
import pytest
from class_plans import NOTEBOOKS, in_class, path_of, plans, sections_of
from nbformat.v4 import new_code_cell, new_notebook
from test_teaching import lessons_of_the_day
from waiting import PATIENCE

PATHS = Path(__file__).parents[1] / "helpers" / "paths.py"
LLM = all(importlib.util.find_spec(name) for name in ("transformers", "peft"))  # for lesson 09
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def every_path():
    """{plan: (lesson, its path)} for the tables, and for the day where it differs from them."""
    found = {f"{stem[:2]}, {minutes} minutes": (stem, path_of(stem, {s for _, s, _ in rows}))
             for stem, minutes, rows in plans()}
    for stem, (_, sections) in lessons_of_the_day().items():
        found[f"{stem[:2]}, the day"] = (stem, path_of(stem, sections))
    return found


def not_run_elsewhere(paths, elsewhere):
    """{(lesson, path)}: all but those that are run elsewhere or that begin a longer one."""
    left = {(stem, path) for stem, path in paths if path not in elsewhere(stem)}
    return sorted((stem, path) for stem, path in left if not any(
        other == stem and len(longer) > len(path) and longer[:len(path)] == path
        for other, longer in left))


RUN = not_run_elsewhere(every_path().values(), lambda stem: (
    in_class(stem), tuple(range(len(sections_of(stem))))))


def test_every_plan_begins_with_the_set_up():
    for _, path in every_path().values():
        assert path[:cells.SET_UP] == tuple(range(cells.SET_UP)) and len(path) > 5


@pytest.mark.parametrize("plan", every_path())
def test_every_name_that_a_plan_uses_is_made_by_one_of_its_cells(plan):
    stem, path = every_path()[plan]
    made = set()
    for at in path:
        source = sections_of(stem)[at][1]
        assert cells.names_used(source) <= made, f"cell {at + 1}"
        made |= cells.names_made(source)


def test_a_path_leaves_out_what_its_plan_does():
    short, long, core = (0, 1, 4), (0, 1, 2), (0, 1)
    paths = [("a", short), ("a", long), ("a", core), ("b", core)]
    assert not_run_elsewhere(paths, lambda stem: ()) == [("a", long), ("a", short), ("b", core)]
    assert not_run_elsewhere(paths, lambda stem: [long]) == [("a", short), ("b", core)]
    stem = next(iter(NOTEBOOKS))
    assert 0 < len(path_of(stem, {"6. One step"})) < len(path_of(stem, {"6. One step", "Clipping"}))


def imported(source):
    """The names that a cell's own imports make."""
    return {(alias.asname or alias.name).partition(".")[0] for node in ast.parse(source).body
            if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}


def can_be_left_out(stem):
    """The sections below another one, and the optional ones."""
    text = "\n".join("".join(cell["source"]) for cell in json.loads(
        NOTEBOOKS[stem].read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown")
    return {heading for level, heading in re.findall(r"(?m)^(#+) (.*)$", text)
            if level == "###" or "optional" in heading.lower()}


def borrowed(sections, optional):
    """[(section, name)]: names that it uses and that only optional ones have imported."""
    found = []
    for place, (section, source) in enumerate(sections):
        for name in cells.names_used(source):
            givers = {other for other, before in sections[:place]
                      if name in cells.names_made(before)}
            imports = any(name in imported(before) for _, before in sections[:place])
            if imports and givers <= optional and section not in givers:
                found.append((section, name))
    return found


def test_an_import_that_is_borrowed_from_an_optional_section_is_found():
    cut = [("1", "import math"), ("2", "from a import b, c\nx = 1"), ("3", "b(x, math)"),
           ("4", "from a import c"), ("5", "c()"), ("2", "b()")]
    assert borrowed(cut, {"2"}) == [("3", "b")] and borrowed(cut, set()) == []
    assert imported("from a import (b,\n    c)\nimport d.e as f, g.h\nx = 1") == set("bcfg")


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_what_an_optional_section_imports_others_import_for_themselves(stem):
    """So that who is short of time can leave out any of them."""
    assert borrowed(sections_of(stem), can_be_left_out(stem)) == []


def run_paths(notebook, paths):
    """(exit status, what was said) of tests/helpers/paths.py."""
    script = [sys.executable, PATHS, notebook, json.dumps(paths)]
    done = subprocess.run(script, cwd=notebook.parent, stdout=subprocess.PIPE, timeout=PATIENCE,
                          stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
                          check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    return done.returncode, done.stdout


@pytest.mark.slow
@forks
def test_a_path_runs_its_own_cells_alone(tmp_path):
    sources = ["seen = ['set-up']", "seen.append(1)", "seen.append(2)", "assert 2 not in seen"]
    notebook = tmp_path / "lesson.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), notebook)
    status, said = run_paths(notebook, [[0, 1, 2], [0, 1, 3], [0, 3], [0, 2]])
    assert status == 0, said
    status, said = run_paths(notebook, [[0, 1], [0, 2, 3], [0, 1, 3]])
    assert status == 1 and "Cell 3 failed" in said and "AssertionError" in said


@pytest.mark.release
@forks
@pytest.mark.parametrize("stem", sorted({stem for stem, _ in RUN}))
def test_a_lessons_plans_run_as_they_are_written(stem):
    if stem.startswith("09") and not LLM:
        pytest.skip("transformers or peft is missing")
    status, said = run_paths(NOTEBOOKS[stem], [path for other, path in RUN if other == stem])
    assert status == 0, said[-5000:]
