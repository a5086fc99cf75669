"""Lessons hold the catalogue's exercises, empty; their solutions the same ones, solved."""

import copy

import exercises as writer
import nbformat
import pytest

from grpo_lib.course.exercises import EXERCISES

LESSONS = [p for p in writer.lessons() if writer.exercises_of(p)]


def read(path):
    return nbformat.read(path, as_version=4)


def sources(notebook):
    return [(c.cell_type, c.id, c.source, c.metadata.get("tags")) for c in notebook.cells]


def text_of(cell):
    """What the checker says: a cell's value, or printed above its picture."""
    first = cell.outputs[0]
    return first["text"] if first.output_type == "stream" else first["data"]["text/plain"]


def test_every_exercise_is_in_one_lesson():
    assert sum(len(writer.exercises_of(p)) for p in LESSONS) == len(EXERCISES) >= 25
    assert len(LESSONS) == 10


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
class TestLesson:
    def test_is_what_the_command_writes(self, path):
        lesson = read(path)
        assert sources(writer.with_exercises(copy.deepcopy(lesson), path)) == sources(lesson)

    def test_an_empty_cell_says_that_it_is_not_attempted(self, path):
        for exercise in writer.exercises_of(path):
            [cell] = [c for c in read(path).cells if c.id == f"exercise-{exercise.name}"]
            said = "unchanged so far" if hasattr(exercise, "broken") else "not attempted yet"
            assert text_of(cell).startswith(f"{exercise.name}: {said}")
            assert cell.metadata["tags"] == ["exercise"]

    def test_its_solutions_are_written_from_it_and_all_right(self, path):
        solved = read(writer.solution_path(path))
        assert sources(writer.solutions(read(path), path)) == sources(solved)
        answers = [c for c in solved.cells if c.metadata.get("tags") == ["exercise"]]
        assert len(answers) == len(writer.exercises_of(path))
        for exercise, cell in zip(writer.exercises_of(path), answers):
            assert text_of(cell).startswith(f"{exercise.name}: right")

    def test_lesson_and_solution_differ_in_the_answers_alone(self, path):
        lesson = {c.id: c.source for c in read(path).cells}
        for cell in read(writer.solution_path(path)).cells[3:]:
            same = lesson[cell.id] == cell.source
            assert same == (cell.cell_type == "markdown")

    def test_the_summary_is_the_last_text(self, path):
        texts = [c for c in read(path).cells if c.cell_type == "markdown"]
        assert texts[-1].source.startswith(writer.END)


def test_writing_twice_changes_nothing_and_a_removed_exercise_goes():
    path = LESSONS[0]
    once = writer.with_exercises(read(path), path)
    old = nbformat.v4.new_code_cell("check.gone(gone)")
    old["id"] = "exercise-gone"
    longer = copy.deepcopy(once)
    longer.cells.insert(5, old)
    assert sources(writer.with_exercises(longer, path)) == sources(once)


def test_a_summary_that_shares_a_cell_is_cut_off():
    path = LESSONS[0]
    lesson = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(
        "What to see: this.\n\n## What you now know\n\n- much")])
    cells = writer.with_exercises(lesson, path).cells
    assert cells[0].source == "What to see: this."
    assert cells[-1].source == "## What you now know\n\n- much"
    assert cells[1].id == "exercise-opening"
