"""Runs with and without a baseline and a std, and how noisy their gradients are on the way."""

from __future__ import annotations

import statistics
import time

import torch

from grpo_lib import (
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    completion_log_probs,
    evaluate,
    load_base_model,
    sample_groups,
    signal_and_noise,
)
from recordings.record import record_runs

SEEDS = (0, 1, 2)
STEPS = 20
STAGES = (0, 4, 8, 12, 20)
FIELDS = ("accuracy", "held_out_accuracy", "length", "grad_norm", "zero_variance_groups")
RAW = {"baseline": "none", "scale": "none"}
SEQUENCE = {"scale": "none", "aggregation": "sequence_mean"}
SETTINGS = {  # name: (changes to the default run, what is added to every reward)
    "mean, std": ({}, 0.0),
    "mean": ({"scale": "none"}, 0.0),
    "no baseline": (RAW, 0.0),
    "no baseline, rewards + 1": (RAW, 1.0),
    "mean, sequence_mean": (SEQUENCE, 0.0),
    "no baseline, sequence_mean": (SEQUENCE | {"baseline": "none"}, 0.0),
}


def measure() -> dict:
    start, runs = time.process_time(), []
    for name, (changes, shift) in SETTINGS.items():
        settings = {name: {"steps": STEPS, **changes}}
        record = record_runs(settings, SEEDS, FIELDS, shifted(ChainTask(), shift))
        runs += record["runs"]
    return record | {"runs": runs, "stages": stages(),
                     "cpu_seconds": round(time.process_time() - start)}


def shifted(task: ChainTask, shift: float) -> ChainTask:
    """The task with ``shift`` added to the reward of every finished completion."""
    return task.with_reward(lambda problem, text: shift + task.correct(problem, text))


def stages() -> list[dict]:
    """A default run, looked at after 0, 4, 8, 12 and 20 steps: which of 64 answers to 128
    held-out problems are right, and the noise of the gradient."""
    task = ChainTask()
    trainer = GRPOTrainer(load_base_model("chain"), task, GRPOConfig(steps=STEPS, eval_every=0))
    looks = []
    for step in range(STEPS + 1):
        if step in STAGES:
            answers = evaluate(trainer.policy, task, task.held_out(128), samples=64)
            looks.append({"step": step, "accuracy": round(answers.accuracy, 4),
                          "tokens": round(answers.mean_length, 3),
                          "right": ["".join("01"[r] for r in row)
                                    for row in answers.right.int().tolist()],
                          **noise(trainer.policy, task)})
            print(f"step {step}: {looks[-1]['accuracy']}, noise {looks[-1]['noise']}", flush=True)
        if step < STEPS:
            trainer.step()
    return looks


def noise(policy, task, problems: int = 48, groups: int = 4, size: int = 16) -> dict:
    """Noise of the gradient estimate from one group, over the baseline b: a - 2 b c + b^2 d.

    The estimate with baseline b is g_r - b g_1: the first has weights r, the second 1.
    """
    some, parameters = task.held_out(problems), list(policy.parameters())
    rollouts = sample_groups(policy, [task.tokenizer.encode(p.prompt) for p in some],
                             groups * size, max_new_tokens=task.max_new_tokens,
                             generator=torch.Generator().manual_seed(0))
    texts = task.tokenizer.decode_rows(rollouts.completions, rollouts.mask)
    rewards = task.rewards(some, texts, rollouts.finished.tolist()).view(-1, size)
    of_rewards, of_ones = [], []
    for i, group in enumerate(rewards):
        part = rollouts.select(torch.arange(i * size, (i + 1) * size))
        log_probs = completion_log_probs(policy, part).sum(1)
        for weights, kept in ((group, of_rewards), (torch.ones(size), of_ones)):
            slopes = torch.autograd.grad((weights * log_probs).mean(), parameters,
                                         retain_graph=True)
            kept.append(torch.cat([g.flatten() for g in slopes]))
    of_rewards, of_ones = (torch.stack(g).view(problems, groups, -1) for g in (of_rewards, of_ones))
    a, d, both = (signal_and_noise(g)[1] for g in (of_rewards, of_ones, of_rewards - of_ones))
    by_group = of_rewards - rewards.mean(1).view(problems, groups, 1) * of_ones
    return {"noise": [round(v, 4) for v in (a, (a + d - both) / 2, d)],
            "noise_of_mean": round(signal_and_noise(by_group)[1], 4)}


def report(data: dict) -> str:
    lines = ["## Baselines and stds\n",
             f"Held-out accuracy (200 problems) after {STEPS} steps of the chain task, "
             f"{len(SEEDS)} seeds; `{data['command']}` makes it anew in about "
             f"{data['cpu_seconds'] / 60:.0f} CPU minutes.\n",
             "| advantages | worst | median | best | length, median |", "|---|---|---|---|---|"]
    for name in SETTINGS:
        runs = [r for r in data["runs"] if r["name"] == name]
        last = sorted(r["held_out_accuracy"][-1] for r in runs)
        length = statistics.median(r["length"][-1] for r in runs)
        lines.append(f"| {name} | {last[0]:.1%} | {statistics.median(last):.1%} | "
                     f"{last[-1]:.1%} | {length:.1f} |")
    lines += ["", "Noise of the gradient from one group of 16, E|estimate - gradient|^2, in a "
              "default run (48 problems):\n",
              "| after step | accuracy | no baseline | group mean | no baseline, rewards + 1 | "
              "best constant baseline |", "|---|---|---|---|---|---|"]
    for look in data["stages"]:
        a, c, d = look["noise"]
        lines.append(f"| {look['step']} | {look['accuracy']:.1%} | {a:.2f} | "
                     f"{look['noise_of_mean']:.2f} | {a + 2 * c + d:.2f} | {c / d:.2f} |")
    return "\n".join(lines) + "\n"
