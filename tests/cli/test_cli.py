"""The command line as a person meets it: whole runs as processes, and every kind of bad input."""

import json
import math
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from waiting import PATIENCE, until

from grpo_lib.__main__ import main
from grpo_lib.algorithms import ALGORITHMS
from grpo_lib.cli import train as train_module
from grpo_lib.cli.parser import parser
from grpo_lib.config import GRPOConfig, StepMetrics, describe_fields
from grpo_lib.support.checkpoint import (
    base_model_path,
    load_base_model,
    load_policy,
    load_tensors,
    save_policy,
    save_tensors,
)

SMALL = ["--steps", "4", "--prompts-per-step", "4", "--group-size", "4", "--eval-every", "2",
         "--eval-problems", "10", "--held-out", "20", "--save-every", "2", "--threads", "1"]
LAST_LINE = re.compile(r"held-out accuracy: \d+\.\d% -> \d+\.\d%   "
                       r"completion length: \d+\.\d -> \d+\.\d tokens   time: \d+ s")


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def command(*arguments):
    return [sys.executable, "-m", "grpo_lib", *map(str, arguments)]


def run(*arguments, **options):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=PATIENCE,
                          **options)


def train_small(out, *more):
    assert main(["train", "--out", str(out), *SMALL, *more]) == 0


def same_state(one, other):
    a, about_a = load_tensors(one, "trainer")
    b, about_b = load_tensors(other, "trainer")
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) and about_a == about_b


