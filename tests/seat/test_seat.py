"""A seat in a class without a network: wheels onto a stick, a fresh checkout, and from there a
notebook that runs. It downloads everything once more.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from waiting import PATIENCE

from grpo_lib.cli import environment

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9/simple"  # nobody listens there
OUTSIDE = {k: v for k, v in os.environ.items()
           if not k.startswith(("PIP_", "UV_", "PYTHON", "VIRTUAL_ENV", "GRPO_"))}


def in_checkout(folder, *arguments, **environment):
    # a Python outside any virtual environment, as a newcomer has it
    python = Path(sys.base_prefix) / ("python.exe" if os.name == "nt" else "bin/python3")
    done = subprocess.run([str(python), "-m", "grpo_lib", *arguments], cwd=folder, text=True,
                          capture_output=True, check=False, timeout=PATIENCE,
                          env={**OUTSIDE, **environment})
    return done.returncode, done.stdout + done.stderr


def test_thirty_seats_without_thirty_downloads(tmp_path):
    stick, seat = tmp_path / "stick", tmp_path / "seat"
    pip = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}  # where packages come from
    done = subprocess.run([sys.executable, "-m", "grpo_lib", "wheels", str(stick)], cwd=ROOT,
                          text=True, capture_output=True, check=False, timeout=PATIENCE,
                          env={**OUTSIDE, **pip})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wheels," in done.stdout and any(stick.glob("torch-*.whl"))
    assert all(p.suffix == ".whl" for p in stick.iterdir())

    subprocess.run(["git", "clone", "-q", str(ROOT), str(seat)], check=True, timeout=PATIENCE)
    status, said = in_checkout(
        seat, "test", "--wheels", str(stick), "-q", "-p", "no:cacheprovider",
        "notebooks/01_policy.ipynb", "tests/repository/test_package.py",
        PIP_INDEX_URL=NOWHERE, PIP_EXTRA_INDEX_URL=NOWHERE, PIP_CONFIG_FILE=os.devnull,
        http_proxy=NOWHERE, https_proxy=NOWHERE, PIP_NO_CACHE_DIR="1")
    assert status == 0, said
    assert "--no-index" in said and (seat / ".venv" / "grpo_lib-requirements.txt").is_file()
    assert " passed" in said


@pytest.mark.release
@pytest.mark.parametrize("system, needs, not_needed", [
    ("windows", "pywinpty", "appnope"), ("macos", "appnope", "pywinpty")])
def test_one_computer_fills_a_stick_for_other_systems(tmp_path, monkeypatch, system, needs,
                                                      not_needed):
    """A few packages of those that need others on other systems. Then uv, as such a seat, finds all
    that it needs on the stick and nowhere else."""
    stick = tmp_path / "stick"
    (tmp_path / "grpo_lib").mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "requirements.txt").write_text("ipykernel>=6.29\nterminado>=0.18\nnumpy>=1.24\n")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    monkeypatch.setattr(environment, "prepare", lambda root: str(python))
    assert environment.wheels(tmp_path, [str(stick), "--for", system, "--python", "3.12"]) == 0
    names = [p.name for p in stick.iterdir()]
    assert all(name.endswith(".whl") for name in names)
    assert any(name.startswith(needs) for name in names)
    assert not any(name.startswith(not_needed) for name in names)
    tag = environment.SYSTEMS[system][0].partition("_")[0]
    assert any(name.startswith("numpy-") and tag in name for name in names)
    done = subprocess.run([str(python), "-m", "uv", "pip", "compile", "--python-platform", system,
                           "--python-version", "3.12", "--no-index", "-f", str(stick),
                           str(tmp_path / "requirements.txt")], text=True, capture_output=True)
    assert done.returncode == 0 and needs in done.stdout, done.stderr
