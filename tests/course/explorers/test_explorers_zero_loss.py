"""The loss lab on made-up records and on the recorded ones."""

import itertools

import pytest

from grpo_lib.course.explorers import zero_loss_explorer
from grpo_lib.course.recorded import load

WAYS = {"1 update": 1, "4 updates": 4}


def record(way, beta, aggregation):
    base = 0.1 * beta + (0.05 if aggregation == "b" else 0)
    return {"way": way, "beta": beta, "aggregation": aggregation,
            "loss": [[base * step - 0.01 * i for i in range(WAYS[way])] for step in range(1, 4)],
            "grad_norm": [[1.0 + step + i / 10 for i in range(WAYS[way])] for step in range(3)],
            "reward": [0.125, 0.5, 0.75]}


@pytest.fixture
def records():
    return [record(*key) for key in itertools.product(WAYS, (0.0, 0.1), ("a", "b"))]


def test_every_combination_says_its_own_numbers(records):
    explorer = zero_loss_explorer(records)
    for r in records:
        explorer.set(way=r["way"], beta=r["beta"], aggregation=r["aggregation"])
        first = [losses[0] for losses in r["loss"]]
        every = [loss for losses in r["loss"] for loss in losses]
        steep = [norm for norms in r["grad_norm"] for norm in norms]
        text = explorer.text.replace("\n", " ")
        assert text.startswith(f"{r['way']}; beta {r['beta']:g}; {r['aggregation']}: ")
        assert f"batch from {min(first):.3f} to {max(first):.3f}, of all" in text
        assert f"updates from {min(every):.3f} to {max(every):.3f} gradient" in text
        assert f"gradient from {min(steep):.2f} to {max(steep):.2f}, reward 0.12" in text
        assert text.endswith("0.75 at the last")
        left, middle, right = explorer.figure.axes
        assert list(left.lines[0].get_ydata()) == every
        assert list(left.lines[1].get_ydata()) == first
        assert list(middle.lines[0].get_ydata()) == steep
        assert list(right.lines[0].get_ydata()) == r["reward"]
        for axis in (left, middle, right):
            bottom, top = axis.get_ylim()
            for line in axis.lines:
                assert bottom <= min(line.get_ydata()) and max(line.get_ydata()) <= top
                assert axis.get_xlim()[1] >= max(line.get_xdata())


def test_a_loss_that_rounds_to_minus_zero_is_said_to_be_zero(records):
    records[0]["loss"] = [[-0.00001]] * 3
    assert "from 0.000 to 0.000" in zero_loss_explorer(records).text


def test_missing_combinations_and_fields_are_named(records):
    with pytest.raises(ValueError, match=r"^records: got 7 combinations of 2 ways"):
        zero_loss_explorer(records[1:])
    with pytest.raises(ValueError, match=r"^records: got 0, allowed"):
        zero_loss_explorer([])
    with pytest.raises(ValueError, match=r"^records: .*grad_norm"):
        zero_loss_explorer([{"loss": []}])


def test_the_recorded_first_losses_are_beta_times_kl_wherever_groups_stay_whole():
    seen = 0
    for r in load("clipping")["losses"]:
        if r["aggregation"] != "sequence_mean" or r["way"].endswith(("halves", "quarters")):
            continue
        seen += 1
        for losses, kl_term in zip(r["loss"], r["kl_term"], strict=True):
            assert losses[0] == pytest.approx(kl_term, abs=2e-5)
        assert all(norm > 0.01 for norms in r["grad_norm"] for norm in norms)
    assert seen == 6  # three ways, two betas


def test_the_recorded_losses_of_split_groups_and_of_token_means_are_not_zero():
    for r in load("clipping")["losses"]:
        split = r["way"].endswith(("halves", "quarters"))
        if r["beta"] == 0 and (split or r["aggregation"] == "token_mean"):
            assert max(abs(losses[0]) for losses in r["loss"]) > 0.01
