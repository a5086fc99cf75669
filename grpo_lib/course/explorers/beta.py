"""Recorded runs under different weights of KL in the loss, beside the run without it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import stops
from grpo_lib.course.plots import BLUE, GREY, new_figure, panel, running_median

LAST = 10  # steps at the end of a run that a reading is the median of
PANELS = (("accuracy", "Right answers", "share", 1.03, (0, 0.5, 1)),
          ("kl", "KL to base (running median)", "nats a token", 0.62, (0, 0.3, 0.6)),
          ("length", "Completion length", "tokens", 18.0, (0, 8, 16)),
          ("entropy", "Entropy of the next token", "nats", 1.7, (0, 0.5, 1)))


def beta_explorer(record: Mapping, beta: float = 0.04, kl: str = "k3") -> Explorer:
    """A slider over the recorded values of beta, for runs with the estimator ``kl`` and
    without ratio correction; ``record`` as in ``recorded.load("kl")``."""
    by_beta: dict[float, list] = {}
    for run in record["runs"]:
        config = run["config"]
        if config["beta"] == 0 or (config["kl"] == kl and not config["use_bias_correction_kl"]):
            by_beta.setdefault(config["beta"], {})[run["seed"]] = run
    runs = {weight: list(by_beta[weight].values()) for weight in sorted(by_beta)}
    if 0 not in runs or beta not in runs:
        raise ValueError(f"record, beta: got runs for beta in {list(runs)} and beta={beta!r}; "
                         f"allowed is a record with 0 among them, and one of them")
    curves = {weight: {panel[0]: curves_of(some, panel[0]) for panel in PANELS}
              for weight, some in runs.items()}

    steps = len(curves[0]["kl"][0])

    def draw(beta: float):
        figure, axes = new_figure(2, 2, width=10.0, height=5.2)
        for axis, (field, title, unit, top, ticks) in zip(axes, PANELS):
            for weight, color, style in ((0, GREY, "--"), (beta, BLUE, "-")):
                seeds = zip(*curves[weight][field])  # a line a seed, in one call
                axis.plot(range(1, steps + 1), list(seeds), style, color=color, linewidth=1.5)
                axis.plot([], [], style, color=color, label=f"beta = {weight:g}")
            panel(axis, title, "step" if axis in axes[2:] else "", unit, xlim=(1, steps),
                  ylim=(0, top), xticks=(1, 15, 30), yticks=ticks,
                  legend="upper right" if axis is axes[-1] else None)
        return figure, describe(beta, runs[beta]) + "; " + describe(0, runs[0])

    return Explorer(draw, beta=stops("beta, weight of KL", beta, [(f"{b:g}", b) for b in runs]))


def curves_of(runs: Sequence[Mapping], field: str) -> list[list[float]]:
    """One curve a seed; KL as its running median, since single readings are spiky."""
    return [running_median(run[field]) if field == "kl" else run[field] for run in runs]


def describe(beta: float, runs: Sequence[Mapping]) -> str:
    """The end of the runs in words: held-out accuracy of each seed, medians of the rest."""
    ends = {field: statistics.median(statistics.median(run[field][-LAST:]) for run in runs)
            for field in ("kl", "length", "entropy")}
    held_out = ", ".join(f"{run['held_out_accuracy']:.1%}" for run in runs)
    return (f"beta = {beta:g}: held-out accuracy {held_out} (a seed each), KL {ends['kl']:.2f}, "
            f"length {ends['length']:.1f}, entropy {ends['entropy']:.2f}")
