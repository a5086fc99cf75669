"""Short runs with one fault in each, for the quiz: which fault made these curves?"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from functools import partial

import torch

from grpo_lib import ChainTask, GRPOConfig, load_base_model
from grpo_lib.cli.runs import versions
from recordings.record import in_processes

SEEDS = range(3)
SETTINGS = {"steps": 25, "prompts_per_step": 16, "eval_every": 0}
FIELDS = ("step", "accuracy", "held_out_accuracy", "reward_mean", "length", "length_right",
          "length_wrong", "entropy", "kl", "clip_fraction_low", "clip_fraction_high",
          "zero_variance_groups", "ratio_max")


def faulty_run(fault: str, seed: int) -> dict:
    from grpo_lib.course.exercises.faulty import FaultyTrainer

    torch.set_num_threads(1)
    trainer = FaultyTrainer(fault, load_base_model("chain"), ChainTask(),
                            GRPOConfig(seed=seed, **SETTINGS))
    history = [asdict(metrics) for metrics in trainer.run()]
    print(f"{fault} seed {seed}: {history[-1]['accuracy']:.0%}", flush=True)
    return {"fault": fault, "seed": seed, **{
        name: [None if m[name] is None else round(m[name], 3) for m in history]
        for name in FIELDS}}


def measure() -> dict:
    from grpo_lib.course.exercises.faulty import FAULTS

    return {"runs": in_processes([partial(faulty_run, fault, seed)
                                  for fault in FAULTS for seed in SEEDS]),
            "settings": SETTINGS, "threads": 1, "versions": versions()}


def report(data: dict) -> str:
    lines = ["## Runs with a fault in them", "",
             f"{data['settings']['steps']} steps of {data['settings']['prompts_per_step']} x 16 "
             f"answers, {len(SEEDS)} seeds, worst to best; about two minutes.", "",
             "| fault | accuracy, last five steps | length | entropy | clipped, mean | KL |",
             "|---|---|---|---|---|---|"]
    for fault in dict.fromkeys(r["fault"] for r in data["runs"]):
        runs = [r for r in data["runs"] if r["fault"] == fault]
        ends = sorted(statistics.fmean(r["accuracy"][-5:]) for r in runs)
        clipped = statistics.fmean(low + high for r in runs for low, high in zip(
            r["clip_fraction_low"], r["clip_fraction_high"]))
        length, entropy, kl = (statistics.fmean(r[name][-1] for r in runs)
                               for name in ("length", "entropy", "kl"))
        lines.append(f"| {fault} | {' '.join(f'{e:.0%}' for e in ends)} | {length:.1f} "
                     f"| {entropy:.2f} | {clipped:.1%} | {kl:.2f} |")
    return "\n".join([*lines, ""])
