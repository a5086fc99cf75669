"""A run's folder: which checkpoint is the newest, what a resume brings back, what is kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo_lib.__main__ import main
from grpo_lib.config import GRPOConfig
from grpo_lib.critic import ValueModel
from grpo_lib.support.checkpoint import (
    CheckpointError,
    load_policy,
    load_tensors,
    read_json,
    save_policy,
    save_tensors,
    write_json,
)
from grpo_lib.support.run_folder import RunFolder
from grpo_lib.tasks import SortTask
from grpo_lib.training import GRPOTrainer

SETTINGS = GRPOConfig(steps=8, prompts_per_step=2, group_size=2, eval_every=0, learning_rate=0.01)
PPO = replace(SETTINGS, algorithm="ppo")
SMALL = ["--prompts-per-step", "2", "--group-size", "2", "--eval-every", "0", "--held-out", "4",
         "--threads", "1"]


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder of the test's own, which is not the current folder."""
    folder = tmp_path / "home"
    (tmp_path / "elsewhere").mkdir()
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


@pytest.fixture
def task(sort_task):
    sort_task.max_new_tokens = 6
    return sort_task.with_reward(lambda problem, text: len(text) % 5 / 4)


@pytest.fixture
def make_trainer(make_policy, task, monkeypatch):
    monkeypatch.setattr("grpo_lib.support.run_folder.get_task", lambda name: task)

    def make(config=SETTINGS):
        policy = make_policy(len(task.tokenizer), dtype=torch.float32)
        value_model = ValueModel(policy) if config.choices.critic else None
        return GRPOTrainer(policy, task, config, value_model=value_model)

    return make


def go_on(run, trainer, steps, save_every=1):
    for metrics in trainer.run(steps):
        run.record(metrics)
        if metrics.step % save_every == 0:
            run.save(trainer)


@pytest.fixture
def run_of_three(make_trainer, tmp_path):
    """A run with checkpoints of steps 0 to 3, and its trainer."""
    trainer = make_trainer()
    run = RunFolder.create(tmp_path / "run", trainer)
    go_on(run, trainer, 3)
    return run, trainer


def files(run):
    return sorted(path.name for path in (run.path / "checkpoints").iterdir())


def timeless(history):
    return [{k: v if v is None else pytest.approx(v, abs=1e-5) for k, v in m.to_dict().items()
             if not k.startswith("seconds")} for m in history]


def weights(trainer):
    return torch.cat([p.detach().flatten() for module in trainer.modules().values()
                      for p in module.parameters()])


# --- which is the newest ------------------------------------------------------------------

@pytest.mark.parametrize("names", [("step-99999", "step-100000"), ("step-100000", "step-99999")])
def test_the_newest_checkpoint_is_that_of_the_highest_step(run_of_three, names):
    """In the order of text, 99999 comes after 100000."""
    run, trainer = run_of_three
    folder = run.path / "checkpoints"
    for step, name in zip((2, 3), names):
        (folder / f"step-0000{step}.safetensors").rename(folder / f"{name}.safetensors")
    resumed = RunFolder.open(run.path).new_trainer()
    assert resumed.step_count == 3
    assert torch.equal(weights(resumed), weights(trainer))
    assert run.checkpoint_at(100000).name == "step-100000.safetensors"


@pytest.mark.parametrize("name", ["step-00000.safetensors", "good.safetensors",
                                  "step-2.safetensors", "step-99999 (copy).safetensors"])
def test_a_files_own_description_says_its_step_whatever_its_name(run_of_three, name):
    run, _ = run_of_three
    folder = run.path / "checkpoints"
    (folder / "step-00003.safetensors").rename(folder / name)
    resumed = RunFolder.open(run.path).new_trainer()
    assert resumed.step_count == 3


def test_a_copy_under_a_higher_name_is_not_newer(run_of_three):
    run, trainer = run_of_three
    folder = run.path / "checkpoints"
    shutil.copy(folder / "step-00001.safetensors", folder / "step-00009.safetensors")
    again = RunFolder.open(run.path)
    resumed = again.new_trainer()
    assert resumed.step_count == 3 and torch.equal(weights(resumed), weights(trainer))
    go_on(again, resumed, 6)  # the file of that name is written anew when its step comes
    assert load_tensors(folder / "step-00009.safetensors", "trainer")[1]["step"] == 9


