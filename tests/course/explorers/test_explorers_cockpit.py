"""The cockpit: what it shows is the run, what it exports makes the run again."""

import base64
import gc
import html
import json
import os
import re
import signal
import sys
import threading
import weakref
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from waiting import until

from grpo_lib import ALGORITHMS, GRPOConfig
from grpo_lib.course import explorers
from grpo_lib.course.explorers import cockpit as room
from grpo_lib.course.explorers import cockpit_explorer
from grpo_lib.course.explorers.cockpit_view import Curves, live_group, xray_of
from grpo_lib.course.steering import steered
from grpo_lib.lab.xray import Xray

CONFIG = GRPOConfig(steps=6, prompts_per_step=4, group_size=4, eval_every=0)


def numbers(history):
    return [{k: v for k, v in asdict(m).items() if not k.startswith("seconds")} for m in history]


@pytest.fixture
def cockpit():
    made = cockpit_explorer(config=CONFIG, checkpoint_every=2)
    yield made
    made.close()


def press(cockpit, name):
    cockpit.buttons[name].click()


def widgets():
    """All that are open, in ipywidgets 7 and 8."""
    import ipywidgets

    known = getattr(ipywidgets.widgets.widget, "_instances", None)
    return dict(ipywidgets.Widget.widgets if known is None else known)


def said(cockpit):
    return html.unescape(re.sub("<[^>]*>", "", cockpit.said.value))


def test_buttons_drive_the_run(cockpit):
    assert cockpit.text == "ready, step 0 of 6"
    press(cockpit, "step")
    until(lambda: "paused" in said(cockpit))
    assert len(cockpit.run.history) == 1 and "paused, step 1 of 6" in said(cockpit)
    press(cockpit, "start")
    press(cockpit, "pause")
    cockpit.steps()
    assert "finished, step 6 of 6" in said(cockpit)
    last = cockpit.run.history[-1]
    assert f"reward {last.reward_mean:.2f}" in said(cockpit)
    assert f"silent groups {last.zero_variance_groups:.0%}" in said(cockpit)
    assert numbers(cockpit.run.history) == numbers(room.chain_trainer(CONFIG).run())
    press(cockpit, "reset")
    assert "ready, step 0 of 6" in said(cockpit)


def test_sliders_moved_while_it_runs_are_exported_and_make_the_same_run(cockpit):
    cockpit.start()
    until(lambda: len(cockpit.run.history) >= 1)
    cockpit.controls["epsilon"].value = 0.05
    cockpit.controls["group_size"].value = 8
    until(lambda: len(cockpit.run.history) >= 3)
    cockpit.controls["algorithm"].value = "rloo"
    cockpit.controls["beta"].value = 0.04
    cockpit.run.wait()
    export = cockpit.export()
    assert {field for _, field, _ in export.moves} == {"epsilon", "group_size", "algorithm",
                                                       "beta"}
    names = {}
    printed = []
    exec(export.code.replace("print(metrics.step, metrics.reward_mean)", "seen.append(metrics)"),
         names | {"seen": printed})
    assert numbers(printed) == numbers(cockpit.run.history)
    lines = [json.loads(line) for line in export.jsonl.splitlines()]
    assert [line["reward_mean"] for line in lines] == [round(m.reward_mean, 6)
                                                       for m in cockpit.run.history]
    assert repr(export).startswith("GRPOConfig(steps=6, prompts_per_step=4, group_size=4")


def test_the_exports_link_holds_the_log(cockpit):
    cockpit.steps(2)
    press(cockpit, "export")
    data = re.search(r"base64,([^\"]*)", cockpit.exported.value)[1]
    assert base64.b64decode(data).decode() == cockpit.export().jsonl
    assert html.escape(cockpit.export().code) in cockpit.exported.value


@pytest.mark.slow
def test_every_stop_of_every_control_is_taken(cockpit):
    for name, control in cockpit.controls.items():
        stops = [o[1] if isinstance(o, tuple) else o for o in control.options]
        for value in stops:
            control.value = value
            wanted = getattr(cockpit.run.wanted, name)
            assert wanted == (None if value in (room.ROW, room.DEFAULT) else value), (name, value)
        cockpit.reset()
        assert cockpit.run.wanted == CONFIG
    options = cockpit.controls["algorithm"].options
    assert set(options) == {room.DEFAULT} | {n for n, r in ALGORITHMS.items() if not r.critic}


