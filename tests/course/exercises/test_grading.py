"""Points for exercises: for a right answer, and for nothing else that a cell can do.

The cells of an assignment are run as a kernel runs them, one after the other, an error ending its
own cell alone. tests/grading does the same with nbgrader itself.
"""

import contextlib
import io
import multiprocessing
import re
import subprocess
import sys
import types
from pathlib import Path

import exercises as writer
import pytest
import torch

from grpo_lib.course.exercises import EXERCISES, CurveQuestion, Question, grading
from grpo_lib.course.exercises.base import Verdict

REGION = re.compile(r"( *)### BEGIN SOLUTION\n.*?### END SOLUTION", re.DOTALL)


def cells_of(name):
    """The sources of an exercise's cells, by their grade_id."""
    return {cell.metadata.nbgrader.grade_id: cell.source
            for cell in writer.graded_cells(EXERCISES[name])}


def released(source):
    """As students get it: nbgrader puts its stub in the solution's place."""
    return REGION.sub(r"\1# YOUR CODE HERE\n\1raise NotImplementedError()", source)


def run_cells(*sources):
    """(did the last cell end well, what it printed), all in one notebook."""
    namespace, printed, ended_well = {"__name__": "__main__"}, io.StringIO(), False
    for source in sources:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(source, "<cell>", "exec"), namespace)
                ended_well = True
            except BaseException as error:
                ended_well = False
                print(repr(error))
    return ended_well, printed.getvalue()


def judge_of(command, sent):
    """(exit status, output) of the process that a locked cell starts, as a call."""
    given, said = io.TextIOWrapper(io.BytesIO(sent)), io.TextIOWrapper(io.BytesIO())
    assert command[:3] == [sys.executable, "-m", "grpo_lib.course.exercises.grading"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command[2:])
        patch.setattr(sys, "stdin", given)
        patch.setattr(sys, "stdout", said)
        status = grading.main()
    return status, said.buffer.getvalue()


@pytest.fixture
def in_this_process(monkeypatch):
    """The judging processes would be more than a hundred fresh Pythons."""

    def run(command, *, input, **options):
        status, said = judge_of(command, input)
        return types.SimpleNamespace(returncode=status, stdout=said)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize("name", EXERCISES)
class TestEveryExercise:
    def test_an_honest_right_answer_has_its_point(self, name, in_this_process):
        cells = cells_of(name)
        ended_well, said = run_cells(cells[name], cells[f"{name}-test"])
        assert ended_well and f"{name}: right" in said, said

    def test_an_empty_one_has_none_and_is_told_so(self, name, in_this_process):
        cells = cells_of(name)
        ended_well, said = run_cells(released(cells[name]), cells[f"{name}-test"])
        assert not ended_well
        assert re.search(f"{name}: (not attempted yet|unchanged so far)", said), said

    def test_the_name_that_the_locked_cell_expects_is_in_the_released_cell(self, name):
        cells = cells_of(name)
        assert f"my_{name})" in cells[f"{name}-test"]
        left, namespace = released(cells[name]), {}
        with contextlib.suppress(NotImplementedError):
            exec(compile(left, name, "exec"), namespace)
        assert f"my_{name}" in namespace
        assert "SOLUTION" not in left
        assert EXERCISES[name].solution.split("\n", 1)[-1] not in left


def test_the_locked_cell_needs_nothing_of_the_students_but_the_name(in_this_process):
    """Wiping the cell, imports and all, costs a right answer no point."""
    [locked] = [s for key, s in cells_of("k3").items() if key == "k3-test"]
    mine = "my_k3 = lambda p, q: (q - p).exp() - (q - p) - 1"
    assert run_cells(mine, locked)[0]
    assert not run_cells("", locked)[0] and not run_cells("k3 = 1", locked)[0]


def test_curves_are_seen_before_the_answer():
    for name, exercise in EXERCISES.items():
        ids = list(cells_of(name))
        assert ids == [f"{name}-curves"] * isinstance(exercise, CurveQuestion) + [
            name, f"{name}-test"]
    namespace = {}
    exec(cells_of("curves_a")["curves_a-curves"].replace("\nshow(", "\nshown = show("), namespace)
    assert namespace["shown"].text.startswith("curves_a")


def attempts(exercise):
    """Wrong and right answers of the kinds that the catalogue knows, and some that it does not."""
    if isinstance(exercise, Question):
        return [exercise.answer, exercise.answer + 1, str(exercise.answer), True, None,
                torch.tensor(exercise.answer), *(number for number, _ in exercise.wrong)]
    if isinstance(exercise, CurveQuestion):
        return [*exercise.shows, "no such fault", 3, None]
    detached = exercise.reference

    def without_gradient(*arguments):
        return detached(*(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments))

    return [exercise.reference, without_gradient, lambda *_: 0.0, lambda *_: None, lambda: 1, "no",
            *(exercise.wrong(mistake.name) for mistake in exercise.mistakes)]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXERCISES)
def test_points_follow_the_verdict(name):
    exercise = EXERCISES[name]
    verdicts = [bool(exercise.check(attempt)) for attempt in attempts(exercise)]
    points = [bool(grading.judged(name, grading.answers(name, attempt)))
              for attempt in attempts(exercise)]
    assert points == verdicts
    assert True in points and False in points


