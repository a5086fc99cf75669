"""Explorers and live curves: every position of every control, and what is kept of them."""

import base64
import threading
from dataclasses import fields

import ipywidgets
import pytest
import torch

from grpo_lib.config import StepMetrics
from grpo_lib.course import explorers
from grpo_lib.course.explorers import Explorer, LiveCurves, epsilon_explorer, group_size_explorer
from grpo_lib.course.explorers.controls import choice, stops, switch
from grpo_lib.course.explorers.group_size import SIZES
from grpo_lib.course.plots import lines


def metrics(step, **values):
    return StepMetrics(**{f.name: 0.5 for f in fields(StepMetrics)}
                       | {"step": step, "rewards": {}} | values)


def bundle(shown):
    data = shown._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == shown.box.model_id
    return data


def a_line(height):
    return lines([0, 1], {"y": [0, height]}, "title", "x", "y"), f"height {height}"


def slider(**options):
    return ipywidgets.IntSlider(value=2, min=0, max=9, **options)


def test_an_explorer_follows_its_controls_in_picture_and_text():
    explorer = Explorer(a_line, height=slider())
    before = bundle(explorer), explorer.view.value
    explorer.controls["height"].value = 7
    assert explorer.text == "height 7" and "height 7" in explorer.caption.value
    after = bundle(explorer), explorer.view.value
    assert before[0]["text/plain"] == "height 2" and after[0]["text/plain"] == "height 7"
    assert before[0]["image/png"] != after[0]["image/png"] and before[1] != after[1]


def test_the_picture_says_its_numbers_to_a_screen_reader():
    explorer = Explorer(a_line, height=slider())
    assert 'role="img" aria-label="height 2"' in explorer.view.value


def test_set_names_a_control_that_is_not_there_and_a_value_that_is_not_allowed():
    explorer = Explorer(a_line, height=slider())
    with pytest.raises(ValueError, match="width: no such control, allowed are height"):
        explorer.set(width=3)
    with pytest.raises(ValueError, match="height: got 99"):
        explorer.set(height=99)


def test_an_error_in_drawing_is_raised_at_first_and_shown_later():
    def picky(height):
        if height != 2:
            raise ValueError("only <two>")
        return a_line(height)

    with pytest.raises(ValueError, match="only <two>"):
        Explorer(picky, height=ipywidgets.IntSlider(value=3))
    explorer = Explorer(picky, height=slider())
    explorer.controls["height"].value = 5
    assert "ValueError: only &lt;two&gt;" in explorer.caption.value


def test_set_raises_the_error_of_a_drawing_and_recovers():
    def picky(height, twice):
        if height == 5:
            raise ZeroDivisionError("not five")
        return a_line(height * (1 + twice))

    explorer = Explorer(picky, height=slider(), twice=switch("twice", False))
    for _ in range(2):  # the second time the control does not move, and the error still stands
        with pytest.raises(ZeroDivisionError, match="not five"):
            explorer.set(height=5)
    with pytest.raises(ZeroDivisionError):
        explorer.set(twice=True)
    assert explorer.text == "height 2"
    assert explorer.set(height=4).text == "height 8"
    assert "ZeroDivisionError" not in explorer.caption.value


@pytest.mark.parametrize("control", [stops("x", 2, (2, 4)), choice("x", 2, (2, 4)), slider()])
def test_a_value_between_the_stops_is_refused_and_nothing_moves(control):
    explorer = Explorer(a_line, height=control)
    with pytest.raises(ValueError, match=r"height: got 3.5, which is outside"):
        explorer.set(height=3.5)
    if not isinstance(control, ipywidgets.IntSlider):
        assert explorer.text == "height 2"


def test_to_the_ends_tries_every_end_of_every_control_and_comes_back():
    def draw(height, twice, style):
        figure, text = a_line(height * (1 + twice))
        return figure, f"{text} {style}"

    explorer = Explorer(draw, height=slider(), twice=switch("twice", False),
                        style=choice("style", "b", ["a", "b", "c"]))
    assert explorer.to_the_ends() == [
        "height = 0: height 0 b", "height = 9: height 9 b", "twice = False: height 2 b",
        "twice = True: height 4 b", "style = 'a': height 2 a", "style = 'b': height 2 b",
        "style = 'c': height 2 c"]
    assert explorer.text == "height 2 b"


