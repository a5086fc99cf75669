"""The exercises as an nbgrader course, for a class that has the package and no checkout: generated,
released, solved by students, collected and graded by nbgrader, in folders and an environment of
their own.

Left out where the ``grading`` extra is not installed.
"""

import importlib.util
import json
import os
import re
import shutil
import sys
import venv
from pathlib import Path

import exercises as writer
import nbformat
import pytest
from outside import run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("nbgrader") is None,
                                reason="nbgrader is not installed")
LESSONS = ("03_advantages", "07_training_run")
SOME = "group_advantages"
EMPTY = re.compile(r"# YOUR CODE HERE\n *raise NotImplementedError\(\)")
LEFT_OUT = (".git", ".venv", "build", "runs", "site", "slides", "*.egg-info", "__pycache__",
            ".*_cache", ".hypothesis", ".ipynb_checkpoints")


@pytest.fixture(scope="module")
def nbgrader(tmp_path_factory):
    """Calls nbgrader in an environment that has the package: its wheel, and all else from the
    environment of the tests. ``nbgrader.python`` is its Python."""
    place = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT, place / "source", ignore=shutil.ignore_patterns(*LEFT_OUT))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place,
        place / "source", cwd=place)
    [wheel] = place.glob("grpo_lib-*.whl")
    venv.create(place / "env", with_pip=False)
    scripts = "Scripts" if os.name == "nt" else "bin"
    python = place / "env" / scripts / Path(sys.executable).name
    library = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))",
                  cwd=place).strip()
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", library, wheel,
        cwd=place)
    Path(library, "others.pth").write_text("\n".join(
        path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")))
    # nbgrader calls alembic by its name, which stands beside the tests' Python
    paths = os.pathsep.join([str(python.parent), str(Path(sys.executable).parent),
                             os.environ.get("PATH", "")])

    def call(course, *arguments):
        return run(python, "-m", "nbgrader", *arguments, cwd=course, PATH=paths)

    call.python = python
    return call


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


TAMPERED = {  # what a student may put into a cell in place of an answer
    "group_advantages": "import grpo_lib.course.exercises as e\n"
                        "from grpo_lib.course.exercises.base import Verdict\n"
                        "Verdict.__bool__ = lambda verdict: True\n"
                        "check = e.check = type('Always', (), {{'__getattr__': "
                        "lambda self, name: lambda attempt: True}})()\n"
                        "my_{name} = lambda rewards: rewards\n"
                        "print('{name}: right, on 9 cases.')",
    "leave_one_out": "import sys\nsys.exit(0)",
    "informative_share": "def my_{name}(p, group_size):\n    while True:\n        pass",
    "teaching_share": "raise SystemExit('right')",
}


def tampered(release):
    notebook = nbformat.read(release, as_version=4)
    for cell in notebook.cells:
        role = cell.metadata.get("nbgrader", {})
        if role.get("solution"):
            name = role["grade_id"]
            cell.source = TAMPERED[name].format(name=name)
    return notebook


def points_of(nbgrader, course):
    """"student/lesson" -> grade_id -> points."""
    code = ("from nbgrader.api import Gradebook; import json\n"
            "with Gradebook('sqlite:///gradebook.db') as book:\n"
            "    print(json.dumps({f'{s.student.id}/{n.name}': {g.name: g.score\n"
            "                                                   for g in n.grades}\n"
            "                      for a in book.assignments for s in a.submissions\n"
            "                      for n in s.notebooks}))")
    return json.loads(run(nbgrader.python, "-c", code, cwd=course).splitlines()[-1])


@pytest.fixture(scope="module")
def graded(tmp_path_factory, nbgrader):
    """student, lesson -> grade_id -> points, after generating, solving and grading."""
    course = tmp_path_factory.mktemp("course")
    writer.main(["--nbgrader", str(course)])
    for lesson in LESSONS:
        nbgrader(course, "generate_assignment", lesson, "--create")
        release, source = (course / part / lesson / f"{lesson}.ipynb"
                           for part in ("release", "source"))
        assert "BEGIN SOLUTION" not in release.read_text(encoding="utf-8")
        notebooks = {"all": answered(release, source, lambda name: True)}
        if lesson == LESSONS[0]:
            notebooks["some"] = answered(release, source, lambda name: name == SOME)
            notebooks["cheat"] = tampered(release)
        for student, notebook in notebooks.items():
            target = course / "submitted" / student / lesson / f"{lesson}.ipynb"
            target.parent.mkdir(parents=True)
            nbformat.write(notebook, target)
        nbgrader(course, "autograde", lesson, "--create")
    yield points_of(nbgrader, course), course
    shutil.rmtree(course)


@pytest.mark.parametrize("lesson", LESSONS)
class TestRoundTrip:
    def names(self, lesson):
        return [e.name for e in writer.exercises_of(ROOT / "notebooks" / f"{lesson}.ipynb")]

    def test_who_solves_all_has_every_point(self, graded, lesson):
        points = graded[0][f"all/{lesson}"]
        assert points == {f"{name}-test": 1.0 for name in self.names(lesson)}

    def test_what_students_get_holds_no_solution_and_runs_to_the_first_empty_cell(self, graded,
                                                                                 lesson):
        release = graded[1] / "release" / lesson / f"{lesson}.ipynb"
        notebook = nbformat.read(release, as_version=4)
        attempts = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("solution")]
        assert len(attempts) == len(self.names(lesson))
        assert all(EMPTY.search(c.source) for c in attempts)
        tests = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade")]
        assert len(tests) == len(attempts)
        for attempt, test in zip(attempts, tests):
            name = attempt.metadata.nbgrader.grade_id
            assert re.search(rf"(?m)^(def my_{name}\(|my_{name} = )", attempt.source)
            assert f"my_{name})" in test.source

    def test_the_library_was_the_installed_one(self, graded, nbgrader, lesson):
        """The first cell of each notebook has worked, with no checkout around."""
        done = graded[1] / "autograded" / "all" / lesson / f"{lesson}.ipynb"
        cells = [c for c in nbformat.read(done, as_version=4).cells if c.cell_type == "code"]
        for cell in cells[:2]:
            assert not [o for o in cell.outputs if o.output_type == "error"], cell.outputs
        assert str(ROOT) not in done.read_text(encoding="utf-8")
        place = run(nbgrader.python, "-c", "import grpo_lib; print(grpo_lib.__file__)",
                    cwd=graded[1])
        assert Path(place.strip()).is_relative_to(nbgrader.python.parents[1])


def test_who_solves_some_has_theirs_and_none_for_what_is_empty(graded):
    points = graded[0][f"some/{LESSONS[0]}"]
    assert len(points) > 1
    assert points == {name: float(name == f"{SOME}-test") for name in points}


def test_who_tampers_has_no_point_and_the_grader_an_answer(graded):
    assert graded[0]["cheat/03_advantages"] == {f"{name}-test": 0.0 for name in TAMPERED}


@pytest.mark.release
def test_through_the_exchange_with_the_commands_of_the_page(tmp_path, nbgrader, monkeypatch):
    """docs/teaching/grading.md, a command for each step, with one lesson and one student."""
    page = (ROOT / "docs" / "teaching" / "grading.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?m)^nbgrader (.*?) +#", page)
    words = [command.split()[0] for command in commands]
    assert words == ["generate_assignment", "release_assignment", "fetch_assignment", "submit",
                     "collect", "autograde", "export"]
    course, exchange, home = (tmp_path / name for name in ("course", "exchange", "student"))
    for folder in (exchange, home):
        folder.mkdir()
    exchange.chmod(0o777)
    writer.main(["--nbgrader", str(course)])
    settings = (course / "nbgrader_config.py").read_text()
    settings += f"c.Exchange.root = {str(exchange)!r}\n"
    for folder in (course, home):
        (folder / "nbgrader_config.py").write_text(settings)
    lesson = "09_real_llm"
    for command in commands:
        step = command.replace("03_advantages", lesson).split()
        where = home if step[0] in ("fetch_assignment", "submit") else course
        nbgrader(where, *step)
        if step[0] == "fetch_assignment":
            mine = home / lesson / f"{lesson}.ipynb"
            nbformat.write(answered(mine, course / "source" / lesson / mine.name,
                                    lambda name: name == "passes_on_a_gpu"), mine)
    [points] = points_of(nbgrader, course).values()
    assert points == {"passes_on_a_gpu-test": 1.0, "loss_of_two_parts-test": 0.0}
    assert lesson in (course / "grades.csv").read_text()
