"""``project``: what it serves, and what it says where it cannot."""

import json
from pathlib import Path

import nbformat
import pytest

from grpo_lib import __main__
from grpo_lib.cli import projecting

ROOT = __main__.ROOT


@pytest.fixture
def called(monkeypatch):
    """The commands that would have been run; Voilà is there."""
    commands = []

    def call(command, root):
        commands.append((command, json.loads(Path(command[3]).read_text(encoding="utf-8"))))
        return 0

    monkeypatch.setattr(projecting.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(projecting, "call", call)
    return commands


def test_without_a_lesson_it_is_the_cockpit(called):
    assert __main__.main(["project", "--no-browser", "--port", "8899"]) == 0
    [(command, notebook)] = called
    assert command[1:3] == ["-m", "voila"] and command[6:] == ["--port=8899", "--no-browser"]
    seconds = dict(option.split("=") for option in command[4:6])
    assert 0 < int(seconds["--MappingKernelManager.cull_interval"]) \
        < int(seconds["--MappingKernelManager.cull_idle_timeout"]) <= 600
    nbformat.validate(nbformat.from_dict(notebook))
    [cell] = notebook["cells"]
    assert "cockpit_explorer()" in "".join(cell["source"])


def test_a_lesson_is_found_by_the_beginning_of_its_name(called):
    assert __main__.main(["project", "04"]) == 0
    [(command, _)] = called
    assert command[3] == str(ROOT / "notebooks" / "04_clipping.ipynb") and command[6:] == []


@pytest.mark.parametrize("lesson", ["0", "99", "clipping", ""])
def test_a_lesson_that_is_not_there_or_more_than_one_is_an_error(called, capsys, lesson):
    assert __main__.main(["project", lesson]) == 2
    said = capsys.readouterr().err
    assert f"lesson: got {lesson!r}, allowed is the beginning of one of 00_start_here" in said
    assert called == []


def test_without_voila_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(projecting.importlib.util, "find_spec", lambda name: None)
    assert __main__.main(["project"]) == 2
    assert 'pip install -e ".[projector]"' in capsys.readouterr().err
