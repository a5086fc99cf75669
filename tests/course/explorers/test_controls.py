"""The controls of explorers: labels, limits, ends, digits, and a keyboard is enough."""

import ipywidgets
import pytest

from grpo_lib.course.explorers import controls

EACH = {
    "slider": lambda: controls.slider("epsilon", 0.2, 0.0, 0.9, 0.05),
    "whole": lambda: controls.slider("length (tokens)", 3, 1, 9, 2),
    "stops": lambda: controls.stops("group size", 4, (2, 4, 8)),
    "named stops": lambda: controls.stops("beta", 0.1, [("none", 0.0), ("a tenth", 0.1)]),
    "choice": lambda: controls.choice("estimator", "k2", ["k1", "k2", "k3"]),
    "menu": lambda: controls.choice("estimator", "k2", ["k1", "k2", "k3", "r k3", "a fifth"]),
    "named choice": lambda: controls.choice("divide by", 0, [("nothing", 0), ("std", 1)]),
    "switch": lambda: controls.switch("with KL", True),
    "words": lambda: controls.words("text", "=> 4"),
}
# Widgets that the browser focuses by Tab and moves by arrows, letters or the space bar.
BY_KEYBOARD = (ipywidgets.IntSlider, ipywidgets.FloatSlider, ipywidgets.SelectionSlider,
               ipywidgets.ToggleButtons, ipywidgets.Dropdown, ipywidgets.Checkbox, ipywidgets.Text)


@pytest.mark.parametrize("kind", EACH)
def test_every_control_has_its_label_a_value_and_works_by_keyboard(kind):
    control = EACH[kind]()
    assert isinstance(control, BY_KEYBOARD) and not control.disabled
    assert control.description in ("epsilon", "length (tokens)", "group size", "beta", "estimator",
                                   "divide by", "with KL", "text")
    assert (control.layout.min_width or control.layout.width).endswith("px")
    if kind != "switch":  # whose label stands behind its box
        assert control.style.description_width == controls.WIDE["description_width"]


@pytest.mark.parametrize(("kind", "value", "ends"), [
    ("slider", 0.2, [0.0, 0.9]), ("whole", 3, [1, 9]), ("stops", 4, [2, 8]),
    ("named stops", 0.1, [0.0, 0.1]), ("choice", "k2", ["k1", "k2", "k3"]),
    ("menu", "k2", ["k1", "k2", "k3", "r k3", "a fifth"]),
    ("named choice", 0, [0, 1]), ("switch", True, [False, True]),
    ("words", "=> 4", ["", "=> 4"]),
])
def test_the_ends_are_values_that_the_control_can_take(kind, value, ends):
    control = EACH[kind]()
    assert control.value == value and type(control.value) is type(value)
    assert controls.ends(control) == ends
    for end in controls.ends(control):
        control.value = end
        assert control.value == end


@pytest.mark.parametrize(("names", "widget", "columns"), [
    (["mean", "none"], ipywidgets.ToggleButtons, 1),
    (list("abcd"), ipywidgets.ToggleButtons, 1), (list("abcde"), ipywidgets.Dropdown, 1),
    (["before the step", "after the step"], ipywidgets.ToggleButtons, 1),
    (["eight updates a batch", "two updates a batch"], ipywidgets.Dropdown, 1),
    ([("a name that takes the width of two columns", 1), ("b", 2)], ipywidgets.Dropdown, 2),
])
def test_few_short_names_are_buttons_and_others_a_menu(names, widget, columns):
    first = names[0][1] if isinstance(names[0], tuple) else names[0]
    control = controls.choice("x", first, names)
    width = (control.layout.min_width or control.layout.width).removesuffix("px")
    assert isinstance(control, widget) and 450 * columns <= int(width) < 460 * columns


def test_a_slider_stops_at_its_limits():
    for kind, low, high in (("slider", 0.0, 0.9), ("whole", 1, 9)):
        control = EACH[kind]()
        assert (control.min, control.max) == (low, high)
        for beyond, end in ((low - 5, low), (high + 5, high)):
            control.value = beyond
            assert control.value == end


@pytest.mark.parametrize(("step", "digits"), [
    (1.0, 0), (5.0, 0), (10.0, 0), (100.0, 0), (0.5, 1), (0.05, 2), (0.125, 3), (0.0001, 4),
    (1e-5, 5), (2.5e-6, 7),
])
def test_a_slider_shows_as_many_digits_as_its_step_has(step, digits):
    slider = controls.slider("x", 0.0, 0.0, 200.0, step)
    assert isinstance(slider, ipywidgets.FloatSlider)
    assert slider.readout_format == f".{digits}f" and slider.step == step


def test_digits_can_be_asked_for_and_a_whole_step_makes_whole_numbers():
    assert controls.slider("x", 0.0, 0.0, 1.0, 0.05, digits=4).readout_format == ".4f"
    assert isinstance(controls.slider("x", 1, 0, 5, 1), ipywidgets.IntSlider)
