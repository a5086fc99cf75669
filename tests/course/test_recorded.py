"""The logs that ship with the library: small, complete, and there without the repository."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from waiting import PATIENCE

from grpo_lib.course import recorded

ROOT = Path(__file__).parents[2]
NAMES = recorded.names()


def test_the_names_are_those_of_the_files():
    files = {p.stem for p in (ROOT / "grpo_lib" / "course" / "recorded").glob("*.json")}
    assert set(NAMES) == files >= {"flagship"}
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", ["flag", "", "flagship.json", "../base_models/chain"])
def test_an_unknown_name_is_answered_with_the_names(name):
    with pytest.raises(ValueError, match=f"name: got {name!r}, allowed are .*flagship"):
        recorded.load(name)


@pytest.mark.parametrize("name", NAMES)
class TestLog:
    def test_says_how_it_was_made(self, name):
        log = recorded.load(name)
        assert log["command"] == f"python -m recordings {name}"
        assert {"torch", "python", "grpo_lib"} <= log["versions"].keys()
        assert isinstance(log["threads"], int) and log["threads"] >= 1
        assert len(log) > 3

    def test_is_small_and_names_no_place_on_a_machine(self, name):
        file = resources.files(recorded) / f"{name}.json"
        assert len(file.read_bytes()) < 300_000
        assert not re.search(r"/(home|root|Users|tmp)/", file.read_text(encoding="utf-8"))

    def test_its_command_names_a_part_of_the_recordings_that_ships_its_log(self, name):
        from recordings.__main__ import PARTS

        tree = ast.parse((ROOT / "recordings" / f"{name}.py").read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {"measure", "report"} <= functions and name in PARTS.names
        assert PARTS.file_of(name) == Path(recorded.__file__).parent / f"{name}.json"


def test_tokens_to_a_level_are_those_of_the_first_window_that_reaches_it():
    run = {"accuracy": [0.1, 0.9, 0.2, 0.8, 0.9, 1.0], "tokens": [10, 25, 30, 45, 50, 60]}
    assert recorded.tokens_to(run, 0.89) == 60
    assert recorded.tokens_to(run, 0.6) == 45 and recorded.tokens_to(run, 0.89, window=1) == 25
    assert recorded.tokens_to(run, 0.95) is None and recorded.tokens_to(run, 0.39) == 30
    assert recorded.tokens_to({"accuracy": [1.0], "tokens": [5]}, 0.5) is None


def test_runs_are_grouped_by_a_field_in_the_order_of_its_values():
    runs = [{"name": "b", "seed": 0}, {"name": "a", "seed": 0}, {"name": "b", "seed": 1}]
    assert recorded.by_field(runs, "name") == {"b": [runs[0], runs[2]], "a": [runs[1]]}
    assert list(recorded.by_field(runs, "name")) == ["b", "a"]


@pytest.mark.skipif(not (ROOT / "recordings").is_dir(), reason="without the repository")
def test_a_log_is_written_with_its_numbers_in_rows_and_reads_the_same():
    from recordings.measuring import as_json
    log = {"command": "x [1,\n 2]", "runs": [{"tokens": [1, -2.5, 1e-9], "none": [None, 1],
                                              "words": ["a", "1"], "empty": [], "deep": [[1, 2]]}]}
    text = as_json(log)
    assert json.loads(text) == log and "[1, -2.5, 1e-09]" in text


@pytest.mark.slow
def test_the_logs_load_where_the_repository_is_not(tmp_path):
    shutil.copytree(ROOT / "grpo_lib", tmp_path / "grpo_lib",
                    ignore=shutil.ignore_patterns("__pycache__", "base_models"))
    code = ("import grpo_lib, sys\nfrom grpo_lib import recorded\n"
            "print([len(recorded.load(name)) > 3 for name in recorded.names()])\n"
            "print(grpo_lib.__file__, 'recordings' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=PATIENCE,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [
        str([True] * len(NAMES)), f"{tmp_path / 'grpo_lib' / '__init__.py'} False"]
