"""A run that is steered is the run that its moves describe, and leaves nothing behind."""

import gc
import os
import shutil
import signal
import threading
import time
import weakref
from dataclasses import asdict, replace

import pytest
import torch
from waiting import PATIENCE, until

from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, load_base_model
from grpo_lib.config import config_line
from grpo_lib.course.steering import Move, SteeredRun, steered
from grpo_lib.lab.xray import Xray

CONFIG = GRPOConfig(steps=8, prompts_per_step=4, group_size=4, eval_every=0)


def make_trainer(config):
    return GRPOTrainer(load_base_model("chain"), ChainTask(), config)


def numbers(history):
    """All metrics but the times."""
    return [{k: v for k, v in asdict(m).items() if not k.startswith("seconds")} for m in history]


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])


@pytest.fixture
def run():
    made = SteeredRun(make_trainer, CONFIG, checkpoint_every=2)
    yield made
    made.close()


def test_a_run_that_nobody_steers_is_the_trainers_own(run):
    plain = make_trainer(CONFIG)
    expected = list(plain.run())
    run.run()
    assert run.state == "finished" and run.moves == []
    assert numbers(run.history) == numbers(expected)
    assert torch.equal(weights(run.trainer), weights(plain))


def test_moves_made_while_it_runs_are_kept_and_make_the_same_run_again(run):
    run.start()
    until(lambda: run.trainer.step_count >= 1)
    run.set(epsilon=0.05, group_size=6)
    until(lambda: run.trainer.step_count >= 4)
    run.set(learning_rate=1e-4)
    run.set(algorithm="rloo")
    run.wait()
    assert run.state == "finished" and len(run.history) == 8
    assert {m.field for m in run.moves} == {"group_size", "epsilon", "learning_rate", "algorithm"}
    assert all(2 <= m.step <= 8 for m in run.moves)

    config = eval(config_line(run.config), {"GRPOConfig": GRPOConfig})
    moves = [tuple(m) for m in run.moves]
    again = make_trainer(config)
    assert numbers(steered(again, moves)) == numbers(run.history)
    assert torch.equal(weights(again), weights(run.trainer))
    assert numbers(steered(make_trainer(config), [])) != numbers(run.history)


def test_each_setting_that_is_moved_acts():
    """None of the cockpit's settings is taken and then ignored."""
    start = numbers(make_trainer(CONFIG).run(3))
    for field, value in (("group_size", 6), ("epsilon", 0.001), ("beta", 0.5),
                         ("learning_rate", 1e-2), ("temperature", 0.5), ("algorithm", "reinforce"),
                         ("prompts_per_step", 3), ("minibatches", 1)):
        moved = numbers(steered(make_trainer(CONFIG), [(2, field, value)], 3))
        assert moved[0] == start[0], field
        assert moved[1:] != start[1:], field
    high = [(2, "epsilon", 0.001), (2, "epsilon_high", 0.5)]
    assert (numbers(steered(make_trainer(CONFIG), high, 2))[1]["clip_fraction_high"]
            < numbers(steered(make_trainer(CONFIG), high[:1], 2))[1]["clip_fraction_high"])


def test_a_setting_moved_and_moved_back_before_the_next_step_is_no_move(run):
    run.set(epsilon=0.4)
    run.set(epsilon=None)
    run.run(1)
    assert run.moves == [] and run.trainer.config == CONFIG
    run.set(epsilon=0.3)
    run.set(epsilon=0.4)
    run.run(1)
    assert run.moves == [Move(2, "epsilon", 0.4)]


def test_back_goes_on_as_it_did_before(run):
    run.run(2)
    run.set(epsilon=0.05)
    run.run(2)
    first = numbers(run.history)
    run.set(epsilon=0.5, group_size=2)
    run.run(2)
    run.back(2)
    assert (run.state, run.trainer.step_count, run.moves) == ("paused", 2, [])
    assert run.wanted.epsilon is None and run.checkpoints == [0, 2]
    run.set(epsilon=0.05)
    run.run(2)
    assert numbers(run.history) == first
    run.back(4)
    assert run.moves == [Move(3, "epsilon", 0.05)] and run.trainer.config.epsilon == 0.05
    run.back(2)
    run.run(1)
    run.set(epsilon=0.3)
    run.run(1)
    run.back(4)
    assert run.moves == [Move(4, "epsilon", 0.3)] and run.trainer.config.epsilon == 0.3
    with pytest.raises(ValueError, match="step: got 3, allowed are those with a checkpoint: 0, 2"):
        run.back(3)


