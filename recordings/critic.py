"""What a critic costs and buys: memory counted and measured, time of a step, and PPO with the
settings that might make it better."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from grpo_lib import (
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    PolicyConfig,
    TransformerPolicy,
    ValueModel,
    load_base_model,
)
from grpo_lib.cli.runs import versions
from grpo_lib.critic import completion_values, state_numbers
from grpo_lib.rollout import completion_log_probs
from recordings.algorithms import EIGHT
from recordings.record import in_processes, run_to_budget

SEEDS, BUDGET = range(3), 150_000
SIZES = {"the course's model": {}, "a larger one": {"d_model": 512, "n_layers": 6, "n_heads": 8,
                                                    "d_hidden": 1408}}
STEP = {"prompts_per_step": 4, "group_size": 8, "minibatches": 2, "eval_every": 0}
STEPS_TIMED = 15
SWEEP = {f"value rate {rate:g}, lambda {lam:g}":
         {"algorithm": "ppo", "value_learning_rate": rate, "gae_lambda": lam} | EIGHT
         for rate in (3e-4, 1e-3, 3e-3) for lam in (0.9, 0.95, 1.0)} | {
    "grpo": {"algorithm": "grpo"} | EIGHT}


def trainer_of(algorithm: str, policy: TransformerPolicy, **settings) -> GRPOTrainer:
    config = GRPOConfig(algorithm=algorithm, **settings)
    return GRPOTrainer(policy, ChainTask(), config,
                       value_model=ValueModel(policy) if config.choices.critic else None)


def policy_of(shape: dict) -> TransformerPolicy:
    task = ChainTask()
    return TransformerPolicy(PolicyConfig(len(task.tokenizer), context_length=task.context_length,
                                          **shape), torch.Generator().manual_seed(0))


def activations(forward) -> int:
    """Bytes that autograd keeps for the backward pass of ``forward()``, parameters left out."""
    held: dict[int, int] = {}

    def keep(tensor):
        if not tensor.requires_grad or not tensor.is_leaf:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(held.values())


def counted(shape: dict) -> dict:
    """MiB by what they are for, for a step of ``STEP``: float32 numbers of four bytes."""
    policy = policy_of(shape)
    parameters = sum(p.numel() for p in policy.parameters())
    trainer = trainer_of("grpo", policy, **STEP)
    _, rollouts = trainer.sample()
    rows = rollouts.select(torch.arange(len(rollouts.mask) // STEP["minibatches"]))
    value_model = ValueModel(policy)
    saved = {"policy": activations(lambda: completion_log_probs(policy, rows)),
             "critic": activations(lambda: completion_values(value_model, rows))}
    found = {"parameters": parameters}
    for critic in (False, True):
        numbers = state_numbers(parameters, critic)
        numbers["reference policy"] = parameters
        parts = {name: round(4 * n / 2**20, 2) for name, n in numbers.items()}
        # the two backward passes come one after the other: the larger one counts
        parts["activations"] = round(
            max(saved["policy"], saved["critic"] if critic else 0) / 2**20, 2)
        found["with a critic" if critic else "without"] = parts
    return found


def measured(shape: dict, algorithm: str) -> float:
    """MiB of resident memory at its highest in three steps, above that before the trainer is
    made (with the policy in it), in a process of its own. Linux."""
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", "from recordings.critic import *; "
         f"print(peak({shape!r}, {algorithm!r}))"], check=True, text=True, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root}, cwd=root)
    return json.loads(done.stdout)


def peak(shape: dict, algorithm: str) -> float:
    def resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

    torch.set_num_threads(1)
    warm = trainer_of("grpo", policy_of({}), **STEP)  # code that is loaded on first use
    warm.step()
    policy = policy_of(shape)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    trainer = trainer_of(algorithm, policy, **STEP)
    for _ in range(3):
        trainer.step()
    return round((resident("VmHWM") - before) / 2**10, 1)


def timed(trained: bool) -> dict:
    """Median seconds of a default step's parts, with and without a critic, steps taken by turns.

    The learning rate is next to 0, so that both go on sampling the same completions;
    ``trained``: those of a policy after 40 steps of GRPO.
    """
    policy = load_base_model("chain")
    if trained:
        for _ in GRPOTrainer(policy, ChainTask(), GRPOConfig(steps=40, eval_every=0)).run():
            pass
    still = {"learning_rate": 1e-12, "value_learning_rate": 1e-12, "eval_every": 0}
    both = {name: trainer_of(name, load_copy(policy), **still) for name in ("grpo", "ppo")}
    for _ in range(STEPS_TIMED + 1):
        for trainer in both.values():
            trainer.step()
    return {name: {part: round(statistics.median(
        getattr(m, f"seconds_{part}") for m in trainer.history[1:]), 4)
        for part in ("rollout", "scoring", "update")} | {
            "length": round(statistics.fmean(m.length for m in trainer.history[1:]), 2)}
        for name, trainer in both.items()}


def load_copy(policy: TransformerPolicy) -> TransformerPolicy:
    twin = load_base_model("chain")
    twin.load_state_dict(policy.state_dict())
    return twin


def measure() -> dict:
    torch.set_num_threads(1)
    memory = {name: {"counted": counted(shape), "measured": {
        which: measured(shape, algorithm)
        for which, algorithm in (("without", "grpo"), ("with a critic", "ppo"))}}
        for name, shape in SIZES.items()}
    time = {"base model": timed(False), "trained": timed(True)}
    sweep = in_processes([partial(run_to_budget, name, settings, seed, BUDGET)
                          for name, settings in SWEEP.items() for seed in SEEDS])
    return {"memory": memory, "time": time, "sweep": sweep, "budget": BUDGET,
            "threads": 1, "versions": versions()}


def report(data: dict) -> str:
    lines = ["## The critic: what it costs, and what it buys", "",
             "Memory in MiB, of a step of 32 completions in two minibatches: counted, and measured "
             "as resident memory above that before the trainer was made. About 10 minutes.", "",
             "| model | critic | weights | reference policy | gradients | optimizer | activations "
             "| sum | measured, the policy's weights added |", "|---" * 9 + "|"]
    for name, found in data["memory"].items():
        own = 4 * found["counted"]["parameters"] / 2**20
        for which in ("without", "with a critic"):
            parts = found["counted"][which]
            lines.append(
                f"| {name} ({found['counted']['parameters']:,}) | {which} | "
                + " | ".join(f"{parts[k]:.1f}" for k in ("weights", "reference policy", "gradients",
                                                         "optimizer", "activations"))
                + f" | {sum(parts.values()):.1f} | {found['measured'][which] + own:.1f} |")
    lines += ["", f"Seconds of a default step, one thread, medians of {STEPS_TIMED} steps taken by "
              "turns:", "", "| completions of | algorithm | rollout | scoring | update | sum |",
              "|---|---|---|---|---|---|"]
    for which, both in data["time"].items():
        for name, parts in both.items():
            seconds = [parts[k] for k in ("rollout", "scoring", "update")]
            lines.append(f"| {which} ({parts['length']:.1f} tokens) | {name} | "
                         + " | ".join(f"{s:.3f}" for s in [*seconds, sum(seconds)]) + " |")
    lines += ["", f"PPO's settings, eight updates a batch, rate 1e-3, {data['budget']:,} sampled "
              f"tokens, {len(SEEDS)} seeds (worst to best):", "", "| setting | held-out accuracy |",
              "|---|---|"]
    for name in dict.fromkeys(r["name"] for r in data["sweep"]):
        held = [r["held_out_accuracy"] for r in data["sweep"] if r["name"] == name]
        lines.append(f"| {name} | {statistics.fmean(held):.1%} ({min(held):.1%} to "
                     f"{max(held):.1%}) |")
    return "\n".join([*lines, ""])
