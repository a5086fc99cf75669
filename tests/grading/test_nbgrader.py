"""The exercises as an nbgrader course: generated, solved by three students, graded by nbgrader.

Left out where the ``grading`` extra is not installed.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from waiting import PATIENCE

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import exercises as writer  # noqa: E402

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nbgrader") is None,
                                reason="nbgrader is not installed")
# nbgrader calls alembic by its name, which stands beside this Python
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
LESSONS = ("03_advantages", "06_loss_aggregation", "07_training_run")
EMPTY = re.compile(r"# YOUR CODE HERE\n *raise NotImplementedError\(\)")


def nbgrader(course, *arguments):
    done = subprocess.run([sys.executable, "-m", "nbgrader", *arguments], cwd=course, text=True,
                          capture_output=True, check=False, timeout=PATIENCE, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def answered(release, source, keep):
    """The students' notebook with the solutions of some exercises filled in."""
    notebook = nbformat.read(release, as_version=4)
    solved = {c.metadata.nbgrader.grade_id: c.source
              for c in nbformat.read(source, as_version=4).cells if "nbgrader" in c.metadata}
    for cell in notebook.cells:
        role = cell.metadata.get("nbgrader", {})
        if role.get("solution") and keep(role["grade_id"]):
            cell.source = solved[role["grade_id"]]
    return notebook


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """student, lesson -> grade_id -> points, after generating, solving and grading."""
    course = tmp_path_factory.mktemp("course")
    writer.main(["--nbgrader", str(course)])
    students = {"all": lambda name: True, "none": lambda name: False,
                "some": lambda name: name in ("group_advantages", "token_mean", "train_step")}
    for lesson in LESSONS:
        nbgrader(course, "generate_assignment", lesson, "--create")
        release, source = (course / part / lesson / f"{lesson}.ipynb"
                           for part in ("release", "source"))
        text = release.read_text()
        assert "BEGIN SOLUTION" not in text
        for student, keep in students.items():
            target = course / "submitted" / student / lesson / f"{lesson}.ipynb"
            target.parent.mkdir(parents=True)
            nbformat.write(answered(release, source, keep), target)
        nbgrader(course, "autograde", lesson, "--create")
    code = ("from nbgrader.api import Gradebook; import json, sys\n"
            "found = {}\n"
            "with Gradebook('sqlite:///gradebook.db') as book:\n"
            "    for s in book.submissions:\n"
            "        if hasattr(s, 'student'):\n"
            "            for n in s.notebooks:\n"
            "                found[f'{s.student.id}/{n.name}'] = {g.name: g.score "
            "for g in n.grades}\n"
            "print(json.dumps(found))")
    done = subprocess.run([sys.executable, "-c", code], cwd=course, capture_output=True, text=True,
                          check=False, env=ENVIRONMENT)
    if done.returncode:  # older and newer gradebooks name their parts differently
        code = code.replace("book.submissions", "[s for a in book.assignments "
                            "for s in a.submissions]")
        done = subprocess.run([sys.executable, "-c", code], cwd=course, capture_output=True,
                              text=True, check=True, env=ENVIRONMENT)
    yield json.loads(done.stdout.splitlines()[-1]), course
    shutil.rmtree(course)


@pytest.mark.parametrize("lesson", LESSONS)
class TestRoundTrip:
    def names(self, lesson):
        return [e.name for e in writer.exercises_of(ROOT / "notebooks" / f"{lesson}.ipynb")]

    def test_who_solves_all_has_every_point(self, graded, lesson):
        points = graded[0][f"all/{lesson}"]
        assert points == {f"{name}-test": 1.0 for name in self.names(lesson)}

    def test_who_solves_nothing_has_none(self, graded, lesson):
        points = graded[0][f"none/{lesson}"]
        assert points == {f"{name}-test": 0.0 for name in self.names(lesson)}

    def test_who_solves_some_has_theirs(self, graded, lesson):
        points = graded[0][f"some/{lesson}"]
        right = {name for name, score in points.items() if score}
        assert right == {f"{name}-test" for name in self.names(lesson)
                         if name in ("group_advantages", "token_mean", "train_step")}
        assert right

    def test_what_students_get_holds_no_solution_and_runs_to_the_first_empty_cell(self, graded,
                                                                                 lesson):
        release = graded[1] / "release" / lesson / f"{lesson}.ipynb"
        notebook = nbformat.read(release, as_version=4)
        attempts = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("solution")]
        assert len(attempts) == len(self.names(lesson))
        assert all(EMPTY.search(c.source) for c in attempts)
        tests = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade")]
        assert all("assert verdict" in c.source for c in tests)
