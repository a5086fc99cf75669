"""A whole run to be played: curves, fresh answers to held-out problems, and one group's tokens."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import ipywidgets

from grpo_lib.course.explorers import tokens
from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import player
from grpo_lib.course.plots import BLUE, GREEN, GREY, VERMILION, ink_on, new_figure, panel, to_svg
from grpo_lib.course.recorded import check_record
from grpo_lib.lab.xray import DOWN, UP

CURVES = {"held_out_accuracy": ("Right answers, held-out problems", BLUE, 1.0, True),
          "length": ("Tokens of an answer", GREEN, 20.0, False)}
STYLE = """<style>
.grpo-run { font-size: 15px; line-height: 1.35; }
.grpo-run .row { display: flex; flex-wrap: wrap; gap: 10px 18px; margin-bottom: 10px; }
.grpo-run .row > * { flex: 1 1 280px; min-width: 0; }
.grpo-run .tile { flex: 1 1 110px; padding: 6px 12px; border-radius: 8px;
  background: rgba(128,128,128,.13); }
.grpo-run .tile b { display: block; font-size: 26px; font-variant-numeric: tabular-nums; }
.grpo-run .asked { font-weight: 600; }
.grpo-run .said { font-family: monospace; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.grpo-run .right { color: #00795a; } .grpo-run .wrong { color: #c04f00; }
[data-jp-theme-light="false"] .grpo-run .right { color: #4fd1a5; }
[data-jp-theme-light="false"] .grpo-run .wrong { color: #ff9d5c; }
.grpo-run svg { width: 100%; height: auto; }
</style>"""


def run_explorer(record: Mapping, step: int | None = None) -> Explorer:
    """A slider, with a button that plays it, over the steps of a recorded run.

    ``record`` is ``grpo_lib.course.recorded.load("player")``; ``step`` is where it stands first
    (None: at the end). The answers are new at each step and to held-out problems; the group is one
    of the batch that the step has learned from.
    """
    check_record(record, ("steps", "problems"), "player")
    steps = record["steps"]

    def draw(step: int):
        now = steps[step]
        right = [sum(ok for _, ok in said) for said in now["answers"]]
        text = f"step {step} of {len(steps) - 1}: "
        if step:
            text += (f"{now['held_out_accuracy']:.0%} of held-out problems right, "
                     f"{now['length']:.1f} tokens an answer, "
                     f"{1 - now['zero_variance_groups']:.0%} of groups teach; ")
        text += (f"of {len(now['answers'][0])} fresh answers to each of the problems shown "
                 f"{', '.join(map(str, right))} are right")
        figure, axes = new_figure(2, width=11.0, height=3.1)
        for axis, field in zip(axes, CURVES):
            curve(axis, steps, step, field)
        return figure, text, page(record, step, text)

    control = player("step", len(steps) - 1 if step is None else step, len(steps) - 1)
    explorer = Explorer(draw, step=control)
    play = ipywidgets.Play(min=0, max=len(steps) - 1, value=control.value, interval=400,
                           show_repeat=False)
    ipywidgets.jslink((play, "value"), (control, "value"))
    explorer.panel.children = (play, control)
    return explorer


def curve(axis, steps: Sequence[Mapping], now: int, field: str) -> None:
    """A number over the steps so far; what is to come is not shown."""
    name, color, top, percent = CURVES[field]
    seen = [step for step in steps[1 : now + 1] if step[field] is not None]
    axis.plot([s["step"] for s in seen], [s[field] for s in seen], color=color, linewidth=2.8)
    if seen:
        axis.plot([seen[-1]["step"]], [seen[-1][field]], "o", color=color, markersize=9,
                  clip_on=False)
    axis.axvline(now, color=GREY, linewidth=1)
    panel(axis, name, "step", xlim=(0, len(steps) - 1), ylim=(0, top), percent=percent,
          xticks=range(0, len(steps), 10))


def page(record: Mapping, step: int, text: str) -> str:
    """The live view: tiles, curves, answers, tokens."""
    steps, now = record["steps"], record["steps"][step]
    sampled = sum(s["tokens"] for s in steps[1 : step + 1])
    tiles = [(f"{step}", f"step of {len(steps) - 1}")]
    if step:
        tiles += [(f"{now['held_out_accuracy']:.0%}", "right, held-out"),
                  (f"{now['length']:.1f}", "tokens an answer"),
                  (f"{1 - now['zero_variance_groups']:.0%}", "of groups teach")]
    else:
        tiles += [("", "before the first step")]
    tiles.append((f"{sampled:,.0f}", "tokens sampled"))
    parts = [f'<div class="tile"><b>{number or "–"}</b>{name}</div>' for number, name in tiles]
    drawn = []
    for field in CURVES:
        figure, axis = new_figure(width=5.6, height=2.7)
        curve(axis, steps, step, field)
        drawn.append(f'<div>{to_svg(figure, "")}</div>')
    asked = []
    for problem, said in zip(record["problems"], now["answers"]):
        lines = "".join(
            f'<div class="said {"right" if ok else "wrong"}">{"✓" if ok else "✗"} '
            f'{html.escape(answer) or "(nothing)"}</div>' for answer, ok in said)
        asked.append(f'<div><div class="asked">{html.escape(problem["asked"])} = '
                     f'{html.escape(problem["answer"])}</div>{lines}</div>')
    below = group(now["group"]) if step else ""
    return (f'{tokens.STYLE}{STYLE}<div class="grpo-run grpo-tokens" role="group" '
            f'aria-label="{html.escape(text)}"><div class="row">{"".join(parts)}</div>'
            f'<div class="row">{"".join(drawn)}</div><div class="row">{"".join(asked)}</div>'
            f'{below}</div>')


def group(seen: Mapping) -> str:
    """A group of the batch: blue tokens become likelier by the update, orange ones less likely."""
    lines = []
    for row in seen["rows"]:
        cells = []
        for word, state, push in zip(row["tokens"], row["state"], row["push"]):
            color = tokens.tint(BLUE if state == UP else VERMILION,
                                tokens.FEWEST + (1 - tokens.FEWEST) * push
                                ) if state in (UP, DOWN) else tokens.STILL
            cells.append(f'<span class="token" style="background:{color};color:{ink_on(color)}">'
                         f'{html.escape(tokens.visible(word))} <small>{tokens.SIGNS[state]}</small>'
                         f'</span>')
        lines.append(f'<tr><td class="about">reward {row["reward"]:g}, A {row["advantage"]:+.2f}'
                     f'</td><td>{"".join(cells)}</td></tr>')
    return (f'<div class="asked">A group that this step learned from: '
            f'{html.escape(seen["asked"])}</div><table>{"".join(lines)}</table>'
            f'<div><small>^ blue: pushed up, v orange: pushed down</small></div>')