def test_a_setting_that_waits_is_said_and_then_marked(cockpit):
    cockpit.steps(2)
    cockpit.controls["epsilon"].value = 0.05
    assert "from the next step on: epsilon 0.05" in said(cockpit)
    cockpit.steps(1)
    assert "moved: epsilon 0.05 from step 3" in said(cockpit)
    assert "from the next step" not in said(cockpit)
    marks = [line for axis in cockpit.figure.axes for line in axis.lines
             if list(line.get_xdata()) == [2.5, 2.5]]
    assert len(marks) == 6


def test_a_value_that_is_refused_is_said_and_the_control_goes_back(cockpit):
    cockpit.run.set(prompts_per_step=1, minibatches=4)
    cockpit.controls["group_size"].value = 2
    assert "not taken: minibatches: got 4, allowed are at most the 2" in said(cockpit)
    assert cockpit.controls["group_size"].value == 4 == cockpit.run.wanted.group_size
    cockpit.controls["group_size"].value = 8
    assert "not taken" not in said(cockpit)


def test_a_warning_of_the_settings_is_said(cockpit, recwarn):
    cockpit.controls["algorithm"].value = "reinforce"
    cockpit.controls["epsilon"].value = 0.05
    assert "epsilon: 0.05 will change nothing" in said(cockpit) and not recwarn.list


def test_back_brings_the_controls_back_too(cockpit):
    cockpit.steps(2)
    cockpit.controls["epsilon"].value = 0.05
    cockpit.steps(2)
    assert (cockpit.checkpoint.max, cockpit.checkpoint.value) == (4, 4)
    cockpit.checkpoint.value = 2
    cockpit.steps(2)
    assert (cockpit.checkpoint.max, cockpit.checkpoint.value) == (6, 2)
    press(cockpit, "back")
    assert "paused, step 2 of 6" in said(cockpit)
    assert cockpit.controls["epsilon"].value == room.ROW and cockpit.checkpoint.max == 2
    cockpit.steps()
    assert numbers(cockpit.run.history) == numbers(room.chain_trainer(CONFIG).run())


def test_a_run_can_be_kept_behind_the_next(cockpit):
    cockpit.steps(3)
    first = [m.entropy for m in cockpit.run.history]
    press(cockpit, "keep")
    press(cockpit, "reset")
    cockpit.set(epsilon=0.05).steps(2)
    [axis] = [a for a in cockpit.figure.axes if "Entropy" in a.get_title(loc="left")]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert drawn["kept, 0 moves"] == first
    assert drawn["this run"] == [m.entropy for m in cockpit.run.history]


def test_what_is_saved_is_a_picture_and_a_line(cockpit):
    before = cockpit._repr_mimebundle_()
    assert before["text/plain"] == "ready, step 0 of 6"
    assert before["application/vnd.jupyter.widget-view+json"]["model_id"] == cockpit.box.model_id
    cockpit.steps(2)
    picture = cockpit.picture()._repr_mimebundle_()
    assert picture["text/plain"].startswith("paused, step 2 of 6")
    assert picture["image/png"] != before["image/png"]
    assert cockpit.picture("two steps")._repr_mimebundle_()["text/plain"] == "two steps"


def test_the_xray_is_of_the_last_step(cockpit):
    cockpit.steps(1)
    explorer = cockpit.xray()
    assert explorer.text.startswith("prompt 1 of 4") and "after the step" in str(
        explorer.controls["when"].options)


