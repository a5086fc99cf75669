"""Sampling with the cache against encoding everything again, and shares of the matmul peak."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, load_base_model, sample_groups
from grpo_lib.runs import versions

REPEATS = 7


def seconds(work: Callable) -> float:
    """Median of ``REPEATS`` runs, after one to warm up."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_peak() -> float:
    """Best float32 rate of a square product, in FLOP/s, for sizes from 256 to 2048."""
    best = 0.0
    for size in (256, 512, 1024, 2048):
        a, b = torch.randn(size, size), torch.randn(size, size)
        best = max(best, 2 * size**3 / seconds(lambda a=a, b=b: a @ b))
    return best


def flops(work: Callable) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def measure() -> dict:
    threads = torch.get_num_threads()
    rows = []
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        rows.append({"threads": count, **measure_one()})
    torch.set_num_threads(threads)
    return {"rows": rows, "versions": versions()}


def measure_one() -> dict:
    """Base model (short, ragged completions) and rollouts of a step of the flagship run."""
    task, policy = ChainTask(), load_base_model("chain")
    problems = task.problems(32, random.Random(0))
    prompts = [task.tokenizer.encode(p.prompt) for p in problems]

    def sample(use_cache=True, full=False):
        # full: no end-of-sequence, so that every completion has all 19 tokens
        return sample_groups(policy, prompts, 16, max_new_tokens=task.max_new_tokens,
                             generator=torch.Generator().manual_seed(0), use_cache=use_cache,
                             eos_id=-1 if full else task.tokenizer.eos_id)

    peak = matmul_peak()
    natural, full = sample(), sample(full=True)
    result = {"peak_gflops": peak / 1e9}
    for name, rollouts, options in (("natural", natural, {}), ("full", full, {"full": True})):
        tokens = int(rollouts.mask.sum())
        cached = seconds(lambda o=options: sample(**o))
        again = seconds(lambda o=options: sample(use_cache=False, **o))
        result[name] = {
            "tokens": tokens, "tokens_per_second": tokens / cached,
            "without_cache_tokens_per_second": tokens / again, "speedup": again / cached,
            "share_of_peak": flops(lambda o=options: sample(**o)) / cached / peak}
        trainer = GRPOTrainer(load_base_model("chain"), task, GRPOConfig())
        advantages = torch.randn(32, 16)

        def update(t=trainer, r=rollouts, a=advantages):
            return t.update(r, a, r.log_probs)

        spent = seconds(update)
        result[name] |= {"update_ms": 1e3 * spent, "rollout_ms": 1e3 * cached,
                         "update_share_of_peak": flops(update) / spent / peak}
    return result


def report(data: dict) -> str:
    lines = [
        "## The engine at the flagship's size", "",
        f"32 prompts x 16 completions, 104,512 parameters, torch {data['versions']['torch']}, "
        f"medians of {REPEATS}. \"Natural\": completions of the base model, about 6 tokens; "
        f"\"full\": 19 tokens each. Shares are of the best square float32 product on the same "
        f"threads; FLOPs as counted by torch's FlopCounterMode.", "",
        "| threads | completions | rollout | tokens/s | without the cache | cache is faster by "
        "| rollout share of peak | update | update share of peak | peak GFLOP/s |",
        "|---|---|---|---|---|---|---|---|---|---|"]
    for row in data["rows"]:
        for name in ("natural", "full"):
            r = row[name]
            lines.append(
                f"| {row['threads']} | {name}, {r['tokens']} tokens | {r['rollout_ms']:.0f} ms "
                f"| {r['tokens_per_second']:,.0f} | {r['without_cache_tokens_per_second']:,.0f} "
                f"| {r['speedup']:.1f}x | {r['share_of_peak']:.0%} | {r['update_ms']:.0f} ms "
                f"| {r['update_share_of_peak']:.0%} | {row['peak_gflops']:.0f} |")
    return "\n".join(lines) + "\n"
