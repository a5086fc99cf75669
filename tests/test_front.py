"""The top of every notebook is the one that tools/front.py writes, and it works."""

import copy
import os
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import nbformat
import pytest
from waiting import PATIENCE

ROOT = Path(__file__).parent.parent
_spec = spec_from_file_location("front", ROOT / "tools" / "front.py")
front = module_from_spec(_spec)
_spec.loader.exec_module(front)

PATHS = front.notebooks()
ADDRESS = "someone/grpo"


def notebook(path=PATHS[0]):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
class TestNotebook:
    def test_has_the_top_that_front_writes(self, path):
        written = nbformat.writes(front.put_front(notebook(path), front.place(path))) + "\n"
        assert written == path.read_text(encoding="utf-8"), "run python tools/front.py"

    def test_with_an_address_has_a_badge_and_clones_from_there(self, path):
        changed = front.put_front(notebook(path), front.place(path), ADDRESS)
        first, *rest = changed.cells[0].source.split("\n")
        assert first == front.badge(front.place(path), ADDRESS)
        assert f"github/{ADDRESS}/blob/main/notebooks/{front.place(path)})" in first
        assert rest[0] == "" and rest[1].startswith("# ")
        assert f'REPOSITORY = "https://github.com/{ADDRESS}"  # @param' in changed.cells[1].source
        assert "filled in" not in changed.cells[0].source

    def test_writing_twice_changes_nothing_more_and_the_address_can_be_taken_away(self, path):
        once = front.put_front(notebook(path), front.place(path), ADDRESS)
        twice = front.put_front(copy.deepcopy(once), front.place(path), ADDRESS)
        assert twice == once
        moved = front.put_front(copy.deepcopy(once), front.place(path), "another/place")
        assert ADDRESS not in nbformat.writes(moved)
        assert front.put_front(once, front.place(path), "") == front.put_front(
            notebook(path), front.place(path), "")

    def test_keeps_its_own_text_and_outputs(self, path):
        before, after = notebook(path), front.put_front(notebook(path), front.place(path), ADDRESS)
        assert after.cells[3:] == before.cells[3:]
        own = re.sub(r"\A\[!\[.*\n\n", "", before.cells[0].source).partition("<details>")[0]
        assert own.startswith("# ") and f"\n\n{own}" in after.cells[0].source
        assert [c.get("outputs") for c in after.cells] == [c.get("outputs") for c in before.cells]

    def test_is_in_the_readmes_table_once(self, path):
        readme = front.README.read_text(encoding="utf-8")
        if path.parent == front.NOTEBOOKS:
            assert readme.count(f"](notebooks/{front.place(path)})") == 1
        else:  # solutions are linked from their lessons, and as a folder
            assert path.parent.name == "solutions" and "](notebooks/solutions)" in readme


def test_the_readme_is_the_one_that_front_writes():
    readme = front.README.read_text(encoding="utf-8")
    assert front.readme_with_badges(readme) == readme


def test_the_readmes_table_gets_a_badge_for_each_notebook_and_loses_it_again():
    readme = front.readme_with_badges(front.README.read_text(encoding="utf-8"), "")
    badged = front.readme_with_badges(readme, ADDRESS)
    lessons = [path for path in PATHS if path.parent == front.NOTEBOOKS]
    for path in lessons:
        [line] = [x for x in badged.splitlines() if f"](notebooks/{front.place(path)})" in x]
        assert f"notebooks/{front.place(path)}) {front.badge(front.place(path), ADDRESS)} |" in line
    assert badged.count("Open in Colab") == len(lessons)
    assert front.readme_with_badges(badged, ADDRESS) == badged
    assert ADDRESS not in front.readme_with_badges(badged, "another/place")
    assert front.readme_with_badges(badged, "") == readme


def test_the_command_writes_notebooks_and_readme(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / PATHS[0].name
    spoiled = notebook()
    spoiled.cells[1].source = spoiled.cells[2].source = "1 / 0"
    nbformat.write(spoiled, path)
    (tmp_path / "README.md").write_bytes(front.README.read_bytes())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(front, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(front, "README", tmp_path / "README.md")
    front.main()
    assert path.read_bytes() == PATHS[0].read_bytes()
    assert (tmp_path / "README.md").read_bytes() == front.README.read_bytes()


# --- the set-up cell, run -----------------------------------------------------------------

def run_cell(folder, *, path=(), address="", before="", after="print(grpo_lib.__file__)"):
    """The set-up cell in a fresh Python that knows nothing but ``path`` and a stand-in for
    torch, which must not come before grpo_lib."""
    stand_in = folder.parent / "stand_in"
    stand_in.mkdir(exist_ok=True)
    (stand_in / "torch.py").write_text("import sys\nassert 'grpo_lib' in sys.modules\n")
    source = front.SET_UP.format(url=address)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [stand_in, *path]))
    return subprocess.run(
        [sys.executable, "-S", "-c", "\n".join([before, source, after])], cwd=folder,
        env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def checkout(folder, init="__version__ = 'toy'\n"):
    """A folder with a package of our name in it."""
    (folder / "grpo_lib").mkdir(parents=True)
    if init is not None:
        (folder / "grpo_lib" / "__init__.py").write_text(init)
    return folder


def test_in_a_checkout_the_checkouts_library_is_taken(tmp_path):
    ours, other = checkout(tmp_path / "ours"), checkout(tmp_path / "other")
    (ours / "notebooks" / "deeper").mkdir(parents=True)
    for folder in (ours, ours / "notebooks", ours / "notebooks" / "deeper"):
        done = run_cell(folder, path=[other])
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()) == ours / "grpo_lib" / "__init__.py"


def test_in_the_folder_of_our_notebooks_our_library_is_taken(tmp_path):
    shutil.copytree(ROOT / "grpo_lib", tmp_path / "grpo_lib",
                    ignore=shutil.ignore_patterns("__pycache__", "base_models"))
    (tmp_path / "notebooks").mkdir()
    done = run_cell(tmp_path / "notebooks")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path / "grpo_lib"


def test_elsewhere_the_installed_library_is_taken(tmp_path, outside):
    installed = checkout(tmp_path / "installed")
    done = run_cell(outside, path=[installed])
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == installed / "grpo_lib"


@pytest.mark.parametrize("namesake", [False, True])
def test_where_the_library_is_nowhere_one_sentence_says_what_to_do(tmp_path, outside, namesake):
    if namesake:  # a checkout that is called grpo_lib, seen from beside it
        checkout(tmp_path / "grpo_lib")
    done = run_cell(outside)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "ImportError: grpo_lib was not found: open this notebook in a checkout of the "
        "repository, or on Colab fill in REPOSITORY above")
    assert "During handling" not in done.stderr


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_on_colab_the_repository_is_fetched_once(tmp_path, outside):
    origin = checkout(tmp_path / "origin")
    for command in (["init", "-q"], ["add", "-A"],
                    ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "toy"]):
        subprocess.run(["git", *command], cwd=origin, check=True)
    colab = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')"
    for address in (origin.as_uri(), "file:///no/such/place"):
        done = run_cell(outside, address=address, before=colab)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).parent == outside / "grpo" / "grpo_lib"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_cell(elsewhere, address=origin.as_uri())
    assert "ImportError" in done.stderr and not list(elsewhere.iterdir())


def test_the_device_cell_says_what_the_numbers_depend_on():
    assert re.search(r"__version__.*threads", front.DEVICE, re.DOTALL)
    assert notebook().cells[2].metadata["tags"] == ["nbval-ignore-output"]
