"""The tokens of a group of answers, coloured by what the update does to each."""

from __future__ import annotations

import html

from grpo_lib.course.explorers import tokens
from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, slider
from grpo_lib.lab.xray import Xray
from grpo_lib.training import GRPOTrainer


def token_xray_explorer(source: Xray | GRPOTrainer, prompt: int = 1) -> Explorer:
    """Sliders for the prompt, the time (before or after the step) and the colours.

    ``source``: an ``Xray``, of whatever model, or a trainer, whose last step is then shown. A
    token's numbers come when the mouse is over it, or by the Tab key.
    """
    xray = source if isinstance(source, Xray) else Xray.of(source)
    groups = len(xray.prompts)

    def draw(prompt: int, when: str, show: str):
        update, rows = xray.update(when), tokens.rows_of(xray, prompt - 1)
        asked = xray.prompts[prompt - 1]
        shown = xray.rollouts.mask.cpu() > 0
        others = [r for r in range(len(shown)) if r not in rows]
        of_group = shown.clone()
        of_group[others] = False
        rewards = xray.rewards[prompt - 1]
        rewards = rewards[~rewards.isnan()]  # of the others the reward abstained
        best = rewards.max() if len(rewards) else float("nan")
        text = (f"prompt {prompt} of {groups} ({asked}): "
                f"{int((rewards == best).sum())} of {len(rows)} answers with the "
                f"highest reward, {best:.2g}\n{when}, {int(of_group.sum())} tokens: "
                f"{tokens.counts(update, of_group)}\nwhole batch, {int(shown.sum())} tokens: "
                f"{tokens.counts(update, shown)}")
        figure = tokens.as_grid(xray, [("", update)], prompt - 1, show, f"{asked}   ({when})")
        view = tokens.page(text, f"<p><b>{html.escape(asked)}</b> ({html.escape(when)})</p>",
                           tokens.as_table(xray, update, prompt - 1, show), tokens.key(show))
        return figure, text, view

    times = list(xray.log_probs)
    shown = {"prompt": sorted({*range(1, min(groups, 4) + 1), prompt})}
    return Explorer(draw, shown, prompt=slider("prompt", prompt, 1, groups, 1),
                    when=choice("when", times[0], times),
                    show=choice("colour", tokens.EFFECT, [tokens.EFFECT, tokens.RATIO]))
