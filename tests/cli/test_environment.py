"""The two commands of the README, with the slow parts (venv, pip, JupyterLab) replaced."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from waiting import PATIENCE, until

from grpo_lib.cli import environment

ROOT = Path(__file__).parents[2]
METADATA = '''\
requires-python = ">=3.10"
classifiers = ["Programming Language :: Python :: 3", "Programming Language :: Python :: 3.9",
               "Programming Language :: Python :: 3.13", "Programming Language :: Python :: 3.10"]
'''


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A bare checkout, a Python outside any virtual environment, and a record of commands."""
    (tmp_path / "grpo_lib").mkdir()
    (tmp_path / "pyproject.toml").write_text(METADATA)
    (tmp_path / "requirements.txt").write_text("torch\n")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_start_here.ipynb").write_text("")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    commands = []

    def call(command, root):
        commands.append(command)
        return 0

    def run(command, **options):
        if command[1] == "-c":
            return subprocess.CompletedProcess(command, 0)  # pip is there
        commands.append(command)
        python = Path(command[-1]) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text("")
        return subprocess.CompletedProcess(command, 0, b"")

    monkeypatch.setattr(environment, "call", call)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)  # no uv
    return tmp_path, commands


def test_lab_makes_installs_and_opens(checkout, monkeypatch):
    root, commands = checkout
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    assert environment.lab(root, ["--no-browser"]) == 0
    venv, pip, lab = commands
    assert venv[1:3] == ["-m", "venv"] and venv[-1] == str(root / ".venv")
    assert pip[1:4] == ["-m", "pip", "install"] and pip[-1] == str(root / "requirements.txt")
    assert lab[0].startswith(str(root / ".venv")) and "jupyterlab" in lab
    assert "--allow-root" in lab and lab[-1] == "--no-browser"
    assert any(part.endswith("00_start_here.ipynb") for part in lab)


def test_lab_does_not_allow_root_to_those_who_are_not(checkout, monkeypatch):
    root, commands = checkout
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    environment.lab(root, [])
    assert "--allow-root" not in commands[-1]


def test_the_second_time_nothing_is_installed_unless_requirements_changed(checkout):
    root, commands = checkout
    environment.test(root, ["-q"])
    assert len(commands) == 3
    assert commands[-1][1:] == ["-m", "pytest", "--nbval", *environment.BY_TWO, "-q"]
    environment.test(root, [])
    assert len(commands) == 4
    (root / "requirements.txt").write_text("torch\nnumpy\n")
    environment.test(root, [])
    assert "pip" in commands[-2]


def test_an_active_environment_is_used(checkout, monkeypatch):
    root, commands = checkout
    active = root / "mine"
    active.mkdir()
    monkeypatch.setattr(sys, "prefix", str(active))
    environment.test(root, [])
    assert [c[0] for c in commands] == [sys.executable] * 2
    assert not (root / ".venv").exists()


@pytest.mark.parametrize("status", [0, 2])
def test_uv_installs_where_it_is_there_and_pip_where_uv_fails(checkout, monkeypatch, status):
    root, commands = checkout

    def call(command, root):
        commands.append(command)
        return status if command[0] == "/bin/uv" else 0

    monkeypatch.setattr(environment, "call", call)
    monkeypatch.setattr(environment.shutil, "which", {"uv": "/bin/uv"}.get)
    (root / "torch-2.13.0-py3-none-any.whl").write_text("")
    environment.test(root, ["--wheels", str(root)])
    _, uv, *pip, _ = commands
    assert uv[:3] == ["/bin/uv", "pip", "install"] and uv[-1] == str(root / "requirements.txt")
    assert "--no-index" in uv and uv[uv.index("--python") + 1].startswith(str(root / ".venv"))
    assert [command[1:4] for command in pip] == [["-m", "pip", "install"]] * bool(status)


