"""How soon the flagship can be at 90%: ten seeds of the default run and of settings that need fewer
sampled tokens, each until 90% of 200 held-out problems are right."""

from __future__ import annotations

import statistics

import torch

from benchmarks.beside import machine, told
from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, load_base_model

SEEDS = range(10)
SETTINGS = {
    "default": {},
    "--learning-rate 0.001": {"learning_rate": 1e-3},
    "--learning-rate 0.001 --prompts-per-step 16": {"learning_rate": 1e-3, "prompts_per_step": 16},
    "--learning-rate 0.001 --prompts-per-step 16 --algorithm reinforce":
        {"learning_rate": 1e-3, "prompts_per_step": 16, "algorithm": "reinforce"},
}


def until_90(settings: dict, seed: int) -> dict:
    """Steps, tokens, and seconds of rollout, scoring and update; no 90% within 50 steps: None."""
    trainer = GRPOTrainer(load_base_model("chain"), ChainTask(),
                          GRPOConfig(seed=seed, eval_every=1, **settings))
    seconds = tokens = 0.0
    for m in trainer.run():
        seconds += m.seconds_rollout + m.seconds_scoring + m.seconds_update
        tokens += m.tokens
        if m.held_out_accuracy >= 0.9:
            return {"seed": seed, "step": m.step, "tokens": int(tokens),
                    "seconds": round(seconds, 2)}
    return {"seed": seed, "step": None, "tokens": None, "seconds": round(seconds, 2)}


def measure() -> dict:
    about, runs = machine(), {name: [] for name in SETTINGS}
    for seed in SEEDS:
        for name, settings in SETTINGS.items():
            runs[name].append(until_90(settings, seed))
            print(name, runs[name][-1], flush=True)
    return {"runs": runs, "threads": torch.get_num_threads(), "machine": about}


def report(data: dict) -> str:
    lines = [
        "## The flagship's way to 90%", "",
        f"`python -m grpo_lib train` with these settings, RL seeds 0 to {len(SEEDS) - 1} in turns, "
        f"until 90% of 200 held-out problems are right (looked at after every step), at most 50 "
        f"steps; {data['threads']} thread(s). {told(data)} Seconds are of rollout, scoring and "
        f"update, of the wall.", "",
        "| settings | got there | steps, worst | tokens: median, worst | seconds: median, worst |",
        "|---|---|---|---|---|"]
    for name, runs in data["runs"].items():
        there = [run for run in runs if run["step"]]
        tokens, seconds = ([run[what] for run in there] for what in ("tokens", "seconds"))
        lines.append(f"| {name} | {len(there)} of {len(runs)} | {max(r['step'] for r in there)} "
                     f"| {statistics.median(tokens):,.0f}, {max(tokens):,} "
                     f"| {statistics.median(seconds):.1f}, {max(seconds):.1f} |")
    return "\n".join(lines) + "\n"