@pytest.mark.parametrize("damage", [
    lambda data: data[: len(data) // 2], lambda data: b"", lambda data: bytes(len(data)),
    lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_with_a_word(
        run_of_three, make_trainer, damage):
    run, straight = run_of_three
    path = run.path / "checkpoints" / "step-00003.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    again = RunFolder.open(run.path)
    with pytest.warns(UserWarning, match=r"step-00003\.safetensors: not a readable .*left out"):
        resumed = again.new_trainer()
    assert resumed.step_count == 2 and len(again.metrics()) == 2
    go_on(again, resumed, 1)  # and the damaged file is replaced by a whole one
    assert torch.equal(weights(resumed), weights(straight))
    assert RunFolder.open(run.path).new_trainer().step_count == 3


def test_what_is_no_checkpoint_of_the_run_is_left_out(run_of_three, make_policy, make_trainer,
                                                      tmp_path):
    run, trainer = run_of_three
    folder = run.path / "checkpoints"
    save_policy(folder / "step-00007.safetensors", trainer.policy, "sort")
    (folder / "notes.txt").write_text("mine")
    (folder / "more.safetensors").mkdir()
    tensors, about = load_tensors(folder / "step-00003.safetensors", "trainer")
    save_tensors(folder / "step-00008.safetensors", tensors, about | {"task": "chain", "step": 8})
    with pytest.warns(UserWarning, match=r"more\.safetensors: no such file"):
        assert RunFolder.open(run.path).new_trainer().step_count == 3
    for path in folder.glob("step-*"):
        path.unlink()
    with pytest.warns(UserWarning, match="more"), pytest.raises(
            CheckpointError, match="no checkpoint to resume from"):
        RunFolder.open(run.path).new_trainer()


# --- what a resume brings back ------------------------------------------------------------

def test_settings_that_were_changed_on_the_way_are_those_of_the_resumed_run(run_of_three):
    run, trainer = run_of_three
    trainer.change(replace(trainer.config, learning_rate=1e-5, beta=0.04, epsilon=0.1))
    go_on(run, trainer, 1)
    again = RunFolder.open(run.path)
    with pytest.warns(UserWarning, match=r"settings: going on with those that .*step-00004.* was "
                                         r"saved with: epsilon 0\.1 \(not 0\.2\), beta 0\.04 "
                                         r"\(not 0\.0\), learning_rate 1e-05 \(not 0\.01\)"):
        resumed = again.new_trainer()
    assert resumed.config.to_dict() == trainer.config.to_dict()
    assert resumed.optimizer.param_groups[0]["lr"] == 1e-5
    go_on(again, resumed, 2)
    list(trainer.run(2))
    assert timeless(resumed.history) == timeless(trainer.history)
    assert torch.equal(weights(resumed), weights(trainer))


def test_a_change_just_before_saving_is_saved(run_of_three):
    run, trainer = run_of_three
    trainer.change(replace(trainer.config, learning_rate=1e-5))
    run.save(trainer)
    with pytest.warns(UserWarning, match="learning_rate 1e-05"):
        assert RunFolder.open(run.path).new_trainer().config.learning_rate == 1e-5


def test_changes_that_are_asked_for_go_before_the_checkpoints(run_of_three):
    run, trainer = run_of_three
    trainer.change(replace(trainer.config, learning_rate=1e-5, beta=0.04))
    go_on(run, trainer, 1)
    with pytest.warns(UserWarning, match="learning_rate 1e-05"):
        resumed = RunFolder.open(run.path).new_trainer(steps=20, learning_rate=0.5)
    config = resumed.config
    assert (config.steps, config.learning_rate, config.beta) == (20, 0.5, 0.04)
    assert resumed.optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.usefixtures("make_trainer")  # by which a run's folder finds the task
def test_a_run_in_float64_goes_on_in_float64(make_policy, task, tmp_path):
    trainer = GRPOTrainer(make_policy(len(task.tokenizer), dtype=torch.float64), task, SETTINGS)
    run = RunFolder.create(tmp_path / "run", trainer)
    go_on(run, trainer, 2)
    resumed = RunFolder.open(run.path).new_trainer()
    assert torch.equal(weights(resumed), weights(trainer))
    assert weights(resumed).dtype == torch.float64
    [left], [right] = resumed.run(1), trainer.run(1)
    assert timeless([left]) == timeless([right])
    assert torch.equal(weights(resumed), weights(trainer))
    run.finish(trainer)
    loaded = load_policy(run.path / "policy.safetensors")
    assert all(p.dtype == torch.float64 for p in loaded.parameters())


def test_weights_in_float64_are_not_rounded_into_a_trainer_in_float32(make_policy, task, tmp_path):
    ours, theirs = (GRPOTrainer(make_policy(len(task.tokenizer), dtype=dtype), task, SETTINGS)
                    for dtype in (torch.float64, torch.float32))
    list(ours.run(1))
    ours.save(tmp_path / "saved.safetensors")
    before = weights(theirs)
    with pytest.raises(CheckpointError, match="its policy is in float64, must be in float32"):
        theirs.load(tmp_path / "saved.safetensors")
    assert torch.equal(weights(theirs), before) and theirs.step_count == 0


def test_a_number_type_in_run_json_that_is_none_is_named(run_of_three):
    run, _ = run_of_three
    run.write(dtype="load")
    with pytest.raises(CheckpointError, match="its dtype is 'load', must be one of float32, "):
        RunFolder.open(run.path).new_trainer()


def test_a_critics_settings_come_back(make_trainer, tmp_path):
    trainer = make_trainer(PPO)
    run = RunFolder.create(tmp_path / "run", trainer)
    trainer.change(replace(PPO, value_learning_rate=1e-6, max_grad_norm=0.3, gae_lambda=0.5))
    go_on(run, trainer, 2)
    with pytest.warns(UserWarning, match="value_learning_rate 1e-06"):
        resumed = RunFolder.open(run.path).new_trainer()
    assert resumed.critic.optimizer.param_groups[0]["lr"] == 1e-6
    assert resumed.critic.max_grad_norm == 0.3 and resumed.algorithm.gae_lambda == 0.5
    list(trainer.run(2))
    list(resumed.run(2))
    assert torch.equal(weights(resumed), weights(trainer))


def test_a_trainer_of_ones_own_gets_the_checkpoints_settings_too(run_of_three, make_trainer):
    run, trainer = run_of_three
    other = make_trainer(replace(SETTINGS, epsilon=0.3, steps=11))
    with pytest.warns(UserWarning, match=r"epsilon 0\.2 \(not 0\.3\)"):
        RunFolder.open(run.path).restore(other)
    assert other.config.to_dict() == trainer.config.to_dict() | {"steps": 11}
    again = make_trainer()
    again.load(run.path / "checkpoints" / "step-00003.safetensors")  # nothing differs: no word


@pytest.mark.parametrize("config", [{"epsilon": "wide"}, {"epsilon": -1}, 3])
def test_settings_that_do_not_fit_are_an_error_that_changes_nothing(run_of_three, make_trainer,
                                                                    config):
    run, _ = run_of_three
    path = run.path / "checkpoints" / "step-00003.safetensors"
    tensors, about = load_tensors(path, "trainer")
    save_tensors(path, tensors, about | {"config": config})
    trainer = make_trainer()
    before = weights(trainer)
    with pytest.raises(CheckpointError, match="its settings do not fit"):
        trainer.load(path)
    assert torch.equal(weights(trainer), before) and trainer.step_count == 0


def test_the_command_line_resumes_with_the_changed_settings(tmp_path):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), "--steps", "2", *SMALL]) == 0
    run = RunFolder.open(out)
    trainer = run.new_trainer(steps=4)
    trainer.change(replace(trainer.config, learning_rate=1e-5, beta=0.04))
    go_on(run, trainer, 1)
    with pytest.warns(UserWarning, match="learning_rate 1e-05"):
        assert main(["train", "--resume", str(out), "--steps", "5"]) == 0
    config = read_json(out / "run.json")["config"]
    assert (config["steps"], config["learning_rate"], config["beta"]) == (5, 1e-5, 0.04)
    last = load_tensors(out / "checkpoints" / "step-00005.safetensors", "trainer")[1]["config"]
    assert (last["learning_rate"], last["beta"]) == (1e-5, 0.04)


