"""No test has a time limit of its own: a slow machine is no fault."""

import ast
from pathlib import Path

import pytest
from waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
# the tests, and the tools that run in them
FILES = [*sorted((ROOT / "tests").rglob("*.py")),
         *(ROOT / "tools" / name for name in ("cells.py", "killed.py"))]
LIMITED = ("communicate", "join", "wait", "set_default_timeout")
CLOCKS = ("monotonic", "perf_counter", "time")


def limits_in(source):
    """(line, seconds) of every number that is given as a limit of time."""
    for node in ast.walk(ast.parse(source)):
        given = []
        if isinstance(node, ast.Call):
            given = [k.value for k in node.keywords if k.arg in ("timeout", "seconds", "within")]
            given += node.args[:1] if name_of(node) in LIMITED else []
        elif isinstance(node, ast.BinOp) and name_of(node.left) in CLOCKS:
            given = [node.right]
        for value in given:
            if isinstance(value, ast.Constant) and isinstance(value.value, int | float):
                yield node.lineno, value.value


def name_of(node):
    """The name of the function that is called, if something is."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", getattr(function, "id", ""))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_limits_of_time_are_the_one_in_waiting(path):
    found = list(limits_in(path.read_text(encoding="utf-8")))
    assert found == [], f"{path.name}: (line, seconds); waiting.PATIENCE is the limit"


@pytest.mark.parametrize("line", ["run(x, timeout=60)", "process.communicate(timeout=2.5)",
                                  "thread.join(5)", "done.wait(20)",
                                  "end = time.monotonic() + 60"])
def test_such_a_limit_is_found(line):
    assert [seconds > 0 for _, seconds in limits_in(line)] == [True]
    assert list(limits_in("run(x, timeout=PATIENCE)\nthread.join()\n', '.join(names)")) == []


def test_until_ends_with_what_it_waits_for():
    steps = iter([False, False, True])
    until(lambda: next(steps))
    with pytest.raises(AssertionError, match="it has ended before that"):
        until(lambda: False, lambda: False)
    assert PATIENCE >= 600
