"""The clip explorer at every position of its controls, against the rule in words."""

import itertools
import re

import pytest

from grpo_lib.course.explorers import clip_explorer
from grpo_lib.course.explorers.clip import DELTAS, HIGHS, NONE, SAME


@pytest.fixture(scope="module")
def explorer():
    return clip_explorer()


def said(sign, epsilon, high, delta):
    """What a token of advantage ``sign`` must be said to get at r = 0.5 and 1.5."""
    blocked = {0.5: sign < 0 and 1 - epsilon > 0.5 + 1e-9,
               1.5: sign > 0 and 1 + high < 1.5 - 1e-9}
    at = {r: "0" if blocked[r] else f"{sign:+d}" for r in (0.5, 1.5)}
    return f"A = {sign:+d}: gradient {at[0.5]} at r = 0.5, {at[1.5]} at r = 1.5"


def check(explorer, epsilon, high, delta):
    explorer.set(epsilon=epsilon, epsilon_high=high, delta=delta)
    high = epsilon if high == SAME else high
    text = explorer.text
    assert f"A = +1 blocked above {1 + high:.2f}," in text
    assert f"A = -1 blocked below {1 - epsilon:.2f}" in text
    assert (f"and above {delta:.2f}" in text if delta != NONE else "and above" not in text)
    assert said(1, epsilon, high, delta) in text and said(-1, epsilon, high, delta) in text


@pytest.mark.parametrize("epsilon", [i / 20 for i in range(19)])
def test_every_epsilon(explorer, epsilon):
    check(explorer, epsilon, SAME, NONE)


@pytest.mark.parametrize("high", HIGHS)
def test_every_epsilon_high(explorer, high):
    check(explorer, 0.2, high, NONE)


@pytest.mark.parametrize(("epsilon", "high", "delta"),
                         list(itertools.product((0.0, 0.9), (SAME, 1.5), DELTAS)))
def test_the_corners(explorer, epsilon, high, delta):
    check(explorer, epsilon, high, delta)


def curve(axis, name):
    line = next(found for found in axis.lines if found.get_label() == name)
    return dict(zip((round(x, 2) for x in line.get_xdata()), line.get_ydata()))


def test_the_curves_are_the_objective_and_its_slope(explorer):
    explorer.set(epsilon=0.2, epsilon_high=0.28, delta=3.0)
    value, slope = explorer.figure.axes
    good, bad = curve(value, "A = +1"), curve(value, "A = -1")
    assert [good[r] for r in (0.5, 1.2, 2.0)] == pytest.approx([0.5, 1.2, 1.28])
    assert [bad[r] for r in (0.5, 1.5, 3.3)] == pytest.approx([-0.8, -1.5, -3.0])
    good, bad = curve(slope, "A = +1"), curve(slope, "A = -1")
    assert [good[r] for r in (0.1, 1.2, 1.3, 3.3)] == [1, 1, 0, 0]
    assert [bad[r] for r in (0.1, 0.9, 2.9, 3.1)] == [0, -1, -1, 0]


def test_nothing_leaves_the_axes_at_the_ends(explorer):
    for epsilon, high, delta in itertools.product((0.0, 0.9), (SAME, 1.5), DELTAS):
        explorer.set(epsilon=epsilon, epsilon_high=high, delta=delta)
        for axis in explorer.figure.axes:
            (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
            for line in axis.lines[:2]:
                assert left <= min(line.get_xdata()) and max(line.get_xdata()) <= right
                assert bottom <= min(line.get_ydata()) and max(line.get_ydata()) <= top
            for text in axis.texts:
                assert left + 0.2 < text.get_position()[0] < right - 0.2


def test_a_bad_epsilon_is_named():
    with pytest.raises(ValueError, match=r"epsilon: got 5\.0"):
        clip_explorer().set(epsilon=5.0)


def test_the_text_has_no_minus_zero(explorer):
    for line in explorer.to_the_ends():
        assert not re.search(r"-0\b(?!\.)", line)
