"""Record many runs of the chain task under different settings, for the lessons to show."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context

import torch

from grpo_lib import (
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    Task,
    ValueModel,
    evaluate,
    load_base_model,
)
from grpo_lib.cli.runs import versions

FIELDS = ("accuracy", "held_out_accuracy", "reward_mean", "length", "length_right",
          "length_wrong", "entropy", "kl", "clip_fraction_low", "clip_fraction_high",
          "zero_variance_groups", "grad_norm", "ratio_max")


def record_runs(settings: Mapping[str, Mapping], seeds: Sequence[int],
                fields: Sequence[str] = FIELDS, task: Task | None = None,
                after: Callable[[GRPOTrainer], dict] = lambda trainer: {}) -> dict:
    """A run from the shipped base model for each named setting and seed.

    {"runs": [{"name", "seed", "config", "seconds", "tokens", and a list for each field with
    a number a step}], "threads", "versions"}; ``after(trainer)`` adds to each run.
    """
    runs = []
    for name, changes in settings.items():
        for seed in seeds:
            start = time.perf_counter()
            config = GRPOConfig(**{"seed": seed, **changes})
            trainer = GRPOTrainer(load_base_model("chain"), task or ChainTask(), config)
            history = [asdict(metrics) for metrics in trainer.run()]
            curves = {field: [None if m[field] is None else round(m[field], 4)
                              for m in history] for field in fields}
            runs.append({"name": name, "seed": seed, "config": config.to_dict(), **curves,
                         "seconds": round(time.perf_counter() - start, 1),
                         "tokens": sum(m["tokens"] for m in history), **after(trainer)})
            print(f"{name} seed {seed}: accuracy {runs[-1]['accuracy'][-1:]}, "
                  f"{runs[-1]['seconds']} s", flush=True)
    return {"runs": runs, "threads": torch.get_num_threads(), "versions": versions()}


def run_to_budget(name: str, settings: Mapping, seed: int, budget: int,
                  task: Task | None = None, held_out: int = 1000) -> dict:
    """A run that stops after the step in which it has sampled ``budget`` tokens, whatever became
    of them: every algorithm then pays the same for its samples.

    Curves have a number a step; ``tokens`` is the running sum; clip fraction and silent groups
    are means over the steps, entropy is the last step's. Accuracy at the end is of one sample
    of each of ``held_out`` held-out problems. One thread.
    """
    torch.set_num_threads(1)
    start, task = time.perf_counter(), task or ChainTask()
    policy, config = load_base_model("chain"), GRPOConfig(**{"seed": seed, "eval_every": 0}
                                                          | dict(settings))
    trainer = GRPOTrainer(policy, task, config,
                          value_model=ValueModel(policy) if config.choices.critic else None)
    history, sampled = [], [0]
    while sampled[-1] < budget:
        history.append(trainer.step())
        sampled.append(sampled[-1] + history[-1].tokens)
    seconds = time.perf_counter() - start
    curves = {"accuracy": [round(m.accuracy, 3) for m in history],
              "length": [round(m.length, 1) for m in history]}
    means = {"clip_fraction": statistics.fmean(m.clip_fraction_low + m.clip_fraction_high
                                               for m in history),
             "zero_variance_groups": statistics.fmean(m.zero_variance_groups for m in history)}
    found = evaluate(policy, ChainTask(), ChainTask().held_out(held_out))
    print(f"{name} seed {seed}: held-out {found.accuracy:.1%}, {len(history)} steps, "
          f"{seconds:.0f} s", flush=True)
    return {"name": name, "seed": seed, "settings": dict(settings), "tokens": sampled[1:], **curves,
            **{name: round(value, 4) for name, value in means.items()},
            "entropy": round(history[-1].entropy, 3), "held_out_accuracy": round(found.accuracy, 4),
            "held_out_length": round(found.mean_length, 2), "seconds": round(seconds, 1)}


def in_processes(jobs: Sequence[Callable[[], dict]], processes: int = 2) -> list[dict]:
    """The results of jobs, in their order, from processes of one thread each; what a job gives
    does not depend on how many there are."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]