@pytest.mark.parametrize("algorithm", ["grpo", "reinforce_plus_plus", "dapo", "lite_ppo", "gmpo"])
def test_the_live_group_is_what_the_xray_of_the_whole_batch_says(cockpit, algorithm):
    cockpit.set(algorithm=algorithm).steps(1)
    trainer = cockpit.run.trainer
    assert cockpit.group.value == live_group(trainer) and "A group of this" in cockpit.group.value
    whole, size = Xray.of(trainer).update("after the step"), trainer.rollouts.group_size
    for rows in torch.arange(len(trainer.rollouts.mask)).view(-1, size):
        some = xray_of(trainer, rows).update("after the step")
        width = some.state.shape[1]
        assert torch.equal(some.state, whole.state[rows, :width])
        assert torch.allclose(some.ratio, whole.ratio[rows, :width], atol=1e-5)
        assert torch.allclose(some.advantages, whole.advantages[rows, :width], atol=1e-6)


def test_a_live_group_needs_no_entropies():
    trainer = room.chain_trainer(replace(CONFIG, entropy_coef=0.01))
    assert live_group(trainer) == ""
    next(trainer.run())
    assert live_group(trainer).count("<tr>") == 4


def test_each_step_has_its_picture_while_the_run_goes_on(cockpit, monkeypatch):
    monkeypatch.setattr(room, "REDRAW_SECONDS", 0.0)
    seen = []
    cockpit.over.observe(lambda change: seen.append(change["new"]), "value")
    cockpit.steps()
    points = [len(re.findall(r'<polyline points="([^"]*)"', svg)[0].split()) for svg in seen
              if "<polyline" in svg]
    assert {1, 2, 3, 4, 5, 6} <= {*points} and points == sorted(points)
    assert cockpit.over.value.count("<circle") == 3 and "A group of this step" in (
        cockpit.group.value)
    trainer = cockpit.run.trainer
    groups = trainer.advantages.reshape(-1, trainer.rollouts.group_size)
    teaches = groups[int((groups != 0).any(1).long().argmax())]
    assert re.findall(r"A ([-+][\d.]+)", cockpit.group.value) == [
        f"{a + 0.0:+.2f}" for a in teaches.tolist()]


def test_a_point_stands_where_matplotlib_puts_it():
    curves = Curves(10, 20.0)
    history = [{"step": 5, "accuracy": 0.5, "length": 10.0, "zero_variance_groups": 0.25}]
    drawn = curves.with_run(history)
    assert curves.drawn(history) in drawn and curves.drawn(history) in curves.over(history, [])
    ticks = [float(y) for y in re.findall(r'id="ytick_\d+".*?y="([\d.]+)"', curves.svg, re.DOTALL)]
    centres = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert len(centres) == 3 and any(abs(centres[0][1] - tick) < 25 for tick in ticks)
    for field, x in zip(curves.places, (0.0, 5.0, 10.0)):
        low, high = curves.at(field, x, 0.0), curves.at(field, x, 1.0)
        assert low[0] == high[0] and low[1] > high[1]
    grid = [float(y) for y in re.findall(r'<use [^>]*y="([\d.]+)"', curves.svg)]
    assert any(abs(curves.at("accuracy", 0, 0.0)[1] - y) < 0.2 for y in grid)
    assert any(abs(curves.at("accuracy", 0, 1.0)[1] - y) < 0.2 for y in grid)


def test_pictures_come_four_times_a_second_at_most(cockpit, monkeypatch):
    now, drawn = [0.0], []
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: now[0]))
    cockpit.redraw()
    monkeypatch.setattr(cockpit, "_live", lambda: drawn.append(now[0]) or f"{now[0]}")
    cockpit.run.state = "running"
    for _ in range(40):
        now[0] += 0.1
        cockpit.follow()
    assert drawn == pytest.approx([0.3 * i for i in range(1, 14)])
    cockpit.run.state = "ready"


def test_the_sliders_name_the_algorithms_own_numbers(cockpit):
    def own(name):
        [label] = [text for text, value in cockpit.controls[name].options if value == room.ROW]
        return label
    assert own("epsilon") == "0.2, the row's" and own("epsilon_high") == "as epsilon"
    cockpit.controls["algorithm"].value = "dapo"
    assert own("epsilon_high") == "0.28, the row's"