def test_a_failing_pip_is_an_error_and_leaves_no_stamp(checkout, monkeypatch):
    root, _ = checkout
    monkeypatch.setattr(environment, "call", lambda command, root: 1)
    with pytest.raises(environment.SetupError, match="pip could not install"):
        environment.prepare(root)
    assert not (root / ".venv" / environment.STAMP).exists()


def test_from_a_folder_of_wheels_nothing_else_is_asked(checkout, tmp_path, capsys):
    root, commands = checkout
    stick = tmp_path / "a stick"
    stick.mkdir()
    (stick / "torch-2.13.0-py3-none-any.whl").write_text("")
    environment.test(root, ["--wheels", str(stick), "-q"])
    pip, tests = commands[1:]
    assert pip[-5:] == ["--no-index", "-f", str(stick), "-r", str(root / "requirements.txt")]
    assert tests[1:] == ["-m", "pytest", "--nbval", *environment.BY_TWO, "-q"]
    assert "2.7 GB" not in capsys.readouterr().out
    environment.lab(root, ["--no-browser", "--wheels", str(stick)])
    assert commands[-1][-1] == "--no-browser" and str(stick) not in commands[-1]


@pytest.mark.parametrize("arguments", [["--wheels"], ["--wheels", "nowhere"]])
def test_a_folder_without_wheels_is_an_error_that_says_how_to_fill_it(checkout, arguments):
    root, commands = checkout
    with pytest.raises(environment.SetupError, match=r"--wheels: (a folder is missing|there are no "
                                                     r"wheels in .*wheels FOLDER)"):
        environment.lab(root, arguments)
    assert not commands


def test_wheels_for_another_python_are_told(checkout, monkeypatch, tmp_path):
    root, _ = checkout
    (tmp_path / "torch.whl").write_text("")
    monkeypatch.setattr(environment, "call", lambda command, root: 1)
    with pytest.raises(environment.SetupError, match=r"wheels have to be for .* and Python 3"):
        environment.prepare(root, tmp_path)


def test_wheels_are_downloaded_for_this_system_and_counted(checkout, monkeypatch, tmp_path, capsys):
    root, commands = checkout
    target = tmp_path / "new" / "stick"

    def call(command, root):
        commands.append(command)
        if "download" in command:
            (target / "torch.whl").write_text("torch")
        return 0

    monkeypatch.setattr(environment, "call", call)
    assert environment.wheels(root, [str(target), "--extra", "of pip"]) == 0
    assert commands[-1][1:4] == ["-m", "pip", "download"] and "--only-binary=:all:" in commands[-1]
    assert commands[-1][-2:] == ["--extra", "of pip"] and str(target) in commands[-1]
    assert "1 wheels, 0.00 GB" in capsys.readouterr().out
    for missing in ([], ["--no-deps"]):
        with pytest.raises(environment.SetupError, match="a folder is missing"):
            environment.wheels(root, missing)


@pytest.mark.parametrize("options, system, python, platforms", [
    (["--for", "windows", "--python", "3.12"], "windows", "3.12", ["win_amd64"]),
    (["--for", "macos"], "macos", environment.version(), ["macosx_13_0_arm64"]),
    (["--python", "3.13", "--for", "linux"], "linux", "3.13", environment.SYSTEMS["linux"])])
def test_wheels_for_another_system_are_resolved_for_it(checkout, tmp_path, options, system, python,
                                                       platforms):
    root, commands = checkout
    assert environment.wheels(root, [str(tmp_path / "stick"), *options, "--extra", "of pip"]) == 0
    install, resolve, download = (command[1:] for command in commands[-3:])
    assert install[:3] == ["-m", "pip", "install"] and install[-1] == "uv"
    assert resolve[:4] == ["-m", "uv", "pip", "compile"] and resolve[-1] == str(
        root / "requirements.txt")
    assert resolve[resolve.index("--python-platform") + 1] == system
    assert resolve[resolve.index("--python-version") + 1] == python
    assert "--only-binary=:all:" in download and "--no-deps" in download
    assert download[download.index("-r") + 1] == resolve[resolve.index("--output-file") + 1]
    assert download[download.index("--python-version") + 1] == python
    assert [download[at + 1] for at, part in enumerate(download) if part == "--platform"] == (
        platforms)
    assert download[-2:] == ["--extra", "of pip"]
    assert not {"--for", "--python"} & {*download}


