"""The gradient lab's numbers are the estimators', over the whole range of its controls."""

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch

from grpo_lib.algorithms import ALGORITHMS
from grpo_lib.course.explorers import gradient_lab_explorer
from grpo_lib.course.explorers.gradient_lab import BUDGET, EPSILONS, SIZES, with_epsilon
from grpo_lib.lab.exact import (
    enumerate_completions,
    estimator,
    expected_reward,
    mean_of_prompts,
)
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

LESSON = Path(__file__).parents[3] / "notebooks" / "08_algorithms.ipynb"
ROWS = {name: ALGORITHMS[name] for name in ("reinforce", "rloo", "grpo", "gspo", "maxrl")}


@pytest.fixture(scope="module")
def world():
    """Three policies, each a small move from the one before, and two prompts."""
    config = PolicyConfig(vocab_size=3, d_model=4, n_layers=1, n_heads=1, d_hidden=4,
                          context_length=8, init_std=0.7)
    policy = TransformerPolicy(config, torch.Generator().manual_seed(3)).double()
    policies = [policy]
    for seed in (1, 2):
        policies.append(copy.deepcopy(policies[-1]))
        with torch.no_grad():
            for parameter in policies[-1].parameters():
                parameter.add_(0.05 * torch.randn(
                    parameter.shape, dtype=torch.float64,
                    generator=torch.Generator().manual_seed(seed)))
    prompts = []
    for prompt, right in (([2], [0, 3]), ([0], [1, 5, 6])):
        completions = enumerate_completions(policy, prompt, 2, vocab_size=3)
        rewards = torch.zeros(7, dtype=torch.float64)
        rewards[right] = 1.0
        prompts.append((completions, rewards))
    return policies, prompts


@pytest.fixture(scope="module")
def lab(world):
    return gradient_lab_explorer(*world, ROWS)


def numbers(text):
    return [float(n) for n in re.findall(r"-?\d+\.\d+", text)]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("size", "stale", "epsilon"), [
    (2, 0, "its own"), (4, 2, "its own"), (3, 1, 0.1), (2, 2, "none")])
def test_the_text_holds_the_estimators_numbers(world, lab, name, size, stale, epsilon):
    policies, prompts = world
    lab.set(algorithm=name, group_size=size, stale=stale, epsilon=epsilon)
    row = ROWS[name]
    if epsilon != "its own":
        bounds = {"none": (1.0, math.inf)}.get(epsilon, (epsilon, epsilon))
        row = replace(row, epsilon=bounds[0], epsilon_high=bounds[1])
    expected = mean_of_prompts([estimator(policies[-1], completions, rewards, row, size,
                                          old_policy=policies[-1 - stale])
                                for completions, rewards in prompts])
    said = lab.text.partition(": ")[2]
    bias, scale, noise = numbers(said)
    assert bias == pytest.approx(100 * expected.bias, abs=0.051)
    assert scale == pytest.approx(expected.scale, abs=0.0051)
    assert noise == pytest.approx(expected.noise * math.sqrt(size / BUDGET), abs=0.0051)


def test_unbiased_rows_are_called_so(lab):
    for name in ("reinforce", "rloo"):
        lab.set(algorithm=name, group_size=4, stale=0, epsilon="its own")
        assert "bias 0.0%," in lab.text
    lab.set(algorithm="grpo")
    assert "bias 0.0%" not in lab.text


def test_every_end_of_every_control_says_something_of_its_own(lab):
    lab.set(algorithm="grpo", group_size=4, stale=2, epsilon=0.05)
    said = lab.to_the_ends()
    assert len(said) == len(ROWS) + 2 + 2 + 2
    assert len(set(said)) == len(said)
    assert not [line for line in said if "nan" in line]


def test_the_clip_is_the_same_on_both_sides():
    for epsilon in EPSILONS[1:-1]:
        row = with_epsilon(ALGORITHMS["dapo"], epsilon)
        assert (row.epsilon, row.epsilon_high) == (epsilon, epsilon)
    assert with_epsilon(ALGORITHMS["dapo"], "its own") == ALGORITHMS["dapo"]
    assert all(BUDGET % size == 0 for size in SIZES)


def test_an_unknown_algorithm_is_named(world):
    with pytest.raises(ValueError, match="reference: got 'nope', allowed are"):
        gradient_lab_explorer(*world, ROWS, reference="nope")


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("baseline", "left_out"), [("mean", 1), ("none", 0)])
def test_maxrl_climbs_the_sum_over_pass_at_k_that_lesson_08_names(world, size, baseline, left_out):
    policies, prompts = world
    row = replace(ALGORITHMS["maxrl"], std_eps=0.0, baseline=baseline)
    for prompt in prompts:
        wrong = 1 - expected_reward(policies[-1], *prompt).item()
        got = estimator(policies[-1], *prompt, row, size)
        factor = sum(wrong ** (k - 1) for k in range(1, size + 1 - left_out))
        assert (got.mean - factor * got.exact).abs().max() < 1e-10


def test_the_numbers_that_lesson_08_tells_of_its_laboratory(capsys):
    names = {"torch": torch, "ALGORITHMS": ALGORITHMS}
    for cell in nbformat.read(LESSON, as_version=4).cells:
        if cell.id in ("c10-08", "c18-08"):
            exec(cell.source, names)
    told = {(size, stale, epsilon): numbers(names["laboratory"].set(
        algorithm="grpo", group_size=size, stale=stale, epsilon=epsilon).text.partition(": ")[2])
        for size, stale, epsilon in ((2, 0, "its own"), (6, 0, "its own"), (4, 4, "its own"),
                                     (4, 4, "none"), (4, 4, 0.1))}
    assert [bias for bias, _, _ in told.values()] == [17.2, 17.4, 86.2, 7.4, 96.8]
    assert told[4, 4, 0.1][2] > 3 * told[4, 4, "none"][2]
