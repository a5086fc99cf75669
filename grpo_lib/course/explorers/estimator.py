"""Three estimates of pass@k from n samples of one problem: their mean and their spread."""

from __future__ import annotations

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import slider, stops
from grpo_lib.course.plots import BLACK, BLUE, ORANGE, VERMILION, new_figure, panel
from grpo_lib.evaluation import pass_at_k
from grpo_lib.lab.statistics import estimate_moments, independent_guesses, plug_in_pass_at_k

NAMES = ("first k", "unbiased", "plug-in")


def estimator_explorer(p: float = 0.12, samples: int = 16, k: int = 8) -> Explorer:
    """Sliders for a problem's true share of right answers p, the samples n, and k."""

    def draw(p: float, samples: int, k: int):
        truth = independent_guesses(p, k)
        moments = (estimate_moments(pass_at_k, p, k, k),  # any right among the first k
                   estimate_moments(pass_at_k, p, samples, k),
                   estimate_moments(plug_in_pass_at_k, p, samples, k))
        figure, axis = new_figure(width=7.6, height=3.2)
        axis.axvline(truth, color=BLACK, linestyle="--", linewidth=1.6)
        for row, ((mean, spread), color, sign) in enumerate(
                zip(moments, (ORANGE, BLUE, VERMILION), "os^")):
            axis.errorbar(mean, row, xerr=spread, color=color, linewidth=2.4, capsize=6)
            axis.plot([mean], [row], sign, color=color, markersize=9, clip_on=False, zorder=3)
        panel(axis, f"pass@{k} from {samples} samples; dashed: the truth, {truth:.1%}",
              "mean of the estimate, one standard deviation within 0 to 100%", xlim=(0, 1),
              ylim=(2.6, -0.6), yticks=dict(enumerate(NAMES)), percent="x")
        said = ", ".join(f"{name} {mean:.1%} +- {spread:.1%}"
                         for name, (mean, spread) in zip(NAMES, moments))
        return figure, f"p = {p:.2f}, n = {samples}, k = {k}: truth {truth:.1%}; {said}"

    shown = {"p": sorted({0.02, 0.06, *(i / 10 for i in range(11)), p})}
    return Explorer(draw, shown, p=slider("true share right p", p, 0.0, 1.0, 0.02),
                    samples=stops("samples n", samples, (8, 16, 32, 64)),
                    k=stops("k", k, (1, 2, 4, 8)))
