"""The explorers of lesson 2, at every position of their controls."""

import re
from math import comb, sqrt

import pytest

from grpo_lib.course.explorers import estimator_explorer, pass_at_k_explorer, verifier_explorer
from grpo_lib.course.explorers.verifier import tricky
from grpo_lib.course.flawed import VERIFIERS
from grpo_lib.tasks import ChainTask, Problem

PROBLEM = Problem("+0 4 :", "4")
COUNTS = {"guesser": [[1, 4, 3], [2, 2, 2, 2], [0, 5, 3]], "leaner": [[5, 3], [8], [3, 2, 2, 1]]}


@pytest.fixture(scope="module")
def probe():
    return verifier_explorer(PROBLEM)


@pytest.mark.parametrize("text", [text for _, text in tricky("4")])
def test_every_example_shows_who_is_wrong_about_it(probe, text):
    probe.set(example=text)
    assert probe.controls["completion"].value == text
    said = {v.name: v.accepts(PROBLEM, text) for v in VERIFIERS}
    truth = ChainTask().correct(PROBLEM, text)
    found = re.search(r"strict (\w+); wrong to accept: (.*); wrong to refuse: (.*)", probe.text)
    assert found[1] == ("accepts" if truth else "refuses")
    for accepts, names in ((True, found[2]), (False, found[3])):
        wrong = [n for n, s in said.items() if s is accepts and s != truth]
        assert names == (", ".join(wrong) or "none")
    words = [t.get_text() for t in probe.figure.axes[0].texts]
    assert sum("WRONG" in w for w in words) == sum(s != truth for s in said.values())
    assert sum("accepts" in w for w in words) == sum(said.values())


@pytest.mark.parametrize("text", ["", "$x$", "$", "<b>&\"'", "\x00\n\t", "é９漢", "$\\frac{$",
                                  "x" * 5000, "=> 4"])
def test_any_typed_text_is_shown_as_it_is(probe, text):
    probe.set(completion=text)
    assert ascii(text)[:20] in probe.text and len(probe.text) < 300
    assert probe.text.isascii() and "\n" not in probe.text
    assert ("strict accepts" in probe.text) == (text == "=> 4")


def test_a_typed_text_is_left_alone_until_another_example_is_chosen(probe):
    probe.set(example="=> 4").set(completion="=> 4 4")
    assert probe.text.startswith("'=> 4 4', right answer 4: strict refuses")
    probe.set(example="=>")
    assert probe.controls["completion"].value == "=>"


@pytest.mark.parametrize("answer", list("0123456789"))
def test_the_examples_are_what_their_names_say(answer):
    examples = dict(tricky(answer))
    right = {name for name, text in examples.items()
             if ChainTask().correct(Problem("p", answer), text)}
    assert right == {"right, wrong steps", "right, at once"}
    assert len(set(examples.values())) == len(examples)
    first, second = map(int, examples["a calculation"][3:].split("+"))
    assert (first + second) % 10 == int(answer)


@pytest.mark.parametrize("policy", COUNTS)
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_pass_at_k_explorer_at_every_k_and_policy(policy, k):
    rows = COUNTS[policy]
    explorer = pass_at_k_explorer(COUNTS).set(k=k, policy=policy)
    any_right = sum(1 - comb(8 - row[0], k) / comb(8, k) for row in rows) / 3
    guess = 1 - (1 - sum(row[0] for row in rows) / 24) ** k
    text = explorer.text
    assert f"{policy}, k = {k}: pass@k {any_right:.1%}, majority@k" in text
    assert f"guessing at the same rate {guess:.1%}; of groups" in text
    assert f"of groups of G = {k}, {1 - any_right:.1%} hold no right answer" in text
    if k <= 2:
        assert f"majority@k {sum(row[0] for row in rows) / 24:.1%}" in text
    if k == 8:  # all answers: first place, shared by 4 in the guesser's second problem
        won = {"guesser": 0.25, "leaner": 3.0}[policy]
        assert f"majority@k {won / 3:.1%}" in text


def test_pass_at_k_explorer_wants_one_number_of_samples():
    with pytest.raises(ValueError, match=r"measured: got \[7, 8\] samples"):
        pass_at_k_explorer({"a": [[1, 7], [1, 6]]})


@pytest.mark.parametrize("p", [i / 50 for i in range(0, 51, 5)])
@pytest.mark.parametrize(("samples", "k"), [(8, 1), (8, 8), (16, 4), (64, 2)])
def test_estimator_explorer_says_mean_and_spread_of_each_estimate(p, samples, k):
    text = estimator_explorer().set(p=p, samples=samples, k=k).text
    truth = 1 - (1 - p) ** k
    chance = [comb(samples, c) * p**c * (1 - p) ** (samples - c) for c in range(samples + 1)]
    unbiased = [1 - comb(samples - c, k) / comb(samples, k) for c in range(samples + 1)]
    plug_in = [1 - (1 - c / samples) ** k for c in range(samples + 1)]
    said = [float(x) for x in re.findall(r"([\d.]+)%", text)]
    wanted = [truth, truth, sqrt(truth * (1 - truth))]
    for values in (unbiased, plug_in):
        mean = sum(w * v for w, v in zip(chance, values))
        wanted += [mean, sqrt(max(0, sum(w * v * v for w, v in zip(chance, values)) - mean**2))]
    assert said == pytest.approx([100 * w for w in wanted], abs=0.051)
    assert f"n = {samples}, k = {k}" in text


def test_an_example_is_drawn_once(probe):
    probe.set(example="=> 4")
    drawn, usual = [], probe.draw
    probe.draw = lambda **values: drawn.append(values["completion"]) or usual(**values)
    probe.set(example="=>").set(completion="4")
    probe.draw = usual
    assert drawn == ["=>", "4"]
    assert probe.panel.children == (probe.controls["completion"], probe.controls["example"])
