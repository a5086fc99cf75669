"""Write the exercises at the end of every lesson, and the notebooks that solve them.

    python tools/exercises.py                     after changing grpo_lib/course/exercises
    python tools/exercises.py --nbgrader COURSE   each lesson's as an nbgrader assignment

Lesson and solution are made from one source, the catalogue: a lesson's cell holds an empty
function, its solution's cell the catalogue's. Then run ``save.py`` for the outputs.
"""

import argparse
import copy
import inspect
import re
import sys
import textwrap
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from front import NOTEBOOKS, put_front  # noqa: E402

from grpo_lib.course.exercises import (  # noqa: E402
    EXERCISES,
    CurveQuestion,
    Exercise,
    Question,
    Repair,
)

MARK = "exercise-"  # how the ids of these cells begin
END = "## What you now know"
OPENING = """\
## Exercises

Complete or fix the code in a cell and run it. `check` tries it on small cases, shows the first one
that fails, and names common mistakes. A cell that you leave empty is not an error. Solutions:
[`solutions/{solution}`](solutions/{solution})."""
SOLVED = """\
# Solutions: {title}

The exercises of lesson [`{lesson}`](../{lesson}), solved. There are other right ways: `check`
accepts any function that gives the right numbers."""


def lessons() -> list[Path]:
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def exercises_of(path: Path) -> list:
    return [e for e in EXERCISES.values() if e.lesson == path.name[:2]]


def solution_path(path: Path) -> Path:
    return NOTEBOOKS / "solutions" / f"{path.stem}_solutions.ipynb"


def task_cell(exercise, number: int):
    text = re.sub(r"(\w+\([^)]*(?:\([^)]*\)[^)]*)*\))(?= ->)", r"`\1`", exercise.task, count=1)
    text = "\n".join(textwrap.wrap(f"**Exercise {number}.** {text}", 100, break_on_hyphens=False))
    cell = nbformat.v4.new_markdown_cell(text)
    cell["id"] = f"{MARK}{exercise.name}-task"
    return cell


def attempt_source(exercise, solved: bool) -> tuple[str, str]:
    """(the imports of the cell to fill in, the rest of it); or of the same cell filled in."""
    name = exercise.name
    if solved or isinstance(exercise, Repair):
        source = exercise.solution if solved else exercise.broken
        answer = re.sub(rf"\bdef {name}\(", f"def my_{name}(", source)
        answer = re.sub(rf"^{name} =", f"my_{name} =", answer)
    elif isinstance(exercise, Exercise):
        answer = f"def my_{name}{inspect.signature(exercise.reference)}:\n    ...  # your code"
    elif isinstance(exercise, Question):
        answer = f"my_{name} = None  # your number"
    else:
        answer = f"my_{name} = None  # the name of a fault"
    if answer.startswith(("import", "from")):
        imports, answer = answer.split("\n\n\n", 1)
        return imports, answer
    return "", answer


def attempt_cell(exercise, solved: bool):
    """The cell to fill in, or the same filled in."""
    name, (imports, answer) = exercise.name, attempt_source(exercise, solved)
    function = isinstance(exercise, Exercise)
    # the standard library and torch come first
    start = "\n\n".join(filter(None, [imports, "from grpo_lib.course.exercises import check"]))
    gap = "\n\n\n" if function else "\n\n"
    cell = nbformat.v4.new_code_cell(
        f"{start}{gap}{answer}{gap if function else chr(10)}check.{name}(my_{name})",
        metadata={"tags": ["exercise"]})
    if isinstance(exercise, CurveQuestion):
        cell.source = (f"from grpo_lib.course.exercises import check\n"
                       f"from grpo_lib.course.exercises.curves import show\n\n{answer}\n"
                       f"print(check.{name}(my_{name}))\nshow({name!r})")
    cell["id"] = f"{MARK}{name}"
    return cell


def keep_outputs(cell, old) -> None:
    """The outputs of a cell as it was, if it still says the same."""
    if cell.cell_type == "code" and old is not None and old.source == cell.source:
        cell.outputs, cell.execution_count = old.outputs, old.execution_count


def with_exercises(notebook: nbformat.NotebookNode, path: Path) -> nbformat.NotebookNode:
    """The lesson with its exercises before the summary, in place of those it has."""
    before = {c.id: c for c in notebook.cells}
    notebook.cells = [c for c in notebook.cells if not c.id.startswith(MARK)]
    chosen = exercises_of(path)
    if not chosen:
        return notebook
    opening = nbformat.v4.new_markdown_cell(OPENING.format(solution=solution_path(path).name))
    opening["id"] = f"{MARK}opening"
    new = [opening]
    for number, exercise in enumerate(chosen, start=1):
        new += [task_cell(exercise, number), attempt_cell(exercise, solved=False)]
    for cell in new:
        old = before.get(cell.id)
        keep_outputs(cell, old)
    [end] = [i for i, c in enumerate(notebook.cells) if re.search(f"^{END}", c.source, re.M)]
    if not notebook.cells[end].source.startswith(END):  # the summary shares a cell: cut it off
        text, _, rest = notebook.cells[end].source.partition(END)
        notebook.cells[end].source = text.rstrip()
        summary = nbformat.v4.new_markdown_cell(END + rest)
        summary["id"] = notebook.cells[end].id + "-end"
        notebook.cells.insert(end + 1, summary)
        end += 1
    notebook.cells[end:end] = new
    return notebook


