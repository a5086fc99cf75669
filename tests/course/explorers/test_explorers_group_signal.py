"""The explorer of groups that teach, at every position of its controls."""

import re

import pytest
import torch

from grpo_lib.course.explorers import group_signal_explorer
from grpo_lib.course.explorers.group_size import SIZES

HARD = (torch.rand(20, 64, generator=torch.Generator().manual_seed(0)) < 0.1).float()
MIXED = (torch.rand(30, 64, generator=torch.Generator().manual_seed(1))
         < torch.linspace(0, 1, 30)[:, None]).float()
MEASURED = {"hard": (HARD, 6.0), "mixed": (MIXED, 12.5), "hopeless": (torch.zeros(3, 64), 5.0)}


def shares(rewards, size):
    """At the mean p, mean over problems, counted group by group."""
    def formula(p):
        return 1 - p**size - (1 - p) ** size

    rows = rewards.tolist()
    ps = [sum(row) / 64 for row in rows]
    cut = [row[i: i + size] for row in rows for i in range(0, 64, size)]
    return (formula(sum(ps) / len(ps)), sum(map(formula, ps)) / len(ps),
            sum(len(set(group)) > 1 for group in cut) / len(cut))


@pytest.fixture(scope="module")
def explorer():
    return group_signal_explorer(MEASURED)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("policy", list(MEASURED))
def test_every_size_and_policy(explorer, size, policy):
    explorer.set(policy=policy, group_size=size)
    rewards, tokens = MEASURED[policy]
    at_mean, by_problem, real = shares(rewards, size)
    text = explorer.text
    assert text.startswith(f"{policy}, G = {size}: {rewards.mean():.1%} right")
    for number, words in ((at_mean, "by the formula at the mean p"),
                          (by_problem, "by its mean over problems"), (real, "measured")):
        found = float(re.search(rf"([\d.]+)% {words}", text)[1])
        assert found == pytest.approx(100 * number, abs=0.051)
    assert f"a step of 32 groups is {32 * size * tokens:,.0f} tokens" in text
    price = f"{size * tokens / real:,.0f} tokens for one that teaches" if real else "none teaches"
    assert text.endswith(price)
    left, right = explorer.figure.axes
    marks = {line.get_label(): line.get_ydata() for line in left.lines}
    assert marks["measured"][SIZES.index(size)] == pytest.approx(real)
    assert left.get_ylim()[0] <= min(marks["measured"])
    assert max(marks["measured"]) < left.get_ylim()[1]
    low, high = right.get_ylim()
    for line in right.lines[:2]:
        assert all(low < y < high for y in line.get_ydata()), "a price is outside the picture"


def test_the_formula_at_the_mean_is_larger_where_problems_differ():
    at_mean, by_problem, _ = shares(MIXED, 8)
    text = group_signal_explorer({"mixed": (MIXED, 5.0)}, group_size=8).text
    assert at_mean > by_problem + 0.1
    assert f"{at_mean:.1%} by the formula at the mean p, {by_problem:.1%} by its mean" in text


@pytest.mark.parametrize(("rewards", "tokens", "named"), [
    (torch.zeros(3, 32), 5.0, r"measured\['x'\]: got rewards of shape \(3, 32\)"),
    (torch.zeros(64), 5.0, "got rewards of shape"),
    (torch.full((2, 64), 0.5), 5.0, "got rewards other than 0 and 1"),
    (torch.zeros(2, 64), 0.0, "got 0.0 tokens"),
])
def test_what_cannot_be_drawn_is_named(rewards, tokens, named):
    with pytest.raises(ValueError, match=named) as caught:
        group_signal_explorer({"x": (rewards, tokens)})
    assert "allowed" in str(caught.value)