# --- what is kept -------------------------------------------------------------------------

@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_the_oldest_checkpoints_are_removed(make_trainer, tmp_path, limit):
    trainer = make_trainer()
    run = RunFolder.create(tmp_path / "run", trainer, save_total_limit=limit)
    go_on(run, trainer, 5)
    kept = range(max(0, 6 - limit), 6)
    assert files(run) == [f"step-{step:05d}.safetensors" for step in kept]
    assert RunFolder.open(run.path).about["save_total_limit"] == limit


def test_a_checkpoint_is_removed_only_when_the_new_one_is_whole(make_trainer, tmp_path,
                                                                monkeypatch):
    trainer = make_trainer()
    run = RunFolder.create(tmp_path / "run", trainer, save_total_limit=1)
    go_on(run, trainer, 2)
    list(trainer.run(1))
    with monkeypatch.context() as patch:
        patch.setattr("grpo_lib.support.checkpoint.os.fsync",
                      lambda _: (_ for _ in ()).throw(OSError(28)))
        with pytest.raises(OSError, match="28"):
            run.save(trainer)
    assert files(run) == ["step-00002.safetensors"]
    run.save(trainer)
    assert files(run) == ["step-00003.safetensors"]


def test_the_one_resumed_from_is_kept_though_a_damaged_one_is_newer(make_trainer, tmp_path):
    trainer = make_trainer()
    run = RunFolder.create(tmp_path / "run", trainer, save_total_limit=2)
    go_on(run, trainer, 4)
    path = run.path / "checkpoints" / "step-00004.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # its description can be read
    again = RunFolder.open(run.path)
    again.about["save_total_limit"] = 1
    with pytest.warns(UserWarning, match="left out"):
        resumed = again.new_trainer()
    assert resumed.step_count == 3 and files(run)[0] == "step-00003.safetensors"
    go_on(again, resumed, 1)
    assert files(run) == ["step-00004.safetensors"] and path.read_bytes() == data