def test_to_the_ends_raises_what_a_drawing_raises():
    def picky(height):
        if height == 9:
            raise ValueError("too high")
        return a_line(height)

    with pytest.raises(ValueError, match="too high"):
        Explorer(picky, height=slider()).to_the_ends()


def test_the_axes_stand_still_while_a_control_moves():
    explorer = Explorer(a_line, height=slider())
    before = explorer.figure
    explorer.set(height=9)
    assert explorer.figure is not before
    assert (explorer.figure.axes[0].get_position().bounds
            == pytest.approx(before.axes[0].get_position().bounds))


def test_explorers_are_found_by_name_and_others_are_not():
    assert explorers.epsilon_explorer is epsilon_explorer
    assert {"epsilon_explorer", "group_size_explorer", "Explorer"} <= set(dir(explorers))
    assert all(callable(getattr(explorers, name)) for name in explorers.__all__)
    for name in ("weather", "weather_explorer", "base_explorer", "controls_explorer",
                 "__init___explorer", "_explorer"):
        with pytest.raises(AttributeError, match=rf"'grpo_lib\.course\.explorers' has no "
                                                 f"attribute '{name}'"):
            getattr(explorers, name)


def test_callbacks_from_several_threads_leave_a_consistent_explorer():
    explorer = Explorer(a_line, height=slider())
    control = explorer.controls["height"]
    threads = [threading.Thread(target=setattr, args=(control, "value", h)) for h in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert explorer.text == f"height {explorer.controls['height'].value}"


@pytest.mark.parametrize("size", SIZES)
def test_group_size_explorer_at_every_size(size):
    rewards = [1.0 if i % 5 == 4 else 0.0 for i in range(64)]
    text = group_size_explorer(rewards).set(group_size=size).text
    right = sum(1 for i in range(size) if i % 5 == 4)
    assert f"G = {size}: {right} right, {size - right} wrong" in text
    assert ("teaches nothing" in text) == (right == 0)


def test_group_size_explorer_needs_enough_rewards():
    with pytest.raises(ValueError, match="rewards: got 3"):
        group_size_explorer([0.0, 1.0, 0.0])


@pytest.mark.parametrize("epsilon", [i / 20 for i in range(19)])
def test_epsilon_explorer_counts_blocked_tokens_at_every_position(epsilon):
    generator = torch.Generator().manual_seed(0)
    ratio = torch.rand(6, 5, generator=generator) * 2
    advantages = torch.tensor([1.0, -1, 2, -2, 0, 1])
    mask = torch.ones(6, 5)
    mask[0, 3:] = 0
    blocked = [(a > 0 and r > 1 + epsilon) or (a < 0 and r < 1 - epsilon)
               for row, a, counts in zip(ratio.tolist(), advantages.tolist(), mask.tolist())
               for r, m in zip(row, counts) if m]
    text = epsilon_explorer(ratio, advantages, mask).set(epsilon=epsilon).text
    assert f"epsilon = {epsilon:.2f} blocks {sum(blocked) / len(blocked):.2%} of the tokens" in text


def test_live_curves_grow_and_keep_the_last_step():
    curves = LiveCurves(3)
    empty = bundle(curves)
    assert empty["text/plain"] == "0 of 3 steps"
    for step in (1, 2, 3):
        curves.add(metrics(step, accuracy=step / 4, held_out_accuracy=None, length_right=None))
    assert curves.progress.value == 3
    assert curves.text.startswith("step 3 of 3") and "accuracy 75%" in curves.text
    assert bundle(curves)["image/png"] != empty["image/png"]
    assert curves.picture()._repr_mimebundle_()["text/plain"] == curves.text
    assert curves.picture("in words")._repr_mimebundle_()["text/plain"] == "in words"
