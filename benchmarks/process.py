"""The default run as a process: its time, and its peak memory above that of importing torch.

Linux and macOS.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from grpo_lib.cli.runs import RunFolder, versions

PEAK = """
import pathlib, re, resource, sys
status = pathlib.Path("/proc/self/status")
if status.exists():  # ru_maxrss would count the process that started this one too
    print(int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) / 2**10)
else:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(size / (2**20 if sys.platform == "darwin" else 2**10))
"""  # MiB
TORCH = "from grpo_lib import threads; threads.settle()\n"
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
        out = Path(folder) / "run"
        run_mib = peak(RUN, "train", "--out", str(out))
        run = RunFolder.open(out)
        spent, to_90 = 0.0, None
        for m in run.metrics():
            spent += m.seconds_rollout + m.seconds_scoring + m.seconds_update
            if to_90 is None and (m.held_out_accuracy or 0) >= 0.9:
                to_90 = {"step": m.step, "seconds": round(spent, 1)}
    return {"torch_mib": peak(TORCH), "run_mib": run_mib, "seconds": round(spent, 1),
            "to_90": to_90, "before": run.about["before"], "after": run.about["after"],
            "threads": run.about["threads"], "versions": versions()}


def report(data: dict) -> str:
    reached = data["to_90"]
    return (f"## The default run as a process\n\n`python -m grpo_lib train`, "
            f"{data['threads']} threads: {data['seconds']} s of rollout, scoring and update; 90% "
            f"of 200 held-out problems right {reached['seconds']} s into them, at step "
            f"{reached['step']} (looked at every 5 steps); {data['before']['accuracy']:.1%} of "
            f"1,000 held-out problems right before, {data['after']['accuracy']:.1%} after.\n\n"
            f"Resident memory at its highest: {data['run_mib']:.0f} MiB, of which importing torch "
            f"is {data['torch_mib']:.0f}: the run itself takes "
            f"{data['run_mib'] - data['torch_mib']:.0f} MiB.\n")
