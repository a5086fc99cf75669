"""Where the time of a rollout and of an update goes, by torch.profiler: what is lost to the peak.

Self time of each kind of operation, and what is left of the wall: Python, and starting operations.
"""

from __future__ import annotations

import random
import time

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.beside import SIZES, machine, policy_of, told
from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, sample_groups

PROMPTS, GROUP = 32, 16
KINDS = {  # parts of torch's names, the first that fits
    "attention": ("scaled_dot_product", "flash_attention", "bmm"),
    "matrix products": ("mm", "linear", "matmul"),
    "norms": ("rms_norm", "rsqrt", "mean", "pow"),
    "softmax and drawing": ("softmax", "cumsum", "searchsorted", "exp", "gather", "isin", "argmax"),
    "moving": ("copy", "cat", "index", "select", "gather", "scatter", "clone", "contiguous", "fill",
               "zero", "repeat", "nonzero", "unique", "where", "embedding"),
    "SwiGLU, rotary, sums": ("mul", "add", "silu", "sub", "div", "neg", "sum", "complex", "sigmoid",
                             "clamp", "minimum", "square"),
    "optimizer": ("_foreach", "_fused", "lerp", "addcdiv", "addcmul", "sqrt", "norm"),
}


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS.items()
                 if any(part in name for part in parts)), "other operations")


def shares(work) -> dict[str, float]:
    """Share of the wall's seconds, by kind of operation."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        start = time.perf_counter()
        work()
        wall = time.perf_counter() - start
    spent = dict.fromkeys([*KINDS, "other operations"], 0.0)
    for event in found.key_averages():
        if event.key.startswith("aten::"):
            spent[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / wall
    return spent | {"between operations": max(0.0, 1 - sum(spent.values()))}


def measure() -> dict:
    about, threads, rows = machine(), torch.get_num_threads(), []
    torch.set_num_threads(1)
    for size in SIZES:
        for full in (False, True):
            task, policy = ChainTask(), policy_of(size)
            prompts = [task.encode(p) for p in task.problems(PROMPTS, random.Random(0))]
            eos = -1 if full else task.tokenizer.eos_id

            def sample(policy=policy, prompts=prompts, eos=eos, task=task):
                return sample_groups(policy, prompts, GROUP, max_new_tokens=task.max_new_tokens,
                                     generator=torch.Generator().manual_seed(0), eos_id=eos)

            rollouts, trainer = sample(), GRPOTrainer(policy_of(size), task, GRPOConfig())
            advantages = torch.randn(PROMPTS, GROUP)

            def update(trainer=trainer, rollouts=rollouts, advantages=advantages):
                trainer.update(rollouts, advantages, rollouts.log_probs)

            for name, work in (("rollout", sample), ("update", update)):
                rows.append({"size": size, "full": full, "work": name, "shares": {
                    kind: round(share, 4) for kind, share in shares(work).items()}})
                print(rows[-1], flush=True)
    torch.set_num_threads(threads)
    return {"rows": rows, "machine": about}


def report(data: dict) -> str:
    kinds = list(data["rows"][0]["shares"])
    lines = ["## Where the time goes", "",
             f"Shares of the wall under torch.profiler (which itself slows small operations), one "
             f"thread, {PROMPTS} prompts x {GROUP} completions. {told(data)}", "",
             f"| policy | completions | work | {' | '.join(kinds)} |",
             "|---|---|---|" + "---|" * len(kinds)]
    for row in data["rows"]:
        lines.append(f"| {row['size']} | {'full' if row['full'] else 'natural'} | {row['work']} | "
                     + " | ".join(f"{row['shares'][kind]:.0%}" for kind in kinds) + " |")
    return "\n".join(lines) + "\n"
