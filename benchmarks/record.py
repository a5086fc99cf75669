"""Record many runs of the chain task under different settings, for the lessons to show."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch

from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, Task, load_base_model
from grpo_lib.runs import versions

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
