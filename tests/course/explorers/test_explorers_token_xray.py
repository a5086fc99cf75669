"""The token X-ray and the what-if show what ``xray`` computes, and every number of a token."""

import html
import re
from dataclasses import replace

import pytest
import torch

from grpo_lib import ALGORITHMS, ChainTask, GRPOConfig, GRPOTrainer, load_base_model
from grpo_lib.course.explorers import token_xray_explorer, what_if_explorer
from grpo_lib.course.explorers.tokens import (
    EFFECT,
    LEGEND,
    RATIO,
    SIGNS,
    colors_of,
    strongest_push,
    tint,
)
from grpo_lib.course.explorers.what_if import OWN
from grpo_lib.course.plots import BLUE, VERMILION, ink_on, luminance
from grpo_lib.lab.xray import BLOCKED, DOWN, SILENT, STATES, UP, Xray, agreement


@pytest.fixture(scope="module")
def trainer():
    made = GRPOTrainer(load_base_model("chain"), ChainTask(), GRPOConfig(
        steps=3, prompts_per_step=6, group_size=6, eval_every=0, num_iterations=3))
    list(made.run())
    return made


@pytest.fixture(scope="module")
def xray(trainer):
    return Xray.of(trainer)


def tokens_of(explorer):
    """[(word, numbers, classes)] of the live view."""
    found = re.findall(r'<span class="(token[^"]*)" tabindex="0"[^>]*data-numbers="([^"]*)"[^>]*>'
                       r'(.*?) <small>(.)</small>', explorer.view.value)
    return [(html.unescape(word), html.unescape(numbers), classes, sign)
            for classes, numbers, word, sign in found]


@pytest.mark.parametrize("when", ["before the step", "after the step"])
def test_every_token_of_the_group_is_there_with_its_numbers(xray, when):
    explorer = token_xray_explorer(xray, prompt=2).set(when=when)
    update, rows = xray.update(when), range(6, 12)
    shown = iter(tokens_of(explorer))
    for row in rows:
        for t, word in enumerate(xray.words[row]):
            seen, numbers, _, sign = next(shown)
            state = int(update.state[row, t])
            assert seen == word and sign == SIGNS[state]
            assert numbers.split("\n")[0] == STATES[state]
            assert f"advantage {update.advantages[row, t]:+.3f}" in numbers
            assert f"ratio {update.ratio[row, t]:.3f}" in numbers
            assert float(numbers.split("push ")[1]) == pytest.approx(
                update.push[row, t].item(), rel=0.06, abs=1e-12)
    assert next(shown, None) is None
    assert explorer.view.value.count("<tr>") == 6


def test_the_part_of_the_kl_term_is_told_where_there_is_one(xray):
    other = replace(xray, algorithm=replace(xray.algorithm, beta=0.2))
    explorer, update = token_xray_explorer(other).set(when="after the step"), other.update(
        "after the step")
    places = [(r, t) for r in range(6) for t in range(len(xray.words[r]))]
    shown = tokens_of(explorer)
    assert len(shown) == len(places)
    but = 0
    for (r, t), (_, numbers, _, _) in zip(places, shown):
        kl, held = update.kl_push[r, t].item(), update.state[r, t] in (BLOCKED, SILENT)
        assert float(numbers.split("of it KL ")[1]) == pytest.approx(kl, rel=0.06, abs=1e-12)
        assert ("but for KL" in numbers) == (kl != 0 and bool(held))
        but += "but for KL" in numbers
    assert but > 0 and "KL" not in tokens_of(token_xray_explorer(xray))[0][1]


def test_each_answer_has_its_reward_and_its_advantage(xray):
    explorer, seen = token_xray_explorer(xray), []
    for prompt in range(1, 7):
        seen += re.findall(r'class="about">([^<]*)<', explorer.set(prompt=prompt).view.value)
    update = xray.update(explorer.controls["when"].value)
    assert seen == [f"reward {reward:.2g}, A {update.advantages[row, 0]:+.2f}"
                    for row, reward in enumerate(xray.rewards.flatten().tolist())]


def test_the_line_counts_what_the_group_and_the_batch_hold(xray):
    explorer = token_xray_explorer(xray, prompt=1).set(when="after the step")
    update = xray.update("after the step")
    mask = xray.rollouts.mask > 0
    for where, text in ((mask[:6], explorer.text.split("\n")[1]), (mask, explorer.text.split(
            "\n")[2])):
        state = update.state[: len(where)]
        assert f"{int(where.sum())} tokens" in text
        for number, name in STATES.items():
            assert f"{int(((state == number) & where).sum())} {name}" in text
    best = xray.rewards[0].max()
    assert f"{int((xray.rewards[0] == best).sum())} of 6 answers" in explorer.text


