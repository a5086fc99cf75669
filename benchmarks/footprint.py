"""What the library takes before and beside the work: seconds of importing it, peak memory of a
step, and time beside a process that keeps a core busy. Linux and macOS."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.beside import REPEATS, machine, ms, ratio, told
from benchmarks.process import TORCH, peak

ROOT = str(Path(__file__).parent.parent)
IMPORTS = """
import json, time
times = [time.perf_counter()]
import grpo_lib; times.append(time.perf_counter())
import torch; times.append(time.perf_counter())
for name in grpo_lib._HOME: getattr(grpo_lib, name)
times.append(time.perf_counter())
import grpo_lib.course.plots, grpo_lib.course.explorers; times.append(time.perf_counter())
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""
STEP = """
from grpo_lib import *
threads.settle()
from benchmarks.beside import policy_of
from benchmarks.engine import plain_update
import torch
trainer = GRPOTrainer(policy_of("{size}"), ChainTask(), GRPOConfig(eval_every=0))
if "{how}" == "sampling":
    trainer.sample()
elif "{how}" == "ours":
    trainer.step()
else:
    _, rollouts = trainer.sample()
    plain_update(trainer.policy, trainer.optimizer, rollouts, torch.randn(32, 16))
"""
TIMED = """
import time, sys
from grpo_lib import *
threads.settle()
trainer = GRPOTrainer(load_base_model("chain"), ChainTask(), GRPOConfig(eval_every=0))
trainer.step()
times = []
for _ in range(5):
    start = time.perf_counter(); trainer.step(); times.append(time.perf_counter() - start)
import json; print(json.dumps(times))
"""
THREADS = {"the default": {}, "one thread": {"OMP_NUM_THREADS": "1"},
           "two threads": {"OMP_NUM_THREADS": "2"},
           "two threads that wait actively": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}}


def output(code: str, **environment: str) -> list[float]:
    """What ``code`` prints, as JSON, in a process whose threads are those of ``environment``."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, text=True,
                          stdout=subprocess.PIPE, cwd=ROOT,
                          env={**usual, "PYTHONPATH": ROOT, **environment})
    return [round(seconds, 4) for seconds in json.loads(done.stdout)]


def beside_a_busy_core(**environment: str) -> list[float]:
    """Seconds of five default steps while another process never waits."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        return output(TIMED, **environment)
    finally:
        busy.kill()
        busy.wait()


def measure() -> dict:
    about = machine()
    output(IMPORTS)  # compiled files, and files in memory
    imports = [output(IMPORTS) for _ in range(REPEATS)]
    print(imports, flush=True)
    memory = {"torch": [peak(TORCH) for _ in range(REPEATS)]}
    for size in ("flagship", "1M"):
        for how in ("sampling", "ours", "plain"):
            memory[f"{size}, {how}"] = [peak(STEP.format(size=size, how=how))
                                        for _ in range(REPEATS)]
    print({name: statistics.median(mib) for name, mib in memory.items()}, flush=True)
    busy = {}
    for name, environment in THREADS.items():
        busy[name] = {"alone": output(TIMED, **environment),
                      "busy": beside_a_busy_core(**environment)}
        print(name, busy[name], flush=True)
    return {"imports": imports, "memory": {n: [round(m, 1) for m in mib]
                                           for n, mib in memory.items()},
            "busy": busy, "machine": about}


def report(data: dict) -> str:
    parts = [[run[i] for run in data["imports"]] for i in range(4)]
    memory = {name: statistics.median(mib) for name, mib in data["memory"].items()}
    lines = [
        "## Importing, memory, and a busy machine", "", told(data), "",
        f"Importing, in ms: `import grpo_lib` {ms(parts[0])}, torch {ms(parts[1])}, then all "
        f"public names {ms(parts[2])}, then the rooms that draw (matplotlib, ipywidgets) "
        f"{ms(parts[3])}.", "",
        f"Resident memory at its highest, above the {memory['torch']:.0f} MiB of importing torch, "
        f"of a process that makes the trainer and takes a step of 512 completions:", "",
        "| policy | sampling alone | a whole step | sampling and a plain loop's update |",
        "|---|---|---|---|"]
    for size in ("flagship", "1M"):
        cells = [f"{memory[f'{size}, {how}'] - memory['torch']:.0f} MiB"
                 for how in ("sampling", "ours", "plain")]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    one = data["busy"]["one thread"]["alone"]
    lines += ["", "A default step, alone and beside a process that keeps a core busy, in ms:", "",
              "| threads | alone | beside it | times one thread alone |", "|---|---|---|---|"]
    for name, taken in data["busy"].items():
        lines.append(f"| {name} | {ms(taken['alone'])} | {ms(taken['busy'])} "
                     f"| {ratio(taken['busy'], [statistics.median(one)] * len(one))} |")
    return "\n".join(lines) + "\n"