def without_seconds(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def test_train_writes_everything_and_ends_with_the_line(tmp_path):
    done = run("train", "--out", tmp_path / "run", *SMALL)
    assert done.returncode == 0, done.stderr
    assert LAST_LINE.fullmatch(done.stdout.splitlines()[-1])
    assert "reward" in done.stderr and "held-out" in done.stderr, "no progress bar"
    names = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*.*")}
    assert names == {"run.json", "metrics.jsonl", "curves.png", "policy.safetensors",
                     "reference.safetensors",
                     *(f"checkpoints/step-0000{i}.safetensors" for i in (0, 2, 4))}
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["config"]["group_size"] == 4 and about["threads"] == 1
    for when in ("before", "after"):
        assert about[when]["problems"] == 20 and 0 <= about[when]["accuracy"] <= 1
    rows = [json.loads(line)
            for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row.keys() == describe_fields(StepMetrics).keys() - {"rewards"} for row in rows)
    assert [row["held_out_accuracy"] is None for row in rows] == [True, False, True, False]
    for row in rows:
        assert all(math.isfinite(v) for v in row.values() if v is not None)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_by_its_name(tmp_path, name):
    train_small(tmp_path / "run", "--algorithm", name, "--steps", "2")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["config"]["algorithm"] == name
    assert about["config"]["scale"] == ALGORITHMS[name].scale
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_run_with_a_critic_goes_on_as_if_never_stopped(tmp_path):
    train_small(tmp_path / "whole", "--algorithm", "ppo")
    train_small(tmp_path / "parts", "--algorithm", "ppo", "--steps", "2")
    assert main(["train", "--resume", str(tmp_path / "parts"), "--steps", "4"]) == 0
    assert without_seconds(tmp_path / "whole") == without_seconds(tmp_path / "parts")


@pytest.mark.parametrize(("arguments", "named"), [
    (["--algorithm", "gropo"], "algorithm: got 'gropo', allowed are grpo, reinforce"),
    (["--algorithm", "ppo", "--baseline", "mean"], "critic: got True with baseline='mean'"),
    (["--algorithm", "grpo", "--group-size", "1"], "group_size: got 1"),
])
def test_what_cannot_be_run_is_told_in_a_line(tmp_path, capsys, arguments, named):
    assert main(["train", "--out", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_same_seed_same_run_and_other_seed_other_run(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train_small(tmp_path / name, "--seed", str(seed))
    assert without_seconds(tmp_path / "a") == without_seconds(tmp_path / "b")
    assert without_seconds(tmp_path / "a") != without_seconds(tmp_path / "c")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_run_that_is_stopped_and_resumed_is_the_same_run(tmp_path):
    """By Ctrl-C; test_run_faults has kill -9."""
    arguments = [*SMALL, "--steps", "20", "--save-every", "3"]
    process = subprocess.Popen(command("train", "--out", tmp_path / "stopped", *arguments),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 7,
          lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=PATIENCE)
    steps = metrics.read_text().count("\n")
    assert 7 <= steps < 20
    assert process.returncode == 130
    assert f"stopped after step {steps}" in out and "Traceback" not in errors
    assert f"python -m grpo_lib train --resume {tmp_path / 'stopped'}" in out
    assert (tmp_path / "stopped" / "checkpoints" / f"step-{steps:05d}.safetensors").exists()
    straight = tmp_path / "straight"
    done = run("train", "--out", straight, *arguments)
    assert done.returncode == 0, done.stderr
    resumed = run("train", "--resume", tmp_path / "stopped", "--threads", "1")
    assert resumed.returncode == 0, resumed.stderr
    assert LAST_LINE.fullmatch(resumed.stdout.splitlines()[-1])
    assert without_seconds(tmp_path / "stopped") == without_seconds(straight)
    last = "checkpoints/step-00020.safetensors"
    assert same_state(tmp_path / "stopped" / last, straight / last)
    scores = [json.loads((folder / "run.json").read_text())["after"]
              for folder in (tmp_path / "stopped", straight)]
    assert scores[0] == scores[1]


def test_resume_with_more_steps_goes_on(tmp_path, capsys):
    train_small(tmp_path / "run")
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "6"]) == 0
    assert [row["step"] for row in without_seconds(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "complete at step 6" in capsys.readouterr().err


def test_pretrain_writes_a_checkpoint_that_train_and_evaluate_take(tmp_path, capsys):
    base = tmp_path / "base.safetensors"
    assert main(["pretrain", "--task", "sort", "--out", str(base), "--skill-steps", "2",
                 "--habit-steps", "1"]) == 0
    about = json.loads(base.with_suffix(".json").read_text())
    assert about["recipe"]["skill_steps"] == 2 and about["recipe"]["seed"] == 0
    assert about["one_step_accuracy"] is None and about["held_out"]["problems"] == 1000
    train_small(tmp_path / "run", "--task", "sort", "--policy", str(base))
    capsys.readouterr()
    assert main(["evaluate", "--task", "sort", "--policy", str(tmp_path / "run"),
                 "--problems", "20", "--samples", "4", "--k", "1", "4"]) == 0
    out = capsys.readouterr().out
    assert "accuracy:" in out and "pass@1:" in out and "pass@4:" in out and "95% interval" in out


def test_pretrain_warns_when_the_skill_is_not_there(tmp_path, capsys):
    base = tmp_path / "base.safetensors"
    assert main(["pretrain", "--out", str(base), "--skill-steps", "2", "--habit-steps", "0"]) == 0
    out = capsys.readouterr().out
    assert "RL will not take off" in out
    assert json.loads(base.with_suffix(".json").read_text())["one_step_accuracy"] < 0.97


def test_the_base_model_that_ships_has_the_skill_and_the_bad_habit(capsys):
    path = base_model_path("chain")
    about = json.loads(path.with_suffix(".json").read_text())
    assert path.stat().st_size < 1_000_000
    assert about["one_step_accuracy"] >= 0.97 and about["held_out"]["accuracy"] <= 0.25
    assert main(["evaluate", "--samples", "1", "--k", "1"]) == 0
    measured = float(re.search(r"accuracy: +([0-9.]+)%", capsys.readouterr().out)[1]) / 100
    assert measured == pytest.approx(about["held_out"]["accuracy"], abs=0.02)


BAD = [
    (["train", "--bogus"], "--bogus"),
    (["train", "--steps", "many"], "--steps: got 'many', must be a whole number"),
    (["train", "--epsilon", "0,2"], "--epsilon: got '0,2', must be a number, or none"),
    (["train", "--micro-batch-size", "4.5"], "got '4.5', must be a whole number, or none"),
    (["train", "--learning-rate", "small"], "--learning-rate: got 'small', must be a number"),
    (["pretrain", "--seed", "x"], "--seed: got 'x', must be a whole number"),
    (["evaluate", "--temperature", "hot"], "--temperature: got 'hot', must be a number"),
    (["train", "--steps", "-1"], "steps: got -1"),
    (["train", "--group-size", "1"], "group_size: got 1"),
    (["train", "--group-size", "0"], "group_size: got 0"),
    (["train", "--epsilon", "-0.2"], "epsilon: got -0.2"),
    (["train", "--epsilon", "nan"], "epsilon: got nan"),
    (["train", "--epsilon-high", "-1"], "epsilon_high: got -1.0"),
    (["train", "--beta", "-1"], "beta: got -1.0"),
    (["train", "--learning-rate", "0"], "learning_rate: got 0.0"),
    (["train", "--temperature", "0"], "temperature: got 0.0"),
    (["train", "--aggregation", "median"], "aggregation: got 'median'"),
    (["train", "--device", "abacus"], "device: got 'abacus'"),
    (["train", "--held-out", "0"], "--held-out"),
    (["train", "--task", "chess"], "--task"),
    (["train", "--task", "sort"], "comes without a base model"),
    (["train", "--policy", "nowhere.safetensors"], "no such file"),
    (["train", "--resume", "nowhere"], "nowhere: is not the folder of a run: it has no run.json"),
    (["train", "--resume", "run", "--epsilon", "0.3", "--task", "sort"], "got --epsilon, --task"),
    (["evaluate", "--k", "32", "--samples", "4"], "--k: got 32"),
    (["evaluate", "--problems", "0"], "--problems"),
    (["evaluate", "--temperature", "-1"], "temperature: got -1.0"),
    (["pretrain", "--out", "base.pt"], ".safetensors"),
    (["pretrain", "--skill-steps", "0"], "skill_steps: got 0"),
    (["pretrain", "--device", "nowhere"], "device: got 'nowhere'"),
    (["dance"], "dance"),
    ([], "COMMAND: got none, must be one of those that python -m grpo_lib --help lists"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(a) or "none" for a, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    errors = capsys.readouterr().err
    assert code == 2
    assert named in errors and "error: " in errors
    assert errors.count("\n") == 1 and "Traceback" not in errors
    assert not list(tmp_path.rglob("*.safetensors")) and not (tmp_path / "runs").exists()


def test_what_help_calls_the_default_algorithm_can_be_typed(capsys):
    assert parser().parse_args(["train", "--algorithm", "none"]).algorithm is None


def test_few_samples_are_measured_without_naming_a_k(capsys):
    assert main(["evaluate", "--problems", "5", "--samples", "4"]) == 0
    assert "pass@1:" in (said := capsys.readouterr().out) and "pass@8" not in said


@pytest.mark.parametrize("name", ["lab", "notebooks", "test", "wheels"])
def test_help_of_a_command_without_options_stands_at_the_margin(name, capsys):
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] and not any(line.startswith(" ") for line in lines)


def damaged(path, how):
    data = base_model_path("chain").read_bytes()
    if how == "truncated":
        path.write_bytes(data[:-1000])
    elif how == "of another shape":
        tensors, about = load_tensors(base_model_path("chain"), "policy")
        about["config"]["n_layers"] = 3
        save_tensors(path, tensors, about)
    elif how == "of another task":
        save_policy(path, load_base_model("chain"), "sort")
    else:
        path.write_bytes(b"not a checkpoint at all" * 100)
    return path


@pytest.mark.parametrize("how", ["truncated", "of another shape", "of another task", "foreign"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, capsys, how):
    path = damaged(tmp_path / "base.safetensors", how)
    assert main(["train", "--policy", str(path), "--out", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert str(path) in errors and errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    assert "nothing was overwritten" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    (tmp_path / "base.json").write_text("{}")
    assert main(["pretrain", "--out", str(tmp_path / "base.safetensors")]) == 2
    assert "nothing was overwritten" in capsys.readouterr().err
    assert (tmp_path / "base.json").read_text() == "{}"


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", "--out", str(tmp_path / "file" / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    if os.name != "nt" and os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert main(["train", "--out", str(tmp_path / "locked" / "run")]) == 2
        assert "ermission" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_run_is_not_resumed(tmp_path, capsys):
    train_small(tmp_path / "run")
    arguments = ["train", "--resume", str(tmp_path / "run"), "--steps", "8"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text("\n".join(whole.splitlines()[:2]) + "\n")
    assert main(arguments) == 2 and "has 2 of the 4 steps" in capsys.readouterr().err
    metrics.write_text("{]\n" + whole)
    assert main(arguments) == 2 and "line 1 cannot be read" in capsys.readouterr().err
    metrics.write_text(whole + '{"step": 5, "rew')  # a line cut short by a crash is no damage
    assert main(arguments) == 0
    assert [row["step"] for row in without_seconds(tmp_path / "run")] == list(range(1, 9))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [
    ("task", "chess"), ("task", None), ("config", []), ("config", {"bogus": 1}),
    ("policy_config", {}), ("policy_config", {"vocab_size": 3}), ("held_out", "all")])
def test_a_run_json_that_does_not_fit_is_one_line(tmp_path, capsys, name, value):
    train_small(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(about | {name: value}))
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "5"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert len(without_seconds(tmp_path / "run")) == 4


def test_every_setting_is_an_option_with_its_sentence(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, sentence in describe_fields(GRPOConfig).items():
        assert f"--{name.replace('_', '-')}" in text
        assert sentence[:20] in text


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("True", True)])
def test_a_setting_that_is_on_or_off_is_given_as_true_or_false(text, value):
    options = parser().parse_args(["train", "--use-bias-correction-kl", text])
    assert options.use_bias_correction_kl is value
    assert not hasattr(parser().parse_args(["train"]), "use_bias_correction_kl")


@pytest.mark.parametrize("text", ["yes", "1", "", "none"])
def test_a_setting_that_is_on_or_off_takes_nothing_else(text, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(["train", "--use-bias-correction-kl", text])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert f"--use-bias-correction-kl: got {text!r}, allowed are true and false" in error


def test_help_is_there_without_torch():
    code = "import sys; sys.modules['torch'] = None; from grpo_lib.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "lab", "--help"], capture_output=True,
                          text=True, timeout=PATIENCE)
    assert done.returncode == 0 and "JupyterLab" in done.stdout


def test_threads_are_told_to_sleep_before_torch_is_loaded():
    code = ("import os; from grpo_lib.__main__ import main; "
            "main(['evaluate', '--samples', '1', '--k', '2']); "
            "print(os.environ.get('OMP_WAIT_POLICY'))")
    before = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          timeout=PATIENCE, env=before)
    assert "--k: got 2" in done.stderr and done.stdout.split() == ["PASSIVE"]


def test_the_trained_policy_is_the_last_checkpoint(tmp_path):
    train_small(tmp_path / "run")
    policy = load_policy(tmp_path / "run" / "policy.safetensors")
    last = tmp_path / "run" / "checkpoints" / "step-00004.safetensors"
    tensors, _ = load_tensors(last, "trainer")
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, tensors[f"policy.{name}"])


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("where", ["RunFolder.finish", "score", "summary"])
def test_a_run_stopped_after_its_last_step_is_completed_by_the_command_it_prints(
        tmp_path, monkeypatch, capsys, where):
    from grpo_lib.cli import runs

    target = runs.RunFolder if "." in where else runs
    with monkeypatch.context() as patch:
        if where == "score":  # the second evaluation, not the first
            calls, real = [], runs.score
            patch.setattr(runs, "score", lambda *a: calls.append(a) or (
                interrupt() if len(calls) == 2 else real(*a)))
        else:
            patch.setattr(target, where.split(".")[-1], interrupt)
        assert main(["train", "--out", str(tmp_path / "a run"), *SMALL]) == 130
    out = capsys.readouterr().out
    if where == "summary":
        assert (tmp_path / "a run" / "curves.png").exists()
        return
    assert f"train --resume '{tmp_path / 'a run'}'" in out
    assert main(["train", "--resume", str(tmp_path / "a run")]) == 0
    assert LAST_LINE.fullmatch(capsys.readouterr().out.splitlines()[-1])
    names = {p.name for p in (tmp_path / "a run").iterdir()}
    assert {"curves.png", "policy.safetensors"} <= names


@pytest.mark.slow
def test_a_step_broken_off_half_way_is_taken_again(tmp_path, monkeypatch, capsys):
    """Ctrl-C twice acts inside the update: its weights must not be saved."""
    train_small(tmp_path / "straight")
    real, calls = torch.optim.AdamW.step, []

    def step(self, *arguments, **options):
        calls.append(1)
        real(self, *arguments, **options)
        if len(calls) == 5:  # the first of the two gradient steps of step 3
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        assert main(["train", "--out", str(tmp_path / "broken"), *SMALL]) == 130
    assert "stopped after step 2" in capsys.readouterr().out
    assert main(["train", "--resume", str(tmp_path / "broken")]) == 0
    last = "checkpoints/step-00004.safetensors"
    assert same_state(tmp_path / "broken" / last, tmp_path / "straight" / last)


@pytest.mark.slow
def test_a_failed_run_says_how_to_go_on_and_keeps_its_settings(tmp_path, monkeypatch, capsys):
    from grpo_lib.support.run_folder import RunFolder

    def full(self, metrics):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", full)
        assert main(["train", "--out", str(tmp_path / "run"), *SMALL]) == 2
    caught = capsys.readouterr()
    assert "No space left" in caught.err and "--resume" in caught.out
    torch.set_num_threads(2)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["threads"] == torch.get_num_threads() == 1 and about["save_every"] == 2


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_saves_after_a_failure_loses_nothing(tmp_path, monkeypatch, capsys, sent):
    """torchrun sends one a moment after a process was lost."""
    from grpo_lib import training
    from grpo_lib.support.run_folder import RunFolder

    sample, record_all = training.GRPOTrainer.sample, RunFolder.record_all

    def broken(self):
        if self.step_count == 3:
            raise RuntimeError("shapes do not match")
        return sample(self)

    def disturbed(self, history):
        signal.raise_signal(sent)
        record_all(self, history)

    monkeypatch.setattr(training.GRPOTrainer, "sample", broken)
    monkeypatch.setattr(RunFolder, "record_all", disturbed)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as under torchrun
    try:
        assert main(["train", "--out", str(tmp_path / "run"), *SMALL]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr()
    assert "failed after step 3; everything is saved" in said.out and "--resume" in said.out
    assert "shapes do not match" in said.err
    assert (tmp_path / "run" / "checkpoints" / "step-00003.safetensors").is_file()


def test_a_run_that_fails_keeps_the_steps_before(tmp_path, monkeypatch, capsys):
    """Before an update all of them, inside of one those of the last checkpoint."""
    from grpo_lib import training

    trainer = training.GRPOTrainer
    for at, kept in ((0, [0, 2, 3]), (1, [0, 2])):
        work = trainer.gradient_step if at else trainer.sample

        def broken(self, *arguments, work=work, **options):
            if self.step_count == 3:
                raise RuntimeError("shapes do not match")
            return work(self, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(trainer, work.__name__, broken)
            assert main(["train", "--out", str(tmp_path / str(at)), *SMALL]) == 2
        said = capsys.readouterr()
        assert "failed after step 3" in said.out and "shapes do not match" in said.err
        saved = sorted((tmp_path / str(at) / "checkpoints").iterdir())
        assert [int(p.stem.split("-")[1]) for p in saved] == kept


@pytest.mark.slow
def test_going_on_with_a_complete_run_drops_what_described_its_end(tmp_path, monkeypatch):
    from grpo_lib.training import GRPOTrainer

    train_small(tmp_path / "run")
    monkeypatch.setattr(GRPOTrainer, "step", interrupt)
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "9"]) == 130
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["config"]["steps"] == 9 and "after" not in about
    assert not (tmp_path / "run" / "policy.safetensors").exists()


@pytest.mark.slow
def test_threads_are_as_many_as_asked_for(tmp_path):
    done = run("train", "--out", tmp_path / "run", *SMALL, "--steps", "1", "--threads", "6")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["threads"] == 6


def test_an_old_environment_is_kept(tmp_path, monkeypatch):
    """Nothing in an existing .venv is removed when the requirements change."""
    from grpo_lib.cli import environment

    (tmp_path / "requirements.txt").write_text("torch\n")
    (tmp_path / "pyproject.toml").write_text('requires-python = ">=3.0"\n'
                                             '"Programming Language :: Python :: 3.99"\n')
    python = tmp_path / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.write_text("")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    commands = []
    monkeypatch.setattr(environment, "call", lambda command, root: commands.append(command) or 0)
    monkeypatch.setattr(subprocess, "run",
                        lambda *_, **__: subprocess.CompletedProcess([], 0))  # pip is there
    assert environment.prepare(tmp_path) == str(python)
    assert len(commands) == 1 and "pip" in commands[0] and python.exists()


# --- text that leaves the program ---------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "arguments", "status", "says"), [
    ("ascii:strict", ["--help"], 0, "COMMAND"), ("cp932", ["--help"], 0, "COMMAND"),
    ("cp1251", ["train", "--help"], 0, "--stop-at-accuracy"),
    ("ascii:strict", ["evaluate", "--policy", "ünï→語.safetensors"], 2, "no such file"),
    ("cp932", ["evaluate", "--policy", "ünï→語.safetensors"], 2, "no such file")])
def test_no_letter_is_too_much_for_a_terminal(encoding, arguments, status, says):
    done = subprocess.run(command(*arguments), capture_output=True, timeout=PATIENCE,
                          env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    said = (done.stdout + done.stderr).decode(encoding.split(":")[0], "replace")
    assert done.returncode == status, said
    assert says in said and "Traceback" not in said and "can't encode" not in said


def test_a_warning_is_one_line():
    done = run("train", "--kl", "k1", "--stop-at-accuracy", "0.5", "--eval-every", "0")
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 2 and len(lines) == 2
    assert lines[0].startswith("grpo_lib: warning: kl: 'k1' will change nothing")


# --- stopping at an accuracy --------------------------------------------------------------

EVALUATED = [*SMALL, "--eval-every", "2"]  # after step 2 and step 4


@pytest.mark.slow
def test_a_run_stops_once_it_is_good_enough_and_goes_on_when_more_is_wanted(tmp_path, capsys):
    out = tmp_path / "run"

    def steps():
        return len((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "reached", lambda history, goal: goal == 0.3 and bool(history)
                      and history[-1].step == 2)
        patch.setattr(train_module, "accuracy_of", lambda history: 0.31)
        assert main(["train", "--out", str(out), *EVALUATED, "--stop-at-accuracy", "0.3"]) == 0
        said = capsys.readouterr().out
        assert "stopped after step 2: held-out accuracy 31.0% has reached the 30.0%" in said
        assert LAST_LINE.fullmatch(said.splitlines()[-1])
        about = json.loads((out / "run.json").read_text(encoding="utf-8"))
        assert about["stop_at_accuracy"] == 0.3 and "after" in about and steps() == 2
        assert (out / "policy.safetensors").exists() and (out / "curves.png").exists()
        assert main(["train", "--resume", str(out)]) == 2
        assert "is complete: at step 2 its held-out accuracy was 31.0%" in capsys.readouterr().err
        assert main(["train", "--resume", str(out), "--stop-at-accuracy", "0.4"]) == 0
    assert steps() == 4  # all, since that was never reached
    straight = tmp_path / "straight"
    assert main(["train", "--out", str(straight), *EVALUATED]) == 0
    assert without_seconds(straight) == without_seconds(out)


def test_more_steps_alone_are_all_taken(tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "reached", lambda history, goal: goal is not None
                      and bool(history) and history[-1].step == 2)
        patch.setattr(train_module, "accuracy_of", lambda history: 0.9)
        assert main(["train", "--out", str(out), *EVALUATED, "--stop-at-accuracy", "0.3"]) == 0
        assert main(["train", "--resume", str(out), "--steps", "6"]) == 0
    assert len((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 6
    about = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert about["stop_at_accuracy"] is None


@pytest.mark.parametrize(("accuracy", "goal", "is_reached"), [
    (None, 0.5, False), (0.4, 0.5, False), (0.5, 0.5, True), (0.6, 0.5, True), (0.6, None, False)])
def test_what_has_been_reached(accuracy, goal, is_reached):
    values = dict.fromkeys(StepMetrics.__dataclass_fields__, 0.9) | {"held_out_accuracy": accuracy}
    assert train_module.reached([StepMetrics(**values)], goal) is is_reached
    assert not train_module.reached([], goal)


@pytest.mark.parametrize(("arguments", "named"), [
    (["--eval-every", "0"], "got 0.5 with --eval-every 0"),
    (["--eval-every", "5"], "got 0.5 with --eval-every 5 and --steps 4"),
    (["--steps", "0"], "--steps 0")])
def test_a_goal_that_is_never_measured_is_refused(tmp_path, capsys, arguments, named):
    status = main(["train", "--out", str(tmp_path / "run"), *EVALUATED, "--stop-at-accuracy",
                   "0.5", *arguments])
    assert status == 2 and not (tmp_path / "run").exists()
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "1.1", "90", "90%", "nan", "inf", "much", ""])
def test_a_goal_that_is_no_share_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        main(["train", f"--stop-at-accuracy={text}"])
    assert f"got {text!r}, must be a number above 0, up to 1" in capsys.readouterr().err
