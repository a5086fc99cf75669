"""What an aggregation does to a policy that only decides when to stop: exactly, no sampling."""

from __future__ import annotations

from functools import lru_cache

from grpo_lib.course.explorers.base import Explorer, rounded
from grpo_lib.course.explorers.controls import slider, stops
from grpo_lib.course.plots import BLACK, FONT, RIGHT, WRONG, new_figure, panel
from grpo_lib.lab.length_bias import expected_push, follow_push
from grpo_lib.objective import PAPER_AGGREGATIONS

STYLES = dict(zip(PAPER_AGGREGATIONS, ("-", "--", ":")))
STEPS, RATE, LONGEST = 20, 2.0, 40


def length_bias_explorer(group_size: int = 8, stop: float = 0.15,
                         max_length: int = 20) -> Explorer:
    """Sliders for G, the chance to stop after a token, the longest completion, the share of
    right ones."""

    def draw(group_size: int, stop: float, max_length: int, share_right: float):
        settings = {"group_size": group_size, "max_length": max_length,
                    "share_right": share_right}
        figure, (left, right) = new_figure(2, width=11, height=4.6)
        said = []
        for x, name in enumerate(PAPER_AGGREGATIONS):
            pushes, course = push_and_course(name, stop, **settings)
            for side, (kind, color) in enumerate((("right", RIGHT), ("wrong", WRONG))):
                left.bar(x + 0.4 * side - 0.2, pushes[side], 0.38, color=color,
                         label=kind if x == 0 else None)
                right.plot(course[:, side], STYLES[name], color=color, linewidth=2.4)
            right.plot([], [], STYLES[name], color=BLACK, label=name)
            right_push, wrong_push = (rounded(push, 4, "+") for push in pushes)
            said.append(f"{name} {right_push} and {wrong_push}, wrong answers "
                        f"{course[0, 1]:.1f} to {course[-1, 1]:.1f} tokens")
        left.axhline(0, color=BLACK, linewidth=1)
        panel(left, "Push on the stop logit (up: shorter)", "", "expected gradient",
              ylim=(-0.13, 0.13), xticks=dict(enumerate(PAPER_AGGREGATIONS)),
              yticks=(-0.1, 0, 0.1), legend="below", ncols=2, fontsize=FONT - 2, borderaxespad=2.4)
        panel(right, "Mean length if it is followed", "step", "tokens", xlim=(0, STEPS),
              ylim=(0, max_length), xticks=(0, 10, STEPS), yticks=(0, max_length / 2, max_length),
              legend="below", ncols=3, fontsize=FONT - 2)
        text = (f"G = {group_size}, stops with chance {stop:.2f}, at most {max_length} tokens, "
                f"{share_right:.0%} right; push on right and wrong, and {STEPS} steps: "
                f"{'; '.join(said)}")
        return figure, text

    shown = {"group_size": sorted({2, 8, group_size}), "stop": sorted({0.05, 0.15, 0.3, 0.5, stop}),
             "max_length": sorted({5, 10, 20, LONGEST, max_length}),
             "share_right": (0.1, 0.3, 0.5, 0.7, 0.9)}
    return Explorer(draw, shown, group_size=stops("group size G", group_size, (2, 4, 8, 16)),
                    stop=slider("chance to stop", stop, 0.05, 0.5, 0.05),
                    max_length=slider("max length (tokens)", max_length, 5, LONGEST, 5),
                    share_right=slider("share of right answers", 0.5, 0.1, 0.9, 0.1))


@lru_cache(maxsize=1024)
def push_and_course(name: str, stop: float, **settings):
    """The expected push of an aggregation, and the mean lengths if it is followed."""
    return (expected_push(name, stop_right=stop, stop_wrong=stop, **settings),
            follow_push(name, STEPS, RATE, stop=stop, **settings))
