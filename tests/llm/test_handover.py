"""The handover to TRL: every setting is translated or said to be lost, and the script runs."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from waiting import PATIENCE

from grpo_lib import (
    ALGORITHMS,
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    SortTask,
    __main__,
    load_base_model,
)
from grpo_lib.algorithms import CHOICES
from grpo_lib.bridges.export import export_llama
from grpo_lib.bridges.handover import (
    TEMPLATES,
    as_code,
    as_table,
    translate,
    trl_arguments,
    trl_dataset,
    trl_reward,
    trl_tokenizer,
    write_handover,
)

ROOT = Path(__file__).parents[2]
TASK = ChainTask(2, 3)
ACCELERATE = {path.stem: yaml.safe_load(path.read_text())
              for path in sorted(TEMPLATES.glob("*.yaml"))}
OTHER = {  # for each choice of an algorithm a value that is not the default's
    "baseline": "leave_one_out", "scale": "batch", "std_eps": 1e-3, "whiten": True,
    "ratio": "sequence", "surrogate": "sapo", "epsilon": 0.1, "epsilon_high": 0.3, "delta": 3.0,
    "beta": 0.04, "kl": "k2", "kl_in_reward": True, "use_bias_correction_kl": True,
    "aggregation": "constant", "entropy_coef": 0.01, "top_entropy_quantile": 0.5,
    "off_policy_mask_threshold": 0.1, "dynamic_sampling": True,
    "mask_truncated_completions": True, "overlong_share": 0.2, "sapo_temperature_pos": 0.7,
    "sapo_temperature_neg": 0.7, "critic": None, "gamma": None, "gae_lambda": None}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return export_llama(load_base_model("chain"), ChainTask().tokenizer,
                        tmp_path_factory.mktemp("exported") / "model")


def trl_config(tmp_path, **arguments):
    from trl import GRPOConfig as TRLConfig

    return TRLConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **arguments)


def start(tmp_path, *options):
    """The script in the folder h, as `python train.py`, without a network."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                                "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "",
                                "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "train.py", *options], env=environment,
                          cwd=tmp_path / "h", capture_output=True, text=True, timeout=PATIENCE)


class TestTranslate:
    @pytest.mark.parametrize("name", [*ALGORITHMS, None])
    def test_every_field_has_a_line_and_trl_takes_them_all(self, tmp_path, name):
        config = GRPOConfig(algorithm=name)
        lines = translate(config, 64)
        assert [line.field for line in lines] == [f.name for f in fields(GRPOConfig)]
        made = trl_config(tmp_path, **trl_arguments(config, 64))
        for line in lines:
            assert line.trl or line.note or line.value is None, line
            for key, value in line.trl.items():
                assert getattr(made, key) == value, key
        assert len(as_table(lines).splitlines()) == len(lines)

    def test_no_choice_is_dropped_in_silence(self):
        assert OTHER.keys() == set(CHOICES)
        for field, value in OTHER.items():
            if value is None:
                continue
            config = GRPOConfig(surrogate="sapo", aggregation="sequence_mean") if (
                field.startswith("sapo")) else GRPOConfig()
            before = {line.field: line for line in translate(config, 64)}
            changed = replace(config, **{field: value}, **(
                {"aggregation": "sequence_mean"} if field == "surrogate" else {}))
            after = {line.field: line for line in translate(changed, 64)}
            acts = field not in changed.choices.idle_choices()
            told = after[field].lost or after[field].trl != before[field].trl or (
                trl_arguments(changed, 64) != trl_arguments(config, 64)) or (
                "the script adds" in after[field].note)
            assert told or not acts, field

    def test_what_is_lost_in_each_row(self):
        lost = {name: {line.field for line in translate(GRPOConfig(algorithm=name), 64)
                       if line.lost} for name in ALGORITHMS}
        for name in ("grpo", "dr_grpo", "bnpo", "gspo", "cispo", "sapo", "lite_ppo"):
            assert lost[name] == set(), name
        assert lost["dapo"] == {"dynamic_sampling", "max_num_gen_batches"}
        assert {"baseline", "ratio"} <= lost["rloo"]
        assert {"surrogate", "aggregation"} <= lost["reinforce"] & lost["maxrl"] & lost["gmpo"]
        assert "critic" in lost["ppo"]

    @pytest.mark.parametrize("processes", [1, 2, 4])
    @pytest.mark.parametrize("micro", [None, 1, 4, 8])
    @pytest.mark.parametrize("minibatches", [1, 2, 4])
    def test_a_step_is_as_large_as_ours(self, tmp_path, processes, micro, minibatches):
        config = GRPOConfig(prompts_per_step=8, group_size=16, minibatches=minibatches,
                            micro_batch_size=micro, num_iterations=3)
        arguments = trl_arguments(config, 64, processes)
        of_one = arguments["per_device_train_batch_size"] * arguments["steps_per_generation"]
        assert of_one * processes == 128
        assert arguments["gradient_accumulation_steps"] * minibatches == \
            arguments["steps_per_generation"]
        assert arguments["max_steps"] == config.steps * minibatches * 3
        assert arguments["num_generations"] == 16
        assert arguments["per_device_train_batch_size"] <= (micro or 128)
        if processes == 1:
            assert trl_config(tmp_path, **arguments).generation_batch_size == 128

    def test_its_optimizer_is_ours(self):
        arguments = trl_arguments(GRPOConfig(), 64)
        ours = GRPOTrainer(load_base_model("chain"), ChainTask(), GRPOConfig(eval_every=0)
                           ).optimizer.param_groups[0]
        assert (arguments["adam_beta1"], arguments["adam_beta2"]) == ours["betas"]
        assert arguments["weight_decay"] == ours["weight_decay"]
        assert arguments["learning_rate"] == ours["lr"]

    def test_what_cannot_be_dealt_out_evenly_is_refused(self):
        with pytest.raises(ValueError, match="micro_batch_size, minibatches, processes: got"):
            translate(GRPOConfig(prompts_per_step=3, group_size=5), 64)
        for settings in ({"group_size": 1, "algorithm": "reinforce"}, {"steps": 0}):
            with pytest.raises(ValueError, match="group_size, steps: got"):
                translate(GRPOConfig(**settings), 64)
        with pytest.raises(ValueError, match="max_new_tokens: got 0"):
            translate(GRPOConfig(), 0)


