"""The explorer of the length bias: its numbers against sampled groups and sums by hand."""

import math
import re

import pytest

from grpo_lib.course.explorers import length_bias_explorer
from grpo_lib.lab.length_bias import expected_push, follow_push

NUMBER = r"([+-][\d.]+) and ([+-][\d.]+), wrong answers ([\d.]+) to ([\d.]+) tokens"


@pytest.fixture(scope="module")
def explorer():
    return length_bias_explorer()


def said(text, name):
    return [float(x) for x in re.search(rf"{name} {NUMBER}", text).groups()]


def push_by_hand(group_size, stop, max_length, share):
    """sequence_mean with one shared chance to stop: plain sums over k and L."""
    slope = 0.0
    for n in range(1, max_length + 1):
        chance = (1 - stop) ** (n - 1) * (stop if n < max_length else 1)
        slope += chance * (1 - stop * n if n < max_length else -stop * (n - 1)) / n
    total = 0.0
    for k in range(1, group_size):
        mean = k / group_size
        std = math.sqrt(group_size * mean * (1 - mean) / (group_size - 1))
        total += (math.comb(group_size, k) * share**k * (1 - share) ** (group_size - k)
                  * mean * (1 - mean) / (std + 1e-4))
    return total * slope


def check(explorer):
    value = {name: control.value for name, control in explorer.controls.items()}
    group_size, stop, max_length, share = (value[name] for name in (
        "group_size", "stop", "max_length", "share_right"))
    text = explorer.text
    assert text.startswith(f"G = {group_size}, stops with chance {stop:.2f}, at most {max_length} "
                           f"tokens, {share:.0%} right;")
    right, wrong, first, last = said(text, "sequence_mean")
    expected = push_by_hand(group_size, stop, max_length, share)
    assert right == pytest.approx(expected, abs=6e-5) and wrong == -right
    assert first == pytest.approx((1 - (1 - stop) ** max_length) / stop, abs=0.051)
    assert last > first
    assert said(text, "constant") == [0, 0, first, first]
    settings = {"group_size": group_size, "max_length": max_length, "share_right": share}
    token = expected_push("token_mean", stop_right=stop, stop_wrong=stop, **settings)
    assert said(text, "token_mean")[:2] == pytest.approx(token, abs=6e-5)
    end = follow_push("token_mean", 20, 2.0, stop=stop, **settings)[-1, 1].item()
    assert said(text, "token_mean")[3] == pytest.approx(end, abs=0.051)
    left, curves = explorer.figure.axes
    assert left.get_ylim()[1] > right and curves.get_ylim()[1] >= last


RANGES = [*(("group_size", g) for g in (2, 4, 8, 16)),
          *(("stop", round(0.05 * i, 2)) for i in range(1, 11)),
          *(("max_length", n) for n in range(5, 41, 5)),
          *(("share_right", round(0.1 * i, 1)) for i in range(1, 10))]


@pytest.mark.parametrize(("name", "value"), RANGES)
def test_every_position(explorer, name, value):
    start = explorer.controls[name].value
    explorer.set(**{name: value})
    check(explorer)
    explorer.set(**{name: start})


def test_corners(explorer):
    for group_size in (2, 16):
        for stop in (0.05, 0.5):
            for max_length in (5, 40):
                check(explorer.set(group_size=group_size, stop=stop, max_length=max_length))


def test_a_value_off_the_slider_is_named(explorer):
    with pytest.raises(ValueError, match=r"stop: got 0\.9, which is outside"):
        explorer.set(stop=0.9)