def test_pause_stops_between_steps_and_start_goes_on(run):
    run.start()
    until(lambda: run.trainer.step_count >= 2)
    run.pause()
    assert run.state == "paused" and not run.running
    at = run.trainer.step_count
    assert 2 <= at < 8
    time.sleep(0.05)
    assert run.trainer.step_count == at
    run.start()
    run.start()  # no second thread
    assert sum(t.name == "grpo-run" for t in threading.enumerate()) == 1
    run.wait()
    assert numbers(run.history) == numbers(make_trainer(CONFIG).run())


def test_reset_starts_anew_with_the_first_settings(run):
    run.set(group_size=2)
    run.run(3)
    run.reset()
    assert (run.state, run.moves, run.history, run.checkpoints) == ("ready", [], [], [0])
    run.run(2)
    assert numbers(run.history) == numbers(make_trainer(CONFIG).run(2))
    other = replace(CONFIG, seed=5)
    run.reset(other)
    assert run.trainer.config is other


def test_more_steps_may_be_asked_for_at_the_end(run):
    run.run()
    assert run.run() == [] and run.state == "finished"
    run.set(steps=10)
    assert len(run.run()) == 2 and run.moves == [Move(9, "steps", 10)]
    again = make_trainer(CONFIG)
    assert numbers(steered(again, run.moves)) == numbers(run.history)


class TestBadInput:
    def test_a_refused_setting_changes_nothing(self, run):
        for settings, message in (({"group_size": 1}, "group_size: got 1"),
                                  ({"epsilon": -1.0}, "epsilon"), ({"nonsense": 1}, "nonsense"),
                                  ({"seed": 3}, "seed: cannot change"),
                                  ({"algorithm": "ppo"}, "whose critic"),
                                  ({"beta": 0.1, "temperature": 0.0}, "temperature")):
            with pytest.raises(ValueError, match=message):
                run.set(**settings)
            assert run.wanted == CONFIG
        run.run(1)
        assert run.moves == []

    def test_what_the_config_warns_of_is_a_note(self, run, recwarn):
        run.set(algorithm="reinforce", epsilon=0.3)
        assert "epsilon" in run.note and not recwarn.list
        run.set(epsilon=None)
        assert run.note == ""

    @pytest.mark.parametrize("move, message", [
        ((1, "seed", 3), "field 'seed'"), ((1, "nonsense", 3), "field 'nonsense'"),
        ((0, "epsilon", 0.3), "step"), (("2", "epsilon", 0.3), "step")])
    def test_moves_that_cannot_be(self, move, message):
        with pytest.raises(ValueError, match=message):
            steered(make_trainer(CONFIG), [move])

    def test_a_trainer_keeps_what_it_was_built_with(self):
        trainer = make_trainer(CONFIG)
        for name, value in (("seed", 1), ("eval_every", 2), ("algorithm", "ppo")):
            with pytest.raises(ValueError, match=name):
                trainer.change(replace(CONFIG, **{name: value}))
        assert trainer.config is CONFIG


