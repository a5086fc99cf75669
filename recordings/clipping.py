"""Runs with several updates a batch, clipped and not; and every loss of short runs."""

from __future__ import annotations

import itertools
import statistics

import torch

from grpo_lib import (
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    aggregate,
    group_advantages,
    kl_estimate,
    load_base_model,
)
from recordings.record import record_runs

SEEDS = range(5)
SHARED = {"steps": 16, "prompts_per_step": 16, "group_size": 16, "learning_rate": 1e-3,
          "eval_every": 0}
EIGHT = SHARED | {"num_iterations": 4, "minibatches": 2}  # updates on each batch
SETTINGS = {
    "no clip": EIGHT | {"epsilon": 1.0, "epsilon_high": 1e9},
    "epsilon 0.2": EIGHT,
    "epsilon 0.2, high 0.28": EIGHT | {"epsilon_high": 0.28},
    "epsilon 0.1": EIGHT | {"epsilon": 0.1},
    "epsilon 0.05": EIGHT | {"epsilon": 0.05},
    "one update a batch": SHARED | {"num_iterations": 1, "minibatches": 1},
}
LOSS_STEPS, LOSS_PROMPTS = 12, 8  # smaller, since there are many of these
WAYS = {"1 update": (1, False), "2 updates, on all of it": (2, False),
        "4 updates, on all of it": (4, False), "2 updates, on halves": (2, True),
        "4 updates, on quarters": (4, True)}
BETAS = (0.0, 0.1)
LOSSES = ("sequence_mean", "token_mean")


def measure() -> dict:
    losses = [loss_by_update(way, beta, aggregation)
              for way, beta, aggregation in itertools.product(WAYS, BETAS, LOSSES)]
    recorded = record_runs(SETTINGS, SEEDS, fields=(
        "accuracy", "length", "entropy", "clip_fraction_low", "clip_fraction_high",
        "ratio_max", "grad_norm"))
    return recorded | {"losses": losses}


def loss_by_update(way: str, beta: float, aggregation: str, seed: int = 0) -> dict:
    """A short run that keeps the loss and the gradient's length at every single update.

    ``loss`` and ``grad_norm`` have a list a step; ``kl_term`` is beta times the distance to
    the base model of each step's batch before its first update, averaged as the loss is.
    """
    updates, in_parts = WAYS[way]
    trainer = GRPOTrainer(load_base_model("chain"), ChainTask(), GRPOConfig(
        seed=seed, beta=beta, aggregation=aggregation, num_iterations=1, minibatches=1,
        **SHARED | {"prompts_per_step": LOSS_PROMPTS}))
    record = {"way": way, "beta": beta, "aggregation": aggregation, "seed": seed,
              "loss": [], "grad_norm": [], "reward": [], "kl_term": []}
    for _ in range(LOSS_STEPS):
        problems, rollouts = trainer.sample()
        rewards, _, ref = trainer.score(problems, rollouts)
        advantages = group_advantages(rewards).flatten()
        rows = torch.randperm(len(advantages), generator=trainer.generator)
        parts = rows.tensor_split(updates) if in_parts else [rows] * updates
        done = [trainer.update(rollouts.select(part), advantages[part], ref[part])
                for part in parts]
        distance = aggregate(kl_estimate(rollouts.log_probs, ref), rollouts.mask, aggregation)
        record["loss"].append([round(m["loss"], 5) for m in done])
        record["grad_norm"].append([round(m["grad_norm"], 3) for m in done])
        record["reward"].append(round(rewards.mean().item(), 4))
        record["kl_term"].append(round(beta * distance.item(), 5))
    return record


def report(data: dict) -> str:
    lines = [
        "## Clipping", "",
        f"{SHARED['steps']} steps of {SHARED['prompts_per_step']} x {SHARED['group_size']} "
        f"answers at learning rate {SHARED['learning_rate']}, eight updates on each batch (four "
        f"passes in two halves) except in the last row, {len(SEEDS)} seeds, {data['threads']} "
        f"threads, torch {data['versions']['torch']}. Accuracy is of the sampled answers, mean of "
        f"the last five steps. These runs and {len(data['losses'])} short ones, of which every "
        f"loss is kept, take seven minutes of one core.", "",
        "| clip | accuracy at the end, each seed | median | tokens blocked (mean) |",
        "|---|---|---|---|"]
    for name in SETTINGS:
        runs = [r for r in data["runs"] if r["name"] == name]
        ends = [statistics.mean(r["accuracy"][-5:]) for r in runs]
        blocked = statistics.mean(low + high for r in runs for low, high in zip(
            r["clip_fraction_low"], r["clip_fraction_high"]))
        lines.append(f"| {name} | {' '.join(f'{e:.2f}' for e in ends)} "
                     f"| {statistics.median(ends):.2f} | {blocked:.1%} |")
    return "\n".join(lines) + "\n"
