"""What a cockpit shows while its run goes on: curves that cost a millisecond, and a live group.

Matplotlib draws the axes once, which takes two hundred milliseconds. At each step only the points
of the curves are written into that picture.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import ipywidgets
import torch
from torch import Tensor

from grpo_lib.algorithms import ALGORITHMS
from grpo_lib.config import GRPOConfig, measured
from grpo_lib.course.explorers import frames, tokens
from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import EPSILONS, choice, player, stops
from grpo_lib.course.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, panel, to_svg
from grpo_lib.course.recorded import by_field, load
from grpo_lib.course.replay import Move
from grpo_lib.lab.xray import Xray
from grpo_lib.rollout import completion_log_probs, up_to_last
from grpo_lib.training import GRPOTrainer

if TYPE_CHECKING:
    from grpo_lib.course.steering import SteeredRun

ROW, DEFAULT = "the row's", "default"  # a setting, or an algorithm, that nobody has chosen
STOPS = {  # setting: (its label, where its slider stops)
    "group_size": ("group size (answers)", (2, 4, 8, 16, 32, 64)),
    "epsilon": ("epsilon", EPSILONS),
    "epsilon_high": ("epsilon_high", (0.05, 0.1, 0.2, 0.28, 0.3, 0.5, 1.0, 4.0)),
    "beta": ("beta", (0.0, 0.001, 0.01, 0.04, 0.1, 0.3, 1.0)),
    "learning_rate": ("learning rate", (1e-5, 3e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)),
    "temperature": ("temperature", (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0))}
IN_VIEW = ("group_size", "epsilon", "learning_rate")  # the others are below "More"
OF_ROW = ("epsilon", "epsilon_high", "beta")  # may be what the algorithm's row says
BUTTONS = {
    "start": ("Start", "go on until the settings' last step"),
    "pause": ("Pause", "stop after the step that is being taken"),
    "step": ("One step", "take one step"),
    "back": ("Back", "back to the checkpoint that the slider names"),
    "reset": ("Reset", "a fresh run with the settings that it started with"),
    "keep": ("Keep behind", "draw this run behind the next one"),
    "export": ("Export", "settings, moves and log of this run")}
CURVES = {"accuracy": ("Right answers", BLUE, True),
          "length": ("Tokens of an answer", GREEN, False),
          "zero_variance_groups": ("Groups that teach nothing", ORANGE, True)}
ABOUT = "Curves of the run; the line above them has the newest numbers"
SIGNS = "^ blue: pushed up, v orange: pushed down, x grey: blocked"
ANSWERS = 8  # of the live group at most
SHORT = {"group_size": "G", "learning_rate": "rate", "temperature": "T"}


class Curves:
    """Three panels over ``steps`` steps, up to ``longest`` tokens; ``compare`` as a cockpit has it,
    drawn behind."""

    def __init__(self, steps: int, longest: float,
                 compare: tuple[str, Sequence[Mapping]] | None = None):
        self.made_for = (steps, longest, id(compare))
        figure, axes = new_figure(len(CURVES), width=12.6, height=2.9)
        for axis, (field, (name, _, percent)) in zip(axes, CURVES.items()):
            if compare:
                axis.plot([m["step"] for m in compare[1]], [m[field] for m in compare[1]], "--",
                          color=GREY, linewidth=1.6, label=compare[0])
            panel(axis, name, "step", xlim=(0, max(steps, 1)), percent=percent,
                  ylim=(0, 1.02 if percent else longest * 1.05),
                  legend="best" if compare and field == "accuracy" else None, fontsize=11)
        self.figure = figure
        self.svg = to_svg(figure, ABOUT)  # the axes stand where they will stay
        self.height = figure.get_figheight() * 72
        self.places = {field: (axis.transData.frozen(), 72 / figure.dpi)
                       for field, axis in zip(CURVES, axes)}

    def at(self, field: str, x: float, y: float) -> tuple[float, float]:
        """Where a point of a panel is in the picture."""
        transform, scale = self.places[field]
        across, up = transform.transform((x, y)) * scale
        return round(across, 1), round(self.height - up, 1)

    def with_run(self, history: Sequence[Mapping]) -> str:
        """The whole picture of a run that is over."""
        return self.svg.removesuffix("\n").removesuffix("</svg>") + self.drawn(history) + "</svg>"

    def over(self, history: Sequence[Mapping], moves: Sequence[Move]) -> str:
        """Only what changes, as a picture of the same size to lie over the axes: a page has a fifth
        of the work with it."""
        [size] = re.findall(r' width="[^"]*" height="[^"]*" viewBox="[^"]*"', self.svg)
        return (f'<svg aria-hidden="true" style="position:absolute;z-index:1;max-width:100%;'
                f'height:auto;pointer-events:none"{size}>{self.drawn(history, moves)}</svg>')

    def drawn(self, history: Sequence[Mapping], moves: Sequence[Move] = ()) -> str:
        """A run's curves, and a line where something was moved."""
        drawn = []
        top = self.at("accuracy", 0, 1.02)[1]
        for field, (_, color, _) in CURVES.items():
            bottom = self.at(field, 0, 0)[1]
            for step in sorted({move.step for move in moves}):
                x = self.at(field, step - 0.5, 0)[0]
                drawn.append(f'<path d="M{x} {bottom}V{top}" stroke="{PURPLE}" stroke-width="1.6" '
                             f'stroke-dasharray="2 3"/>')
            points = [self.at(field, m["step"], m[field]) for m in history
                      if m[field] is not None and m[field] == m[field]]
            if points:
                line = " ".join(f"{x},{y}" for x, y in points)
                x, y = points[-1]
                drawn.append(f'<polyline points="{line}" fill="none" stroke="{color}" '
                             f'stroke-width="2.8"/><circle cx="{x}" cy="{y}" r="4.5" '
                             f'fill="{color}"/>')
        return "".join(drawn + self.labels(moves))

    def labels(self, moves: Sequence[Move]) -> list[str]:
        """What was moved, beside its line in the first panel, one below the other."""
        found = []
        for number, move in enumerate(moves):
            x, y = self.at("accuracy", move.step - 0.5, 1.02)
            found.append(f'<text x="{x + 4}" y="{y + 12 + 13 * (number % 5)}" font-size="11" '
                         f'fill="{PURPLE}">{html.escape(SHORT.get(move.field, move.field))} → '
                         f'{html.escape(shown(move.value))}</text>')
        return found


