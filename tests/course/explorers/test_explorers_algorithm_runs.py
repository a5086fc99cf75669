"""The explorer of recorded algorithms, at every position, on a made-up record and the real one."""

from itertools import product
from statistics import fmean

import pytest

from grpo_lib import permutation_test
from grpo_lib.course.explorers import algorithm_runs_explorer
from grpo_lib.course.recorded import load, names

ROWS = {"rows": ("grpo", "rloo", "ppo"), "reused": ("grpo", "ppo")}


def made_up():
    return {setting: [{"name": name, "seed": seed, "tokens": [100, 220, 300],
                       "accuracy": [0.1, 0.4, 0.5 + 0.1 * i], "length": [5.0, 6.0, 7.0 + seed],
                       "held_out_accuracy": 0.5 + 0.1 * i + 0.01 * seed}
                      for i, name in enumerate(rows) for seed in range(3)]
            for setting, rows in ROWS.items()} | {"budget": {"rows": 300, "reused": 250}}


@pytest.mark.parametrize(("setting", "first", "second"),
                         [(s, *two) for s in ROWS for two in product(ROWS["rows"], repeat=2)])
def test_every_position(setting, first, second):
    explorer = algorithm_runs_explorer(made_up(), "grpo", "rloo")
    text = explorer.set(setting=setting, first=first, second=second).text
    held = {name: [r["held_out_accuracy"] for r in made_up()[setting] if r["name"] == name]
            for name in ROWS[setting]}
    for name in (first, second):
        wanted = (f"{name} {fmean(held[name]):.1%} ({min(held[name]):.1%} to "
                  f"{max(held[name]):.1%})" if name in held else f"{name} was not run so")
        assert wanted in text
    there = [name for name in (first, second) if name in held]
    for axis in explorer.figure.axes:
        assert len(axis.lines) == len(axis.collections) == len(there)
        assert axis.get_xlim() == (0, made_up()["budget"][setting])
    if first != second and len(there) == 2:
        p = permutation_test(held[first], held[second])
        assert text.endswith(f"as far apart by chance: {p:.0%}")
    else:
        assert "chance" not in text


def test_the_line_is_the_mean_and_the_band_reaches_from_worst_to_best():
    explorer = algorithm_runs_explorer(made_up(), "grpo", "rloo")
    axis = explorer.figure.axes[1]
    x, y = axis.lines[0].get_xydata()[-1]
    assert x == 300 and y == pytest.approx(8.0)  # 7, 8 and 9
    heights = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((5.0, 9.0))


@pytest.mark.parametrize("wrong", [{"first": "gropo"}, {"second": "gropo"}])
def test_an_unknown_row_is_named(wrong):
    with pytest.raises(ValueError, match="got 'gropo', allowed are grpo, rloo, ppo"):
        algorithm_runs_explorer(made_up(), **{"first": "grpo", "second": "rloo"} | wrong)


def test_a_record_without_a_setting_is_named():
    with pytest.raises(ValueError, match="record: has no reused"):
        algorithm_runs_explorer({"rows": made_up()["rows"]})


def test_the_shipped_record_fits_the_axes():
    assert "algorithms" in names()
    record = load("algorithms")
    explorer = algorithm_runs_explorer(record)
    for setting in ROWS:
        for name in {run["name"] for run in record[setting]}:
            explorer.set(setting=setting, first=name)
            for axis in explorer.figure.axes:
                low, high = axis.get_ylim()
                assert all(low <= y <= high for line in axis.lines for y in line.get_ydata())
