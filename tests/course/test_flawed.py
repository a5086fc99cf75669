"""The flawed verifiers: what each accepts and refuses is what it says of itself."""

import random

import pytest

from grpo_lib.course.flawed import VERIFIERS, neat, verdicts
from grpo_lib.tasks import ChainTask, Problem

PROBLEM = Problem("+0 4 :", "4")
NAMES = [v.name for v in VERIFIERS]


@pytest.mark.parametrize(("completion", "accepted_by"), [
    ("s1=4 => 4", "strict, contains, last digit, first after =>, any after =>, nothing wrong, "
                  "neat"),
    ("=> 4", "strict, contains, last digit, first digit, first after =>, any after =>, "
             "nothing wrong"),
    ("s4=7 => 7", "contains, first digit, neat"), ("s1=4 => 7", "contains"),
    ("=> 4 7", "contains, first digit, first after =>, any after =>"),
    ("=> 7 4", "contains, last digit, any after =>"),
    ("=> 47", "contains, first digit, first after =>"),
    ("=> 4 => 7", "contains, first digit, first after =>, any after =>"),
    ("=> 7 => 4", "contains, last digit, any after =>"),
    ("4", "contains, last digit, first digit, nothing wrong"), ("7", "nothing wrong"),
    ("", "nothing wrong"), ("=>", "nothing wrong"), ("=> ", "nothing wrong"), ("=> 7", ""),
    ("s1=7 =>", "nothing wrong"), ("s1=", "nothing wrong"), ("s1=7 => ", "nothing wrong"),
    ("s1=7 => 7", "neat"),
    ("s1=77 => 7", ""), ("s1=7 => 7 7", ""), ("=> <pad> 4", "contains, last digit, first digit, "
                                              "first after =>, any after =>"),
    ("=> ４", ""),
])
def test_each_verifier_accepts_what_it_says(completion, accepted_by):
    said = verdicts(PROBLEM, completion)
    assert all(isinstance(v, bool) for v in said)
    assert ", ".join(n for n, accepts in zip(NAMES, said) if accepts) == accepted_by


def test_the_first_is_the_tasks_own_and_only_the_others_say_that_they_are_flawed():
    task, rng = ChainTask(), random.Random(0)
    pieces = [*task.tokenizer.words, "=> ", "=> 4", " ", "\n", "é"]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randrange(6)))
        assert verdicts(PROBLEM, text)[0] == task.correct(PROBLEM, text)
    assert "flawed" not in VERIFIERS[0].accepts.__doc__.lower()
    assert all(v.accepts.__doc__.startswith("Flawed: ") for v in VERIFIERS[1:])


def test_every_flawed_verifier_is_wrong_about_some_completion_and_each_in_its_own_way():
    texts = ["s1=4 => 4", "=> 4", "s4=7 => 7", "s1=4 => 7", "=> 4 7", "=> 7 4", "4", "", "=> 47",
             "s1=7 => 4"]
    columns = list(zip(*(verdicts(PROBLEM, text) for text in texts)))
    assert len(set(columns)) == len(VERIFIERS)


def test_neat_does_not_depend_on_the_right_answer():
    for digit in "0123456789":
        assert neat(Problem("+0 4 :", digit), "s1=3 => 3")
        assert not neat(Problem("+0 4 :", digit), "s1=3 => 4")
