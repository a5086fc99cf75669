"""Three ways to divide the loss, in three settings: the default run; chains too long for the
model, on which nearly all answers stay wrong; and answers marked before they are written."""

from __future__ import annotations

import random
import statistics
import time

import torch

from grpo_lib import (
    ChainTask,
    completion_log_probs,
    group_advantages,
    grpo_loss,
    load_base_model,
    sample_groups,
)
from grpo_lib.cli.runs import versions
from grpo_lib.objective import PAPER_AGGREGATIONS as NAMES
from recordings.record import record_runs

SEEDS = range(4)
FIELDS = ("accuracy", "held_out_accuracy", "length", "length_right", "length_wrong", "entropy",
          "grad_norm")
BEGINNINGS = ("s1=", "s2=")  # of answers that are marked before they are written


def measure() -> dict:
    flagship = {name: {"aggregation": name, "steps": 36, "eval_every": 6} for name in NAMES}
    too_long = {name: {"aggregation": name, "steps": 24, "eval_every": 0} for name in NAMES}
    return {"flagship": record_runs(flagship, SEEDS, FIELDS)["runs"],
            "too_long": record_runs(too_long, SEEDS, [f for f in FIELDS if "held" not in f],
                                    task=ChainTask(9, 10))["runs"],
            "marked": [marked_run(name, seed, right) for name in NAMES
                       for right in BEGINNINGS for seed in SEEDS],
            "threads": torch.get_num_threads(), "versions": versions()}


def marked_run(aggregation: str, seed: int, right: str, steps: int = 30, prompts: int = 16,
               group_size: int = 16) -> dict:
    """GRPO where the mark hangs on how an answer begins, and the beginning is given.

    Half of each group goes on from ``right`` and gets reward 1, half from the other beginning
    and gets 0. Only what follows is trained, and no continuation is better than another.
    """
    start = time.perf_counter()
    task, policy = ChainTask(), load_base_model("chain")
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-4, betas=(0.9, 0.95),
                                  weight_decay=0.0)
    wrong = BEGINNINGS[1 - BEGINNINGS.index(right)]
    half = group_size // 2
    rewards = torch.tensor([1.0] * half + [0.0] * half).repeat(prompts, 1)
    advantages = group_advantages(rewards).flatten()
    curves = {"length_right": [], "length_wrong": [], "grad_norm": []}
    for _ in range(steps):
        begun = [task.tokenizer.encode(f"{problem.prompt} {beginning}")
                 for problem in task.problems(prompts, rng) for beginning in (right, wrong)]
        rollouts = sample_groups(policy, begun, half, max_new_tokens=task.max_new_tokens,
                                 generator=generator)
        loss = grpo_loss(completion_log_probs(policy, rollouts), rollouts.log_probs, advantages,
                         rollouts.mask, aggregation=aggregation,
                         max_length=task.max_new_tokens).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        length_right, length_wrong = rollouts.lengths.view(prompts, 2, half).mean((0, 2)).tolist()
        for values, value in zip(curves.values(), (length_right, length_wrong, norm.item())):
            values.append(round(value, 3))
    print(f"{aggregation} seed {seed}, right {right}: wrong {curves['length_wrong'][0]:.1f} to "
          f"{curves['length_wrong'][-1]:.1f}", flush=True)
    return {"name": aggregation, "seed": seed, "right": right, **curves,
            "seconds": round(time.perf_counter() - start, 1)}


def report(data: dict) -> str:
    lines = [
        "## Dividing the loss", "",
        f"{len(SEEDS)} seeds each ({2 * len(SEEDS)} in \"marked beforehand\": either beginning as "
        f"the right one), torch {data['versions']['torch']}; mean of the last 5 steps, worst and "
        f"best seed. \"Chains too long\": 9 and 10 operations. \"Marked beforehand\": the reward "
        f"is fixed by a beginning that is given, so that there is nothing to learn.", "",
        "| setting | aggregation | accuracy | length of wrong answers, first step "
        "| and at the end | length of right answers at the end | seconds a run (median) |",
        "|---|---|---|---|---|---|---|"]
    for setting, title in (("flagship", "default run"), ("too_long", "chains too long"),
                           ("marked", "marked beforehand")):
        for name in NAMES:
            runs = [r for r in data[setting] if r["name"] == name]
            accuracy = (span([end(r["accuracy"]) for r in runs], ".1%")
                        if setting != "marked" else "fixed at 50%")
            lines.append(
                f"| {title} | {name} | {accuracy} "
                f"| {span([r['length_wrong'][0] for r in runs])} "
                f"| {span([end(r['length_wrong']) for r in runs])} "
                f"| {span([end(r['length_right']) for r in runs])} "
                f"| {statistics.median(r['seconds'] for r in runs):.0f} |")
    return "\n".join(lines) + "\n"


def end(values: list) -> float:
    """Mean of the last five steps; a step without such answers does not count."""
    return statistics.mean(v for v in values[-5:] if v is not None)


def span(values: list[float], digits: str = ".1f") -> str:
    return f"{min(values):{digits}} to {max(values):{digits}}"
