"""Recorded runs with one fault in them, beside a healthy one."""

from __future__ import annotations

from collections.abc import Mapping

from grpo_lib.course.exercises.curves import steps_of
from grpo_lib.course.exercises.faulty import FAULTS
from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, stops
from grpo_lib.course.plots import training_curves
from grpo_lib.support.checks import check_choice

PANELS = ("accuracy", "length", "entropy", "clip")


def broken_runs_explorer(record: Mapping, fault: str = "sign") -> Explorer:
    """Menus for the fault and the seed of ``grpo_lib.course.recorded.load("broken")``."""
    runs = {(run["fault"], run["seed"]): steps_of(run) for run in record["runs"]}
    faults = [name for name in FAULTS if any(name == key[0] for key in runs)]
    check_choice("fault", fault, faults)

    def draw(fault: str, seed: int):
        history, healthy = runs[fault, seed], runs["none", seed]
        last = history[-1]
        clipped = sum(m["clip_fraction_low"] + m["clip_fraction_high"]
                      for m in history) / len(history)
        text = (f"{fault}, seed {seed}: {FAULTS[fault].says}; at the end {last['accuracy']:.0%} "
                f"right, {last['length']:.1f} tokens, entropy {last['entropy']:.2f}, blocked "
                f"{clipped:.1%}, KL {last['kl']:.2f}")
        return training_curves(history, PANELS, compare=("without a fault", healthy)), text

    return Explorer(draw, fault=choice("fault", fault, faults),
                    seed=stops("seed", 0, sorted({seed for _, seed in runs})))