def test_one_button_starts_and_pauses(cockpit):
    start, pause = (cockpit.buttons[name] for name in ("start", "pause"))
    assert (start.layout.display, pause.layout.display) == ("", "none")
    assert cockpit.buttons["back"].disabled and cockpit.buttons["keep"].disabled
    cockpit.run.state = "running"
    cockpit._say()
    assert (start.layout.display, pause.layout.display) == ("none", "")
    assert cockpit.buttons["step"].disabled
    cockpit.run.state = "ready"
    cockpit.steps(1)
    assert not cockpit.buttons["back"].disabled and start.layout.display == ""


class TestTrouble:
    def test_a_step_that_fails_is_said(self, cockpit):
        cockpit.run.trainer.task.rewards = lambda *_: torch.full((4, 4), float("nan"))
        press(cockpit, "start")
        until(lambda: "failed" in said(cockpit))
        assert "ValueError" in said(cockpit) and "Go back to a checkpoint" in said(cockpit)
        press(cockpit, "start")
        assert "the run failed" in said(cockpit)
        press(cockpit, "reset")
        cockpit.steps(1)
        assert "paused, step 1" in said(cockpit)

    def test_a_closed_cockpit_says_so(self, cockpit):
        cockpit.steps(2)
        cockpit.close()
        assert "replaced or closed" in said(cockpit)
        press(cockpit, "start")
        assert "was closed" in said(cockpit)
        cockpit.controls["epsilon"].value = 0.05
        assert "was closed" in said(cockpit)
        assert len(cockpit.run.history) == 2

    @pytest.mark.parametrize("after", [0.02, 0.1, 0.3])
    def test_an_interrupted_cell_pauses_it(self, cockpit, after):
        cockpit.set(steps=200)
        cockpit._drawn = -1e9  # so that the start is drawn, which takes its time
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            cockpit.steps()
        assert cockpit.run.state == "paused" and not cockpit.run.running
        cockpit.set(steps=len(cockpit.run.history) + 2)
        cockpit.steps()
        assert cockpit.run.state == "finished"

    @pytest.mark.parametrize("version, what", [
        ((6, 17, 1), "buttons and sliders wait for its end"),
        ((7, 4, 0), "buttons, and a slider's first move, wait for its end")])
    def test_what_waits_for_a_running_cell_is_said(self, cockpit, monkeypatch, version, what):
        monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace(version_info=version))
        cockpit.step()
        cockpit.run.wait()
        assert f"While a cell is running, {what}" in said(cockpit)

    def test_what_was_refused_stays_to_be_read_until_something_else_is_done(self, cockpit):
        cockpit.run.set(prompts_per_step=1, minibatches=4)
        cockpit.controls["group_size"].value = 2
        cockpit.steps(2)
        assert "not taken: minibatches" in said(cockpit)
        press(cockpit, "step")
        cockpit.run.wait()
        assert "not taken" not in said(cockpit)

    def test_nothing_to_do_is_said(self, cockpit):
        press(cockpit, "keep")
        assert "nothing to keep yet" in said(cockpit) and cockpit.compare is None
        press(cockpit, "back")
        assert "at step 0 already" in said(cockpit)

    def test_a_run_without_any_checkpoint_is_drawn_too(self, cockpit, monkeypatch):
        def full(self, path):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(room.GRPOTrainer, "save", full)
        press(cockpit, "reset")
        cockpit.steps()
        assert "finished, step 6 of 6" in said(cockpit) and "No space left" in said(cockpit)

    def test_a_setting_that_has_no_stop_gets_one(self, cockpit):
        cockpit.set(epsilon=0.15, temperature=3.0, group_size=6)
        shown = {name: control.value for name, control in cockpit.controls.items()}
        assert (shown["epsilon"], shown["temperature"], shown["group_size"]) == (0.15, 3.0, 6)
        values = [o[1] for o in cockpit.controls["epsilon"].options]
        assert values[0] == room.ROW and values[1:] == sorted(values[1:]) and 0.15 in values
        cockpit.steps(1)
        assert {m.field for m in cockpit.run.moves} == {"epsilon", "temperature", "group_size"}

    def test_controls_that_follow_set_nothing(self, cockpit, monkeypatch):
        """A control with new stops is at its first for a moment, and a step may begin then."""
        calls, real = [], cockpit.run.set
        monkeypatch.setattr(cockpit.run, "set", lambda **s: calls.append(s) or real(**s))
        cockpit.set(temperature=0.85, group_size=5)
        assert calls == [{"temperature": 0.85, "group_size": 5}]

    def test_no_move_but_those_that_were_made(self, cockpit):
        """A page sends back the value that it shows, rounded."""
        cockpit.set(temperature=0.8)
        cockpit.steps(1)
        control = cockpit.controls["temperature"]
        control.set_state({"index": control.index})
        cockpit.steps(1)
        assert [tuple(m) for m in cockpit.run.moves] == [(1, "temperature", 0.8)]


