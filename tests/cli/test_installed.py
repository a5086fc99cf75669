"""An installed package: where its lessons are, how they are copied out, and what ``lab`` opens."""

import importlib.util
import io
import os
import sys

import pytest

from grpo_lib import __main__
from grpo_lib.cli import environment

LESSONS = {"00_start_here.ipynb": b"zero", "04_clipping.ipynb": b"four",
           "solutions/04_clipping_solutions.ipynb": b"solved"}


def write_lessons(folder):
    for name, content in LESSONS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def written(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / "grpo_lib").mkdir(parents=True)
    (root / "pyproject.toml").write_text("")
    write_lessons(root / "notebooks")
    return root


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The folder of an installed package, an empty folder to be in, and a record of commands."""
    site, here, commands = tmp_path / "site-packages", tmp_path / "here", []
    write_lessons(site / "grpo_lib" / "notebooks")
    write_lessons(site / "notebooks")  # somebody else's
    (site / "notebooks" / "00_start_here.ipynb").write_bytes(b"another package's")
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(environment, "call", lambda command, root: commands.append(
        (command, root)) or 0)
    return site, here, commands


def test_the_lessons_are_found_beside_the_package_and_inside_it(checkout, installed):
    site, here, _ = installed
    assert environment.lessons(checkout) == checkout / "notebooks"
    assert environment.lessons(site) == site / "grpo_lib" / "notebooks"
    with pytest.raises(environment.SetupError, match=r"00_start_here\.ipynb is missing"):
        environment.lessons(here)


def test_lab_of_an_installed_package_copies_the_lessons_and_opens_the_first(installed, capsys):
    site, here, commands = installed
    assert environment.lab(site, ["--no-browser"]) == 0
    [(command, folder)] = commands
    assert folder == here / "notebooks" and written(folder) == LESSONS
    assert command[:3] == [sys.executable, "-m", "jupyterlab"] and command[-1] == "--no-browser"
    assert str(here / "notebooks" / "00_start_here.ipynb") in command
    assert f"Copying the lessons to {here / 'notebooks'}" in capsys.readouterr().out


def test_lab_where_the_lessons_are_copies_nothing(installed, monkeypatch):
    site, here, commands = installed
    environment.lab(site, [])
    monkeypatch.chdir(here / "notebooks")
    (here / "notebooks" / "00_start_here.ipynb").write_bytes(b"mine")
    assert environment.lab(site, []) == 0
    assert commands[1][1] == here / "notebooks"
    assert written(here) == {"notebooks/" + n: c for n, c in LESSONS.items()} | {
        "notebooks/00_start_here.ipynb": b"mine"}


def test_lab_without_jupyterlab_says_what_to_install(installed, monkeypatch):
    site, here, commands = installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(environment.SetupError, match=r"is not installed.*pip install jupyterlab"):
        environment.lab(site, [])
    assert commands == [] and list(here.iterdir()) == []


@pytest.mark.parametrize(("command", "arguments"), [
    ("test", ["-q"]), ("wheels", ["stick"]), ("lab", ["--wheels", "stick"])])
def test_what_needs_a_checkout_says_so(installed, command, arguments):
    site, here, commands = installed
    (here / "stick").mkdir()
    (here / "stick" / "torch.whl").write_text("")
    with pytest.raises(environment.SetupError, match="checkout") as error:
        getattr(environment, command)(site, arguments)
    assert "\n" not in str(error.value) and commands == []


def test_an_installed_package_is_not_put_before_everything_else(installed, monkeypatch):
    """PYTHONPATH comes before the standard library: site-packages must not stand there."""
    _, here, _ = installed
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", "")
    code = "import os, pathlib; pathlib.Path('said').write_text(os.environ['PYTHONPATH'])"
    assert environment.call([sys.executable, "-c", code], here) == 0
    assert (here / "said").read_text() == ""
    (here / "grpo_lib").mkdir()
    (here / "pyproject.toml").write_text("")
    assert environment.call([sys.executable, "-c", code], here) == 0
    assert (here / "said").read_text() == str(here)


def test_notebooks_copies_what_is_not_there_and_keeps_the_rest(installed, capsys):
    site, here, _ = installed
    assert environment.notebooks(site, ["deep/course"]) == 0
    course = here / "deep" / "course"
    assert written(course) == LESSONS
    said = capsys.readouterr().out
    assert all(f"wrote  {name}" in said.replace(os.sep, "/") for name in LESSONS)
    (course / "04_clipping.ipynb").write_bytes(b"mine")
    (course / "00_start_here.ipynb").unlink()
    assert environment.notebooks(site, [str(course)]) == 0
    said = capsys.readouterr().out
    assert "wrote  00_start_here.ipynb" in said and "kept   04_clipping.ipynb" in said
    assert "1 were there already" in said and said.count("wrote") == said.count("kept") == 1
    assert written(course) == LESSONS | {"04_clipping.ipynb": b"mine"}


def test_notebooks_blames_the_folder_for_nothing_that_printing_met_with(installed, monkeypatch):
    """As in grpo_lib notebooks FOLDER | head -1."""
    site, _, _ = installed

    class Closed(io.StringIO):
        def write(self, text):
            if "wrote" in text:
                raise BrokenPipeError("Broken pipe")
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        environment.notebooks(site, ["course"])


def test_notebooks_without_a_folders_name_does_not_fill_the_current_one(installed):
    site, here, _ = installed
    with pytest.raises(environment.SetupError, match="got no folder, must be one folder"):
        environment.notebooks(site, [""])
    assert written(here) == {}


def test_wheels_without_a_folders_name_downloads_nothing(checkout, monkeypatch):
    monkeypatch.setattr(environment, "prepare", lambda *_: pytest.fail("an environment was made"))
    with pytest.raises(environment.SetupError, match="a folder is missing"):
        environment.wheels(checkout, [""])


def test_notebooks_keeps_whatever_has_a_lessons_name(installed, capsys):
    site, here, _ = installed
    (here / "00_start_here.ipynb").mkdir()
    if os.name != "nt":
        (here / "04_clipping.ipynb").symlink_to(here / "lost")
    assert environment.notebooks(site, ["."]) == 0
    assert "kept   00_start_here.ipynb" in capsys.readouterr().out
    assert (here / "00_start_here.ipynb").is_dir() and not (here / "lost").exists()


def test_notebooks_of_a_checkout_are_the_lessons_and_nothing_that_jupyter_left(checkout, tmp_path):
    for name in ("Untitled.ipynb", ".ipynb_checkpoints/00_start_here-checkpoint.ipynb"):
        (checkout / "notebooks" / name).parent.mkdir(exist_ok=True)
        (checkout / "notebooks" / name).write_text("")
    assert environment.notebooks(checkout, [str(tmp_path / "copy")]) == 0
    assert written(tmp_path / "copy") == LESSONS


def test_notebooks_knows_the_home_folder(installed, monkeypatch, tmp_path):
    site, here, _ = installed
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert environment.notebooks(site, ["~/course"]) == 0
    assert written(tmp_path / "home" / "course") == LESSONS and list(here.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--force"]])
def test_notebooks_wants_one_folder(installed, arguments):
    with pytest.raises(environment.SetupError, match="must be one folder"):
        environment.notebooks(installed[0], arguments)
    assert list(installed[1].iterdir()) == []


@pytest.mark.parametrize("command", ["notebooks", "lab"])
def test_a_folder_that_is_a_file_is_one_clear_line(installed, monkeypatch, capsys, command):
    site, here, commands = installed
    (here / "notebooks").write_text("a list")
    monkeypatch.setattr(__main__, "ROOT", site)
    assert __main__.main([command, *(["notebooks"] if command == "notebooks" else [])]) == 2
    said = capsys.readouterr().err
    assert f"notebooks: got {here / 'notebooks'}, must be a folder that can be written to" in said
    assert said.count("\n") == 1 and commands == []
    assert (here / "notebooks").read_text() == "a list"


def test_a_full_disk_leaves_no_half_lesson(installed, monkeypatch):
    site, here, _ = installed

    class Full(io.FileIO):
        def write(self, content):
            super().write(content[:2])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(environment, "open", Full, raising=False)
    with pytest.raises(environment.SetupError, match=r"got .*here.*\.ipynb: No space left"):
        environment.notebooks(site, ["."])
    assert written(here) == {}


def test_version_needs_no_torch(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert __main__.main(["--version"]) == 0
    assert capsys.readouterr().out == f"grpo_lib {__main__.__version__}\n"


