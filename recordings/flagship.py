"""The default run, for RL seeds 0 to 9 on the shipped base model and on three fresh ones."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from grpo_lib import (
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    PretrainConfig,
    load_base_model,
    load_policy,
    one_step_accuracy,
    pretrain,
    save_policy,
)
from grpo_lib.cli.runs import score, versions

SEEDS = range(10)
FRESH = (1, 2, 3)  # pre-training seeds; the shipped base model is seed 0


def measure() -> dict:
    task = ChainTask()
    problems = task.held_out(1000)
    bases, runs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for base_seed in (0, *FRESH):
            path = Path(folder) / f"{base_seed}.safetensors"
            start = time.perf_counter()
            if base_seed in FRESH:
                for _, _, policy in pretrain(task, PretrainConfig(seed=base_seed)):  # noqa: B007
                    pass
            else:
                policy = load_base_model(task.name)
            seconds = time.perf_counter() - start
            save_policy(path, policy, task.name)
            before = score(policy, task, problems)
            bases.append({"base": base_seed, "shipped": base_seed not in FRESH, **before,
                          "one_step_accuracy": one_step_accuracy(policy, task),
                          "seconds": round(seconds, 1) if base_seed in FRESH else None})
            for seed in SEEDS:
                runs.append({"base": base_seed, "seed": seed,
                             **one_run(load_policy(path), task, seed, problems)})
                print(runs[-1], flush=True)
    return {"bases": bases, "runs": runs, "threads": torch.get_num_threads(),
            "versions": versions()}


def one_run(policy, task, seed: int, problems) -> dict:
    """Train with default settings, measuring 200 held-out problems at every step."""
    trainer = GRPOTrainer(policy, task, GRPOConfig(seed=seed, eval_every=1))
    seconds = tokens = 0.0
    to_90 = None
    for m in trainer.run():
        seconds += m.seconds_rollout + m.seconds_scoring + m.seconds_update
        tokens += m.tokens
        if to_90 is None and m.held_out_accuracy >= 0.9:
            to_90 = {"step": m.step, "seconds": round(seconds, 1), "tokens": int(tokens)}
    return {**score(trainer.policy, task, problems), "seconds": round(seconds, 1),
            "tokens": int(tokens), "to_90": to_90}


def report(data: dict) -> str:
    lines = [
        "## The flagship run, default settings", "",
        f"RL seeds 0 to 9 on {len(data['bases'])} base models, 1,000 fixed held-out problems, "
        f"{data['threads']} threads, torch {data['versions']['torch']}. Seconds are of rollout, "
        f"scoring and update, without evaluation. \"To 90%\" is the first step after which 90% of "
        f"200 held-out problems are right.", "",
        "| base model | one-step accuracy | accuracy before | length before | sampled after "
        "(worst, median) | greedy after (worst) | length after | seconds (median) | "
        "seconds to 90% (worst) | tokens to 90% (worst) |",
        "|---|---|---|---|---|---|---|---|---|---|"]
    for base in data["bases"]:
        runs = [r for r in data["runs"] if r["base"] == base["base"]]
        after = [r["accuracy"] for r in runs]
        lines.append(
            f"| {'shipped' if base['shipped'] else 'fresh'}, seed {base['base']} "
            f"| {base['one_step_accuracy']:.1%} | {base['accuracy']:.1%} | {base['length']:.1f} "
            f"| {min(after):.1%}, {statistics.median(after):.1%} "
            f"| {min(r['greedy_accuracy'] for r in runs):.1%} "
            f"| {min(r['length'] for r in runs):.1f} to {max(r['length'] for r in runs):.1f} "
            f"| {statistics.median(r['seconds'] for r in runs):.1f} "
            f"| {worst(runs, 'seconds')} | {worst(runs, 'tokens'):,} |")
    return "\n".join(lines) + "\n"


def worst(runs: list[dict], what: str):
    return max(r["to_90"][what] if r["to_90"] else float("inf") for r in runs)