def test_what_a_person_put_there_is_not_removed(make_trainer, tmp_path):
    trainer = make_trainer()
    run = RunFolder.create(tmp_path / "run", trainer, save_total_limit=1)
    folder = run.path / "checkpoints"
    shutil.copy(folder / "step-00000.safetensors", folder / "mine.safetensors")
    (folder / "step-00001.safetensors").write_text("notes")
    go_on(run, trainer, 3, save_every=3)
    assert files(run) == ["mine.safetensors", "step-00001.safetensors", "step-00003.safetensors"]


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "3"])
def test_a_limit_that_keeps_nothing_is_refused(make_trainer, tmp_path, limit):
    with pytest.raises(ValueError, match=r"^save_total_limit: got"):
        RunFolder.create(tmp_path / "run", make_trainer(), save_total_limit=limit)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("limit", [0, "3", True])
def test_a_limit_in_run_json_that_does_not_fit_is_named(run_of_three, limit):
    run, _ = run_of_three
    write_json(run.path / "run.json", run.about | {"save_total_limit": limit})
    with pytest.raises(CheckpointError, match="save_total_limit"):
        RunFolder.open(run.path)


@pytest.mark.slow
def test_the_command_line_keeps_as_many_as_asked_for(tmp_path):
    out = tmp_path / "run"
    arguments = ["--save-every", "1", "--save-total-limit"]
    assert main(["train", "--out", str(out), "--steps", "3", *SMALL, *arguments, "2"]) == 0
    assert files(RunFolder.open(out)) == ["step-00002.safetensors", "step-00003.safetensors"]
    assert main(["train", "--resume", str(out), "--steps", "4"]) == 0  # as before
    assert files(RunFolder.open(out)) == ["step-00003.safetensors", "step-00004.safetensors"]
    assert main(["train", "--resume", str(out), "--steps", "5", *arguments, "1"]) == 0
    assert files(RunFolder.open(out)) == ["step-00005.safetensors"]


# --- the reference, once ------------------------------------------------------------------

def test_the_reference_is_saved_once_and_resuming_is_never_having_stopped(make_trainer, tmp_path):
    config = replace(SETTINGS, beta=0.1, learning_rate=0.05)
    straight = make_trainer(config)
    list(straight.run(6))
    trainer = make_trainer(config)
    run = RunFolder.create(tmp_path / "run", trainer)
    go_on(run, trainer, 3)
    for path in (run.path / "checkpoints").iterdir():
        tensors, _ = load_tensors(path, "trainer")
        assert not any(name.startswith("ref_policy.") for name in tensors)
    resumed = make_trainer(config)
    with torch.no_grad():
        for parameter in resumed.ref_policy.parameters():
            parameter.add_(1.0)  # nothing of the new trainer's reference may survive
    RunFolder.open(run.path).restore(resumed)
    list(resumed.run(3))
    assert torch.equal(weights(resumed), weights(straight))
    assert timeless(resumed.history) == timeless(straight.history)


def test_a_reference_that_is_gone_or_another_is_said(run_of_three, make_trainer):
    run, _ = run_of_three
    reference = run.path / "reference.safetensors"
    data = reference.read_bytes()
    reference.unlink()
    with pytest.raises(CheckpointError, match=r"reference\.safetensors: is missing; .*step-00003"):
        RunFolder.open(run.path).new_trainer()
    other = make_trainer()
    with torch.no_grad():
        other.ref_policy.lm_head.weight.add_(1)
    other.save_reference(reference)
    with pytest.raises(CheckpointError, match="holds another reference policy than the one"):
        RunFolder.open(run.path).new_trainer()
    reference.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"reference\.safetensors: not a readable"):
        RunFolder.open(run.path).new_trainer()
    reference.write_bytes(data)
    assert RunFolder.open(run.path).new_trainer().step_count == 3


