"""The same answers under two algorithms, or two epsilons, side by side."""

from __future__ import annotations

import html
from dataclasses import replace

import torch

from grpo_lib.algorithms import ALGORITHMS, Algorithm
from grpo_lib.course.explorers import tokens
from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import EPSILONS, choice, slider, stops
from grpo_lib.lab.xray import TokenUpdate, Xray, agreement
from grpo_lib.training import GRPOTrainer

OWN, ROW = "this run's", "the row's"
SMALL = 0.1  # a push that differs by less of itself counts as the same


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
        one, other = updates = [xray.update(when, row_of(*side))
                                for side in ((a, epsilon_a), (b, epsilon_b))]
        titles = [f"{letter}: {name} ({what_holds(row_of(name, epsilon))})"
                  for letter, name, epsilon in (("A", a, epsilon_a), ("B", b, epsilon_b))]
        mask = xray.rollouts.mask.cpu() > 0
        differs = differently(one, other) & mask
        rows = tokens.rows_of(xray, prompt - 1)
        strongest = tokens.strongest_push(updates, rows, [len(words) for words in xray.words])
        cosine, shown = agreement(one, other), slice(rows.start, rows.stop)
        text = (f"prompt {prompt}, {when}: {int(differs[shown].sum())} of "
                f"{int(mask[shown].sum())} tokens shown differ\nwhole batch: "
                f"{int(differs.sum())} of {int(mask.sum())} differ, cosine of the pushes "
                f"{'undefined, one pushes nothing' if cosine != cosine else f'{cosine:.3f}'}\n"
                + "\n".join(f"{title}: {tokens.counts(update, mask)}"
                            for title, update in zip(titles, updates)))
        asked = html.escape(f"{xray.prompts[prompt - 1]} ({when})")
        tables = [tokens.as_table(xray, update, prompt - 1, tokens.EFFECT, differs, strongest)
                  for update in updates]
        sides = [f'<div class="side"><p><b>{html.escape(title)}</b></p>{table}</div> '
                 for title, table in zip(titles, tables)]
        view = tokens.page(text, f"<p>{asked}</p>", *sides, tokens.key(tokens.EFFECT))
        figure = tokens.as_grid(xray, [("A  ", one), ("B  ", other)], prompt - 1, tokens.EFFECT,
                                f"{titles[0]}   {titles[1]}   ({when})")
        return figure, text, view

    shown = {"prompt": (prompt,), "when": (times[-1],), "a": (OWN,), "epsilon_a": (ROW,),
             "epsilon_b": (ROW,)}
    return Explorer(draw, shown, prompt=slider("prompt", prompt, 1, groups, 1),
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
