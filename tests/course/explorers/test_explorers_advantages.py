"""The explorer of four advantages, at every position of every control."""

import statistics

import pytest

from grpo_lib.course.explorers import advantages_explorer
from grpo_lib.course.explorers.advantages import BASELINES, SCALES

START, SECOND = [1.0, 0.1, 1.0, 0.2], [0.0, 0.0, 0.5, 1.0]


def expected(rewards, baseline, scale, second=SECOND):
    """Advantages by the statistics module."""
    if len(set(rewards)) == 1 and (baseline != "none" or scale == "group"):
        return [0.0] * 4
    width = {"group": statistics.stdev(rewards) + 1e-4,
             "batch": statistics.stdev([*rewards, *second]) + 1e-4, "none": 1.0}[scale]
    base = [{"mean": statistics.fmean(rewards), "none": 0.0,
             "leave_one_out": statistics.fmean(rewards[:i] + rewards[i + 1:])}[baseline]
            for i in range(4)]
    return [(r - b) / width for r, b in zip(rewards, base)]


def said(text):
    """The advantages in a line of text."""
    return [float(x) for x in text.split("advantages ")[1].split(", sum")[0].split()]


@pytest.fixture(scope="module")
def explorer():
    return advantages_explorer(START, SECOND)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("value", [i / 10 for i in range(11)])
def test_every_position_of_every_slider(explorer, place, value):
    rewards = [*START[:place], value, *START[place + 1:]]
    text = explorer.set(**{f"r{place + 1}": value}).text
    explorer.set(**{f"r{place + 1}": START[place]})
    assert f"rewards {' '.join(f'{r:.1f}' for r in rewards)}:" in text
    assert f"mean {statistics.fmean(rewards):.3f}" in text
    assert f"std {statistics.stdev(rewards):.3f} " in text
    assert f"(biased {statistics.pstdev(rewards):.3f})" in text
    assert said(text) == pytest.approx(expected(rewards, "mean", "group"), abs=0.0051)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rewards", [START, [1.0, 1.0, 1.0, 0.9], [0.3] * 4, [0.0] * 4])
def test_every_choice(baseline, scale, rewards):
    explorer = advantages_explorer(rewards, SECOND).set(baseline=baseline, scale=scale)
    values = expected(rewards, baseline, scale)
    assert said(explorer.text) == pytest.approx(values, abs=0.0051)
    assert explorer.text.endswith(f"sum {round(sum(values), 2) + 0.0:+.2f}")
    assert ("std of both groups" in explorer.text) == (scale == "batch")
    low, high = explorer.figure.axes[1].get_ylim()
    assert all(low < 1.2 * v < high for v in values), "a bar or its number is cut off"
    assert explorer.figure.axes[1].get_title("left") == f"Baseline {baseline}, scale {scale}"


def test_the_longest_title_is_not_cut_off():
    figure = advantages_explorer().set(baseline="leave_one_out").figure
    assert figure.axes[1].get_tightbbox().x1 < figure.bbox.x1


def test_bars_are_the_numbers():
    explorer = advantages_explorer(START, SECOND)
    heights = [[bar.get_height() for bar in axis.patches] for axis in explorer.figure.axes]
    assert heights[0] == START
    assert heights[1] == pytest.approx(expected(START, "mean", "group"))


@pytest.mark.parametrize(("rewards", "second"), [([1.0], SECOND), (START, [0.0] * 5)])
def test_other_numbers_of_rewards_are_named(rewards, second):
    with pytest.raises(ValueError, match=r"rewards, second: got .* allowed are 4 each"):
        advantages_explorer(rewards, second)
