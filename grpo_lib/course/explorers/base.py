"""The base of all explorers and live curves.

Each is a plain object that shows itself three ways at once: a live widget where a kernel
runs, a picture where the notebook is only read, and a line of text with the numbers, which
tests compare (``outputs.py`` says how). Figures are drawn without pyplot, since callbacks may run
beside a cell.
"""

from __future__ import annotations

import html
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import ipywidgets
from matplotlib.figure import Figure
from traitlets import TraitError

from grpo_lib.config import StepMetrics
from grpo_lib.course.explorers import frames, outputs
from grpo_lib.course.explorers.controls import ends, player
from grpo_lib.course.plots import Picture, keep_layout, to_png, to_svg, training_curves

REDRAW_SECONDS = 1.0  # live curves are drawn again at most this often
# Beside a live view. Pictures are drawn dark on light; in JupyterLab's dark theme they are inverted
# (hues keep their meaning), so that they are as dark as the page. The script keeps JupyterLab's
# shortcuts away from a menu that has the focus: the arrows would move to another cell, and "d d"
# would delete one.
LOOK = """<style onload="this.closest('.grpo-live').addEventListener('focusin', ({target}) => {
  if (target.matches('select')) target.dataset.lmSuppressShortcuts = 'true';
})">
.grpo-live .widget-html svg { border-radius: 8px; }
[data-jp-theme-light="false"] .grpo-live .widget-html svg {
  filter: invert(.93) hue-rotate(180deg); }
</style>"""


def rounded(value: float, digits: int, sign: str = "") -> str:
    """A number in words, with no minus before what rounds to 0; ``sign`` "+": always with one."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def caption(text: str, style: str = "") -> str:
    """A line of text as HTML, which a screen reader speaks when it changes."""
    return (f'<div role="status" style="font-size:15px;line-height:1.4;{style}'
            f'white-space:pre-wrap">{html.escape(text)}</div>')


class Shown:
    """Keeps a box of widgets, a figure and its text together."""

    dpi = 110  # of the saved picture
    _display_id: str | None = None  # by which it is found again

    def __init__(self, controls: Sequence[ipywidgets.Widget]):
        self.view = ipywidgets.HTML()
        self.caption = ipywidgets.HTML()
        self.panel = ipywidgets.HBox(list(controls), layout=ipywidgets.Layout(
            flex_flow="row wrap", align_items="center"))
        look = ipywidgets.HTML(LOOK, layout=ipywidgets.Layout(display="none"))
        self.box = ipywidgets.VBox([self.panel, self.view, self.caption, look])
        self.box.add_class(outputs.LIVE)
        self.figure, self.text = Figure(), ""

    def show(self, figure: Figure, text: str, view: str | None = None) -> None:
        """``view``: HTML to show live instead of the figure, which is then the saved picture."""
        self.figure, self.text = figure, text
        self.view.value = to_svg(figure, text) if view is None else view
        self.caption.value = caption(text)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        picture = b64encode(to_png(self.figure, self.dpi)).decode()
        return {"text/plain": self.text, "image/png": picture, outputs.VIEW: view}

    def _to_display(self) -> tuple[dict, dict]:
        """What goes into a notebook: the bundle, and the metadata of its picture."""
        return self._repr_mimebundle_(), {}

    def _ipython_display_(self) -> None:
        if not outputs.in_a_notebook():
            raise NotImplementedError("IPython then takes _repr_mimebundle_")
        outputs.display_outputs(*self._to_display(), self._display_id)


class Explorer(Shown):
    """Controls, and a figure that follows them.

    ``draw(**values)`` returns (Figure, text), or (Figure, text, HTML to show in place of the
    figure where a kernel runs); ``controls`` are ipywidgets with a ``value``,
    by the name of the argument they set. ``explorer.set(epsilon=0.4)`` moves them from code.
    Drags do not queue up: while one picture is being drawn, the page keeps only the newest value.

    Pages without a kernel show the pictures of all states (``frames``). ``page`` names the stops
    that they have of a control, as values or (name, value), where all would be too many;
    None leaves the control out.
    """

    def __init__(self, draw: Callable[..., tuple], page: Mapping[str, Sequence] | None = None, /,
                 **controls: ipywidgets.Widget):
        super().__init__(list(controls.values()))
        self.draw, self.controls, self._lock = draw, controls, threading.Lock()
        self.page = dict(page or {})
        self._error: Exception | None = None
        self.refresh()
        for control in controls.values():
            control.observe(self._follow, "value")

    def refresh(self) -> None:
        """Draw again with the controls' values."""
        with self._lock:
            figure, text, *view = self.draw(**{n: c.value for n, c in self.controls.items()})
            if not view:  # a figure that is not drawn yet has no layout to keep
                keep_layout(self.figure, figure)
            self.show(figure, text, *view)

    def _to_display(self) -> tuple[dict, dict]:
        return self._repr_mimebundle_(), frames.metadata_of(self)

    def set(self, **values) -> Explorer:
        """Move controls by name; the figure follows."""
        for name, value in values.items():
            if name not in self.controls:
                raise ValueError(f"{name}: no such control, allowed are {', '.join(self.controls)}")
            try:
                self.controls[name].value = value
                taken = self.controls[name].value == value
            except TraitError:
                taken = False
            if not taken:
                raise ValueError(f"{name}: got {value!r}, which is outside what the control allows")
            if self._error is not None:  # callbacks keep errors to themselves
                raise self._error
        return self

    def to_the_ends(self) -> list[str]:
        """Move every control to each of its ends and back; the line of text at each."""
        said = []
        for name, control in self.controls.items():
            start = control.value
            for value in ends(control):
                self.set(**{name: value})
                said.append(f"{name} = {value!r}: {self.text}")
            self.set(**{name: start})
        return said

    def _follow(self, change) -> None:
        self._error = None
        try:
            self.refresh()
        except Exception as error:  # a callback's error would be shown nowhere
            self._error = error
            self.caption.value = f"<b>{type(error).__name__}: {html.escape(str(error))}</b>"


