"""An algorithm's gradient as an estimate of the true one, over group sizes: bias and noise,
exactly, by listing every group that could be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from torch import Tensor

from grpo_lib.algorithms import Algorithm
from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, stops
from grpo_lib.course.plots import BLACK, BLUE, GREY, new_figure, panel
from grpo_lib.lab.exact import Estimator, estimator, mean_of_prompts, score_matrix
from grpo_lib.policy import Policy
from grpo_lib.rollout import Rollouts
from grpo_lib.support.checks import check_choice

SIZES = (2, 3, 4, 6)
OWN, NONE = "its own", "none"
EPSILONS = (OWN, 0.05, 0.1, 0.2, 0.4, NONE)
BUDGET = 48  # completions a step, whatever the group size


def gradient_lab_explorer(policies: Sequence[Policy],
                          prompts: Sequence[tuple[Rollouts, Tensor]],
                          algorithms: Mapping[str, Algorithm], algorithm: str = "grpo",
                          group_size: int = 4, reference: str = "rloo") -> Explorer:
    """A menu of ``algorithms``, and sliders for G, for how stale the rollouts are and for the
    clip.

    ``policies``: one policy at successive steps of a run, the newest last; stale rollouts are
    drawn from an earlier one. ``prompts``: all completions of each, with rewards (M,). The
    batch holds a group of each prompt, and 48 completions a step are 48 / G groups.
    """
    check_choice("algorithm", algorithm, algorithms)
    check_choice("reference", reference, algorithms)
    newest = policies[-1]
    scores = [score_matrix(newest, completions) for completions, _ in prompts]

    @cache
    def of(name: str, size: int, stale: int, epsilon: float | str) -> Estimator:
        row = with_epsilon(algorithms[name], epsilon)
        return mean_of_prompts([estimator(
            newest, completions, rewards, row, size, old_policy=policies[-1 - stale],
            scores=score) for (completions, rewards), score in zip(prompts, scores)])

    def draw(algorithm: str, group_size: int, stale: int, epsilon: float | str):
        curves = {name: [of(name, size, stale, epsilon) for size in SIZES]
                  for name in dict.fromkeys((reference, algorithm))}
        chosen = curves[algorithm][SIZES.index(group_size)]
        text = (f"{algorithm}, G = {group_size}, {stale} updates old, clip {epsilon}: bias "
                f"{percent(chosen.bias)}, {chosen.scale:.2f} times the true gradient, noise "
                f"{step_noise(chosen, group_size):.2f}")
        return two_panels(curves, group_size, algorithm), text

    shown = {"group_size": sorted({2, 4, group_size}), "epsilon": (OWN, 0.05, 0.2, NONE),
             "stale": sorted({0, len(policies) // 2, len(policies) - 1})}
    return Explorer(draw, shown, algorithm=choice("algorithm", algorithm, list(algorithms)),
                    group_size=stops("group size G", group_size, SIZES),
                    stale=stops("rollouts are old (updates)", 0, range(len(policies))),
                    epsilon=stops("epsilon, both sides", OWN, EPSILONS))


def with_epsilon(row: Algorithm, epsilon: float | str) -> Algorithm:
    """The row with another clip, the same on both sides; "none" leaves every ratio free."""
    if epsilon == OWN:
        return row
    if epsilon == NONE:
        return replace(row, epsilon=1.0, epsilon_high=math.inf)
    return replace(row, epsilon=epsilon, epsilon_high=epsilon)


def step_noise(result: Estimator, group_size: int) -> float:
    """Noise of the mean over BUDGET / G groups."""
    return result.noise * math.sqrt(group_size / BUDGET)


def percent(share: float) -> str:
    """A share in percent; what is 0 up to rounding as 0."""
    return "0.0%" if share < 5e-4 else f"{share:.1%}"


def two_panels(curves: Mapping[str, Sequence[Estimator]], chosen: int, algorithm: str):
    """Bias over G on the left, a step's noise over G on the right; the chosen G is dotted."""
    figure, (left, right) = new_figure(2, width=9.8, height=4.0)
    places = range(len(SIZES))
    for name, results in curves.items():
        look = {"color": BLUE, "linewidth": 2.8, "marker": "o"} if name == algorithm else {
            "color": GREY, "linewidth": 1.8, "linestyle": "--", "marker": "s"}
        left.plot(places, [r.bias for r in results], label=name, clip_on=False, **look)
        right.plot(places, [step_noise(r, size) for r, size in zip(results, SIZES)], label=name,
                   **look)
    top = max(step_noise(r, size) for results in curves.values()
              for r, size in zip(results, SIZES))
    for axis in (left, right):
        axis.axvline(SIZES.index(chosen), color=BLACK, linestyle=":", linewidth=1.6)
    x = {"xlim": (-0.3, len(SIZES) - 0.7), "xticks": dict(zip(places, map(str, SIZES)))}
    panel(left, "Bias: share that points elsewhere", "group size G", "of the mean's length",
          ylim=(0, 1.4), yticks={0: "0%", 0.5: "50%", 1: "100%"}, legend="upper left", **x)
    panel(right, f"Noise of a step of {BUDGET} completions", "group size G",
          "times the mean's length",
          ylim=(0, next((t for t in (2, 4, 8, 16, 64) if top < 0.9 * t), 1.1 * top)), **x)
    return figure