@pytest.mark.parametrize("options, said", [
    (["--for", "amiga"], "--for: got 'amiga', must be one of windows, macos, linux"),
    (["--python", "new"], "--python: got 'new', must be a version such as 3.12"),
    (["--for"], "--for: its value is missing"), (["--python"], "--python: its value is missing")])
def test_wheels_for_what_there_is_not_are_told_in_a_line(checkout, tmp_path, options, said):
    root, commands = checkout
    with pytest.raises(environment.SetupError, match=said):
        environment.wheels(root, [str(tmp_path / "stick"), *options])
    assert not commands


@pytest.mark.parametrize("failing, said", [("install", "could not install uv"),
                                           ("compile", "no set of wheels for windows")])
def test_a_system_without_wheels_is_told_by_name(checkout, monkeypatch, tmp_path, failing, said):
    root, _ = checkout
    environment.prepare(root)
    monkeypatch.setattr(environment, "call", lambda command, root: int(failing in command))
    with pytest.raises(environment.SetupError, match=said):
        environment.wheels(root, [str(tmp_path / "stick"), "--for", "windows"])


@pytest.mark.parametrize("output", [b"No module named venv", b"ensurepip is not available"])
def test_a_python_without_venv_is_told_which_package(checkout, monkeypatch, output):
    root, _ = checkout
    monkeypatch.setattr(subprocess, "run",
                        lambda command, **o: subprocess.CompletedProcess(command, 1, output))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with pytest.raises(environment.SetupError, match=f"apt install python{version}-venv"):
        environment.prepare(root)


def test_another_failure_of_venv_is_passed_on(checkout, monkeypatch):
    root, _ = checkout
    done = subprocess.CompletedProcess([], 1, b"Error: No space left on device")
    monkeypatch.setattr(subprocess, "run", lambda command, **o: done)
    with pytest.raises(environment.SetupError, match="No space left"):
        environment.prepare(root)


def test_an_older_python_is_refused_with_ways_to_a_newer_one(checkout, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    told = r"needs Python 3\.10 or newer, and this is 3\.9.*uv venv --python 3\.13.*py -3\.13"
    with pytest.raises(environment.SetupError, match=told) as error:
        environment.prepare(checkout[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", [(3, 14, 0), (3, 15, 2), (4, 0, 0)])
def test_a_python_newer_than_tested_goes_on_with_a_warning(checkout, monkeypatch, capsys, version):
    root, commands = checkout
    monkeypatch.setattr(sys, "version_info", version)
    assert environment.lab(root, []) == 0
    said = capsys.readouterr().err
    assert f"Python {version[0]}.{version[1]} is newer than those tested, 3.10 to 3.13" in said
    assert "uv venv --python 3.13" in said and "py -3.13" in said and said.count("\n") == 1
    assert "jupyterlab" in commands[-1]


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 13, 9)])
def test_a_tested_python_is_no_matter_for_words(checkout, monkeypatch, capsys, version):
    monkeypatch.setattr(sys, "version_info", version)
    environment.prepare(checkout[0])
    assert capsys.readouterr().err == ""


def test_the_bounds_of_the_launcher_are_those_of_the_metadata(monkeypatch, capsys):
    """It reads pyproject.toml, so that no other file has to name a Python."""
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    environment.check_python(ROOT)
    said = capsys.readouterr().err
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest, newest = said.split("those tested, ")[1].split(". If")[0].split(" to ")
    assert f'requires-python = ">={oldest}"' in text
    assert f":: Python :: {oldest}\"" in text and f":: Python :: {newest}\"" in text


