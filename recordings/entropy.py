"""Runs whose entropy falls to 0: harmlessly, harmfully, and what helps."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict

import torch

from grpo_lib import (
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    evaluate,
    load_base_model,
    one_step_accuracy,
)
from grpo_lib.cli.runs import versions
from grpo_lib.rollout import Rollouts

SEEDS = (0, 1, 2)
COMMON = {"steps": 25, "prompts_per_step": 8, "eval_every": 25, "eval_problems": 300}
COLD = {"temperature": 0.3}
BARE = {"baseline": "none", "scale": "none", "aggregation": "sequence_mean"}
HOT = {"learning_rate": 3e-3}
PASSES = {"num_iterations": 4, "learning_rate": 1e-3}
KL = {"beta": 0.1, "use_bias_correction_kl": True}
SETTINGS = {
    "default": {},
    "temperature 0.3": COLD,
    "no baseline, temperature 0.3": BARE | COLD,
    "with baseline, temperature 0.3": COLD | {"aggregation": "sequence_mean"},
    "no baseline, temperature 1": BARE,
    "no baseline 0.3, rate 1e-4": BARE | COLD | {"learning_rate": 1e-4},
    "no baseline 0.3, KL by r k3": BARE | COLD | KL,
    "no baseline 0.3, KL by k3": BARE | COLD | {"beta": 0.1},
    "rate 3e-3": HOT,
    "rate 3e-3, temperature 1.3": HOT | {"temperature": 1.3},
    "rate 3e-3, KL by r k3": HOT | KL,
    "rate 1e-3": {"learning_rate": 1e-3},
    "4 passes, no clip": PASSES | {"epsilon": 1.0, "epsilon_high": 1e6},
    "4 passes, epsilon 0.2": PASSES,
    "4 passes, clip-higher": PASSES | {"epsilon_high": 0.28},
}
FIELDS = ("accuracy", "entropy", "zero_variance_groups", "length", "kl", "grad_norm",
          "clip_fraction_low", "clip_fraction_high")


def measure() -> dict:
    runs = []
    for name, changes in SETTINGS.items():
        for seed in SEEDS:
            runs.append({"name": name, "seed": seed, **one_run(COMMON | changes | {"seed": seed})})
            print(name, seed, runs[-1]["held_out_accuracy"], runs[-1]["seconds"], flush=True)
    return {"runs": runs, "threads": torch.get_num_threads(), "versions": versions()}


def one_run(settings: dict) -> dict:
    """A run from the shipped base model, with two facts a step that its metrics leave out."""
    start = time.perf_counter()
    config = GRPOConfig(**settings)
    trainer = GRPOTrainer(load_base_model("chain"), ChainTask(), config)
    history, unique, silent_wrong = [], [], []
    for metrics in trainer.run():
        history.append(asdict(metrics))
        unique.append(round(unique_share(trainer.rollouts), 3))
        wrong = (trainer.rewards == 0).all(1).float().mean().item()
        silent_wrong.append(round(wrong, 3))
    curves = {field: [round(m[field], 4) for m in history] for field in FIELDS}
    return {"config": config.to_dict(), **curves, "unique": unique, "silent_wrong": silent_wrong,
            "one_step_accuracy": round(one_step_accuracy(trainer.policy, trainer.task), 3),
            "rewards_of_8_problems": rewards_of(trainer),
            "held_out_accuracy": history[-1]["held_out_accuracy"],
            "seconds": round(time.perf_counter() - start, 1)}


def rewards_of(trainer: GRPOTrainer, problems: int = 8, samples: int = 64) -> list[str]:
    """For each of some held-out problems a digit, 1 or 0, for each of its samples."""
    result = evaluate(trainer.policy, trainer.task, trainer.task.held_out(problems),
                      samples=samples, temperature=trainer.config.temperature)
    return ["".join(map(str, row)) for row in result.right.int().tolist()]


def unique_share(rollouts: Rollouts) -> float:
    """Different completions among the G of a group, as a share of G; mean over the groups."""
    groups = rollouts.completions.unflatten(0, (-1, rollouts.group_size))
    return statistics.mean(len(group.unique(dim=0)) / len(group) for group in groups)


def report(data: dict) -> str:
    lines = [
        "## Entropy and collapse", "",
        f"{COMMON['steps']} steps of {COMMON['prompts_per_step']} problems, 16 completions each, "
        f"RL seeds {', '.join(map(str, SEEDS))}; otherwise default settings. Accuracies on "
        f"{COMMON['eval_problems']} held-out problems at the end, and of single steps; the rest is "
        f"the median of the seeds, over the last five steps. "
        f"{sum(r['seconds'] for r in data['runs']):.0f} s in all on {data['threads']} thread(s) of "
        f"a shared machine, torch {data['versions']['torch']}.", "",
        "| setting | held-out accuracy | one-step accuracy | entropy | silent groups | "
        "different answers in a group | length |", "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(run["name"] for run in data["runs"]):
        runs = [run for run in data["runs"] if run["name"] == name]
        entropy, silent, unique, length = (
            statistics.median(statistics.mean(run[field][-5:]) for run in runs)
            for field in ("entropy", "zero_variance_groups", "unique", "length"))
        held_out, one_step = (", ".join(f"{run[field]:.0%}" for run in runs)
                              for field in ("held_out_accuracy", "one_step_accuracy"))
        lines.append(f"| {name} | {held_out} | {one_step} | {entropy:.3f} | {silent:.0%} "
                     f"| {unique:.0%} | {length:.1f} |")
    return "\n".join(lines) + "\n"