class Growing(Shown):
    """What goes on after it was displayed. ``keep_picture`` brings the saved picture up to date.

    The line of text that is saved is ``about``, true from the first picture to the last: of a text
    that changes, a run of the cell and its comparison would see different ones. The numbers of the
    last picture are its description (``alt``).
    """

    about = ""

    def __init__(self, controls: Sequence[ipywidgets.Widget]):
        super().__init__(controls)
        self._display_id = uuid.uuid4().hex
        self._kept: Figure | None = None  # the figure that the notebook has, if it has one

    def _to_display(self) -> tuple[dict, dict]:
        self._kept = self.figure
        return (self._repr_mimebundle_() | {"text/plain": self.about},
                {"image/png": {"alt": self.text}})

    def picture(self, text: str | None = None) -> Picture:
        """The curves so far, to keep in the notebook; ``text`` says what they show."""
        self.redraw()
        return Picture(self.figure, text or self.text, self.dpi)

    def keep_picture(self) -> None:
        """Put the figure as it is now where the notebook has an earlier one."""
        if self._kept not in (None, self.figure):
            outputs.update_picture(*self._to_display(), self._display_id)


class LiveCurves(Growing):
    """Curves and a progress bar that grow while a run goes on.

        curves = LiveCurves(steps=50)
        display(curves)
        for metrics in trainer.run():
            curves.add(metrics)

    The saved notebook keeps the curves as they are when the cell ends, be it interrupted.
    """

    def __init__(self, steps: int, panels: Sequence[str] = ("accuracy", "length", "entropy"),
                 title: str | None = None):
        self.steps, self.panels, self.title = steps, panels, title
        self.about = f"Curves over {steps} steps: {', '.join(panels)}"
        if title:
            self.about = f"{title}. {self.about}"
        self.history: list[dict] = []
        self.progress = ipywidgets.IntProgress(0, 0, steps, description="step 0",
                                               layout=ipywidgets.Layout(width="500px"))
        super().__init__([self.progress])
        self._drawn, self._steps_drawn, self._waits = 0.0, 0, False
        self.redraw()

    def add(self, metrics: StepMetrics) -> None:
        """Take in a step; draws if it is time to, and always at the last step."""
        self.history.append(asdict(metrics))
        self.progress.value = metrics.step
        self.progress.description = f"step {metrics.step}"
        if metrics.step == self.steps or time.monotonic() - self._drawn > REDRAW_SECONDS:
            self.redraw()
        if self._kept is not None and not self._waits:
            outputs.when_this_cell_ends(self.keep_picture)
            self._waits = True

    def redraw(self) -> None:
        self.show(training_curves(self.history, self.panels, self.steps, self.title),
                  self.describe())
        self._drawn, self._steps_drawn = time.monotonic(), len(self.history)

    def keep_picture(self) -> None:
        self._waits = False
        if self._steps_drawn != len(self.history):
            self.redraw()
        super().keep_picture()

    def _to_display(self) -> tuple[dict, dict]:
        data, metadata = super()._to_display()
        if self.history and frames.wanted():
            metadata |= frames.metadata_of(self.played())
        return data, metadata

    def played(self) -> Explorer:
        """The run so far, as an explorer of its steps."""
        def draw(step: int):
            return (training_curves(self.history[:step], self.panels, self.steps, self.title),
                    self.describe(step))

        last = len(self.history)
        shown = sorted({*range(0, last, max(1, last // 20)), last})
        return Explorer(draw, {"step": shown}, step=player("step", last, last))

    def describe(self, step: int | None = None) -> str:
        """The numbers of a step (None: the newest), in a line."""
        seen = self.history[:step]
        if not seen:
            return f"0 of {self.steps} steps"
        last = seen[-1]
        return (f"step {last['step']} of {self.steps}: reward {last['reward_mean']:.2f}, "
                f"accuracy {last['accuracy']:.0%}, length {last['length']:.1f} tokens, "
                f"entropy {last['entropy']:.2f} nats")
