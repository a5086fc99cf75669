"""What ``import grpo_lib`` costs, what it offers, and which room may know which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import grpo_lib

PACKAGE = Path(grpo_lib.__file__).parent
CORE = ["threads", "checks", "modules", "tokenizer", "decoding", "policy", "tasks", "packing",
        "rollout", "off_policy", "advantages", "corrections", "objective", "length_bias",
        "algorithms", "critic", "checkpoint", "evaluation", "config", "processes", "trainer_state",
        "training", "pretraining", "exact", "recorded"]  # each room may use those before it
NUMBERS_ONLY = {"plots"}  # knows numbers and figures, no policies
HEAVY = ("torch", "numpy", "matplotlib", "ipywidgets", "transformers", "trl", "IPython")


def run_python(code):
    """Standard output of a fresh Python; its errors are this test's errors."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=PACKAGE.parent, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """(modules, grpo_lib's rooms) that a file imports, at its top or in its functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    rooms = set()
    for name in names:
        top, _, rest = name.partition(".")
        if top == "grpo_lib" and rest:
            first = rest.split(".")[0]
            rooms.add(grpo_lib._HOME.get(first, first))
    return {name.partition(".")[0] for name in names}, rooms


FILES = sorted(PACKAGE.rglob("*.py"))


def test_importing_grpo_lib_loads_nothing_heavy():
    output = run_python(
        "import sys, grpo_lib\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "dir(grpo_lib), grpo_lib.__version__, grpo_lib.__all__\n"
        f"print([name for name in {HEAVY} if name in sys.modules])")
    assert output.split("\n")[:2] == ["[]", "[]"]


def test_computing_needs_nothing_that_draws():
    output = run_python(
        "import sys, grpo_lib\n"
        "grpo_lib.GRPOTrainer, grpo_lib.pretrain, grpo_lib.ChainTask, grpo_lib.load_policy\n"
        f"print([name for name in {HEAVY[2:]} if name in sys.modules])")
    assert output.strip() == "[]"


@pytest.mark.parametrize("name", grpo_lib.__all__)
def test_every_public_name_resolves(name):
    assert getattr(grpo_lib, name) is not None
    assert name in dir(grpo_lib)


def test_public_names_are_listed_once():
    assert len(set(grpo_lib.__all__)) == len(grpo_lib.__all__)


def test_a_public_name_is_the_rooms_own():
    from grpo_lib.objective import grpo_loss
    assert grpo_lib.grpo_loss is grpo_loss
    assert grpo_lib.objective.grpo_loss is grpo_loss


def test_a_name_that_is_not_there_says_so():
    with pytest.raises(AttributeError, match="no attribute 'grpo_lossy'"):
        _ = grpo_lib.grpo_lossy


@pytest.mark.parametrize("path", [f for f in FILES if room_of(f) in CORE],
                         ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_core_room_uses_only_rooms_before_it(path):
    room = room_of(path)
    modules, rooms = imports_of(path)
    allowed = set(CORE[: CORE.index(room) + (room == "tasks")])
    assert rooms <= allowed
    assert modules.isdisjoint({"matplotlib", "ipywidgets", "IPython", "transformers", "trl"})


@pytest.mark.parametrize("path", [f for f in FILES if room_of(f) in NUMBERS_ONLY],
                         ids=lambda f: str(f.relative_to(PACKAGE)))
def test_plots_know_numbers_and_no_policies(path):
    _, rooms = imports_of(path)
    assert rooms.isdisjoint({"policy", "rollout", "tasks", "training", "pretraining",
                             "checkpoint", "evaluation", "explorers", "exercises"})


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_optional_packages_are_imported_by_their_own_rooms_alone(path):
    modules, _ = imports_of(path)
    if room_of(path) not in ("huggingface", "export"):
        assert modules.isdisjoint({"transformers", "tokenizers", "peft"})
    assert modules.isdisjoint({"trl", "accelerate", "datasets"}), "they stand in a written script"
    if room_of(path) not in ("explorers", "exercises"):
        assert "ipywidgets" not in modules
    assert "pickle" not in modules


def test_the_order_of_rooms_covers_every_core_room_that_is_public():
    assert set(grpo_lib._ROOMS) - NUMBERS_ONLY - {"explorers"} <= set(CORE)