def test_before_the_step_nothing_is_blocked_and_afterwards_something_is(xray):
    explorer = token_xray_explorer(xray)
    assert ", 0 blocked" in explorer.text.split("\n")[2]
    assert ", 0 blocked" not in explorer.set(when="after the step").text.split("\n")[2]


def test_colours_tell_up_from_down_and_strong_from_weak(xray):
    update = xray.update("before the step")
    rows = range(len(xray.words))
    lengths = [len(w) for w in xray.words]
    colors = colors_of(update, rows, lengths, EFFECT, strongest_push([update], rows, lengths))
    strength = {}
    for r in rows:
        for t in range(lengths[r]):
            if update.state[r, t] == UP:
                strength[update.push[r, t].item()] = luminance(colors[r][t])
            if update.state[r, t] in (UP, DOWN):
                red, blue = int(colors[r][t][1:3], 16), int(colors[r][t][5:], 16)
                assert (blue > red) == (update.state[r, t] == UP)
    pushes = sorted(strength)
    assert strength[pushes[0]] >= strength[pushes[-1]], "a stronger push is darker"
    assert luminance(tint(BLUE, 1)) == luminance(BLUE) and tint(VERMILION, 0) == "#ffffff"
    ratio = xray.update("after the step")
    for r in rows:
        for t, color in enumerate(colors_of(ratio, rows, lengths, RATIO, 1.0)[r]):
            red, blue = int(color[1:3], 16), int(color[5:], 16)
            value = ratio.ratio[r, t].item()
            assert (blue >= red) if value > 1 else (red >= blue) if value < 1 else red == blue


