"""Timing side by side: what is compared takes turns, so that a busy moment meets all alike.

BENCHMARK_CLOCK=cpu counts the process's own seconds, on one thread: for a machine so busy that
seconds of the wall say nothing.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from grpo_lib import ChainTask, PolicyConfig, TransformerPolicy, load_base_model
from grpo_lib.cli.runs import versions

REPEATS = 5
CPU_CLOCK = os.environ.get("BENCHMARK_CLOCK") == "cpu"
clock = time.process_time if CPU_CLOCK else time.perf_counter
# about a million parameters, with random weights
LARGE = {"d_model": 128, "n_layers": 5, "n_heads": 4, "d_hidden": 336}
SIZES = ("flagship", "1M")


def policy_of(size: str) -> TransformerPolicy:
    """The shipped base model, or one of about a million random parameters."""
    if size == "flagship":
        return load_base_model("chain")
    return random_policy(**LARGE)


def random_policy(vocab_size: int | None = None, context_length: int | None = None,
                  **shape) -> TransformerPolicy:
    task = ChainTask()
    config = PolicyConfig(vocab_size or len(task.tokenizer),
                          context_length=context_length or task.context_length, **shape)
    return TransformerPolicy(config, torch.Generator().manual_seed(0))


def side_by_side(works: Mapping[str, Callable], repeats: int = REPEATS) -> dict[str, list[float]]:
    """Seconds of each work in ``repeats`` rounds, after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats + 1):
        for name, work in works.items():
            start = clock()
            work()
            if number:
                taken[name].append(round(clock() - start, 5))
    return taken


def matmul_peak(repeats: int = REPEATS) -> float:
    """Best float32 rate of a square product, in FLOP/s, for sizes from 256 to 2048."""
    best = 0.0
    for size in (256, 512, 1024, 2048):
        a, b = torch.randn(size, size), torch.randn(size, size)
        for _ in range(repeats):
            start = clock()
            a @ b
            best = max(best, 2 * size**3 / (clock() - start))
    return best


def flops(work: Callable) -> int:
    """Of matrix products, as torch's FlopCounterMode counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def ratio(of: list[float], to: list[float]) -> str:
    """How many times longer, round by round: median, least and most."""
    rounds = [a / b for a, b in zip(of, to)]
    return f"{statistics.median(rounds):.1f} ({min(rounds):.1f} to {max(rounds):.1f})"


def ms(seconds: list[float]) -> str:
    """Median, least and most, in milliseconds."""
    low, high = (f"{1e3 * x:.0f}" for x in (min(seconds), max(seconds)))
    return f"{1e3 * statistics.median(seconds):.0f} ({low} to {high})"


def machine() -> dict:
    """What the numbers depend on; the load is the number of busy processes in the last minute."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.exists() else []
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return {"cpu": names[0] if names else platform.processor(), "load": load,
            "clock": "cpu" if CPU_CLOCK else "wall", **versions()}


def thread_counts() -> list[int]:
    """One, and all cores up to four; with the CPU's clock one, since it adds threads up."""
    return sorted({1, 1 if CPU_CLOCK else min(4, os.cpu_count() or 1)})


def told(data: dict) -> str:
    """The machine in words."""
    at = data["machine"]
    return (f"{at['cpu']}, {at['cpus']} cores, load {at['load']} at the start, torch "
            f"{at['torch']}; medians of {REPEATS}, least and most in brackets."
            + (" Seconds are the process's own (BENCHMARK_CLOCK=cpu), since the machine was busy."
               if at.get("clock") == "cpu" else ""))