class TestReward:
    def test_texts_messages_and_what_was_cut_off(self):
        problems = TASK.held_out(3)
        right = [f"s1=3 => {p.answer}" for p in problems]
        columns = {"problem": [p.prompt for p in problems], "answer": [p.answer for p in problems],
                   "trainer_state": None, "log_extra": print}
        reward = trl_reward(TASK)
        assert reward(prompts=columns["problem"], completions=right, **columns) == [1, 1, 1]
        messages = [[{"role": "system", "content": "=> 1 2"},
                     {"role": "assistant", "content": text}] for text in right]
        assert reward(prompts=None, completions=messages, completion_ids=None, **columns) == [1] * 3
        assert reward(prompts=None, completions=["=> 1", *right[:2]], **columns)[1:] == [
            float(problems[1].answer == problems[0].answer),
            float(problems[2].answer == problems[1].answer)]
        ended = trl_reward(TASK, eos_id=[1, 9])
        ids = [[5, 6, 1], [5, 6, 7], []]
        assert ended(prompts=None, completions=right, completion_ids=ids, **columns) == [1, 0, 0]
        assert ended.__name__ == "chain_reward"

    def test_white_space_counts_once_as_in_ours(self):
        [problem] = TASK.held_out(1)
        assert trl_reward(TASK)(prompts=None, completions=[f"s1=3\n\n=>\n {problem.answer} "],
                                problem=[problem.prompt], answer=[problem.answer]) == [1]

    def test_the_datasets_rows(self):
        chat, plain = trl_dataset(TASK, 20), trl_dataset(TASK, 20, chat=False)
        assert [r["problem"] for r in chat] == [r["prompt"] for r in plain]
        assert chat[0]["prompt"][0]["role"] == "user"
        assert "Start with" in chat[0]["prompt"][0]["content"]
        held_out = trl_dataset(TASK, 20, split="held_out", chat=False)
        assert {r["problem"] for r in held_out}.isdisjoint(r["problem"] for r in plain)
        assert trl_dataset(TASK, 5, seed=1) != chat[:5]
        assert "smallest first" in trl_dataset(SortTask(2, 3), 1)[0]["prompt"][0]["content"]

    def test_where_parts_have_another_entropy_it_is_said(self):
        for settings, said in (({"micro_batch_size": 8, "entropy_coef": 0.1}, True),
                               ({"micro_batch_size": 8}, False), ({"entropy_coef": 0.1}, False)):
            lines = {line.field: line for line in translate(GRPOConfig(**settings), 64)}
            assert ("mean of the parts' means" in lines["entropy_coef"].note) == said


