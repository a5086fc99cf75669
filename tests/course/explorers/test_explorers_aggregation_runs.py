"""The explorer of recorded runs, at every position, on a made-up record and on the real one."""

from statistics import mean

import pytest

from grpo_lib.course.explorers import aggregation_runs_explorer
from grpo_lib.course.recorded import load
from grpo_lib.objective import PAPER_AGGREGATIONS

STEPS = {"flagship": 6, "too_long": 4, "marked": 5}


def made_up():
    return {setting: [{"name": name, "seed": seed,
                       "length_wrong": [None if setting == "flagship" and seed == step == 1
                                        else 3.0 + i + seed + 0.5 * step for step in range(steps)],
                       "length_right": [9.0 - step for step in range(steps)],
                       "accuracy": [0.1 * step + 0.01 * i for step in range(steps)]}
                      for i, name in enumerate(PAPER_AGGREGATIONS) for seed in (0, 1)]
            for setting, steps in STEPS.items()}


@pytest.fixture(scope="module")
def explorer():
    return aggregation_runs_explorer(made_up())


@pytest.mark.parametrize("setting", STEPS)
@pytest.mark.parametrize("aggregation", ("all three", *PAPER_AGGREGATIONS))
@pytest.mark.parametrize("step", range(1, 7))
def test_every_position(explorer, setting, aggregation, step):
    text = explorer.set(setting=setting, aggregation=aggregation, step=step).text
    at = min(step, STEPS[setting])
    assert f"step {at}," in text and "2 runs" in text
    for name in PAPER_AGGREGATIONS:
        runs = [r for r in made_up()[setting] if r["name"] == name]
        wrong = [r["length_wrong"][at - 1] for r in runs if r["length_wrong"][at - 1] is not None]
        other = (f"right ones {mean(r['length_right'][at - 1] for r in runs):.1f}"
                 if setting == "marked"
                 else f"accuracy {mean(r['accuracy'][at - 1] for r in runs):.0%}")
        expected = f"{name} {mean(wrong):.1f} ({min(wrong):.1f} to {max(wrong):.1f}), {other}"
        assert (expected in text) == (aggregation in ("all three", name))
    drawn = 3 if aggregation == "all three" else 1
    assert all(len(axis.lines) == drawn * 2 + 1 for axis in explorer.figure.axes)
    beside = "length_right" if setting == "marked" else "accuracy"
    for axis, field in zip(explorer.figure.axes, ("length_wrong", beside)):
        names = PAPER_AGGREGATIONS if drawn == 3 else (aggregation,)
        for name, line in zip(names, axis.lines[::2]):  # every seed, a gap after each
            seeds = [r[field] for r in made_up()[setting] if r["name"] == name]
            xy = [(x, y) for x, y in line.get_xydata().tolist() if y == y]
            assert xy == [(x, y) for seed in seeds for x, y in enumerate(seed, 1)
                          if y is not None]
            ends = [i for i, x in enumerate(line.get_xdata()) if x != x]
            assert ends == [len(seeds[0]), 2 * len(seeds[0]) + 1]


def test_the_shipped_record_fits_the_axes():
    record = load("aggregation")
    explorer = aggregation_runs_explorer(record)
    for setting in STEPS:
        explorer.set(setting=setting)
        assert {r["name"] for r in record[setting]} == set(PAPER_AGGREGATIONS)
        for axis in explorer.figure.axes:
            low, high = axis.get_ylim()
            assert all(low <= y <= high for line in axis.lines for y in line.get_ydata()
                       if y == y)


def test_a_record_without_a_setting_is_named():
    with pytest.raises(ValueError, match="record: has no too_long, marked"):
        aggregation_runs_explorer({"flagship": [1]})