def curves_for(run: SteeredRun, history: Sequence[Mapping], compare, old: Curves | None) -> Curves:
    """The axes for a run as it is now: the old ones, if they still fit."""
    longest = max([run.trainer.task.max_new_tokens, *(m["length"] for m in history)])
    made_for = (run.wanted.steps, longest, id(compare))
    return old if old and old.made_for == made_for else Curves(run.wanted.steps, longest, compare)


@functools.cache
def recorded_runs() -> dict:
    """What a page without a kernel has in a cockpit's place: three recorded runs to play."""
    runs, steps = by_field(load("entropy")["runs"], "name"), 25
    curves, shown_as = Curves(steps, 20.0), {
        "default settings": "default", "learning rate 3e-3, six times as large": "rate 3e-3",
        "no baseline, temperature 0.3": "no baseline, temperature 0.3"}

    def draw(run: str, step: int):
        numbers = runs[shown_as[run]][0]
        history = [{"step": i + 1, **{field: numbers[field][i] for field in CURVES}}
                   for i in range(step)]
        text = f"a recorded run, {run}: step {step} of {steps}"
        if history:
            text += (f", right {history[-1]['accuracy']:.0%}, length {history[-1]['length']:.1f}, "
                     f"silent groups {history[-1]['zero_variance_groups']:.0%}")
        return curves.figure, f"{text}. In the notebook you steer it.", curves.with_run(history)

    return frames.metadata_of(Explorer(draw, run=choice("run", next(iter(shown_as)), [*shown_as]),
                                       step=player("step", steps, steps)))


def live_group(trainer: GRPOTrainer) -> str:
    """The X-ray of a group of the last step (one that teaches, if there is one): what the policy
    after the step would learn if it were trained on this group once more."""
    rollouts, advantages = trainer.rollouts, trainer.advantages
    if rollouts is None or advantages is None or not hasattr(trainer.task.tokenizer, "words"):
        return ""
    size, each = rollouts.group_size, advantages.detach().reshape(len(rollouts.mask), -1)
    teaches = (each != 0).any(1).view(-1, size).any(1)
    number = int(teaches.long().argmax())
    xray = xray_of(trainer, torch.arange(number * size, number * size + min(size, ANSWERS)))
    [when] = xray.log_probs
    rest = f" (the first {ANSWERS} of {size})" if size > ANSWERS else ""
    text = (f"A group of this step{rest}, which {'teaches' if teaches.any() else 'teaches nothing'}"
            f": {xray.prompts[0]}")
    table = tokens.as_table(xray, xray.update(when), 0, tokens.EFFECT)
    return tokens.page(text, f'<div style="font-size:14px"><b>{html.escape(text)}</b> &nbsp; '
                             f'<small>{SIGNS}</small>{table}</div>')


