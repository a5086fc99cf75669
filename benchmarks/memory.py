"""Peak memory of the default run, above that of importing torch. Linux and macOS."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from grpo_lib.runs import versions

PEAK = ("import resource, sys; peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "print(peak / (2**20 if sys.platform == 'darwin' else 2**10))")  # MiB
TORCH = "import grpo_lib, torch; "
RUN = ("import contextlib, io, os, sys; from grpo_lib.__main__ import main\n"
       "with contextlib.redirect_stdout(io.StringIO()): code = main(sys.argv[1:])\n"
       "assert code == 0\n")


def peak(code: str, *arguments: str) -> float:
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code + PEAK, *arguments], check=True, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          env={**os.environ, "PYTHONPATH": root})
    return float(done.stdout)


def measure() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        run = peak(RUN, "train", "--out", str(Path(folder) / "run"))
    return {"torch_mib": peak(TORCH), "run_mib": run, "versions": versions()}


def report(data: dict) -> str:
    return (f"## Peak memory\n\nResident memory of `python -m grpo_lib train` at its highest: "
            f"{data['run_mib']:.0f} MiB, of which importing torch is {data['torch_mib']:.0f}: the "
            f"run itself takes {data['run_mib'] - data['torch_mib']:.0f} MiB.\n")
