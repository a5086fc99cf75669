"""The controls of explorers, all of one look: labelled, with units, usable by keyboard."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import ipywidgets
import traitlets

WIDE = {"description_width": "170px"}
COLUMN = "450px"  # of a control: two beside each other in a notebook on a laptop
EPSILONS = (0.0003, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9)  # from GSPO's to hardly a clip
PLAYED = "grpo-played"  # marks a slider over time
BUTTONS, LETTERS = 4, 32  # more names, or more letters in all, make a menu of a choice
LONG = 36  # letters of a name for which a menu is as wide as two columns


def slider(label: str, value: float, low: float, high: float, step: float, *,
           digits: int | None = None) -> ipywidgets.Widget:
    """A slider over numbers; a whole ``step`` makes it one over whole numbers. ``label`` ends
    in the unit where there is one: "length (tokens)"."""
    if isinstance(step, int):
        return ipywidgets.IntSlider(value=value, min=low, max=high, step=step, description=label,
                                    style=WIDE, layout=ipywidgets.Layout(width=COLUMN))
    if digits is None:
        digits = max(0, -Decimal(str(step)).normalize().as_tuple().exponent)
    return ipywidgets.FloatSlider(value=value, min=low, max=high, step=step, description=label,
                                  readout_format=f".{digits}f", style=WIDE,
                                  layout=ipywidgets.Layout(width=COLUMN))


def stops(label: str, value, options: Sequence) -> ipywidgets.Widget:
    """A slider that knows only the given values (or (name, value) pairs)."""
    return ipywidgets.SelectionSlider(options=options, value=value, description=label, style=WIDE,
                                      layout=ipywidgets.Layout(width=COLUMN))


def choice(label: str, value, options: Sequence) -> ipywidgets.Widget:
    """A choice among named values (or (name, value) pairs): a button for each, or a menu where
    they are many or long. (``base.LOOK`` leaves a menu its keys.)"""
    names = [o[0] if isinstance(o, tuple) else str(o) for o in options]
    longest = max(map(len, names))
    if len(names) <= BUTTONS and sum(map(len, names)) <= LETTERS:
        control = ipywidgets.ToggleButtons(
            options=options, value=value, description=label, style={"button_width": "auto"} | WIDE,
            layout=ipywidgets.Layout(width="auto", min_width=COLUMN))
        control.add_class("widget-inline-hbox")  # the label before the buttons, not above
        return control
    return ipywidgets.Dropdown(options=options, value=value, description=label, style=WIDE,
                               layout=ipywidgets.Layout(
                                   width=COLUMN if longest <= LONG else "908px", max_width="99%"))


def player(label: str, value: int, last: int) -> ipywidgets.Widget:
    """A slider from 0 to ``last`` that a page offers with a button to play it."""
    control = slider(label, value, 0, last, 1)
    control.add_class(PLAYED)
    return control


def switch(label: str, value: bool) -> ipywidgets.Widget:
    """On or off."""
    return ipywidgets.Checkbox(value=value, description=label, indent=False,
                               layout=ipywidgets.Layout(width=COLUMN))


def words(label: str, value: str) -> ipywidgets.Widget:
    """A line of text; the picture follows every key."""
    return ipywidgets.Text(value=value, description=label, style=WIDE, continuous_update=True,
                           layout=ipywidgets.Layout(width=COLUMN))


class Again(ipywidgets.Button):
    """A button whose ``value`` counts its presses, and begins anew after ``count`` of them."""

    value = traitlets.Int(0)

    def __init__(self, count: int, **options):
        super().__init__(**options)
        self.count = count
        self.on_click(lambda _: self.set_trait("value", (self.value + 1) % count))

    @traitlets.validate("value")
    def _one_of_them(self, proposal):
        if not 0 <= proposal["value"] < self.count:
            raise traitlets.TraitError(f"got {proposal['value']}")
        return proposal["value"]


def again(label: str, count: int) -> ipywidgets.Widget:
    """A button that shows the next of ``count`` things: its value is 0, 1, ..., count - 1."""
    return Again(count, description=label, icon="refresh",
                 layout=ipywidgets.Layout(width="220px", margin="2px 0 2px 20px"))


def ends(control: ipywidgets.Widget) -> list:
    """The values at a control's ends (of a choice or switch: all of them), to drive it to."""
    if isinstance(control, (ipywidgets.IntSlider, ipywidgets.FloatSlider)):
        return [control.min, control.max]
    if isinstance(control, ipywidgets.Checkbox):
        return [False, True]
    if isinstance(control, Again):
        return [0, control.count - 1]
    if isinstance(control, ipywidgets.Text):
        return ["", control.value]
    values = [o[1] if isinstance(o, tuple) else o for o in control.options]
    if isinstance(control, ipywidgets.SelectionSlider):
        return [values[0], values[-1]]
    return values
