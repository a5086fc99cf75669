"""A run on several processes is the run on one; what one of them suffers is said, and saved."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes_run import BY_THREE, RUNS
from waiting import PATIENCE, until

from grpo_lib import (
    ALGORITHMS,
    GRPOConfig,
    GRPOTrainer,
    aggregate,
    grpo_loss,
    sample_groups,
    token_weights,
)
from grpo_lib.objective import AGGREGATIONS
from grpo_lib.rollout import Rollouts, shard
from grpo_lib.support.processes import Processes, SeveralProcesses, joined

ROOT = Path(__file__).parents[2]
ALONE = {"OMP_NUM_THREADS": "1"}


def about(value, rel, least):
    return None if value is None else pytest.approx(value, rel=rel, abs=least)


STARTED = []


@pytest.fixture(autouse=True)
def ended():
    """A test that fails leaves nothing running."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.terminate()
            process.communicate()
    STARTED.clear()


def torchrun(processes, *arguments, **options):
    STARTED.append(subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
         "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *map(str, arguments)],
        env=os.environ | ALONE | options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=ROOT))
    return STARTED[-1]


def cli(*arguments):
    return subprocess.run([sys.executable, "-m", "grpo_lib", *map(str, arguments)],
                          env=os.environ | ALONE, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came of all runs, by the number of processes."""
    folder, results = tmp_path_factory.mktemp("runs"), {}
    for processes in (1, 2, 3):
        out = folder / f"{processes}.json"
        script = [ROOT / "tests" / "helpers" / "processes_run.py", out]
        process = (torchrun(processes, *script) if processes > 1 else subprocess.Popen(
            [sys.executable, *map(str, script)], env=os.environ | ALONE, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.terminate()
        assert process.returncode == 0, said
        assert "Warning" not in said, said
        results[processes] = json.loads(out.read_text())
    return results


@pytest.mark.slow
@pytest.mark.parametrize("processes, name", [
    *((2, name) for name in RUNS), *((3, name) for name in BY_THREE)])
def test_the_same_metrics_as_on_one_process(found, processes, name):
    one, several = found[1][name], found[processes][name]
    assert len(one["history"]) == len(several["history"]) >= 3
    for wanted, got in zip(one["history"], several["history"]):
        for metric, value in wanted.items():
            if not metric.startswith("seconds"):
                assert got[metric] == about(value, 1e-5, 1e-7), (wanted["step"], metric)
    assert several["norm"] == pytest.approx(one["norm"], rel=1e-9)
    assert several["weights"] == pytest.approx(one["weights"], rel=1e-6, abs=1e-9)
    assert max(m["grad_norm"] for m in one["history"]) > 0
    assert name != "cut off" or any(0 < m["finished"] < 1 for m in one["history"])
    assert several["rows"] == processes


class TestAlone:
    @pytest.mark.parametrize("aggregation", AGGREGATIONS)
    @pytest.mark.parametrize("size", [1, 2, 5])
    def test_parts_with_the_weights_of_the_whole_add_up_to_it(self, aggregation, size):
        generator = torch.Generator().manual_seed(size)
        values = torch.randn(7, 6, generator=generator, dtype=torch.float64)
        mask = (torch.arange(6) < torch.tensor([6, 1, 0, 3, 5, 2, 4])[:, None]).double()
        whole = aggregate(values, mask, aggregation, 6)
        parts = torch.randperm(7, generator=generator).split(size)
        weights = token_weights(mask, aggregation, 6)
        found = [(values[p] * weights[p]).sum() for p in parts]
        assert sum(found).item() == pytest.approx(whole.item(), abs=1e-15)
        advantages = torch.zeros(7, dtype=torch.float64)
        losses = [grpo_loss(values[p], values[p], advantages[p], mask[p], weights=weights[p],
                            ref_log_probs=0 * values[p], beta=0.3).loss for p in parts]
        assert sum(losses).item() == pytest.approx(grpo_loss(
            values, values, advantages, mask, ref_log_probs=0 * values, beta=0.3,
            aggregation=aggregation, max_length=6).loss.item(), abs=1e-15)

    def test_the_mean_of_the_parts_means_is_another_number(self):
        mask = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]])
        values = torch.tensor([[1.0, 1, 1, 1], [5, 0, 0, 0]])
        assert aggregate(values, mask, "token_mean") == pytest.approx(9 / 5)
        assert (aggregate(values[:1], mask[:1], "token_mean")
                + aggregate(values[1:], mask[1:], "token_mean")) / 2 == pytest.approx(3)

    @pytest.mark.parametrize("count, parts", [(5, 2), (7, 3), (4, 4), (9, 1)])
    def test_parts_are_nearly_equal_and_everything(self, count, parts):
        pieces = [list(range(count))[shard(count, (k, parts))] for k in range(parts)]
        assert [i for piece in pieces for i in piece] == list(range(count))
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
        for bad in ((parts, parts), (-1, parts), (0, count + 1)):
            with pytest.raises(ValueError, match="part: got"):
                shard(count, bad)

    @pytest.mark.parametrize("parts", [2, 3])
    def test_a_part_has_the_completions_that_it_has_in_the_whole(self, policy, prompts, sample,
                                                                 seeded, parts):
        whole = sample(policy)
        pieces = [sample_groups(policy, prompts, 4, max_new_tokens=8, generator=seeded(3),
                                part=(k, parts)) for k in range(parts)]
        joined = Rollouts.join(pieces)
        for name in ("tokens", "prompt_mask", "mask", "finished"):
            assert torch.equal(getattr(joined, name), getattr(whole, name)), name
        assert torch.allclose(joined.log_probs, whole.log_probs, rtol=0, atol=1e-12)

    def test_one_process_is_no_different_from_none(self, make_policy, sort_task):
        config = GRPOConfig(steps=2, prompts_per_step=3, group_size=2, eval_every=0)
        trainers = [GRPOTrainer(make_policy(len(sort_task.tokenizer)), sort_task, config, **options)
                    for options in ({}, {"processes": Processes()})]
        one, other = ([m.loss for m in trainer.run()] for trainer in trainers)
        assert one == other

    @pytest.mark.parametrize("algorithm", {
        (r.aggregation, r.ratio): n for n, r in ALGORITHMS.items()
        if not r.critic and not r.needs_entropies}.values())  # one for each way of adding up
    def test_in_micro_batches_the_weights_are_the_same(self, make_policy, sort_task, algorithm):
        config = GRPOConfig(steps=2, prompts_per_step=4, group_size=4, eval_every=0, beta=0.1,
                            algorithm=algorithm, num_iterations=2, max_grad_norm=1e9)
        # with a reward that random weights earn: where all gradients are 0, AdamW makes steps of
        # what is left by rounding
        task = sort_task.with_reward(lambda p, text: 1 + float(len(text) % 4 == 1))
        weights, seen = [], []
        for size in (None, 1, 3):
            trainer = GRPOTrainer(make_policy(len(sort_task.tokenizer)), task,
                                  replace(config, micro_batch_size=size))
            seen.append(list(trainer.run()))
            weights.append(torch.cat([p.detach().flatten() for p in trainer.policy.parameters()]))
        for other in weights[1:]:
            assert torch.allclose(other, weights[0], rtol=0, atol=1e-8)
        for other in seen[1:]:
            for wanted, got in zip(seen[0], other):
                for metric in ("loss", "entropy", "grad_norm", "clip_fraction_low",
                               "clip_fraction_high", "ratio_min", "ratio_max"):
                    value = about(getattr(wanted, metric), 1e-5, 1e-7)
                    assert getattr(got, metric) == value, metric
        start = torch.cat([p.detach().flatten()
                           for p in make_policy(len(sort_task.tokenizer)).parameters()])
        assert (weights[0] - start).abs().max() > 1e-4


class TestRefused:
    @pytest.mark.parametrize("settings, said", [
        ({"algorithm": "ppo"}, "a critic"), ({"top_entropy_quantile": 0.5}, "top_entropy_quantile"),
        ({"entropy_coef": 0.1, "aggregation": "sequence_mean"}, "entropy_coef")])
    def test_what_needs_all_rows_at_once_does_not_go_in_parts(self, settings, said):
        with pytest.raises(ValueError, match=f"micro_batch_size: got 4 with {said}"):
            GRPOConfig(**settings, micro_batch_size=4)

    @pytest.mark.parametrize("value", [0, -1, 2.0, True, "4"])
    def test_a_size_that_is_none(self, value):
        with pytest.raises(ValueError, match="micro_batch_size: got"):
            GRPOConfig(micro_batch_size=value)

    @pytest.mark.parametrize("settings, said", [
        ({"prompts_per_step": 2}, "prompts_per_step: got 2.*3 processes without work"),
        ({"prompts_per_step": 3, "group_size": 2, "minibatches": 3}, "minibatches: got 3"),
        ({"algorithm": "dapo", "group_size": 2}, "group_size: got 2 with dynamic_sampling"),
        ({"algorithm": "ppo"}, "processes: got 3 with a critic")])
    def test_too_little_work_for_all(self, make_policy, sort_task, settings, said):
        class Three(Processes):
            size = 3

        config = GRPOConfig(eval_every=0, **settings)
        with pytest.raises(ValueError, match=said):
            GRPOTrainer(make_policy(len(sort_task.tokenizer)), sort_task, config,
                        value_model=object() if config.choices.critic else None,
                        processes=Three())

    def test_a_device_for_each_process_of_a_machine(self, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(ValueError, match=r"for 2 processes or more.*CUDA devices, 1"), \
                joined("cuda"):
            pass

    def test_any_other_error_keeps_its_own_words(self):
        from grpo_lib.support.processes import OtherProcessLost, lost_processes

        with pytest.raises(RuntimeError, match="shapes"), lost_processes():
            raise RuntimeError("shapes do not match")
        with pytest.raises(OtherProcessLost, match="another process of this run"), \
                lost_processes():
            raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
        assert SeveralProcesses is not Processes


SETTINGS = ["--steps", "8", "--prompts-per-step", "4", "--group-size", "8", "--eval-every", "4",
            "--eval-problems", "20", "--held-out", "20", "--save-every", "2"]


def metrics_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds")}
            for line in lines]


def close(one, other):
    """float32, and rows in other company: to rounding, which steps carry on."""
    assert len(one) == len(other)
    for a, b in zip(one, other):
        for name, value in a.items():
            assert b[name] == about(value, 1e-3, 1e-4), name


@pytest.mark.slow
def test_the_command_line_on_two_processes(tmp_path):
    assert cli("train", *SETTINGS, "--out", tmp_path / "one").returncode == 0
    whole = torchrun(2, "-m", "grpo_lib", "train", *SETTINGS, "--out", tmp_path / "two")
    said, _ = whole.communicate(timeout=PATIENCE)
    assert whole.returncode == 0, said
    assert said.count("held-out accuracy") == 1, "one process speaks"
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    close(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_a_clear_line_and_it_can_go_on(tmp_path, rank):
    broken = torchrun(2, "-m", "grpo_lib", "train", *SETTINGS, "--steps", "400", "--out",
                      tmp_path / "killed")
    until((tmp_path / "killed" / "checkpoints" / "step-00004.safetensors").exists,
          lambda: broken.poll() is None)
    workers = [int(p.name) for p in Path("/proc").glob("[0-9]*") if is_worker(p, tmp_path)]
    ranks = {int(re.search(rb"\0RANK=(\d)", environ(p))[1]): p for p in workers}
    os.kill(ranks[rank], signal.SIGKILL)
    said, _ = broken.communicate(timeout=PATIENCE)
    assert broken.returncode != 0
    # whether the lost connection or torchrun's signal comes first, it is said, and how to go on
    resume = re.escape(f"python -m grpo_lib train --resume {tmp_path / 'killed'}")
    assert re.search(rf"^ +{resume}$", said, re.M), said
    if rank == 0:
        assert re.search(r"^process 1 has taken \d+ steps", said, re.M), said
    if rank == 1:
        assert re.search(r"(stopped|failed) after step \d+; (everything is saved|step \d+ was "
                         r"broken off)", said), said
    assert "another process of this run has ended" in said or "stopped" in said, said
    done = int(sorted((tmp_path / "killed" / "checkpoints").glob("*.safetensors"))[-1].stem[5:])
    assert done >= 4

    if rank == 0:  # and once is enough for what comes after
        return
    resumed = torchrun(2, "-m", "grpo_lib", "train", "--resume", tmp_path / "killed", "--steps",
                       str(done + 3))
    said, _ = resumed.communicate(timeout=PATIENCE)
    assert resumed.returncode == 0, said
    assert cli("train", *SETTINGS, "--steps", str(done + 3), "--out",
               tmp_path / "never").returncode == 0
    close(metrics_of(tmp_path / "never"), metrics_of(tmp_path / "killed"))


@pytest.mark.slow
def test_processes_that_are_told_to_stop_save(tmp_path):
    """As torchrun tells the others when one has failed."""
    process = torchrun(2, "-m", "grpo_lib", "train", *SETTINGS, "--steps", "400", "--save-every",
                       "400", "--out", tmp_path / "killed")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2,
          lambda: process.poll() is None)
    process.terminate()
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert re.search(r"(stopped|failed) after step \d+", said), said
    assert "python -m grpo_lib train --resume" in said


def environ(pid):
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


def is_worker(process, folder):
    """Whether it is a process of the run in that folder, and not torchrun itself."""
    try:
        command = (process / "cmdline").read_bytes()
        return (str(folder / "killed").encode() in command and b"\0RANK=" in environ(process.name))
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_more_processes_than_devices_are_refused_in_one_line(tmp_path):
    process = torchrun(2, "-m", "grpo_lib", "train", *SETTINGS, "--device", "cuda", "--out",
                       tmp_path / "x")
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "device: got 'cuda' for" in said and "as many as it has CUDA devices, 0" in said
    assert not (tmp_path / "x").exists()