@pytest.mark.parametrize("name", ["__init__", "__main__", "cli/environment",
                                  "support/installed"])
def test_what_runs_before_the_refusal_can_be_read_by_an_old_python(name):
    """Python 3.7 parses it, and evaluates no annotation: list[str] would end in a traceback."""
    path = ROOT / "grpo_lib" / f"{name}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 7))
    postponed = any(isinstance(node, ast.ImportFrom) and node.module == "__future__"
                    for node in tree.body)
    annotations = [a for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                   for a in (node.returns, *(arg.annotation for arg in node.args.args)) if a]
    assert postponed or not any(isinstance(a, (ast.Subscript, ast.BinOp))
                                for a in annotations)


@pytest.mark.parametrize("place", ["checkout", "environment"])
def test_where_nothing_can_be_written_the_ways_out_are_told(checkout, monkeypatch, place):
    root, commands = checkout
    if place == "environment":
        (root / "mine").mkdir()
        monkeypatch.setattr(sys, "prefix", str(root / "mine"))
    locked = str(root if place == "checkout" else root / "mine")
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked)
    with pytest.raises(environment.SetupError) as error:
        environment.lab(root, [])
    assert str(error.value).startswith(f"{locked} cannot be written to. Copy the checkout")
    assert "python3 -m venv ~/grpo" in str(error.value) and "\n" not in str(error.value)
    assert commands == []


def test_a_locked_checkout_is_enough_where_an_environment_is_ready(checkout, monkeypatch):
    root, commands = checkout
    environment.prepare(root)
    commands.clear()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert environment.lab(root, []) == 0 and len(commands) == 1


def test_an_environment_without_pip_gets_it_first(checkout, monkeypatch):
    """uv makes such environments, and is one of the ways that the launcher names."""
    root, commands = checkout
    python = root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.write_text("")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(
        command, int(command[1:] == ["-c", "import pip"])))
    environment.prepare(root)
    assert [c[1:4] for c in commands] == [["-m", "ensurepip"], ["-m", "pip", "install"]]


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
@pytest.mark.parametrize("sent, child, status", [
    (signal.SIGINT, "while not os.path.exists('sent'): time.sleep(0.01)\nsys.exit(7)", 7),
    (signal.SIGTERM, f"time.sleep({PATIENCE})", -signal.SIGTERM)], ids=["ctrl-c", "terminate"])
def test_a_child_decides_on_ctrl_c_and_is_told_to_stop(tmp_path, sent, child, status):
    """Ctrl-C reaches all of a terminal's processes, what tells one to stop only that one."""
    before = signal.getsignal(signal.SIGTERM)

    def send():
        until((tmp_path / "started").exists)
        until(lambda: signal.getsignal(signal.SIGTERM) is not before)
        time.sleep(0.1)  # it waits for the child now
        os.kill(os.getpid(), sent)
        (tmp_path / "sent").touch()

    sender = threading.Thread(target=send)
    sender.start()
    code = "import os, sys, time\nopen('started', 'w').close()\n" + child
    try:
        assert environment.call([sys.executable, "-c", code], tmp_path) == status
    except KeyboardInterrupt:
        pytest.fail("the child was left")
    sender.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_file_says_where_packages_come_from():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = tracked.stdout.split() or [  # an unpacked source distribution
        path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.*")]
    assert "pyproject.toml" in names
    for name in names:
        if name.endswith((".txt", ".toml", ".md", ".cfg", ".json", ".py")) and "test_" not in name:
            text = (ROOT / name).read_text(encoding="utf-8")
            assert "index-url" not in text and "find-links" not in text, name


def test_no_built_package_is_tracked():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = tracked.stdout.split()
    assert [name for name in names if name.endswith((".whl", ".tar.gz"))] == []
