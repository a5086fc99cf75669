"""Wheel and source distribution, built and then used away from the checkout: with nothing but the
wheel and its dependencies, ``grpo_lib lab`` in an empty folder serves the first lesson, and a
lesson runs. It downloads what the wheel needs, but for torch,
which is large and is borrowed from the environment of the tests.
"""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
from outside import OUTSIDE, install, run
from waiting import PATIENCE

pytest.importorskip("build")
ROOT = Path(__file__).parents[2]
BINARIES = "Scripts" if os.name == "nt" else "bin"
LARGE = ("torch", "nvidia", "triton", "cuda")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, source distribution); the wheel is made from the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    installer = ["--installer", "uv"] if shutil.which("uv") else []
    run(sys.executable, "-m", "build", *installer, "--outdir", folder, ROOT, cwd=folder)
    [wheel], [source] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def borrow_torch(folder):
    """Links to torch, and to what only it needs, in a folder of their own."""
    folder.mkdir()
    installed = Path(sysconfig.get_path("purelib"))
    for distribution in importlib.metadata.distributions(path=[str(installed)]):
        if distribution.metadata["Name"].lower().startswith(LARGE):
            for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
                if not (folder / top).exists():
                    (folder / top).symlink_to(installed / top)


@pytest.fixture(scope="module")
def seat(built, tmp_path_factory):
    """(folder of commands, environment variables) of a fresh environment that has the wheel."""
    place = tmp_path_factory.mktemp("seat")
    borrow_torch(place / "large")
    # a Python outside any virtual environment, as a newcomer has it
    run(Path(sys.base_prefix) / ("python.exe" if os.name == "nt" else "bin/python3"), "-m", "venv",
        place / "env", cwd=place)
    commands = place / "env" / BINARIES
    library = run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path("
                  "'purelib'), end='')", cwd=place)
    Path(library, "large.pth").write_text(str(place / "large"))
    install(commands / "python", built[0])
    (place / "home").mkdir()
    return commands, {"HOME": str(place / "home"), "USERPROFILE": str(place / "home")}


def test_the_wheel_carries_the_course_and_nothing_of_the_workshop(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
        lessons = {p.relative_to(ROOT / "notebooks").as_posix(): p.read_bytes()
                   for p in sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))
                   if ".ipynb_checkpoints" not in p.parts}
        carried = {n.removeprefix("grpo_lib/notebooks/"): wheel.read(n) for n in names
                   if n.endswith(".ipynb")}
    assert len(lessons) == 20 and carried == lessons
    assert {"grpo_lib/py.typed", "grpo_lib/base_models/chain.safetensors",
            "grpo_lib/course/recorded/flagship.json",
            "grpo_lib/bridges/templates/train.py.template"} <= {*names}
    assert {n.split("/")[0].split("-")[0] for n in names} == {"grpo_lib"}
    assert built[0].stat().st_size < 10e6


def test_an_index_would_take_both(built):
    assert run(sys.executable, "-m", "twine", "check", "--strict", *built,
               cwd=built[0].parent).count("PASSED") == 2


def test_lab_in_an_empty_folder_serves_the_first_lesson_and_a_lesson_runs(seat, tmp_path):
    commands, home = seat
    empty = tmp_path / "empty"
    empty.mkdir()
    imported = run(commands / "python", "-c", "import grpo_lib; print(grpo_lib.__file__)",
                   cwd=empty)
    assert Path(imported).is_relative_to(commands.parent)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(tmp_path / "said", "w") as said:
        server = subprocess.Popen([commands / "grpo_lib", "lab", "--no-browser", f"--port={port}",
                                   "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=wheel"],
                                  cwd=empty, env={**OUTSIDE, **home}, stdout=said,
                                  stderr=subprocess.STDOUT)
    try:
        lesson = get(server, f"http://127.0.0.1:{port}/api/contents/00_start_here.ipynb")
        page = get(server, f"http://127.0.0.1:{port}/lab/tree/00_start_here.ipynb")
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE)
    assert '"cell_type"' in lesson and "jupyter-config-data" in page
    told = (tmp_path / "said").read_text()
    assert f"Copying the lessons to {empty / 'notebooks'}" in told and told.count("wrote") == 20
    run(commands / "jupyter", "execute", "notebooks/03_advantages.ipynb", cwd=empty, **home)


def get(server, address):
    """The answer of a server as soon as it answers."""
    while True:
        assert server.poll() is None, "the server ended"
        request = urllib.request.Request(address, headers={"Authorization": "token wheel"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.2)


@pytest.mark.release
def test_the_source_distribution_passes_its_own_tests(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path)
    [unpacked] = tmp_path.iterdir()
    pytests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run(*pytests, "--collect-only", "tests", cwd=unpacked)  # everything that they import is there
    said = run(*pytests, "tests/repository/test_package.py", "tests/repository/test_metadata.py",
               "tests/repository/test_front.py", "tests/test_rollout.py", cwd=unpacked)
    assert " passed" in said and " failed" not in said
    where = run(sys.executable, "-c", "import grpo_lib; print(grpo_lib.__file__)", cwd=unpacked)
    assert Path(where).is_relative_to(unpacked)