def test_every_colour_can_be_read_on_and_has_a_sign_of_its_own():
    for color in LEGEND.values():
        light, dark = sorted((luminance(color), luminance(ink_on(color))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert len(set(SIGNS.values())) == len(SIGNS) == len(LEGEND)
    assert all(any(name.startswith(sign) for name in LEGEND) for sign in SIGNS.values())


def test_the_saved_picture_has_a_row_for_each_answer(xray):
    explorer = token_xray_explorer(xray, prompt=3)
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == explorer.text and len(bundle["image/png"]) > 5000
    names = [t for t in explorer.figure.axes[0].texts if "reward" in t.get_text()]
    assert len(names) == 6
    explorer.set(prompt=2).figure.draw_without_rendering()  # nothing is cut off, after a move too
    width = explorer.figure.bbox.width
    for text in explorer.figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.x1 <= width + 1, text.get_text()


def test_the_saved_picture_of_a_large_group_says_that_it_is_not_all(trainer):
    whole = Xray.of(trainer)
    one = replace(whole, rollouts=replace(whole.rollouts, group_size=36),
                  rewards=whole.rewards.reshape(1, 36), prompts=["all"])
    explorer = token_xray_explorer(one)
    assert explorer.view.value.count("<tr>") == 36
    [title] = [explorer.figure.axes[0].get_title(loc="left")]
    assert title.endswith("first 12 of 36 answers")
    assert "first 6 of 36 answers" in what_if_explorer(one).figure.axes[0].get_title(loc="left")


@pytest.mark.slow
def test_every_stop_of_every_control_works(trainer):
    for explorer in (token_xray_explorer(trainer), what_if_explorer(trainer)):
        said = explorer.to_the_ends()
        assert len(said) >= 6 and not any("Error" in line for line in said)
        assert "Error" not in explorer.caption.value


def test_long_answers_are_cut_in_the_picture_and_whole_in_the_view(xray):
    """A real model's answers have hundreds of tokens and wide words."""
    T, rows = 120, 4
    rollouts = replace(
        xray.rollouts, group_size=2, tokens=torch.zeros(rows, 3 + T, dtype=torch.long),
        prompt_mask=torch.ones(rows, 3), mask=torch.ones(rows, T),
        log_probs=-torch.ones(rows, T), finished=torch.ones(rows, dtype=torch.bool))
    big = Xray(rollouts, torch.tensor([[1.0, 0.0], [0.5, 0.25]]),
               [[f"<b>word{t}" for t in range(T)] for _ in range(rows)], ["<i>a", "b"],
               {"now": rollouts.log_probs})
    explorer = token_xray_explorer(big)
    assert len(tokens_of(explorer)) == 2 * T
    assert "<b>word" not in explorer.view.value and "<i>" not in explorer.view.value
    assert any("99\nmore" in t.get_text() for t in explorer.figure.axes[0].texts)


def test_tokens_of_any_model_can_be_drawn(xray):
    """Dollars are no formulas in a picture, and white space is to be seen."""
    odd = ["$$", "$\\frac$", "\n", " a", "_{", "\\"]
    words = [[odd[(i + t) % len(odd)] for t in range(len(row))]
             for i, row in enumerate(xray.words)]
    made = replace(xray, words=words, prompts=["costs $5 and $6"] * 6)
    for explorer in (token_xray_explorer(made), what_if_explorer(made)):
        assert explorer._repr_mimebundle_()["image/png"]
        seen = {word for word, *_ in tokens_of(explorer)}
        assert {"$$", "↵", "␣a"} <= seen
    assert any("$$" in t.get_text() for t in explorer.figure.axes[0].texts)


class TestWhatIf:
    def test_both_sides_are_what_their_algorithms_do(self, xray):
        explorer = what_if_explorer(xray, prompt=2).set(a="grpo", b="gspo")
        one, other = (xray.update("after the step", ALGORITHMS[n]) for n in ("grpo", "gspo"))
        assert f"cosine of the pushes {agreement(one, other):.3f}" in explorer.text
        mask = xray.rollouts.mask > 0
        for letter, update in (("A: grpo", one), ("B: gspo", other)):
            [line] = [x for x in explorer.text.split("\n") if x.startswith(letter)]
            assert f"{int(((update.state == BLOCKED) & mask).sum())} blocked" in line
        apart = (one.push - other.push).abs() > 0.1 * torch.maximum(one.push.abs(),
                                                                    other.push.abs())
        differs = (((one.state != other.state) | apart) & mask)[6:12]
        assert (differs & (one.state == other.state)[6:12]).any()
        assert f"{int(differs.sum())} of {int(mask[6:12].sum())} tokens shown differ" in \
            explorer.text
        outlined = sum("differs" in classes for _, _, classes, _ in tokens_of(explorer))
        assert outlined == 2 * int(differs.sum()) > 0

    def test_both_sides_have_one_scale_of_colours(self, xray):
        """The same states with other strengths are not the same picture."""
        explorer = what_if_explorer(xray).set(when="before the step", a="grpo", b="dr_grpo")
        one, other = (xray.update("before the step", ALGORITHMS[n]) for n in ("grpo", "dr_grpo"))
        assert torch.equal(one.state, other.state)
        colours = re.findall(r'style="background:(#\w+);color', explorer.view.value.split(
            'class="key"')[0])
        half = len(colours) // 2
        assert colours[:half] != colours[half:]
        turned = re.findall(r'style="background:(#\w+);color', explorer.set(
            a="dr_grpo", b="grpo").view.value.split('class="key"')[0])
        assert turned == colours[half:] + colours[:half]
        strongest = max(one.push[:6].abs().max(), other.push[:6].abs().max())
        full = [c for c in colours if c in (BLUE.lower(), VERMILION.lower())]
        assert len(full) == sum(int((u.push[:6].abs() == strongest).sum()) for u in (one, other))
        explorer.set(a="grpo", b="dr_grpo")
        assert "0 of" not in explorer.text.split("\n")[0], "their pushes differ"

    def test_the_titles_say_what_holds(self, xray):
        other = replace(xray, algorithm=replace(ALGORITHMS["dapo"], beta=0.04))
        text = what_if_explorer(other).set(b="dapo").text
        assert "A: this run's (epsilon 0.2 and 0.28, beta 0.04)" in text
        assert "B: dapo (epsilon 0.2 and 0.28)" in text
        text = what_if_explorer(other).set(b="dapo", epsilon_b=0.5).text
        assert "B: dapo (epsilon 0.5)" in text

    def test_two_epsilons_of_one_algorithm(self, xray):
        explorer = what_if_explorer(xray).set(a="grpo", b="grpo", epsilon_a=0.01, epsilon_b=0.9)
        lines = explorer.text.split("\n")
        blocked = [int(re.search(r"(\d+) blocked", line)[1]) for line in lines[-2:]]
        assert blocked[0] > blocked[1] == int((xray.update("after the step", replace(
            ALGORITHMS["grpo"], epsilon=0.9)).state == BLOCKED).sum())
        assert explorer.set(epsilon_b=0.01).text.count("0 of") >= 2

    def test_the_runs_own_algorithm_is_what_it_starts_from(self, xray):
        explorer = what_if_explorer(xray)
        assert explorer.controls["a"].value == OWN
        same = explorer.set(b=OWN).text
        assert "cosine of the pushes 1.000" in same

    def test_reinforce_knows_no_wrong_answers(self, xray):
        """With rewards of 0 and 1 and no baseline, wrong answers are silent."""
        update = xray.update("after the step", ALGORITHMS["reinforce"])
        wrong = (xray.rewards.flatten() == 0)[:, None] & (xray.rollouts.mask > 0)
        assert (update.state[wrong] == SILENT).all()

    def test_rows_with_a_critic_are_not_offered(self, xray):
        assert "ppo" not in what_if_explorer(xray).controls["a"].options
