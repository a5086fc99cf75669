"""The same answers under two algorithms, or two epsilons, side by side."""

from __future__ import annotations

import html
from dataclasses import replace

import torch

from grpo_lib.algorithms import ALGORITHMS, Algorithm
from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, slider, stops
from grpo_lib.course.explorers.tokens import (
    EFFECT,
    as_grid,
    as_table,
    counts,
    key,
    page,
    rows_of,
    strongest_push,
)
from grpo_lib.lab.xray import TokenUpdate, Xray, agreement
from grpo_lib.training import GRPOTrainer

OWN, ROW = "this run's", "the row's"
SMALL = 0.1  # a push that differs by less of itself counts as the same
EPSILONS = (0.0003, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9)


def what_if_explorer(source: Xray | GRPOTrainer, prompt: int = 1) -> Explorer:
    """Sliders for two algorithms and two epsilons, the prompt and the time.

    Nothing is sampled: both see the completions and rewards of ``source`` (an ``Xray``, or a
    trainer after a step), and make their own advantages, ratios and loss of them. Tokens in
    another state, or with a push that differs by more than a tenth, are outlined; both sides have
    one scale of colours. An epsilon that is chosen holds for both signs of the advantage. Rows of
    ``ALGORITHMS`` with a critic are left out.
    """
    xray = source if isinstance(source, Xray) else Xray.of(source)
    groups, times = len(xray.prompts), list(xray.log_probs)
    names = [OWN, *(name for name, row in ALGORITHMS.items()
                    if not row.critic and not row.needs_entropies)]

    def row_of(name: str, epsilon: float | str):
        row = xray.algorithm if name == OWN else ALGORITHMS[name]
        return row if epsilon == ROW else replace(row, epsilon=epsilon, epsilon_high=None)

    def draw(prompt: int, when: str, a: str, epsilon_a, b: str, epsilon_b):
        one, other = (xray.update(when, row_of(*pair)) for pair in ((a, epsilon_a), (b, epsilon_b)))
        titles = [f"{letter}: {name} ({what_holds(row_of(name, epsilon))})"
                  for letter, name, epsilon in (("A", a, epsilon_a), ("B", b, epsilon_b))]
        mask = xray.rollouts.mask.cpu() > 0
        differs = differently(one, other) & mask
        rows = rows_of(xray, prompt - 1)
        strongest = strongest_push([one, other], rows, [len(words) for words in xray.words])
        here = int(differs[rows.start:rows.stop].sum())
        cosine = agreement(one, other)
        text = (f"prompt {prompt}, {when}: {here} of "
                f"{int(mask[rows.start:rows.stop].sum())} tokens shown differ\nwhole batch: "
                f"{int(differs.sum())} of {int(mask.sum())} differ, cosine of the pushes "
                f"{'undefined, one pushes nothing' if cosine != cosine else f'{cosine:.3f}'}\n"
                f"{titles[0]}: {counts(one, mask)}\n{titles[1]}: {counts(other, mask)}")
        asked = xray.prompts[prompt - 1]
        sides = "".join(f'<div class="side"><p><b>{html.escape(title)}</b></p>'
                        f'{as_table(xray, update, prompt - 1, EFFECT, differs, strongest)}</div> '
                        for title, update in zip(titles, (one, other)))
        view = page(text, f"<p>{html.escape(asked)} ({html.escape(when)})</p>", sides, key(EFFECT))
        figure = as_grid(xray, [("A  ", one), ("B  ", other)], prompt - 1, EFFECT,
                         f"{titles[0]}   {titles[1]}   ({when})")
        return figure, text, view

    return Explorer(draw, prompt=slider("prompt", prompt, 1, groups, 1),
                    when=choice("when", times[-1], times), a=choice("A: algorithm", OWN, names),
                    epsilon_a=stops("A: epsilon", ROW, [ROW, *EPSILONS]),
                    b=choice("B: algorithm", "cispo", names),
                    epsilon_b=stops("B: epsilon", ROW, [ROW, *EPSILONS]))


def differently(one: TokenUpdate, other: TokenUpdate):
    """Where two updates do something else to a token: (B, T), bool."""
    larger = torch.maximum(one.push.abs(), other.push.abs())
    return (one.state != other.state) | ((one.push - other.push).abs() > SMALL * larger)


def what_holds(row: Algorithm) -> str:
    """The settings of a row that a side may have got from elsewhere."""
    if row.surrogate in ("log_prob", "sapo"):
        bounds = "no bounds"
    elif row.epsilon_high in (None, row.epsilon):
        bounds = f"epsilon {row.epsilon:g}"
    else:
        bounds = f"epsilon {row.epsilon:g} and {row.epsilon_high:g}"
    return bounds + (f", beta {row.beta:g}" if row.beta else "")
