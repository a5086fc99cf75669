"""Completions as rows of coloured tokens, as HTML whose numbers come on hover or focus."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import torch
from matplotlib.colors import to_hex, to_rgb

from grpo_lib.course.plots import BLUE, VERMILION, ink_on, token_grid
from grpo_lib.lab.xray import BLOCKED, DOWN, NOT_COUNTED, SILENT, STATES, UP, TokenUpdate, Xray

SIGNS = {NOT_COUNTED: "-", SILENT: "o", BLOCKED: "x", DOWN: "v", UP: "^"}
STOPPED, STILL, LEFT_OUT = "#4D4D4D", "#FFFFFF", "#DDDDDD"
EFFECT, RATIO = "what the update does", "ratio"
LEGEND = {"^ pushed up": BLUE, "v pushed down": VERMILION, "x blocked": STOPPED,
          "o silent": STILL, "- not counted": LEFT_OUT}
RATIO_LEGEND = {"ratio 2 and more": BLUE, "ratio 1": "#FFFFFF", "ratio 1/2 and less": VERMILION}
FEWEST = 0.25  # weakest tint of a push
COLUMNS, LINES = 22, 12  # of the saved picture, at most
STYLE = """<style>
.grpo-tokens { font-size: 16px; line-height: 1.3; }
.grpo-tokens table { border-collapse: collapse; }
.grpo-tokens td { padding: 3px 8px 3px 0; vertical-align: top; text-align: left; }
.grpo-tokens td.about { white-space: nowrap; }
.grpo-tokens .token { position: relative; display: inline-block; margin: 1px; padding: 1px 5px;
  border: 1px solid #555; border-radius: 3px; font-family: monospace; }
.grpo-tokens .token.differs { outline: 3px solid #009E73; outline-offset: 1px; }
.grpo-tokens .token:focus { box-shadow: 0 0 0 3px #CC79A7; }
.grpo-tokens .token:hover::after, .grpo-tokens .token:focus::after { content: attr(data-numbers);
  position: absolute; z-index: 9; top: 100%; left: 0; white-space: pre; background: #222;
  color: #fff; padding: 4px 8px; border-radius: 4px; font-size: 14px; pointer-events: none; }
.grpo-tokens .side { display: inline-block; vertical-align: top; max-width: 49%; }
.grpo-tokens .key { display: inline-block; margin-right: 14px; }
</style>"""


def rows_of(xray: Xray, prompt: int) -> range:
    """The rows of one group."""
    size = xray.rollouts.group_size
    return range(prompt * size, (prompt + 1) * size)


def tint(color: str, strength: float) -> str:
    """A colour mixed with white; strength from 0 to 1."""
    return to_hex([1 - strength * (1 - part) for part in to_rgb(color)])


def strongest_push(updates: Sequence[TokenUpdate], rows: Sequence[int],
                   lengths: Sequence[int]) -> float:
    """Of all these rows and updates: what gets the full colour."""
    return max((update.push[r, : lengths[r]].abs().max().item()
                for update in updates for r in rows), default=0)


def colors_of(update: TokenUpdate, rows: Sequence[int], lengths: Sequence[int], show: str,
              strongest: float) -> list[list[str]]:
    """A colour for every token; a push of ``strongest`` has the full colour."""

    def color(r: int, t: int) -> str:
        if show == RATIO:
            ratio = update.ratio[r, t].item()
            strength = min(1.0, abs(math.log2(ratio))) if ratio > 0 else 1.0
            return tint(BLUE if ratio > 1 else VERMILION, strength)
        state = int(update.state[r, t])
        if state in (UP, DOWN):
            share = abs(update.push[r, t].item()) / strongest if strongest else 0.0
            return tint(BLUE if state == UP else VERMILION, FEWEST + (1 - FEWEST) * min(1, share))
        return {BLOCKED: STOPPED, SILENT: STILL, NOT_COUNTED: LEFT_OUT}[state]

    return [[color(r, t) for t in range(lengths[r])] for r in rows]


def visible(word: str) -> str:
    """A token's text with its white space to be seen."""
    return "".join({"\n": "↵", "\t": "⇥", " ": "␣"}.get(c, c) for c in word)


def numbers_of(update: TokenUpdate, row: int, at: int) -> str:
    """A token's numbers, a line each."""
    state, kl = int(update.state[row, at]), update.kl_push[row, at] != 0
    lines = [STATES[state] + (", but for KL" if kl and state in (BLOCKED, SILENT) else ""),
             f"advantage {update.advantages[row, at]:+.3f}", f"ratio {update.ratio[row, at]:.3f}",
             f"push {update.push[row, at] + 0.0:+.2g}"]  # + 0.0: not -0
    if update.kl_push.any():
        lines.append(f"of it KL {update.kl_push[row, at] + 0.0:+.2g}")
    return "\n".join(lines)


def about_row(xray: Xray, update: TokenUpdate, row: int) -> str:
    """Reward and advantage of an answer; the first token's where tokens differ."""
    reward = xray.rewards.flatten()[row].item()
    if math.isnan(reward):
        return "the reward abstained"
    return f"reward {reward:.2g}, A {update.advantages[row, 0]:+.2f}"


def as_table(xray: Xray, update: TokenUpdate, prompt: int, show: str,
             differs: torch.Tensor | None = None, strongest: float | None = None) -> str:
    """A group as an HTML table; tokens where ``differs`` (B, T) is true are outlined.
    ``strongest``: the push of the full colour (None: the group's strongest)."""
    rows = rows_of(xray, prompt)
    lengths = [len(words) for words in xray.words]
    lines = []
    if strongest is None:
        strongest = strongest_push([update], rows, lengths)
    for r, colors in zip(rows, colors_of(update, rows, lengths, show, strongest)):
        cells = []
        for t, (word, color) in enumerate(zip(map(visible, xray.words[r]), colors)):
            numbers = html.escape(numbers_of(update, r, t), quote=True)
            mark = " differs" if differs is not None and differs[r, t] else ""
            cells.append(
                f'<span class="token{mark}" tabindex="0" role="img" style="background:{color};'
                f'color:{ink_on(color)}" data-numbers="{numbers.replace(chr(10), "&#10;")}" '
                f'aria-label="{html.escape(word, quote=True)}: {numbers}">{html.escape(word)} '
                f'<small>{SIGNS[int(update.state[r, t])]}</small></span>')
        lines.append(f'<tr><td class="about">{html.escape(about_row(xray, update, r))}</td>'
                     f'<td>{"".join(cells)}</td></tr>')
    return f"<table>{''.join(lines)}</table>"


def page(text: str, *parts: str) -> str:
    """The live view: what ``text`` says to a screen reader, and these parts of HTML."""
    return (f'{STYLE}<div class="grpo-tokens" role="group" aria-label="{html.escape(text)}">'
            f'{"".join(parts)}</div>')


def key(show: str) -> str:
    """The legend, as HTML."""
    legend = RATIO_LEGEND if show == RATIO else LEGEND
    return "<div>" + "".join(
        f'<span class="key"><span class="token" style="background:{color};color:{ink_on(color)}">'
        f'{html.escape(name)}</span></span>' for name, color in legend.items()) + "</div>"


def as_grid(xray: Xray, updates: Sequence[tuple[str, TokenUpdate]], prompt: int, show: str,
            title: str):
    """A group as a figure: for each answer a row for each of the (name, update); of a large
    group the first answers."""
    group, lengths = rows_of(xray, prompt), [len(words) for words in xray.words]
    rows = group[: LINES // len(updates)]
    if len(rows) < len(group):
        title += f"   first {len(rows)} of {len(group)} answers"
    words, colors, names = [], [], []
    strongest = strongest_push([update for _, update in updates], rows, lengths)
    painted = [colors_of(update, rows, lengths, show, strongest) for _, update in updates]
    for i, r in enumerate(rows):
        for (name, update), paint in zip(updates, painted):
            cells = [f"{word}\n{SIGNS[int(update.state[r, t])]} {update.ratio[r, t]:.2f}"
                     for t, word in enumerate(map(visible, xray.words[r]))]
            shades = list(paint[i])
            if len(cells) > COLUMNS:
                cells = [*cells[: COLUMNS - 1], f"+ {len(cells) - COLUMNS + 1}\nmore"]
                shades = [*shades[: COLUMNS - 1], "#FFFFFF"]
            words.append(cells)
            colors.append(shades)
            names.append(f"{name}{about_row(xray, update, r)}")
    longest = max((len(part) for row in words for cell in row for part in cell.split("\n")),
                  default=1)
    return token_grid(words, colors, names, title, RATIO_LEGEND if show == RATIO else LEGEND,
                      width=12.0, font=min(11, 1000 / (max(map(len, words)) * max(6, longest))))


def counts(update: TokenUpdate, mask: torch.Tensor) -> str:
    """How many tokens of ``mask`` (B, T) are in each state: "12 pushed up, ..."."""
    return ", ".join(f"{int(((update.state == state) & mask).sum())} {STATES[state]}"
                     for state in (UP, DOWN, BLOCKED, SILENT, NOT_COUNTED))
