"""The token explorer at every position of its controls, against counting in loops."""

import pytest
import torch
from matplotlib.colors import to_rgba

from grpo_lib.course.explorers import clip_tokens_explorer
from grpo_lib.course.explorers.clip import HIGHS, SAME
from grpo_lib.course.plots import BLUE, VERMILION

ROWS = [4, 0, 2, 3]
LENGTHS = [3, 5, 2, 4, 1, 5]
ADVANTAGES = [1.0, -1.0, -0.5, 0.0, 2.0, 0.5]


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.0, 0.2, 0.6])[:, None, None]
    ratios = (spread * torch.randn(3, 6, 5, generator=generator)).exp()
    mask = (torch.arange(5) < torch.tensor(LENGTHS)[:, None]).float()
    words = [[f"w{t}" for t in range(LENGTHS[row])] for row in ROWS]
    return words, ROWS, ratios, torch.tensor(ADVANTAGES), mask


@pytest.fixture(scope="module")
def explorer(data):
    return clip_tokens_explorer(*data)


def state(ratio, advantage, epsilon, high):
    if advantage > 0 and ratio > 1 + high:
        return "high"
    return "low" if advantage < 0 and ratio < 1 - epsilon else "free"


def check(explorer, data, epsilon, high, updates):
    explorer.set(epsilon=epsilon, epsilon_high=high, updates=updates)
    high = epsilon if high == SAME else high
    ratios = data[2][updates].tolist()
    states = {row: [state(ratios[row][t], ADVANTAGES[row], epsilon, high)
                    for t in range(LENGTHS[row])] for row in range(6)}
    every = [s for row in states.values() for s in row]
    shown = [s for row in ROWS for s in states[row]]
    outside = [ratios[row][t] < 1 - epsilon or ratios[row][t] > 1 + high
               for row in range(6) for t in range(LENGTHS[row])]
    text = explorer.text
    assert (f"blocked {sum(s != 'free' for s in shown)} of the {len(shown)} tokens shown"
            in text)
    n = len(every)
    assert (f"whole batch: blocked {(n - every.count('free')) / n:.1%} "
            f"({every.count('low') / n:.1%} at 1 - epsilon, {every.count('high') / n:.1%} at "
            f"1 + epsilon_high)" in text)
    assert text.endswith(f"whatever the sign of A: {sum(outside) / n:.1%}")
    [drawn] = explorer.figure.axes[0].collections
    cells = [tuple(color) for color in drawn.get_facecolors()]
    wanted = {"high": BLUE, "low": VERMILION}
    for cell, found in zip(cells, shown, strict=True):
        is_blocked = cell in (to_rgba(BLUE), to_rgba(VERMILION))
        assert is_blocked == (found != "free")
        assert not is_blocked or cell == to_rgba(wanted[found])


@pytest.mark.parametrize("epsilon", [i / 20 for i in range(1, 19)])
def test_every_epsilon(explorer, data, epsilon):
    check(explorer, data, epsilon, SAME, 2)


@pytest.mark.parametrize("high", HIGHS)
def test_every_epsilon_high(explorer, data, high):
    check(explorer, data, 0.2, high, 2)


@pytest.mark.parametrize("updates", range(3))
@pytest.mark.parametrize("epsilon", [0.05, 0.9])
def test_every_number_of_updates(explorer, data, updates, epsilon):
    check(explorer, data, epsilon, SAME, updates)
    if updates == 0:
        assert "whole batch: blocked 0.0%" in explorer.text


def test_a_mark_says_what_the_colour_says(explorer, data):
    explorer.set(epsilon=0.05, epsilon_high=SAME, updates=2)
    texts = [t.get_text() for t in explorer.figure.axes[0].texts]
    marked = sum(t.endswith((" ^", " v")) for t in texts)
    assert marked and f"blocked {marked} of" in explorer.text
    assert sum(t.endswith(" o") for t in texts) == LENGTHS[3]  # the answer with advantage 0


def test_what_does_not_fit_is_named(data):
    words, rows, ratios, advantages, mask = data
    with pytest.raises(ValueError, match=r"^ratios: .*allowed is"):
        clip_tokens_explorer(words, rows, ratios[0], advantages, mask)
    with pytest.raises(ValueError, match=r"^words: got 2 for row 4, allowed are its 1"):
        clip_tokens_explorer([["a", "b"], *words[1:]], rows, ratios, advantages, mask)