@pytest.mark.slow
class TestMoreThanOne:
    def test_two_do_not_disturb_each_other(self, cockpit):
        other = cockpit_explorer(config=GRPOConfig(steps=4, prompts_per_step=4, group_size=4,
                                                   eval_every=0, seed=1))
        cockpit.start()
        other.start()
        other.controls["epsilon"].value = 0.05
        cockpit.run.wait()
        other.run.wait()
        assert cockpit.run.moves == [] and len(other.run.moves) == 1
        assert numbers(cockpit.run.history) == numbers(room.chain_trainer(CONFIG).run())
        other.close()

    def test_running_a_cell_again_closes_the_old_one(self, monkeypatch):
        monkeypatch.setattr(room, "running_cell", lambda: ("cell 1", "execution 1"))
        first = cockpit_explorer(config=CONFIG)
        beside = cockpit_explorer(config=CONFIG)
        assert first.run.state == beside.run.state == "ready", "two in one cell"
        first.steps(2)
        log, opened = first.run.history, len(widgets())
        first.start()
        monkeypatch.setattr(room, "running_cell", lambda: ("cell 1", "execution 2"))
        second = cockpit_explorer(config=CONFIG)
        assert first.run.state == beside.run.state == "closed" and not first.run.running
        assert numbers(second.replaced.log[:2]) == numbers(log)
        assert "was closed. Its curves are behind this one" in said(second)
        assert second.compare[0] == "before" and len(widgets()) < opened
        monkeypatch.setattr(room, "running_cell", lambda: ("cell 2", "execution 3"))
        third = cockpit_explorer(config=CONFIG)
        assert second.run.state == third.run.state == "ready"
        second.close()
        third.close()

    def test_what_a_page_shows_lives_without_a_name(self):
        shown = cockpit_explorer(config=CONFIG)
        shown._repr_mimebundle_()
        known = weakref.ref(shown)
        del shown
        gc.collect()
        assert known() is not None and known().run.state == "ready"
        known().close()
        gc.collect()
        assert known() is None

    @pytest.mark.slow
    def test_ten_rounds_leave_nothing_behind(self, cockpit):
        """Start, pause, a move, undo, reset: no thread, no trainer, no widget more than before."""
        def a_round():
            trainer = weakref.ref(cockpit.run.trainer)
            press(cockpit, "start")
            until(lambda: len(cockpit.run.history) >= 2)
            press(cockpit, "pause")
            cockpit.set(epsilon=0.4)
            press(cockpit, "step")
            until(lambda: "paused" in said(cockpit) or "finished" in said(cockpit))
            cockpit.back(0)
            press(cockpit, "reset")
            return trainer

        first = a_round()  # what is made once and kept
        gc.collect()
        threads, open_widgets = threading.active_count(), len(widgets())
        trainers = [first, *(a_round() for _ in range(9))]
        gc.collect()
        assert threading.active_count() == threads and len(widgets()) == open_widgets
        assert [trainer() for trainer in trainers] == [None] * 10

    def test_a_cockpit_that_nobody_holds_ends_its_run(self):
        held = [cockpit_explorer(config=GRPOConfig(steps=500, prompts_per_step=4, group_size=4,
                                                   eval_every=0))]
        held[0].start()
        until(lambda: len(held[0].run.history) >= 1)
        thread = held[0].run._thread
        held[0].box.close_all()
        held.clear()
        until(lambda: (gc.collect(), thread.is_alive())[1] is False)


def test_it_is_found_like_any_explorer():
    assert "cockpit_explorer" in explorers.__all__ and steered is not None