@torch.no_grad()
def xray_of(trainer: GRPOTrainer, rows: Tensor) -> Xray:
    """The X-ray of some rows of one group, after the last step; far less work than the batch.
    It keeps the advantages of the step: a part of a group would give different ones. The entropy
    terms of the loss are left out."""
    rollouts, words, each = trainer.rollouts, trainer.task.tokenizer.words, trainer.advantages
    some = replace(rollouts.select(rows), group_size=len(rows))
    row = replace(trainer.algorithm, entropy_coef=0.0, top_entropy_quantile=1.0)
    each = (each.flatten()[rows] if each.numel() == len(rollouts.mask)
            else each[rows, : some.mask.shape[1]])
    ref = completion_log_probs(trainer.ref_policy, some) if row.beta else None
    lengths = up_to_last(some.mask).sum(1).tolist()
    return Xray(some, trainer.rewards.flatten()[rows][None],
                [[words[i] for i in line[:length]] for line, length in zip(
                    some.completions.tolist(), lengths)],
                [trainer.problems[int(rows[0]) // rollouts.group_size].prompt],
                {"after the step": completion_log_probs(trainer.policy, some)}, ref,
                trainer.task.max_new_tokens, row, each)


def described(run: SteeredRun) -> str:
    """State, newest numbers, moves and what will change at the next step."""
    history, now = run.history, run.trainer.config
    state = "pausing after this step" if run.pausing else run.state
    text = f"{state}, step {len(history)} of {run.wanted.steps}"
    if history:
        last = history[-1]
        text += (f": reward {measured(last.reward_mean, '.2f')}, right {last.accuracy:.0%}, "
                 f"length {last.length:.1f}, entropy {measured(last.entropy, '.2f')}, KL "
                 f"{measured(last.kl, '.3f')}, clipped "
                 f"{last.clip_fraction_low + last.clip_fraction_high:.1%}, silent groups "
                 f"{last.zero_variance_groups:.0%}")
    if run.moves:
        text += "\nmoved: " + "; ".join(
            f"{m.field} {shown(m.value)} from step {m.step}" for m in run.moves)
    waiting = [f"{name} {shown(getattr(run.wanted, name))}" for name in asdict(now)
               if getattr(run.wanted, name) != getattr(now, name)]
    if waiting:
        text += f"\nfrom the next step on: {', '.join(waiting)}"
    return text


def close_all(widget: ipywidgets.Widget) -> None:
    """Close a widget and all that belongs to it."""
    for part in (*getattr(widget, "children", ()), getattr(widget, "layout", None),
                 getattr(widget, "style", None)):
        if isinstance(part, ipywidgets.Widget):
            close_all(part)
    widget.close()


def shown(value) -> str:
    return ROW if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def controls_of(config: GRPOConfig) -> dict[str, ipywidgets.Widget]:
    """A slider for each setting that a cockpit offers, standing where the config has it."""
    made = {}
    for name, (label, values) in STOPS.items():
        value = getattr(config, name)
        options = [(f"{v:g}", v) for v in sorted({*values, value} - {None})]
        made[name] = stops(label, ROW if value is None else value,
                           [of_row(config, name), *options] if name in OF_ROW else options)
        if name in IN_VIEW:  # three in a row, on a laptop too
            wide = "305px" if name == "epsilon" else "280px"  # it says "0.2, the row's"
            made[name].layout.width, made[name].style.description_width = wide, "auto"
            made[name].layout.margin = "2px 16px 2px 2px"
    rows = [name for name, row in ALGORITHMS.items() if row.critic == config.choices.critic]
    return made | {"algorithm": choice("algorithm", config.algorithm or DEFAULT,
                                       [DEFAULT, *rows])}


def of_row(config: GRPOConfig, name: str) -> tuple[str, str]:
    """The stop of a slider that stands for what the algorithm's row says: that number, named."""
    value = getattr(replace(config, **{name: None}).choices, name)
    return ("as epsilon" if value is None else f"{value:g}, {ROW}"), ROW
