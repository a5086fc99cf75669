"""What a run says to a person, once: nothing to learn, no finite number, that it is stopping."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grpo_lib.config import GRPOConfig
from grpo_lib.course.explorers.cockpit import Cockpit
from grpo_lib.course.steering import SteeredRun
from grpo_lib.support import notices
from grpo_lib.support.run_folder import RunFolder
from grpo_lib.support.signals import finish_step_first
from grpo_lib.training import GRPOTrainer

ROOT = Path(__file__).resolve().parents[2]
SMALL = GRPOConfig(steps=3, prompts_per_step=4, group_size=4, eval_every=0, learning_rate=0.01)
STOPPING = "stopping after this step; press Ctrl-C again to stop now"
LONGEST = 600  # seconds, for a machine with much else to do


def graded(problem, completion):
    return (sum(map(ord, completion)) + len(completion)) % 5 / 4


@pytest.fixture
def make_trainer(make_policy, sort_task):
    sort_task.max_new_tokens = 14

    def make(config=SMALL, reward=graded, max_new_tokens=14):
        task = sort_task.with_reward(reward)
        task.max_new_tokens = max_new_tokens
        return GRPOTrainer(make_policy(len(task.tokenizer)), task, config)

    return make


def heard(trainer, steps=3):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        list(trainer.run(steps))
    return [str(warning.message) for warning in told]


# --- nothing to learn ---------------------------------------------------------------------

@pytest.mark.parametrize(("options", "says"), [
    ({"max_new_tokens": 1}, r"no completion came to its end within max_new_tokens = 1, .* larger"),
    ({"reward": lambda p, c: 0.0}, r"in no group did the rewards differ \(they lie from 0 to 0\)"),
    ({"reward": lambda p, c: 0.0, "config": replace(SMALL, algorithm="reinforce")}, "0 to 0"),
    ({"reward": lambda p, c: 0.0, "config": replace(SMALL, dynamic_sampling=True)}, "0 to 0"),
], ids=["never ends", "all equal", "all zero", "dynamic sampling"])
def test_a_first_step_that_teaches_nothing_is_told_once(make_trainer, options, says):
    [told] = heard(make_trainer(**options))
    assert told.startswith("step 1 taught the policy nothing: ") and "\n" not in told
    assert re.search(says, told)


def test_every_run_says_it_anew(make_trainer):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(2):
            list(make_trainer(reward=lambda p, c: 0.0).run(2))
    assert len(told) == 2


def test_a_step_that_teaches_is_not_told_of_nor_one_that_comes_later(make_trainer):
    assert heard(make_trainer()) == []
    calls = iter(range(10**6))
    assert heard(make_trainer(reward=lambda p, c: graded(p, c) if next(calls) < 10 else 0.0)) == []


def test_a_steered_run_makes_it_its_note(make_trainer):
    run = SteeredRun(lambda config: make_trainer(config, lambda p, c: 0.0), SMALL)
    try:
        run.run(1)  # warnings are errors here
        assert run.note.startswith("step 1 taught the policy nothing")
    finally:
        run.close()


# --- numbers that are not finite ----------------------------------------------------------

def test_a_metric_of_inf_is_told_once_and_null_in_the_files(make_trainer, monkeypatch, tmp_path):
    monkeypatch.setattr("grpo_lib.support.batch_metrics.kl_estimate",
                        lambda new, *_: torch.full_like(new, math.inf))
    trainer = make_trainer()
    run = RunFolder.create(tmp_path / "run", trainer, worst=math.inf, nested={"a": [math.nan, 1.0]})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for metrics in trainer.run():
            run.record(metrics)
            assert metrics.kl == math.inf
        run.save(trainer)
        run.record_all(trainer.history)
    assert [str(w.message) for w in told] == ["kl: got inf at step 1; files say null there"]
    for name in ("metrics.jsonl", "run.json"):
        text = (run.path / name).read_text(encoding="utf-8")
        for part in text.splitlines() if name.endswith("l") else [text]:
            json.loads(part, parse_constant=lambda word: pytest.fail(word))
    about = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    assert about["worst"] is None and about["nested"] == {"a": [None, 1.0]}
    assert [m.kl for m in run.metrics()] == [None] * 3  # and the run can be gone on with


def test_any_float_metric_may_be_null_in_a_file_and_a_count_may_not(make_trainer, tmp_path):
    trainer = make_trainer()
    run = RunFolder.create(tmp_path / "run", trainer)
    run.record(replace(next(trainer.run(1)), ratio_max=math.inf))
    assert run.metrics()[0].ratio_max is None
    path = run.path / "metrics.jsonl"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"tokens": None}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="tokens: got None, allowed is int"):
        run.metrics()


def test_a_run_with_an_infinite_setting_is_resumed_with_it(make_trainer, tmp_path):
    trainer = make_trainer(replace(SMALL, epsilon_high=math.inf))
    run = RunFolder.create(tmp_path / "run", trainer)
    text = (run.path / "run.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert RunFolder.open(run.path).config.epsilon_high == math.inf


# --- stopping -----------------------------------------------------------------------------

def test_the_first_ctrl_c_says_at_once_that_it_was_heard(capsys):
    with finish_step_first() as interrupted:
        assert capsys.readouterr().err == ""
        signal.raise_signal(signal.SIGINT)
        assert capsys.readouterr().err.strip() == STOPPING and interrupted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert capsys.readouterr().err == ""


def test_under_torchrun_it_promises_no_second_one(capsys):
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with finish_step_first():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.strip() == "stopping after this step"


def test_it_is_said_where_stderr_is_just_being_written_to(monkeypatch, capfd):
    class Busy:
        def write(self, text):
            raise RuntimeError("reentrant call")

    monkeypatch.setattr(sys, "stderr", Busy())
    notices.say_at_once("stopping")
    assert capfd.readouterr().err == "\nstopping\n"
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    notices.say_at_once("stopping")


SLEEPY = """
import sys, time
from grpo_lib import GRPOConfig, GRPOTrainer, ChainTask, load_base_model

