"""Every row of ALGORITHMS on the chain task at an equal budget of sampled tokens: as the default
run takes its steps, and with each batch used for eight updates at a higher rate."""

from __future__ import annotations

import statistics
from functools import partial

from grpo_lib import ALGORITHMS
from grpo_lib.cli.runs import versions
from grpo_lib.course.recorded import tokens_to
from recordings.record import in_processes, run_to_budget

SEEDS = range(5)
BUDGET, REUSED_BUDGET = 300_000, 150_000  # sampled tokens, those of thrown-away groups too
ROWS = {name: {"algorithm": name} for name in ALGORITHMS} | {
    "dapo, no overlong": {"algorithm": "dapo", "overlong_share": 0.0},
    "reinforce, sequence_mean": {"algorithm": "reinforce", "aggregation": "sequence_mean"},
}
EIGHT = {"num_iterations": 4, "minibatches": 2, "learning_rate": 1e-3, "prompts_per_step": 16}
REUSED = {name: {"algorithm": name} | EIGHT for name in (
    "grpo", "reinforce", "rloo", "ppo", "dr_grpo", "bnpo", "dapo", "gspo", "gspo_token", "cispo",
    "sapo", "gmpo", "maxrl")} | {
    "grpo, no clip": {"algorithm": "grpo", "epsilon": 1.0, "epsilon_high": 1e9} | EIGHT,
    # why some fail: pushes down, how sharply the gate closes, and solved groups that push on
    "reinforce_baseline": {"algorithm": "reinforce_baseline"} | EIGHT,
    "maxrl, no baseline": {"algorithm": "maxrl", "baseline": "none"} | EIGHT,
    "sapo, sharper gate": {"algorithm": "sapo", "sapo_temperature_pos": 5.0,
                           "sapo_temperature_neg": 10.0} | EIGHT,
    "reinforce_plus_plus": {"algorithm": "reinforce_plus_plus"} | EIGHT,
    "bnpo, baseline of the batch": {"algorithm": "bnpo", "baseline": "batch",
                                    "scale": "batch"} | EIGHT}


def measure() -> dict:
    parts = {"rows": (ROWS, BUDGET), "reused": (REUSED, REUSED_BUDGET)}
    return {part: in_processes([partial(run_to_budget, name, settings, seed, budget)
                                for name, settings in table.items() for seed in SEEDS])
            for part, (table, budget) in parts.items()} | {
        "budget": {"rows": BUDGET, "reused": REUSED_BUDGET}, "threads": 1, "versions": versions()}


def report(data: dict) -> str:
    lines = ["## Algorithms at equal sampled tokens", "",
             f"{len(SEEDS)} seeds each, one thread, two runs at once, torch "
             f"{data['versions']['torch']}. Held-out accuracy: one sample of each of 1,000 "
             f"problems; mean, and worst to best seed. \"Tokens to 90%\": sampled tokens until "
             f"three steps in a row average 90%, median of the seeds that got there. "
             f"\"Clipped\": tokens whose gradient or weight the bound cut, mean over the steps; "
             f"\"silent\": groups without spread among all sampled. About 50 minutes.", ""]
    for part, title in (("rows", "default steps (two updates a batch, rate 5e-4)"),
                        ("reused", "eight updates a batch, rate 1e-3, 16 prompts a step")):
        lines += [f"### {title}, {data['budget'][part]:,} tokens", "",
                  "| row | held-out accuracy | length | tokens to 90% | got there | steps "
                  "| clipped | silent groups |", "|---" * 8 + "|"]
        for name in dict.fromkeys(r["name"] for r in data[part]):
            runs = [r for r in data[part] if r["name"] == name]
            held = [r["held_out_accuracy"] for r in runs]
            there = [t for t in (tokens_to(r, 0.9) for r in runs) if t is not None]
            lines.append(
                f"| {name} | {statistics.fmean(held):.1%} ({min(held):.1%} to {max(held):.1%}) "
                f"| {statistics.fmean(r['held_out_length'] for r in runs):.1f} "
                f"| {f'{statistics.median(there):,.0f}' if there else '-'} "
                f"| {len(there)} of {len(runs)} "
                f"| {statistics.median(len(r['tokens']) for r in runs):.0f} "
                f"| {statistics.fmean(r['clip_fraction'] for r in runs):.1%} "
                f"| {statistics.fmean(r['zero_variance_groups'] for r in runs):.0%} |")
        lines.append("")
    return "\n".join(lines)
