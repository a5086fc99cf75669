"""The two commands of the README, with the slow parts (venv, pip, JupyterLab) replaced."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from grpo_lib import environment

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A bare checkout, a Python outside any virtual environment, and a record of commands."""
    (tmp_path / "requirements.txt").write_text("torch\n")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    commands = []

    def call(command, root):
        commands.append(command)
        return 0

    def run(command, **options):
        commands.append(command)
        python = Path(command[-1]) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text("")
        return subprocess.CompletedProcess(command, 0, b"")

    monkeypatch.setattr(environment, "call", call)
    monkeypatch.setattr(subprocess, "run", run)
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


@pytest.mark.parametrize("version", [(3, 9, 1), (3, 14, 0)])
def test_a_python_too_old_or_too_new_is_named(checkout, monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(environment.SetupError, match=r"needs Python 3\.10 to 3\.13, and this is 3"):
        environment.prepare(checkout[0])


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
@pytest.mark.parametrize("sent, child, status", [
    (signal.SIGINT, "import time; time.sleep(1.5); raise SystemExit(7)", 7),
    (signal.SIGTERM, "import time; time.sleep(8)", -signal.SIGTERM)], ids=["ctrl-c", "terminate"])
def test_a_child_decides_on_ctrl_c_and_is_told_to_stop(tmp_path, sent, child, status):
    """Ctrl-C reaches all of a terminal's processes, what tells one to stop only that one."""
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), sent))
    timer.start()
    try:
        assert environment.call([sys.executable, "-c", child], tmp_path) == status
    except KeyboardInterrupt:
        pytest.fail("the child was left")
    timer.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_a_checkout_it_says_so(tmp_path):
    with pytest.raises(environment.SetupError, match="run this in a checkout"):
        environment.prepare(tmp_path)


def test_requirements_and_package_metadata_agree():
    """Every requirement stands in pyproject.toml too, with the same range."""
    metadata = (ROOT / "pyproject.toml").read_text()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    for line in lines:
        assert line.startswith("#") or f'"{line}"' in metadata


def test_no_file_says_where_packages_come_from():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.split():
        if name.endswith((".txt", ".toml", ".md", ".cfg", ".json", ".py")) and "test_" not in name:
            text = (ROOT / name).read_text(encoding="utf-8")
            assert "index-url" not in text and "find-links" not in text, name