def test_a_run_of_an_older_version_goes_on(run_of_three, make_trainer):
    """Its checkpoints hold the reference, and there is no file for it."""
    run, trainer = run_of_three
    for path in (run.path / "checkpoints").iterdir():
        path.unlink()
    (run.path / "reference.safetensors").unlink()
    trainer.save(run.path / "checkpoints" / "step-00003.safetensors")
    about = {k: v for k, v in run.about.items() if k not in ("policy_class", "save_total_limit")}
    write_json(run.path / "run.json", about)
    again = RunFolder.open(run.path)
    resumed = again.new_trainer()
    assert torch.equal(weights(resumed), weights(trainer))
    go_on(again, resumed, 2)
    list(trainer.run(2))
    last = RunFolder.open(run.path).new_trainer()
    assert torch.equal(weights(last), weights(trainer))


# --- the task -----------------------------------------------------------------------------

def count_words(problem, text):
    return float(len(text.split()))


class NewTask(SortTask):
    name = "new"


@pytest.mark.parametrize("task", [SortTask().with_reward(count_words), SortTask(2, 3), NewTask(),
                                  SortTask().with_reward([count_words, SortTask().correct])],
                         ids=["reward", "settings", "class", "rewards"])
def test_a_run_on_a_task_of_ones_own_goes_on_with_that_task_alone(make_policy, tmp_path, task):
    trainer = GRPOTrainer(make_policy(len(task.tokenizer)), task, SETTINGS)
    run = RunFolder.create(tmp_path / "run", trainer)
    go_on(run, trainer, 1)
    opened = RunFolder.open(run.path)
    with pytest.raises(CheckpointError, match=rf"task '{task.name}' is not the built-in one.*"
                                              rf"new_trainer\(task=made\)"):
        opened.new_trainer()
    resumed = opened.new_trainer(task=task)
    assert resumed.task is task
    [left], [right] = resumed.run(1), trainer.run(1)
    assert timeless([left]) == timeless([right])


def test_a_run_on_a_built_in_task_needs_no_task(make_policy, tmp_path):
    task = SortTask()
    trainer = GRPOTrainer(make_policy(len(task.tokenizer)), task, SETTINGS)
    run = RunFolder.create(tmp_path / "run", trainer)
    assert type(RunFolder.open(run.path).new_trainer().task) is SortTask


@pytest.mark.parametrize(("number", "said"), [
    (np.int64(3), 3), (np.float32(0.5), 0.5), (torch.tensor(2), 2), (np.bool_(True), True),
    (np.float32("inf"), None)])
def test_what_a_run_says_of_itself_may_hold_numbers_of_any_type(make_trainer, tmp_path, number,
                                                                said):
    run = RunFolder.create(tmp_path / "run", make_trainer(), note=number, notes=[number])
    about = RunFolder.open(run.path).about
    assert about["note"] == said and about["notes"] == [said]


# --- the home folder ----------------------------------------------------------------------

def test_the_home_folder_is_meant_by_a_tilde(home, make_trainer, make_policy, task):
    trainer = make_trainer()
    run = RunFolder.create("~/run", trainer)
    go_on(run, trainer, 1)
    assert RunFolder.open(Path("~/run")).new_trainer().step_count == 1
    trainer.save("~/trainer")
    trainer.save_reference("~/reference")
    trainer.save("~/small", "~/reference")
    trainer.load("~/small")
    save_policy("~/policy", trainer.policy, "sort")
    load_policy("~/policy")
    write_json("~/a.json", {"a": 1})
    assert read_json("~/a.json") == {"a": 1}
    assert {path.name for path in home.iterdir()} >= {"run", "trainer", "policy", "a.json"}
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
def test_the_command_line_means_the_home_folder_by_a_tilde(home):
    assert main(["train", "--out=~/run", "--steps", "1", *SMALL]) == 0
    assert main(["train", "--resume=~/run", "--steps", "2"]) == 0
    assert main(["evaluate", "--policy=~/run", "--problems", "2", "--samples", "2",
                 "--k", "1"]) == 0
    assert main(["pretrain", "--out=~/made/base.safetensors", "--skill-steps", "1",
                 "--habit-steps", "0", "--threads", "1"]) == 0
    own = {path.name for path in home.iterdir() if not path.name.startswith(".")}
    assert own == {"run", "made"}  # matplotlib, imported first here, makes .config and .cache
    assert len((home / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((home / "made" / "base.json").read_text())["task"] == "chain"
    assert list(Path.cwd().iterdir()) == []