def solutions(lesson: nbformat.NotebookNode, path: Path) -> nbformat.NotebookNode:
    """The notebook that solves a lesson's exercises: its set-up, tasks and filled cells."""
    title = lesson.cells[0].source.split("# ", 1)[1].split("\n", 1)[0]
    notebook = nbformat.v4.new_notebook(metadata=copy.deepcopy(lesson.metadata))
    opening = nbformat.v4.new_markdown_cell(SOLVED.format(title=title, lesson=path.name))
    opening["id"] = f"{MARK}opening"
    notebook.cells = [opening, *(copy.deepcopy(c) for c in lesson.cells[1:3])]
    for number, exercise in enumerate(exercises_of(path), start=1):
        notebook.cells += [task_cell(exercise, number), attempt_cell(exercise, solved=True)]
    return put_front(notebook, f"solutions/{solution_path(path).name}")


LOCKED = """\
# This notebook computes the answers; another process, which knows nothing else of it, judges them
import pathlib
import subprocess
import sys

import grpo_lib
from grpo_lib.course.exercises.grading import answers

judge = subprocess.run([sys.executable, "-m", "grpo_lib.course.exercises.grading", "{name}"],
                       cwd=pathlib.Path(grpo_lib.__file__).parents[1],
                       input=answers("{name}", my_{name}),
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
print(judge.stdout.decode(errors="replace"))
assert judge.returncode == 0, "no point yet"
"""


def graded_cells(exercise) -> list:
    """The cell that a student fills in, with the solution that nbgrader takes out, and the
    locked cell that gives a point if the checker calls it right. Before a question on curves,
    the curves.

    What the locked cell asks for has its name in the student's cell, solution or not, and a
    function to mend stands there as it is.
    """
    name, indent = exercise.name, ""
    imports, solved = attempt_source(exercise, solved=True)
    empty = attempt_source(exercise, solved=False)[1]
    if isinstance(exercise, Repair):
        empty += "\n\n"
    elif isinstance(exercise, Exercise):  # its own line stays, the rest goes
        empty, solved = re.fullmatch(r"(def .*?:)\n(    .*)", solved, re.DOTALL).groups()
        indent = "    "
    attempt = nbformat.v4.new_code_cell("\n".join([
        *([imports, "", ""] if imports else []), empty, f"{indent}### BEGIN SOLUTION", solved,
        f"{indent}### END SOLUTION"]), metadata={"nbgrader": grading(name, solution=True)})
    test = nbformat.v4.new_code_cell(LOCKED.format(name=name).rstrip(), metadata={
        "nbgrader": grading(f"{name}-test", grade=True, locked=True, points=1)})
    if not isinstance(exercise, CurveQuestion):
        return [attempt, test]
    curves = nbformat.v4.new_code_cell(
        f"from grpo_lib.course.exercises.curves import show\n\nshow({name!r})",
        metadata={"nbgrader": grading(f"{name}-curves", locked=True)})
    return [curves, attempt, test]


def grading(grade_id: str, **roles) -> dict:
    """A cell's metadata for nbgrader."""
    return {"schema_version": 3, "grade_id": grade_id, "grade": False, "solution": False,
            "locked": False, "task": False} | roles


def assignment(lesson: nbformat.NotebookNode, path: Path) -> nbformat.NotebookNode:
    """A lesson's exercises as the source notebook of an nbgrader assignment."""
    notebook = solutions(lesson, path)
    notebook.cells = notebook.cells[1:3]
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
    title = nbformat.v4.new_markdown_cell(f"# Exercises of lesson `{path.stem}`\n\nFill in the "
                                          f"cells below; each that the checker calls right is "
                                          f"worth a point.")
    notebook.cells.insert(0, title)
    for number, exercise in enumerate(exercises_of(path), start=1):
        notebook.cells += [task_cell(exercise, number), *graded_cells(exercise)]
    return notebook


SETTINGS = """\
c = get_config()
c.CourseDirectory.course_id = "grpo"
c.Execute.timeout = 300  # seconds a cell: each locked one starts a Python, on a busy computer too
"""


def write_course(folder: Path) -> None:
    """An nbgrader course: ``source/LESSON/LESSON.ipynb`` for each lesson, and its settings.

    ``nbgrader generate_assignment LESSON --create`` there makes what students get.
    """
    from grpo_lib.support.checkpoint import write_atomically

    for path in lessons():
        if exercises_of(path):
            target = folder / "source" / path.stem / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            text = nbformat.writes(assignment(nbformat.read(path, as_version=4), path)) + "\n"
            write_atomically(target, text.encode())
    settings = folder / "nbgrader_config.py"
    if not settings.exists():
        write_atomically(settings, SETTINGS.encode())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write exercises and solutions.")
    parser.add_argument("--nbgrader", metavar="COURSE", type=Path,
                        help="write nbgrader assignments into this folder instead")
    options = parser.parse_args(arguments)
    if options.nbgrader:
        write_course(options.nbgrader.expanduser())
        return
    write_lessons()


def write_lessons() -> None:
    """The exercises into every lesson, and the solutions of each."""
    from grpo_lib.support.checkpoint import write_atomically

    (NOTEBOOKS / "solutions").mkdir(exist_ok=True)
    for path in lessons():
        lesson = with_exercises(nbformat.read(path, as_version=4), path)
        write_atomically(path, (nbformat.writes(lesson) + "\n").encode())
        if exercises_of(path):
            target = solution_path(path)
            before = nbformat.read(target, as_version=4).cells if target.exists() else []
            solved = solutions(lesson, path)
            for cell in solved.cells:
                keep_outputs(cell, {c.id: c for c in before}.get(cell.id))
            write_atomically(target, (nbformat.writes(solved) + "\n").encode())


if __name__ == "__main__":
    main()
