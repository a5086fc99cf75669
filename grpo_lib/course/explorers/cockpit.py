"""A training run to steer: start, pause, one step, back, reset; settings that take effect at the
next step; live curves; a second run behind them; export."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence

import ipywidgets

from grpo_lib.config import GRPOConfig, StepMetrics
from grpo_lib.course.explorers import frames
from grpo_lib.course.explorers.base import Growing, caption
from grpo_lib.course.explorers.cockpit_view import (
    BUTTONS,
    DEFAULT,
    IN_VIEW,
    OF_ROW,
    ROW,
    close_all,
    controls_of,
    curves_for,
    described,
    live_group,
    of_row,
    recorded_runs,
)
from grpo_lib.course.explorers.outputs import running_cell, what_waits
from grpo_lib.course.explorers.token_xray import token_xray_explorer
from grpo_lib.course.plots import GREEN, GREY, ORANGE, VERMILION, keep_layout, training_curves
from grpo_lib.course.replay import Export
from grpo_lib.course.steering import CLOSED, FAILED, PAUSED, RUNNING, SteeredRun
from grpo_lib.training import GRPOTrainer

PANELS = ("reward", "length", "entropy", "kl", "clip", "groups")
REDRAW_SECONDS = 0.25  # the live curves are drawn at most so often while the run goes on
GROUP_SECONDS = 1.0  # and the live group, which takes twenty times as long
COLORS = {RUNNING: GREEN, PAUSED: ORANGE, FAILED: VERMILION}  # of the state; others are grey
_made: dict[str, list[tuple[str, weakref.ref[Cockpit]]]] = {}  # by cell: (execution, cockpit)
_shown: dict[int, Cockpit] = {}  # what a page shows is held, whether it has a name or not


def cockpit_explorer(make_trainer: Callable[[GRPOConfig], GRPOTrainer] | None = None,
                     config: GRPOConfig | None = None, *,
                     compare: tuple[str, Sequence[Mapping]] | None = None,
                     checkpoint_every: int = 5) -> Cockpit:
    """A cockpit for a run that ``make_trainer(config)`` builds; by default for the base model of
    the chain task and the settings of ``GRPOConfig()``. ``compare``: (name, metrics) of a run to
    draw behind it. Running a cell again closes the cockpit that it made before, and draws its run
    behind the new one. A page that has lost a cockpit gets it back by its name in a new cell."""
    return Cockpit(make_trainer or chain_trainer, config or GRPOConfig(), compare,
                   checkpoint_every)


def chain_trainer(config: GRPOConfig) -> GRPOTrainer:
    """The course's own: its base model on its task."""
    from grpo_lib.support.checkpoint import load_base_model
    from grpo_lib.tasks import ChainTask

    return GRPOTrainer(load_base_model("chain"), ChainTask(), config)


