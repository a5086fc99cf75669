"""A whole GRPO step, ours and TRL's GRPOTrainer's, in turns: the same weights, prompts, group,
longest completion, reward, and one update a batch. Needs TRL and datasets."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.beside import (
    REPEATS,
    SIZES,
    clock,
    machine,
    ms,
    policy_of,
    ratio,
    thread_counts,
    told,
)
from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, sample_groups

# name: (prompts, whether all completions have to be as long as allowed)
CASES = {"128 completions, natural": (16, False), "128 completions of 32 tokens": (16, True),
         "512 completions, natural": (64, False)}
GROUP, LONGEST = 8, 32
STANDS_STILL = 1e-12  # a rate at which both go on sampling from the policy they began with


def why_not() -> str | None:
    """Why it cannot be measured here, or None."""
    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)}: not installed" if missing else None


def task_of() -> ChainTask:
    """The chain task with room for longer completions."""
    task = ChainTask()
    task.max_new_tokens = LONGEST
    return task


def ours(size: str, config: GRPOConfig, full: bool) -> GRPOTrainer:
    """A trainer; with ``full`` nothing ends a completion early."""
    def sampler(policy, prompts, group_size, *, eos_id, **options):
        return sample_groups(policy, prompts, group_size, eos_id=-1 if full else eos_id, **options)

    return GRPOTrainer(policy_of(size), task_of(), config, sampler=sampler)


def in_turns(size: str, prompts: int, full: bool, folder: Path) -> dict:
    """Seconds of ``REPEATS`` steps of each, after one of each to warm up."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig as TRLConfig
    from trl import GRPOTrainer as TRLTrainer

    from grpo_lib.bridges.export import fast_tokenizer, llama
    from grpo_lib.bridges.handover import trl_arguments, trl_dataset, trl_reward

    task, steps = task_of(), REPEATS + 1
    config = GRPOConfig(steps=steps, prompts_per_step=prompts, group_size=GROUP, minibatches=1,
                        eval_every=0, measure_kl=False, learning_rate=STANDS_STILL)
    trainers = {"ours": ours(size, config, full),
                "ours with kl": ours(size, replace(config, measure_kl=True), full)}
    taken, lengths = {"ours": [], "ours with kl": [], "trl": []}, {}

    class Turns(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.begun = clock()

        def on_step_end(self, *args, **kwargs):
            taken["trl"].append(clock() - self.begun)
            for name, trainer in trainers.items():
                begun = clock()
                lengths[name] = trainer.step().length
                taken[name].append(clock() - begun)

    class Spy(TRLTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            lengths["trl"] = batch["completion_mask"].sum(1).float().mean().item()
            return batch

    arguments = trl_arguments(config, LONGEST) | {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "save_strategy": "no",
        "logging_strategy": "no", "gradient_checkpointing": False, "disable_tqdm": True,
        "generation_kwargs": {"min_new_tokens": LONGEST} if full else None}
    end = task.tokenizer.eos_id
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Spy(model=llama(policy_of(size)), args=TRLConfig(**arguments),
            processing_class=fast_tokenizer(task.tokenizer),
            reward_funcs=[trl_reward(task, None if full else end)],
            train_dataset=Dataset.from_list(trl_dataset(task, prompts * steps, chat=False)),
            callbacks=[Turns()]).train()
    return {"seconds": {name: [round(s, 5) for s in times[1:]] for name, times in taken.items()},
            "lengths": {name: round(length, 1) for name, length in lengths.items()}}


def measure() -> dict:
    import trl

    about, threads, rows = machine(), torch.get_num_threads(), []
    for count in thread_counts():
        torch.set_num_threads(count)
        for size in SIZES:
            for name, case in CASES.items():
                if size != "flagship" and case[0] > 16:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    found = partial(in_turns, size, *case)(Path(folder))
                rows.append({"threads": count, "size": size, "case": name, **found})
                print(rows[-1], flush=True)
    torch.set_num_threads(threads)
    return {"rows": rows, "trl": trl.__version__, "machine": about}


def report(data: dict) -> str:
    lines = [
        "## A whole step beside TRL's", "",
        f"TRL {data['trl']}'s GRPOTrainer and ours in turns, in one process: the same weights (the "
        f"shipped base model; a million random ones), tokenizer, task, reward, groups of {GROUP}, "
        f"at most 32 tokens, one update a batch, beta 0, no logging or saving, "
        f"and a learning rate so small that both policies stay as they are. Neither scores the "
        f"reference policy, which beta 0 does not need (`measure_kl=False`); by default ours does, "
        f"for its metrics. {told(data)} Times in ms.", "",
        "| threads | policy | batch | tokens a completion: ours, TRL's | ours | TRL | TRL takes "
        "times longer | ours with the metric kl | then |", "|" + "---|" * 9]
    for row in data["rows"]:
        taken, lengths = row["seconds"], row["lengths"]
        lines.append(f"| {row['threads']} | {row['size']} | {row['case']} | {lengths['ours']}, "
                     f"{lengths['trl']} | {ms(taken['ours'])} | {ms(taken['trl'])} "
                     f"| {ratio(taken['trl'], taken['ours'])} | {ms(taken['ours with kl'])} "
                     f"| {ratio(taken['trl'], taken['ours with kl'])} |")
    return "\n".join(lines) + "\n"
