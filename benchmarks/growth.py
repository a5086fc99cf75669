"""How the cost of a step grows: with the group, the completions' length, the model's width and the
vocabulary, each over a factor of 16 or more, the rest as in a middling case."""

from __future__ import annotations

import math
import random
import statistics

import torch

from benchmarks.beside import machine, random_policy, side_by_side, told
from grpo_lib import GRPOConfig, GRPOTrainer, SortTask, sample_groups

USUAL = {"group": 8, "length": 16, "width": 64, "vocabulary": 64}
AXES = {"group": (4, 16, 64), "length": (8, 32, 128), "width": (32, 128, 512),
        "vocabulary": (64, 512, 4096)}
PROMPTS, PROMPT_LENGTH = 8, 8


def works(group: int, length: int, width: int, vocabulary: int) -> dict:
    """Rollout and update of a policy with random weights, all completions of ``length``."""
    policy = random_policy(vocabulary, PROMPT_LENGTH + length, d_model=width,
                           d_hidden=21 * width // 8)
    rng = random.Random(0)
    prompts = [[rng.randrange(2, vocabulary) for _ in range(PROMPT_LENGTH)]
               for _ in range(PROMPTS)]

    def sample():
        return sample_groups(policy, prompts, group, max_new_tokens=length, eos_id=-1,
                             generator=torch.Generator().manual_seed(0))

    trainer = GRPOTrainer(policy, SortTask(), GRPOConfig(minibatches=1))
    rollouts, advantages = sample(), torch.randn(PROMPTS, group)
    return {"rollout": sample,
            "update": lambda: trainer.update(rollouts, advantages, rollouts.log_probs)}


def measure() -> dict:
    about, axes = machine(), {}
    for axis, values in AXES.items():
        made = {f"{work} {value}": run for value in values
                for work, run in works(**USUAL | {axis: value}).items()}
        axes[axis] = side_by_side(made)
        print(axis, {name: round(statistics.median(s), 4) for name, s in axes[axis].items()},
              flush=True)
    return {"axes": axes, "threads": torch.get_num_threads(), "machine": about}


def report(data: dict) -> str:
    usual = ", ".join(f"{name} {value}" for name, value in USUAL.items())
    lines = [
        "## How cost grows", "",
        f"{PROMPTS} prompts of {PROMPT_LENGTH} tokens, two layers, otherwise {usual}; "
        f"{data['threads']} thread(s). {told(data)} \"Power\": the cost grows as the number to "
        f"this power, from the smallest to the largest.", "",
        "| what grows | values | rollout, ms | times | power | update, ms | times | power |",
        "|---|---|---|---|---|---|---|---|"]
    for axis, taken in data["axes"].items():
        values, cells = AXES[axis], []
        for work in ("rollout", "update"):
            medians = [statistics.median(taken[f"{work} {value}"]) for value in values]
            times = medians[-1] / medians[0]
            cells.append(f"{', '.join(f'{1e3 * m:.0f}' for m in medians)} | {times:.1f} "
                         f"| {math.log(times) / math.log(values[-1] / values[0]):.2f}")
        lines.append(f"| {axis} | {', '.join(map(str, values))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