def test_too_few_answers_are_not_right():
    full = EXERCISES["k3"].tried(EXERCISES["k3"].reference)
    assert not isinstance(full, Verdict)
    for found in ([], [tuple(full[0][0])]):
        sent = io.BytesIO()
        torch.save((found, ""), sent)
        assert "answers came" in str(grading.judged("k3", sent.getvalue()))
        assert not grading.judged("k3", sent.getvalue())


WRONG = "def my_k3(log_probs, ref_log_probs):\n    return log_probs - ref_log_probs\n"
ALWAYS = "class Always:\n    def __getattr__(self, name):\n        return lambda *_: True\n"
CHEATS = {
    "check is another": WRONG + ALWAYS + "check = Always()",
    "the package's check is another":
        WRONG + ALWAYS + "import grpo_lib.course.exercises\n"
                         "grpo_lib.course.exercises.check = Always()",
    "every exercise says yes":
        WRONG + "from grpo_lib.course.exercises import Exercise, Question, Repair, Verdict\n"
                "yes = Verdict('right', 'k3: right')\n"
                "for kind in (Exercise, Repair, Question):\n"
                "    kind.check = kind.judge = lambda *_, **__: yes",
    "every verdict is true":
        WRONG + "from grpo_lib.course.exercises.base import Verdict\n"
                "Verdict.__bool__ = lambda v: True",
    "all numbers are close":
        WRONG + "import torch\nfrom grpo_lib.course.exercises import base, comparing\n"
                "base.same = base.alike = lambda *_, **__: True\n"
                "comparing.same = comparing.close = lambda *_, **__: True\n"
                "torch.allclose = torch.equal = lambda *_, **__: True\n"
                "torch.isclose = lambda a, b, **__: a == a",
    "the right answer is mine":
        WRONG + "import dataclasses\nfrom grpo_lib.course.exercises import EXERCISES\n"
                "EXERCISES['k3'] = dataclasses.replace(\n"
                "    EXERCISES['k3'], mistakes=(), solution='def k3(p, q):\\n    return p - q')",
    "there are no cases":
        WRONG + "import dataclasses\nfrom grpo_lib.course.exercises import EXERCISES\n"
                "EXERCISES['k3'] = dataclasses.replace(EXERCISES['k3'], cases=lambda: iter(()))",
    "the judge says yes": WRONG + "from grpo_lib.course.exercises import grading\n"
                                  "grading.main = lambda: 0\n"
                                  "grading.judged = lambda *_: True",
    "it prints that it is right": WRONG + "print('k3: right, on 6 cases.')",
    "it prints so when called": "def my_k3(*_):\n    print('k3: right, on 6 cases.')\n",
    "it leaves": WRONG + "import sys\nsys.exit(0)",
    "it leaves when called": "import sys\n\n\ndef my_k3(*_):\n    sys.exit(0)\n",
    "it never ends when called": "def my_k3(*_):\n    while True:\n        pass\n",
    "it raises when called": "def my_k3(*_):\n    raise ValueError('k3: right')\n",
    "it is equal to everything":
        "class Equal:\n    def __eq__(self, other):\n        return True\n\n\n"
        "def my_k3(*_):\n    return Equal()\n",
}
PROCESSES = multiprocessing.get_context("forkserver")


def student(cheat, judge, parent):
    """What the cells come to in a Python that only they have touched."""
    def run(command, *, input, **options):
        judge.send((command, input))
        status, said = judge.recv()
        return types.SimpleNamespace(returncode=status, stdout=said)

    subprocess.run = run
    parent.send(run_cells(CHEATS[cheat], cells_of("k3")["k3-test"]))


def judge(student):
    student.send(judge_of(*student.recv()))


@pytest.mark.slow
@pytest.mark.parametrize("cheat", CHEATS)
def test_a_wrong_answer_has_no_point_whatever_its_cell_does(cheat):
    """The two Pythons are forks of one that has loaded torch: fresh ones take seconds each."""
    PROCESSES.set_forkserver_preload(["pytest", "nbformat", "grpo_lib.course.exercises.grading"])
    (to_judge, to_student), (here, there) = PROCESSES.Pipe(), PROCESSES.Pipe()
    both = [PROCESSES.Process(target=student, args=(cheat, to_judge, there)),
            PROCESSES.Process(target=judge, args=(to_student,))]
    try:
        for process in both:
            process.start()
        assert here.poll(600)
        ended_well, said = here.recv()
        assert not ended_well
        assert "AssertionError" in said, "the locked cell ran to its end"
    finally:
        for process in both:
            process.kill()


@pytest.mark.slow
def test_a_right_answer_has_its_point_from_a_python_of_its_own():
    cells = cells_of("k3")
    ended_well, said = run_cells(cells["k3"], cells["k3-test"])
    assert ended_well and said.startswith("k3: right, on "), said
    cells["k3"] = cells["k3"].replace("return d.exp() - d - 1", "return d.exp() - d")
    ended_well, said = run_cells(cells["k3"], cells["k3-test"])
    assert not ended_well and said.startswith("k3: not yet"), said


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    writer.main(["--nbgrader=~/course"])
    assert (tmp_path / "course" / "source" / "00_start_here" / "00_start_here.ipynb").is_file()
    assert list(Path.cwd().iterdir()) == []
