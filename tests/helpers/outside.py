"""Commands as a person gives them who has installed the package and has no checkout."""

import os
import shutil
import subprocess

from waiting import PATIENCE

OUTSIDE = {name: value for name, value in os.environ.items()
           if not name.startswith(("PYTHON", "VIRTUAL_ENV", "GRPO_", "JUPYTER"))}


def run(*command, cwd, **environment) -> str:
    """What a command says; it must succeed. grpo_lib is found only where it is installed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE,
                          env={**OUTSIDE, **environment})
    assert done.returncode == 0, done.stdout
    return done.stdout


def install(python, *what) -> None:
    """Packages into an environment, by uv where there is one: it takes a tenth of pip's time."""
    uv = shutil.which("uv")
    run(*([uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]),
        "--quiet", *what, cwd=os.path.dirname(python))