class Cockpit(Growing):
    """Buttons, sliders and curves over a ``SteeredRun``, which is ``cockpit.run``.

    What the buttons do can be done from code too: ``start``, ``pause``, ``step``, ``back``,
    ``reset``, ``keep``, ``set``, ``export``. ``steps(n)`` takes steps and waits for them.
    ``replaced``: the export of the run that its cell had before. You go back with a slider:
    ipywidgets does not tell the kernel about a click on a picture.
    """

    dpi = 80

    def __init__(self, make_trainer, config, compare=None, checkpoint_every: int = 5):
        self._drawing, self._quiet = threading.Lock(), None
        self._drawn, self._looked, self._curves = 0.0, 0.0, None
        self._message = ""
        self.compare, self.replaced = compare, None
        self.about = f"A run of {config.steps} steps to steer: {', '.join(PANELS)}"
        me = weakref.ref(self)  # the run's thread must not keep a cockpit that nobody holds
        self.run = SteeredRun(make_trainer, config, checkpoint_every=checkpoint_every,
                              on_change=lambda: me() and me().follow())
        self.buttons = {name: ipywidgets.Button(
            description=label, tooltip=about, layout=ipywidgets.Layout(width="auto"))
            for name, (label, about) in BUTTONS.items()}
        self.controls = controls_of(config)
        self.checkpoint = ipywidgets.IntSlider(
            value=0, min=0, max=0, step=checkpoint_every, description="back to step",
            style={"description_width": "100px"}, layout=ipywidgets.Layout(width="360px"))
        self.exported = ipywidgets.HTML()
        self.said = ipywidgets.HTML()
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        more = ipywidgets.Accordion([ipywidgets.HBox(
            [c for name, c in self.controls.items() if name not in IN_VIEW], layout=row)],
            selected_index=None)
        more.set_title(0, "More: the algorithm, its other settings")
        super().__init__([*self.buttons.values(), self.checkpoint])
        in_view = ipywidgets.HBox([self.controls[name] for name in IN_VIEW], layout=row)
        self.group = ipywidgets.HTML(layout=ipywidgets.Layout(height="245px", overflow="auto"))
        self.over = ipywidgets.HTML(layout=ipywidgets.Layout(height="0", margin="0",
                                                               overflow="visible"))
        self.view.layout.margin = "0"
        buttons, view, below, look = self.box.children
        self.box.children = (buttons, in_view, self.said, self.over, view, below, self.group, more,
                             self.exported, look)
        self.box.add_class("grpo-cockpit")
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: me() and me()._press(name))
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: me() and me()._move(name, change["new"]),
                            "value")
        self._replace_old()
        self.redraw()

    # --- what a learner does -----------------------------------------------------------------

    def start(self) -> None:
        """Go on, in the background, to the settings' last step."""
        self.run.start()

    def pause(self) -> None:
        """Stop after the step that is being taken."""
        self.run.pause()

    def step(self) -> None:
        """Take one step, in the background."""
        self.run.start(1)

    def steps(self, count: int | None = None) -> list[StepMetrics]:
        """Take steps and wait for them. The stop button pauses the run."""
        return self.run.run(count)

    def set(self, **settings) -> Cockpit:
        """Other settings from the next step on; the controls follow."""
        self.run.set(**settings)
        self._show_settings()
        self.say("")
        return self

    def back(self, step: int) -> None:
        """Back to a checkpoint, with the settings of that step."""
        self.run.back(step)
        self._show_settings()
        self.redraw()

    def reset(self) -> None:
        """A fresh run; curves that were kept stay behind it."""
        self.run.reset()
        self.exported.value = ""
        self._show_settings()
        self.redraw()

    def keep(self, name: str | None = None) -> None:
        """Draw this run's curves behind the next."""
        if self.run.history:
            moves = len(self.run.moves)
            self.compare = (name or f"kept, {moves} move{'s' * (moves != 1)}",
                            [m.to_dict() for m in self.run.history])
            self.redraw()
        else:
            self.say("nothing to keep yet: the run has taken no step")

    def export(self) -> Export:
        """This run as text: its settings, its moves, its log."""
        return Export(self.run)

    def xray(self):
        """The tokens of the last step (the run is paused first)."""
        self.run.pause()
        return token_xray_explorer(self.run.trainer)

    def close(self) -> None:
        """Give the run up. Its curves stay."""
        self.run.close()
        _shown.pop(id(self), None)

    # --- callbacks: in whichever thread the front end has them -------------------------------

    def _press(self, name: str) -> None:
        self._message = ""
        try:
            if name == "back" and not self.run.history:
                self.say("the run is at step 0 already")
            elif name == "back":
                self.back(self.checkpoint.value)
            elif name == "export":
                self.exported.value = self.export().as_html()
            else:
                getattr(self, name)()
        except Exception as error:  # a callback's error would be shown nowhere
            self.say(f"{type(error).__name__}: {error}")

    def _move(self, name: str, value) -> None:
        if self._quiet == threading.get_ident():
            return
        try:
            self.run.set(**{name: None if value in (ROW, DEFAULT) else value})
            if name == "algorithm":  # whose own values the sliders name
                self._show_settings()
            self.say("")
        except (ValueError, RuntimeError) as error:
            self._show_settings()
            self.say(f"not taken: {error}")

    def _show_settings(self) -> None:
        """Put the controls where the settings are; a value that has no stop gets one."""
        self._quiet = threading.get_ident()  # what other threads move meanwhile counts
        try:
            for name, control in self.controls.items():
                value = getattr(self.run.wanted, name)
                if value is None:
                    value = DEFAULT if name == "algorithm" else ROW
                if name == "algorithm":
                    control.value = value
                    continue
                options = {o[1]: o for o in control.options} | {value: (f"{value:g}", value)
                                                                if value != ROW else None}
                if name in OF_ROW:
                    options[ROW] = of_row(self.run.wanted, name)
                options = sorted(options.values(), key=lambda o: -1.0 if o[1] == ROW else o[1])
                if options != list(control.options):
                    control.options = options
                control.value = value
        finally:
            self._quiet = None

    def follow(self) -> None:
        """Show what the run did: a line at each step, and the curves."""
        with self._drawing:
            if self.run.state != RUNNING:
                self._draw()
            elif time.monotonic() - self._drawn > REDRAW_SECONDS:
                self._draw_live()
            self._say()

    def redraw(self) -> None:
        """Draw the curves now."""
        with self._drawing:
            self._draw()
            self._say()

    def say(self, what: str) -> None:
        """The line of numbers, with a message below it that stays until something is pressed or
        moved."""
        with self._drawing:
            self._message = what
            self._say()

    def _draw(self) -> None:
        """The live view, and the picture that the notebook keeps, with all panels."""
        run = self.run
        figure = training_curves([m.to_dict() for m in run.history], PANELS, run.wanted.steps,
                                 compare=self.compare, marks=sorted({m.step for m in run.moves}),
                                 columns=3)
        keep_layout(self.figure, figure)
        over = self._live()
        self.show(figure, self.describe(), self._curves.svg)
        self.over.value = over
        self._after_drawing(run.state != RUNNING)
        if run.state != RUNNING:  # while it goes on, the notebook's file needs no picture
            self.keep_picture()

    def _draw_live(self) -> None:
        """In the run's own thread, between two steps."""
        axes = self._curves
        self.over.value = self._live()
        if self._curves is not axes:
            self.view.value = self._curves.svg
        self._after_drawing(True)

    def _live(self) -> str:
        history = [m.to_dict() for m in self.run.history]
        self._curves = curves_for(self.run, history, self.compare, self._curves)
        return self._curves.over(history, self.run.moves)

    def _after_drawing(self, between_steps: bool) -> None:
        """What else follows the run: a group, the slider of checkpoints."""
        run = self.run
        if between_steps and (run.state != RUNNING
                              or time.monotonic() - self._looked > GROUP_SECONDS):
            self.group.value = live_group(run.trainer) if run.history else ""
            self._looked = time.monotonic()
        last = max(run.checkpoints, default=0)
        newest = self.checkpoint.value == self.checkpoint.max
        self.checkpoint.max = last
        if newest:  # the slider stays at the newest, unless it was moved away
            self.checkpoint.value = last
        self._drawn = time.monotonic()

    def _say(self) -> None:
        run = self.run
        self.text = self.describe()
        lines = [self.text, *filter(None, [self._message, run.note])]
        if run.state == FAILED:
            lines.append(f"{type(run.error).__name__}: {run.error}. Go back to a checkpoint, or "
                         f"reset.")
        elif run.state == CLOSED:
            lines.append("This cockpit was replaced or closed; its run is over. Run its cell "
                         "again for a new one.")
        else:
            lines.append(what_waits())
        color = COLORS.get(run.state, GREY)
        self.said.value = caption("\n".join(lines), f"min-height:4.2em;padding-left:10px;"
                                                    f"border-left:6px solid {color};")
        going, over = run.state == RUNNING, run.state == CLOSED
        self.buttons["start"].layout.display = "none" if going else ""
        self.buttons["pause"].layout.display = "" if going else "none"
        for name, useless in (("pause", run.pausing), ("step", going), ("start", over),
                              ("back", not run.history), ("keep", not run.history),
                              ("export", not run.history)):
            self.buttons[name].disabled = over or useless
        self.caption.value = ""

    def describe(self) -> str:
        """State, newest numbers, moves and what will change at the next step."""
        return described(self.run)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        if self.run.state != CLOSED:
            _shown[id(self)] = self
        return super()._repr_mimebundle_(include, exclude)

    def _to_display(self) -> tuple[dict, dict]:
        data, metadata = super()._to_display()
        return data, metadata | (recorded_runs() if frames.wanted() else {})

    def _replace_old(self) -> None:
        """Close the cockpits that earlier executions of this cell made; keep what they did."""
        cell, execution = running_cell()
        if cell is None:
            return
        made = _made.pop(cell, [])
        for old in [c() for e, c in made if e != execution]:
            if old is None or old.run.state == CLOSED:
                continue
            history, going = old.run.history, old.run.running
            old.close()
            if history:
                self.replaced = old.export()
                self._message = (
                    f"The run that this cell had before ({len(history)} steps"
                    f"{', still going on' if going else ''}) was closed. Its curves are behind "
                    f"this one, its export is in .replaced of this cockpit.")
                self.compare = self.compare or ("before", [m.to_dict() for m in history])
            close_all(old.box)
        _made[cell] = [(e, c) for e, c in made if e == execution] + [
            (execution, weakref.ref(self))]
