"""The estimators of KL, as values and as gradients, on one next token of a real run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_lib.course.explorers.base import Explorer, rounded
from grpo_lib.course.explorers.controls import choice, stops
from grpo_lib.course.plots import BLACK, BLUE, GREEN, PURPLE, VERMILION, new_figure, panel
from grpo_lib.lab import exact
from grpo_lib.objective import kl_estimate
from grpo_lib.support.checks import check_choice

ESTIMATORS = {"k1": ("k1", False), "k2": ("k2", False), "k3": ("k3", False), "r k3": ("k3", True)}
LOOKS = {"k1": (BLUE, ":"), "k2": (GREEN, "--"), "k3": (VERMILION, "-"), "r k3": (PURPLE, "-.")}
REACH, VALUES, SLOPES = (-3.0, 5.0), (-4.0, 12.0), (-12.0, 4.0)  # the panels' edges
TITLES = "What one token reads, step {step}", "What it does to log pi of that token"
UNITS = "estimate (nats)", "slope of the estimate"
SEEN = 1e-3  # tokens rarer than this, under both policies, get no dot


def kl_explorer(logits: Tensor, ref_logits: Tensor, steps: Sequence[int] | None = None,
                estimator: str = "k3") -> Explorer:
    """A slider for how far the policy has moved, and a menu of estimators.

    logits (S, V) of one next token after S numbers of training ``steps`` (None: 0 to S - 1);
    ref_logits (V,) of the reference. "r k3" is k3 times the ratio, use_bias_correction_kl.
    """
    if logits.dim() != 2 or ref_logits.shape != logits.shape[1:]:
        raise ValueError(f"logits, ref_logits: got shapes {tuple(logits.shape)}, "
                         f"{tuple(ref_logits.shape)}; allowed are (S, V) and (V,)")
    steps = list(range(len(logits)) if steps is None else steps)
    if len(steps) != len(logits):
        raise ValueError(f"steps: got {len(steps)}, allowed is one for each of the {len(logits)} "
                         f"rows of logits")
    check_choice("estimator", estimator, ESTIMATORS)
    logits, ref_logits = logits.detach().double().cpu(), ref_logits.detach().double().cpu()
    ref = ref_logits.log_softmax(-1)
    x = torch.linspace(*REACH, 81, dtype=torch.float64)
    curves = {name: (kl_estimate(-x, torch.zeros_like(x), kl),
                     exact.kl_estimator_slope(-x, torch.zeros_like(x), kl, corrected))
              for name, (kl, corrected) in ESTIMATORS.items()}

    def draw(step: int, estimator: str):
        now, (kl, corrected) = logits[steps.index(step)], ESTIMATORS[estimator]
        log_probs = now.log_softmax(-1)
        true = exact.kl_divergence(log_probs, ref)
        away = exact.kl_divergence_gradient(now, ref_logits)
        value = exact.kl_estimator_moments(now, ref_logits, kl)
        gradient = exact.kl_estimator_gradient(now, ref_logits, kl, corrected)
        seen = torch.maximum(log_probs, ref).exp() > SEEN
        dots = ((ref - log_probs)[seen], log_probs[seen],
                kl_estimate(log_probs, ref, kl)[seen],
                exact.kl_estimator_slope(log_probs, ref, kl, corrected)[seen])
        distance, mean = (rounded(x.item(), 3) for x in (true, value.mean))
        text = (f"step {step}, {estimator}: KL(pi || ref) is {distance} nats; one token reads "
                f"{mean} on average, std {value.std:.3f}. Gradient: KL's has length "
                f"{away.norm():.3f}; the expected one lies {(gradient.mean - away).norm():.3f} "
                f"from it, one token's {gradient.std:.3f} (rms) from the expected one")
        return figure_of(x, curves, dots, estimator, step), text

    return Explorer(draw, step=stops("training step", steps[-1], steps),
                    estimator=choice("estimator", estimator, list(ESTIMATORS)))


def figure_of(x: Tensor, curves: dict, dots: tuple, chosen: str, step: int):
    """Two panels: the chosen estimator's curve, the others thin, and the tokens as circles (as
    triangles at the edge, if they lie beyond it), the larger the likelier under pi."""
    figure, (left, right) = new_figure(2, width=10.6, height=4.3)
    d, log_probs, *heights = dots
    for which, axis, limits, height in zip((0, 1), (left, right), (VALUES, SLOPES), heights):
        for name, (color, style) in LOOKS.items():
            if name == "r k3" and which == 0 and chosen != name:
                continue  # at r = 1 its value is k3's
            axis.plot(x, curves[name][which], style, color=color, label=name,
                      linewidth=3.2 if name == chosen else 1.3,
                      alpha=1.0 if name == chosen else 0.7)
        x_in, y_in = d.clamp(*REACH), height.clamp(*limits)
        beyond = (x_in != d) | (y_in != height)
        for some, marker in ((~beyond, "o"), (beyond, "v" if which else "^")):
            if some.any():
                axis.scatter(x_in[some], y_in[some], s=30 + 330 * log_probs[some].exp(),
                             marker=marker, facecolors="none", edgecolors=BLACK, linewidths=1.6,
                             zorder=3, clip_on=False)
        panel(axis, TITLES[which].format(step=step), "d = log pi_ref - log pi", UNITS[which],
              xlim=REACH, ylim=limits, xticks=(-2, 0, 2, 4),
              yticks=range(int(limits[0]), int(limits[1]) + 1, 4),
              legend="lower left" if which else None)
    return figure
