"""The distribution of the next token at one place of a real completion, at any temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from grpo_lib.course.explorers.base import Explorer
from grpo_lib.course.explorers.controls import choice, slider
from grpo_lib.course.plots import BLACK, FONT, ORANGE, SKY, boxes, new_figure, panel
from grpo_lib.policy import Policy, token_entropy
from grpo_lib.rollout import Rollouts, completion_logits

SHOWN = 10  # tokens with a bar of their own


def next_token_explorer(policies: Mapping[str, Policy], rollouts: Rollouts, words: Sequence[str],
                        row: int = 0, temperature: float = 1.0, position: int = 0) -> Explorer:
    """Sliders for temperature and position in completion ``row``, and a menu of the policies
    that read it, by name. ``words`` are the tokenizer's."""
    if not policies:
        raise ValueError("policies: got none, allowed is one or more, by name")
    one = rollouts.select(torch.tensor([row]))
    with torch.no_grad():
        logits = {name: completion_logits(policy, one)[0].cpu() * one.temperature
                  for name, policy in policies.items()}
    words = [word.strip("<>") if i < 2 else word for i, word in enumerate(words)]
    tokens = [words[i] for i in one.tokens[0].tolist()]
    ids, start = one.completions[0].tolist(), one.prompt_length
    text = [tokens[i] for i in range(len(tokens)) if i >= start or one.prompt_mask[0, i]]

    def draw(temperature: float, position: int, policy: str):
        here = logits[policy][position]
        entropy = token_entropy(here / temperature).item()
        seen = " ".join(text[: len(text) - len(ids) + position])
        warm, plain = (here / temperature).softmax(-1), here.softmax(-1)
        likeliest = warm.topk(min(SHOWN, len(warm))).indices.tolist()
        names = [words[i] for i in likeliest]
        figure = bars(names, warm[likeliest], plain[likeliest], 1 - warm[likeliest].sum().item(),
                      seen, temperature, likeliest.index(ids[position])
                      if ids[position] in likeliest else None)
        return figure, (
            f"{policy}, after \"{seen}\" at temperature {temperature:.1f}: entropy "
            f"{abs(entropy):.2f} nats, as many as {math.exp(entropy):.1f} equal choices; "
            f"likeliest {names[0]} with {warm[likeliest[0]]:.1%}; "
            f"here it went on with {tokens[start + position]}, {warm[ids[position]]:.1%}")

    shown = {"temperature": sorted({0.1, 0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 3.0, temperature})}
    return Explorer(draw, shown,
                    temperature=slider("temperature", temperature, 0.1, 3.0, 0.1),
                    position=slider("position (token)", position, 0, len(ids) - 1, 1),
                    policy=choice("policy", next(iter(policies)), list(policies)))


def bars(names: Sequence[str], warm: Tensor, plain: Tensor, rest: float, seen: str,
         temperature: float, taken: int | None) -> Figure:
    """Probabilities of the likeliest tokens, with a tick where each stands at temperature 1."""
    figure, axis = new_figure(width=8.0, height=4.4)
    places, heights = range(len(names)), warm.tolist()
    boxes(axis, [(i - .38, 0, i + .38, p, ORANGE if i == taken else SKY)
                 for i, p in enumerate(heights)])
    axis.hlines(plain.tolist(), [i - .45 for i in places], [i + .45 for i in places], color=BLACK,
                linewidth=2, linestyle=(0, (2, 1)))
    for i, (name, p, old) in enumerate(zip(names, heights, plain.tolist())):
        axis.text(i, max(p, old) + 0.015, f"{p:.0%}", fontsize=FONT - 1, ha="center", va="bottom")
        axis.text(i, -0.03, f"[{name}]" if i == taken else name, fontsize=FONT, ha="center",
                  va="top")
    axis.grid(False)
    axis.text(len(names) - .45, 1.08, "dashes: at temperature 1\n[orange]: the token that came\n"
              f"all other tokens: {rest:.0%}", fontsize=FONT - 1, ha="right", va="top")
    tail = seen if len(seen) <= 50 else "... " + seen[-46:].partition(" ")[2]
    panel(axis, f"After \"{tail}\"", f"likeliest next tokens at temperature {temperature:.1f}",
          "probability", xlim=(-.6, len(names) - .4), ylim=(0, 1.1), xticks=(),
          yticks={0: "0%", .5: "50%", 1: "100%"})
    axis.xaxis.labelpad = 24  # below the tokens' names
    return figure