class TestScript:
    def test_it_runs_two_steps_on_two_processes_as_it_stands(self, model, tmp_path, capsys):
        out = tmp_path / "handover"
        assert __main__.main([
            "handover", "--task", "chain", "--model", str(model), "--out", str(out),
            "--max-new-tokens", "19", "--algorithm", "dapo", "--prompts-per-step", "4",
            "--group-size", "4", "--micro-batch-size", "2", "--no-chat",
            "--lora-rank", "4"]) == 0
        said = capsys.readouterr().out
        assert "dynamic_sampling = True: lost" in said and "wrote" in said
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                                    "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
             str(out / "cpu.yaml"), str(out / "train.py"), "--max_steps", "2", "--output_dir",
             str(tmp_path / "trained")], env=environment, cwd=tmp_path, capture_output=True,
            text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-3000:]
        state = json.loads((tmp_path / "trained" / "checkpoint-2" / "trainer_state.json"
                            ).read_text())
        first = state["log_history"][0]
        assert state["global_step"] == 2 and first["completions/mean_length"] > 1
        assert "rewards/chain_reward/mean" in first
        assert "rewards/soft_overlong_punishment_reward/mean" in first
        # of 16 completions two processes have eight each, so four passes of two
        assert first["num_tokens"] > 0
        found = load_file(tmp_path / "trained" / "adapter_model.safetensors")
        assert any("lora_B" in name and tensor.any() for name, tensor in found.items())
        assert not (tmp_path / "trained" / "model.safetensors").exists()
        assert {t.shape[0] for n, t in found.items() if "lora_A" in n} == {4}

    def test_its_readme_says_what_is_lost_and_how_to_run_it(self, model, tmp_path):
        assert __main__.main(["handover", "--model", str(model), "--out", str(tmp_path / "h"),
                              "--algorithm", "rloo"]) == 0
        readme = (tmp_path / "h" / "README.md").read_text()
        for name in ACCELERATE:
            assert f"--config_file {name}.yaml" in readme
        assert "--use_vllm true" in readme and "LOST: TRL's GRPOTrainer takes" in readme
        assert "and were not run" in readme
        compile((tmp_path / "h" / "train.py").read_text(), "train.py", "exec")

    @pytest.mark.parametrize("name", ACCELERATE)
    def test_accelerate_reads_its_configurations(self, model, tmp_path, name):
        from accelerate.commands.config.config_args import load_config_from_file

        __main__.main(["handover", "--model", str(model), "--out", str(tmp_path / "h")])
        made = load_config_from_file(str(tmp_path / "h" / f"{name}.yaml"))
        assert made.distributed_type.value == ACCELERATE[name]["distributed_type"]
        assert made.num_processes == ACCELERATE[name]["num_processes"]

    @pytest.mark.parametrize("name, theirs", [("fsdp", "fsdp2"), ("deepspeed", "zero2"),
                                              ("one_gpu", "single_gpu")])
    def test_they_say_what_trls_own_say(self, name, theirs):
        import trl

        [path] = Path(trl.__file__).parent.glob(f"accelerate_configs/{theirs}.yaml")
        wanted = yaml.safe_load(path.read_text())
        for key, value in ACCELERATE[name].items():
            if key not in ("num_processes", "mixed_precision", "gpu_ids"):
                assert wanted[key] == value, key

    def test_one_gpu_is_one_of_several(self):
        assert ACCELERATE["one_gpu"]["gpu_ids"] == "0"  # TRL refuses DataParallel, which all means

    def test_the_precision_is_left_to_the_script(self):
        """accelerate's own would overrule it, and a T4 has no bf16."""
        assert {about["mixed_precision"] for about in ACCELERATE.values()} == {"no"}
        script = (TEMPLATES / "train.py.template").read_text(encoding="utf-8")
        assert "bf16=gpu and torch.cuda.is_bf16_supported(including_emulation=False)" in script

    @pytest.mark.parametrize("task", ["chain", "sort"])
    def test_problems_go_in_words_to_a_chat_model(self, saved, tmp_path, monkeypatch, task):
        """Its folder is found from wherever the script is started."""
        monkeypatch.chdir(saved.parent)
        assert __main__.main(["handover", "--task", task, "--model", saved.name, "--out",
                              str(tmp_path / "h"), "--max-new-tokens", "4", "--group-size", "2",
                              "--prompts-per-step", "2", "--minibatches", "1"]) == 0
        done = start(tmp_path, "--max_steps", "1", "--log_completions", "true")
        assert done.returncode == 0, done.stderr[-3000:]
        words = {"chain": "Start with", "sort": "Put these digits"}[task]
        assert words in done.stdout and "'step_time'" in done.stdout, done.stdout[-2000:]

    @pytest.mark.parametrize("lacks, said", [
        ({"chat": False}, "tokenizer: has no chat template"),
        ({"eos": False}, "tokenizer: has no end-of-sequence token"),
        (None, "could not be fetched")])
    def test_what_a_model_lacks_is_one_line(self, saved, trained_tokenizer, tmp_path, lacks, said):
        model = "no/such"
        if lacks is not None:
            model = tmp_path / "model"
            shutil.copytree(saved, model)
            # without config.json: with it, the tokenizer is a Qwen, which has an end of its own
            for left in ("chat_template.jinja", "config.json"):
                (model / left).unlink()
            trained_tokenizer(**lacks).save_pretrained(model)
        write_handover(tmp_path / "h", TASK, str(model), GRPOConfig(), 8)
        done = start(tmp_path)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("train.py: ")
        assert said in done.stderr.strip().splitlines()[-1]

    def test_a_tokenizer_without_padding_pads_with_its_end_and_says_so(self, saved, tmp_path,
                                                                       trained_tokenizer):
        shutil.copytree(saved, tmp_path / "model")
        (tmp_path / "model" / "config.json").unlink()  # a Qwen's tokenizer has its own padding
        trained_tokenizer(pad=False).save_pretrained(tmp_path / "model")
        with pytest.warns(UserWarning, match="tokenizer: has no pad token"):
            tokenizer = trl_tokenizer(str(tmp_path / "model"))
        assert tokenizer.pad_token == "<|end|>"

    def test_what_is_a_toys_is_said(self, tmp_path, capsys):
        def said(*more):
            out = tmp_path / str(len(list(tmp_path.iterdir())))
            assert __main__.main(["handover", "--model", "x/y", "--out", str(out), *more]) == 0
            return capsys.readouterr().out, (out / "README.md").read_text(encoding="utf-8")

        for text in said():
            assert "learning_rate = 0.0005: a toy's; for all weights" in text
            assert "micro_batch_size = None: 256 completions" in text
            assert "the logits alone take 39 GB" in text  # 256 x 256 x 150,000 floats
        for text in said("--learning-rate", "1e-5", "--micro-batch-size", "8"):
            assert "a toy's" not in text and "logits alone" not in text
        for text in said("--learning-rate", "1e-4", "--lora-rank", "8"):
            assert "a toy's" not in text
        assert "for adapters of a language model about 0.0001" in said("--lora-rank", "8")[0]
        assert "Look at these first" not in said(
            "--learning-rate", "1e-5", "--micro-batch-size", "8")[1]

    def test_the_task_goes_over_as_it_was_made(self, tmp_path):
        write_handover(tmp_path / "a", ChainTask(3, 5), "x/y", GRPOConfig(), 64)
        script = (tmp_path / "a" / "train.py").read_text(encoding="utf-8")
        assert "TASK = grpo_lib.ChainTask(shortest=3, longest=5)\n" in script
        for task in (ChainTask(), ChainTask(3, 5), SortTask(), SortTask(2, 3)):
            again = eval(as_code(task), {"ChainTask": ChainTask, "SortTask": SortTask})
            assert type(again) is type(task) and vars(again) == vars(task)
        longer = ChainTask()
        longer.max_new_tokens = 500

        class Other(ChainTask):
            pass

        for task in (ChainTask().with_reward(lambda problem, text: 1.0), longer, Other()):
            with pytest.raises(ValueError, match=r"task: got a .* not built in, or was changed"):
                write_handover(tmp_path / "b", task, "x/y", GRPOConfig(), 64)
        assert not (tmp_path / "b").exists()

    def test_a_path_of_windows_is_only_text(self, tmp_path):
        write_handover(tmp_path / "a", TASK, r"C:\new\uno", GRPOConfig(), 64,
                       command=r"--model C:\new\uno")
        names = {}
        source = (tmp_path / "a" / "train.py").read_text(encoding="utf-8")
        exec(compile(source, "train.py", "exec"), names | {"__name__": "train"}, names)
        assert names["MODEL"] == r"C:\new\uno" and r"C:\new\uno" in names["__doc__"]

    def test_nothing_is_overwritten_and_bad_settings_are_one_line(self, tmp_path, capsys):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine").write_text("x")
        arguments = ["handover", "--model", "x/y", "--out", str(tmp_path / "full")]
        assert __main__.main(arguments) == 2
        assert "nothing was overwritten" in capsys.readouterr().err
        assert __main__.main([*arguments[:-1], str(tmp_path / "new"), "--group-size", "1"]) == 2
        assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "new").exists()
