"""What the documents show works, and what they say of the table is in it."""

import re
from pathlib import Path

import pytest

from grpo_lib import ALGORITHMS
from grpo_lib.algorithms import CHOICES
from grpo_lib.objective import AGGREGATIONS, RATIOS, SURROGATES

TEXT = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def rows():
    """Puts the table back as it was."""
    before = dict(ALGORITHMS)
    yield
    ALGORITHMS.clear()
    ALGORITHMS.update(before)


def test_the_first_lines_run(rows, capsys):
    exec(BLOCKS[0], {})
    assert "dapo" in capsys.readouterr().out


def test_an_algorithm_of_ones_own_takes_at_most_15_lines_and_trains(rows, capsys):
    [block] = [b for b in BLOCKS if "def " in b]
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 15
    names = {}
    exec(block, names)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(step) for step, _ in printed] == [1, 2, 3, 4]
    assert float(printed[-1][1]) > float(printed[0][1]), "four steps of four passes: it learns"
    assert names["config"].choices.surrogate is names["near"]


def test_every_row_and_every_choice_is_described():
    table = TEXT.split("## The rows")[1].split("## An algorithm")[0]
    described = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert described == list(ALGORITHMS)
    for name in (*CHOICES, *AGGREGATIONS, *RATIOS, *SURROGATES):
        if name not in ("sapo_temperature_neg", "gamma", "gae_lambda"):  # by their symbols
            assert name in TEXT, name


def test_the_rows_numbers_are_those_of_the_table():
    for name, row in ALGORITHMS.items():
        [line] = [x for x in TEXT.splitlines() if x.startswith(f"| `{name}` |")]
        for choice in ("whiten", "dynamic_sampling"):
            word = {"whiten": "whiten", "dynamic_sampling": "dynamic sampling"}[choice]
            assert getattr(row, choice) == (word in line), (name, choice)
        if row.epsilon_high == 0.28:
            assert "0.28" in line
        if row.aggregation != "sequence_mean":
            assert row.aggregation in line, name
        if row.ratio != "token":
            assert row.ratio in line, name
