"""The pull to the base model: weights beta from 0 to 0.5, and other estimators at strong ones."""

from __future__ import annotations

import statistics

from recordings.record import record_runs

SEEDS = (0, 1, 2)
BETAS = (0.0, 0.001, 0.01, 0.04, 0.1, 0.3, 0.5)
OTHERS = {  # estimator other than k3: how to have it, and at which weights
    "k1": ({"kl": "k1"}, (0.3, 1.0)), "k2": ({"kl": "k2"}, (0.3,)),
    "r k3": ({"use_bias_correction_kl": True}, (0.3,))}
COMMON = {"steps": 30, "prompts_per_step": 16, "eval_every": 30, "eval_problems": 300}
FIELDS = ("accuracy", "held_out_accuracy", "length", "entropy", "kl", "grad_norm")


def measure() -> dict:
    settings = {name_of("k3", beta): COMMON | {"beta": beta} for beta in BETAS}
    settings |= {name_of(kl, beta): COMMON | {"beta": beta} | changes
                 for kl, (changes, betas) in OTHERS.items() for beta in betas}
    data = record_runs(settings, SEEDS, FIELDS)
    for run in data["runs"]:
        run["held_out_accuracy"] = run["held_out_accuracy"][-1]
    return data


def name_of(kl: str, beta: float) -> str:
    return f"{kl}, beta {beta:g}"


def report(data: dict) -> str:
    lines = [
        "## The weight beta and the estimator of KL", "",
        f"{COMMON['steps']} steps of {COMMON['prompts_per_step']} problems, 16 completions each, "
        f"RL seeds {', '.join(map(str, SEEDS))}; otherwise default settings. Held-out accuracy on "
        f"{COMMON['eval_problems']} problems at the end, one value a seed; the rest is the median "
        f"over the last ten steps, then over the seeds. "
        f"{sum(r['seconds'] for r in data['runs']):.0f} s in all on {data['threads']} thread(s) of "
        f"a shared machine, torch {data['versions']['torch']}.", "",
        "| estimator, weight | held-out accuracy | KL to the base model (k3) | entropy | length |",
        "|---|---|---|---|---|"]
    for name in dict.fromkeys(run["name"] for run in data["runs"]):
        runs = [run for run in data["runs"] if run["name"] == name]
        kl, entropy, length = (statistics.median(statistics.median(run[field][-10:])
                                                 for run in runs)
                               for field in ("kl", "entropy", "length"))
        accuracies = ", ".join(f"{run['held_out_accuracy']:.1%}" for run in runs)
        lines.append(f"| {name} | {accuracies} | {kl:.3f} | {entropy:.3f} | {length:.1f} |")
    return "\n".join(lines) + "\n"