class TestTrouble:
    def test_a_step_that_fails_says_so_and_the_run_can_go_back(self, run):
        run.run(2)
        good = run.trainer.task.rewards
        run.trainer.task.rewards = lambda *_: torch.full((4, 4), float("nan"))
        with pytest.raises(ValueError, match="nan"):
            run.run(2)
        assert run.state == "failed" and "nan" in str(run.error)
        with pytest.raises(RuntimeError, match="go back to a checkpoint or reset"):
            run.start()
        run.trainer.task.rewards = good
        run.back(2)
        run.run()
        assert numbers(run.history) == numbers(make_trainer(CONFIG).run())

    def test_a_full_disk_costs_the_checkpoint_and_not_the_run(self, run, monkeypatch):
        def full(path):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(run.trainer, "save", full)
        run.run()
        assert run.state == "finished" and run.checkpoints == [0]
        assert "no checkpoint of step 8" in run.note and "No space left" in run.note

    @pytest.mark.slow
    @pytest.mark.parametrize("after", [0.05, 0.25, 0.45])
    def test_ctrl_c_in_the_middle_of_a_step_pauses_after_it(self, run, monkeypatch, after):
        """A real signal, since Thread.join before Python 3.13 takes a thread for dead then."""
        step, inside = run.trainer.step, []

        def slow():
            inside.append(threading.get_ident())
            assert len(inside) == 1, "two threads step the run"
            time.sleep(0.4)
            metrics = step()
            inside.clear()
            return metrics

        monkeypatch.setattr(run.trainer, "step", slow)
        for _ in range(2):  # and again: the first thread must not come back to work
            before = len(run.history)
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                run.run()
            assert not run.running and run.state == "paused" and inside == []
            assert len(run.history) > before
        monkeypatch.undo()
        run.run()
        assert numbers(run.history) == numbers(make_trainer(CONFIG).run())

    def test_ctrl_c_while_the_start_is_drawn_pauses_it_too(self, run):
        def draw():
            if run.state == "running" and not run.history:
                raise_at_once.append(signal.raise_signal(signal.SIGINT))

        raise_at_once = []
        run.on_change = draw
        with pytest.raises(KeyboardInterrupt):
            run.run()
        assert not run.running and run.state == "paused"

    def test_what_goes_wrong_in_on_change_does_not_end_the_run(self, run):
        def broken():
            raise ZeroDivisionError("a picture of nothing")

        run.on_change = broken
        assert len(run.run()) == CONFIG.steps
        assert run.state == "finished" and "a picture of nothing" in run.note

    def test_the_end_may_be_moved_while_it_runs(self, run):
        run.start()
        until(lambda: run.trainer.step_count >= 1)
        run.set(steps=12)
        run.wait()
        assert run.state == "finished" and len(run.history) == 12
        run.reset()
        run.start()
        until(lambda: run.trainer.step_count >= 1)
        run.set(steps=run.trainer.step_count + 1)
        run.wait()
        assert run.state == "finished" and len(run.history) <= 4
        again = list(steered(make_trainer(CONFIG), run.moves))
        assert numbers(again) == numbers(run.history)
        run.reset()
        assert run.run(0) == [] and run.state == "ready"

    def test_a_folder_that_was_tidied_away_is_made_again(self, run):
        shutil.rmtree(run.folder)
        run.reset()
        run.run(1)
        run.back(0)
        assert run.state == "ready" and run.checkpoints == [0]

    def test_nothing_of_a_step_is_left_after_going_back(self, run):
        run.run(6)
        run.back(0)
        with pytest.raises(ValueError, match="has taken no step"):
            Xray.of(run.trainer)
        run.run(1)
        first = Xray.of(run.trainer).rollouts.tokens
        run.reset()
        run.run(1)
        assert torch.equal(first, Xray.of(run.trainer).rollouts.tokens)

    def test_a_closed_run_says_so_and_keeps_its_history(self, run):
        run.run(2)
        run.close()
        run.close()
        assert run.state == "closed" and len(run.history) == 2
        assert not run.folder.exists()
        for what in (run.start, run.reset, lambda: run.back(0), lambda: run.set(beta=0.1)):
            with pytest.raises(RuntimeError, match="was closed"):
                what()


@pytest.mark.slow
def test_ten_starts_and_resets_leave_no_thread_no_trainer_and_no_folder(run):
    before = threading.active_count()
    trainers = []
    for _ in range(10):
        trainers.append(weakref.ref(run.trainer))
        run.start()
        until(lambda: run.trainer.step_count >= 1)
        run.reset()
    gc.collect()
    assert threading.active_count() == before
    assert [t() for t in trainers] == [None] * 10
    assert run.checkpoints == [0] and len(list(run.folder.iterdir())) <= 4


def test_a_run_that_nobody_holds_ends():
    held = [SteeredRun(make_trainer, replace(CONFIG, steps=1000))]
    held[0].start()
    until(lambda: held[0].trainer.step_count >= 1)
    gone, thread, folder = weakref.ref(held[0]), held[0]._thread, held[0].folder
    held.clear()
    until(lambda: (gc.collect(), gone())[1] is None)
    thread.join(PATIENCE)
    assert not thread.is_alive() and not folder.exists()


def test_two_runs_do_not_disturb_each_other(run):
    other = SteeredRun(make_trainer, replace(CONFIG, seed=3))
    run.start()
    other.start()
    run.set(epsilon=0.05)
    run.wait()
    other.wait()
    assert numbers(other.history) == numbers(make_trainer(replace(CONFIG, seed=3)).run())
    assert other.moves == [] and run.moves[0].field == "epsilon"
    other.close()


def test_every_change_is_told():
    told = []
    run = SteeredRun(make_trainer, CONFIG, on_change=lambda: told.append(
        (run.state, run.trainer.step_count)))
    run.run(3)
    assert told[0][0] == "running" and told[-1] == ("paused", 3)
    assert {step for _, step in told} >= {1, 2, 3}
    run.close()
    assert told[-1] == ("closed", 3)