def asleep(*_):
    print("asleep", flush=True)
    time.sleep(3600)

config = GRPOConfig(steps=2, prompts_per_step=2, group_size=4, eval_every=0)

def make(config):
    return GRPOTrainer(load_base_model("chain"), ChainTask().with_reward(asleep), config)
"""
WAYS = {
    "library": SLEEPY + "list(make(config).run())",
    "steered": SLEEPY + "from grpo_lib.course.steering import SteeredRun\n"
                        "SteeredRun(make, config).run()",
    "command": SLEEPY + """
from grpo_lib.__main__ import start
ChainTask.reward = asleep
sys.argv = ["grpo_lib", "train", "--out", sys.argv[1], "--steps", "2", "--prompts-per-step", "2",
            "--group-size", "4", "--held-out", "20", "--eval-every", "0"]
start()
"""}


def line_with(stream, text):
    """Read a stream up to a line that holds ``text``, the line."""
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_who_presses_ctrl_c_while_a_reward_sleeps_is_answered(way, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WAYS[way], str(tmp_path / "run")], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        line_with(process.stdout, "asleep")
        process.send_signal(signal.SIGINT)
        assert line_with(process.stderr, "stopping").strip() == STOPPING
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(LONGEST) != 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_who_stops_a_cell_while_a_reward_sleeps_is_answered():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=LONGEST,
                                       env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        client.execute(WAYS["library"])
        seen, text = [], ""
        end = time.monotonic() + LONGEST
        while "KeyboardInterrupt" not in text:
            assert time.monotonic() < end
            message = client.get_iopub_msg(timeout=LONGEST)
            text = str(message["content"].get("text", message["content"].get("ename", "")))
            if ("asleep" in text and "asleep" not in seen) or ("stopping" in text):
                seen.append("asleep" if "asleep" in text else text.strip())
                manager.interrupt_kernel()
        assert seen == ["asleep", STOPPING]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_the_cockpit_says_that_it_pauses_after_this_step(make_trainer):
    seen = []
    cockpit = Cockpit(make_trainer, SMALL)
    step = cockpit.run.trainer.step

    def slow():
        while not cockpit.run.pausing:
            time.sleep(0.01)
        while "pausing after this step" not in cockpit.said.value:
            time.sleep(0.01)
        seen.append(cockpit.text)
        return step()

    cockpit.run.trainer.step = slow
    try:
        cockpit.start()
        cockpit.pause()
        assert "pausing after this step" in seen[0] and not cockpit.run.pausing
        assert cockpit.run.state == "paused" and "paused" in cockpit.text
    finally:
        cockpit.close()
