"""What ``import grpo_lib`` costs, what it offers, and which module may know which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE

import grpo_lib

PACKAGE = Path(grpo_lib.__file__).parent
# each module may use those before it
CORE = ["support.threads", "support.checks", "support.modules", "tokenizer", "policy",
        "transformer", "support.rewards", "tasks", "fast.decoding", "fast.packing", "rollout",
        "advantages", "returns", "corrections", "objective", "lab.length_bias", "algorithms",
        "support.optim", "critic", "support.checkpoint", "evaluation", "lab.statistics", "config",
        "support.notices", "support.off_policy", "support.processes", "support.signals",
        "support.batch_metrics", "support.trainer_state", "support.stopwatch", "batches",
        "dynamic_sampling", "update", "training", "support.locks", "support.run_files",
        "support.run_folder", "pretraining", "lab.exact", "lab.xray", "course.recorded"]
FOLDERS = ("support", "fast", "lab", "bridges", "course", "cli")
# what a folder may never import, in itself or in a function
ABOVE = {"support": ("bridges", "course", "cli"), "fast": ("lab", "bridges", "course", "cli"),
         "lab": ("bridges", "course", "cli"), "bridges": ("course", "cli"), "course": ("cli",)}
NUMBERS_ONLY = {"course.plots", "course.picture"}  # numbers and figures, no policies
HEAVY = ("torch", "numpy", "matplotlib", "ipywidgets", "transformers", "trl", "IPython")


def run_python(code):
    """Standard output of a fresh Python; its errors are this test's errors."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=PACKAGE.parent, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def module_in(parts):
    """The module, a folder's with the folder: "rollout", "lab.exact", "course.explorers"."""
    return ".".join(parts[:2] if parts[0] in FOLDERS else parts[:1])


def module_of(path):
    return module_in(path.relative_to(PACKAGE).with_suffix("").parts)


def walk_what_runs(tree):
    """All nodes but those that only a type checker reads."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from walk_what_runs(child)


def imports_of(path):
    """(packages, grpo_lib's modules) that a file imports, at its top or in its functions."""
    names = []
    for node in walk_what_runs(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    used = set()
    for name in names:
        top, _, rest = name.partition(".")
        if top == "grpo_lib" and rest:
            first = rest.split(".")[0]
            used.add(module_in(grpo_lib._HOME.get(first, rest).split(".")))
    return {name.partition(".")[0] for name in names}, used


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


def test_a_public_name_is_the_modules_own():
    from grpo_lib.objective import grpo_loss
    assert grpo_lib.grpo_loss is grpo_loss
    assert grpo_lib.objective.grpo_loss is grpo_loss


def test_a_name_that_is_not_there_says_so():
    with pytest.raises(AttributeError, match="no attribute 'grpo_lossy'"):
        _ = grpo_lib.grpo_lossy


@pytest.mark.parametrize("path", [f for f in FILES if module_of(f) in CORE],
                         ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_core_module_uses_only_modules_before_it(path):
    module = module_of(path)
    packages, used = imports_of(path)
    allowed = set(CORE[: CORE.index(module) + (module in ("tasks", "rollout", "objective"))])
    assert used <= allowed
    assert packages.isdisjoint({"matplotlib", "ipywidgets", "IPython", "transformers", "trl"})


@pytest.mark.parametrize("path", [f for f in FILES if module_of(f).split(".")[0] in ABOVE],
                         ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_folder_imports_nothing_from_those_above_it(path):
    _, used = imports_of(path)
    folders = {module.split(".")[0] for module in used}
    assert folders.isdisjoint(ABOVE[module_of(path).split(".")[0]])


def test_rollout_alone_chooses_what_is_fast():
    assert {module_of(path) for path in FILES
            if {"fast.packing", "fast.decoding"} & imports_of(path)[1]} == {"rollout"}


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_only_the_commands_import_the_commands(path):
    _, used = imports_of(path)
    if module_of(path).split(".")[0] not in ("cli", "__main__"):
        assert not [module for module in used if module.startswith("cli")]


@pytest.mark.parametrize("path", [f for f in FILES if module_of(f) in NUMBERS_ONLY],
                         ids=lambda f: str(f.relative_to(PACKAGE)))
def test_plots_know_numbers_and_no_policies(path):
    _, used = imports_of(path)
    assert used.isdisjoint({"policy", "rollout", "tasks", "training", "pretraining",
                             "support.checkpoint", "evaluation", "course.explorers",
                             "course.exercises"})


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_optional_packages_are_imported_by_their_own_modules_alone(path):
    packages, _ = imports_of(path)
    if module_of(path) not in ("bridges.huggingface", "bridges.export"):
        assert packages.isdisjoint({"transformers", "tokenizers", "peft"})
    assert packages.isdisjoint({"trl", "accelerate", "datasets"}), "they stand in a written script"
    if module_of(path) not in ("course.explorers", "course.exercises"):
        assert "ipywidgets" not in packages
    assert "pickle" not in packages


def opened_without_encoding(path):
    """Lines of a file that open a text in whatever encoding the machine has."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        module = getattr(getattr(node.func, "value", None), "id", "")
        words = {word.arg: word.value for word in node.keywords}
        text = name in ("read_text", "write_text", "NamedTemporaryFile", "TextIOWrapper")
        if name == "open" and module not in ("Image", "RunFolder", "os", "webbrowser"):
            at = 1 if isinstance(node.func, ast.Name) else 0  # open(path, mode), path.open(mode)
            mode = words.get("mode", node.args[at] if len(node.args) > at else None)
            text = not (isinstance(mode, ast.Constant) and "b" in str(mode.value))
        text = text or (isinstance(words.get("text"), ast.Constant) and words["text"].value)
        if text and "encoding" not in words:
            found.append(f"{path.name}:{node.lineno}")
    return found


def test_every_text_is_opened_in_a_named_encoding():
    files = [*FILES, *(p for folder in ("tools", "docs") for p in PACKAGE.parent.glob(
        f"{folder}/**/*.py"))]
    assert len(files) > 60
    assert [line for path in files for line in opened_without_encoding(path)] == []


def test_a_text_opened_without_an_encoding_is_seen(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text("open('a')\nopen('a', 'rb')\nopen('a', encoding='utf-8')\np.read_text()\n"
                    "p.open('w')\np.open('wb')\nrun(text=True)\np.write_text('', 'utf-8')\n",
                    encoding="utf-8")
    assert opened_without_encoding(path) == [f"sample.py:{line}" for line in (1, 4, 5, 7, 8)]


def test_the_order_of_modules_covers_every_core_module_that_is_public():
    assert set(grpo_lib._MODULES) - NUMBERS_ONLY - {"course.explorers"} <= set(CORE)
