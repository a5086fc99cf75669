"""The explorer of token weights, at every position of every control."""

import itertools

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from grpo_lib.advantages import group_advantages
from grpo_lib.course.explorers import token_weights_explorer
from grpo_lib.objective import PAPER_AGGREGATIONS, aggregate

LENGTHS = [3, 9, 5, 1, 7, 2, 10, 4]
REWARDS = torch.tensor([1.0, 0, 1, 0, 0, 0, 0, 1])
MASK = (torch.arange(10) < torch.tensor(LENGTHS)[:, None]).float()
WORDS = [[f"w{t}" for t in range(n)] for n in LENGTHS]


@pytest.fixture(scope="module")
def explorer():
    return token_weights_explorer(WORDS, MASK, REWARDS)


def weight_by_slope(aggregation, size, max_length):
    values = torch.zeros(size, 10, requires_grad=True)
    aggregate(values, MASK[:size], aggregation, max_length).backward()
    return values.grad


def check(text, aggregation, mode, size, max_length):
    weights, lengths = weight_by_slope(aggregation, size, max_length), LENGTHS[:size]
    short, long = lengths.index(min(lengths)), lengths.index(max(lengths))
    assert text.startswith(f"{aggregation}, G = {size}")
    assert (f"a token of the shortest ({lengths[short]} tokens) has weight "
            f"{weights[short, 0]:.4f}, of the longest ({lengths[long]}) "
            f"{weights[long, 0]:.4f};") in text
    assert (f"the whole shortest {weights[short].sum():.3f}, the whole longest "
            f"{weights[long].sum():.3f}; all weights sum to {weights.sum():.3f}") in text
    assert (f"max_length {max_length}:" in text) == (aggregation == "constant")
    assert ("weight times advantage" in text) == (mode == "push")
    if mode == "push":
        advantages = group_advantages(REWARDS[None, :size])[0]
        total = (weights.sum(1) * advantages).sum().item()
        assert (f"{weights[short, 0] * advantages[short]:+.4f} and "
                f"{weights[long, 0] * advantages[long]:+.4f}, summed over all tokens "
                f"{round(total, 3) + 0.0:+.3f}") in text


@pytest.mark.parametrize(("aggregation", "mode", "size"),
                         [*itertools.product(PAPER_AGGREGATIONS, ("weight", "push"), (4, 6, 8))])
def test_every_menu_and_size(explorer, aggregation, mode, size):
    explorer.set(aggregation=aggregation, mode=mode, group_size=size, max_length=19)
    check(explorer.text, aggregation, mode, size, 19)
    [axis] = explorer.figure.axes
    drawn = [text.get_text() for text in axis.texts]
    assert sum(word in drawn for word in {w for row in WORDS[:size] for w in row}) == max(
        LENGTHS[:size])
    assert len(drawn) == sum(LENGTHS[:size]) + 8
    assert drawn.count("left out") == 8 - size and axis.get_xlim() == (-0.02, 10)


def test_nothing_moves_and_no_name_is_cut_off(explorer):
    places = set()
    for mode, size in itertools.product(("weight", "push"), (8, 4)):
        figure = explorer.set(aggregation="sequence_mean", mode=mode, group_size=size).figure
        [axis] = figure.axes
        places.add((*axis.get_position().bounds, *axis.get_xlim(), *axis.get_ylim()))
        renderer = FigureCanvasAgg(figure).get_renderer()
        assert min(t.get_window_extent(renderer).x0 for t in axis.texts) >= 0
    assert len(places) == 1


@pytest.mark.parametrize("max_length", range(10, 61))
def test_every_max_length(explorer, max_length):
    explorer.set(aggregation="constant", mode="weight", group_size=8, max_length=max_length)
    check(explorer.text, "constant", "weight", 8, max_length)


def test_pushes_are_coloured_by_their_sign_and_named_with_it(explorer):
    explorer.set(aggregation="sequence_mean", mode="push", group_size=8)
    names = [t.get_text() for t in explorer.figure.axes[0].texts if "each" in t.get_text()]
    assert [name.startswith("right") for name in names] == (REWARDS > 0).tolist()
    assert all(("+" in name) == name.startswith("right") for name in names)
    [cells] = explorer.figure.axes[0].collections
    right, wrong = (cells.get_facecolors()[i][:3] for i in (0, LENGTHS[0]))
    assert right[1] > right[0] and wrong[0] > wrong[2]


def test_a_silent_group_is_drawn():
    explorer = token_weights_explorer(WORDS, MASK, torch.zeros(8))
    assert "+0.0000 and +0.0000" in explorer.set(mode="push").text


def test_too_few_completions_are_named():
    with pytest.raises(ValueError, match="words, mask, rewards: got 8, 8, 7 completions"):
        token_weights_explorer(WORDS, MASK, REWARDS[:7])
    with pytest.raises(ValueError, match="got 5, 5, 5 completions, allowed are 8 or more"):
        token_weights_explorer(WORDS[:5], MASK[:5], REWARDS[:5])
