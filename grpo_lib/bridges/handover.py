"""The way on to TRL's GRPOTrainer: a task's verifier as its reward function, a ``GRPOConfig`` in
its words, and a training script with accelerate's configurations.

What goes beyond a machine (sharded weights, rollouts by vLLM) is TRL's; ``python -m grpo_lib
handover`` writes what it needs. Nothing here imports TRL.

Run, against TRL 1.16: the losses, the reward, the script on one and two CPU processes. Written to
its documentation and not run: FSDP, DeepSpeed, vLLM, any GPU.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from grpo_lib.config import GRPOConfig
from grpo_lib.support.checks import check_whole
from grpo_lib.tasks import TASKS, Problem, Task
from grpo_lib.tasks.scoring import check_weights, scores_of

# (surrogate, aggregation): TRL's loss_type
LOSS_TYPES = {("clip", "sequence_mean"): "grpo", ("clip", "token_mean"): "dapo",
              ("clip", "constant"): "dr_grpo", ("clip", "sequence_sum"): "luspo",
              ("cispo", "token_mean"): "cispo", ("sapo", "sequence_mean"): "sapo"}
OF_CRITIC = ("critic", "gamma", "gae_lambda", "value_learning_rate")


class Line(NamedTuple):
    """A field of GRPOConfig: what it is in TRL. ``lost``: it acts here and would not there."""

    field: str
    value: object
    trl: dict
    note: str
    lost: bool


def trl_rewards(task: Task, eos_id: int | Sequence[int] | None = None
                ) -> tuple[list[Callable], list[float]]:
    """(reward_funcs, reward_weights) for TRL's GRPOTrainer and GRPOConfig: a function for each of
    the task's rewards, under the same names."""
    if not task.reward_funcs:
        return [trl_reward(task, eos_id)], [1.0]
    functions = [as_trl(function, name, eos_id) for name, function in task.reward_funcs.items()]
    return functions, check_weights(task.reward_weights, list(task.reward_funcs))


def trl_reward(task: Task, eos_id: int | Sequence[int] | None = None) -> Callable:
    """The task's reward as TRL calls a reward function; of several rewards (``trl_rewards``) their
    weighted sum.

    TRL gives ``prompts``, ``completions`` (texts, or lists of messages), ``completion_ids`` and
    the dataset's columns, of which "problem" and "answer" are used (``trl_dataset`` has them), and
    wants a list of numbers, or None where the reward abstains. ``eos_id``: a completion that does
    not end in one of these was cut off and gets 0, as here; None: it is judged as it stands.
    """
    return as_trl(task.reward, f"{task.name}_reward", eos_id)


def as_trl(function: Callable, name: str, eos_id: int | Sequence[int] | None) -> Callable:
    """A function (problem, completion) -> number, as TRL calls it; ``name`` is that in its log."""
    ends = None if eos_id is None else {eos_id} if isinstance(eos_id, int) else set(eos_id)

    def reward(prompts, completions, completion_ids=None, *, problem, answer, **columns):
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        finished = [True] * len(texts)
        if ends is not None and completion_ids is not None:
            finished = [len(ids) > 0 and int(ids[-1]) in ends for ids in completion_ids]
        [scores] = scores_of({f"reward: {name}": function},
                             [Problem(p, a) for p, a in zip(problem, answer)],
                             [" ".join(text.split()) for text in texts], finished, abstains=True)
        return [None if math.isnan(score) else score for score in scores]

    reward.__name__ = name
    return reward


def trl_dataset(task: Task, count: int, *, seed: int = 0, chat: bool = True,
                split: str = "train") -> list[dict]:
    """Rows for ``datasets.Dataset.from_list``: prompt, problem, answer.

    ``chat``: the problem in words, as a user's message; else the task's own prompt.
    """
    problems = (task.held_out(count) if split == "held_out"
                else task.problems(count, random.Random(seed), split))
    return [{"prompt": [{"role": "user", "content": task.instruction(p)}] if chat else p.prompt,
             "problem": p.prompt, "answer": p.answer} for p in problems]


def translate(config: GRPOConfig, max_new_tokens: int, processes: int = 1) -> list[Line]:
    """Every field of ``config`` in the words of TRL's GRPOConfig, or why there are none.

    ``max_new_tokens``: the longest completion. ``processes``: of how many the work is dealt out;
    TRL's batch sizes are those of one. ValueError: a gradient step's completions cannot be dealt
    out evenly.
    """
    max_new_tokens = check_whole("max_new_tokens", max_new_tokens, 1)
    processes = check_whole("processes", processes, 1)
    if config.group_size < 2 or config.steps < 1:
        raise ValueError(f"group_size, steps: got {config.group_size}, {config.steps}; TRL's "
                         f"GRPOTrainer takes groups of 2 or more, and 1 step or more")
    row = config.choices
    rows = config.prompts_per_step * config.group_size
    step, rest = divmod(rows, config.minibatches * processes)
    size = min(config.micro_batch_size or step, max(step, 1))
    if rest or step % size:
        raise ValueError(f"micro_batch_size, minibatches, processes: got "
                         f"{config.micro_batch_size}, {config.minibatches}, {processes}; TRL deals "
                         f"the {rows} completions of a step out evenly, so allowed are numbers "
                         f"whose product divides that")
    idle, loss_type = row.idle_choices(), LOSS_TYPES.get((row.surrogate, row.aggregation))
    found = {}

    def to(field: str, note: str = "", **trl) -> None:
        found[field] = (trl, note, False)

    def lost(field: str, note: str, acts: bool = True) -> None:
        found[field] = ({}, note if acts else "off here, and there is none", acts)

    updates = config.minibatches * config.num_iterations
    to("steps", "TRL counts gradient steps", max_steps=config.steps * updates)
    to("prompts_per_step", "follows from the batch sizes")
    to("group_size", num_generations=config.group_size)
    to("micro_batch_size", per_device_train_batch_size=size,
       gradient_accumulation_steps=step // size)
    to("minibatches", "TRL draws them once for all passes over a batch"
       if config.num_iterations > 1 else "",
       steps_per_generation=config.minibatches * (step // size))
    to("num_iterations", num_iterations=config.num_iterations)
    to("temperature", temperature=config.temperature)
    to("algorithm", "the row of the table, whose choices follow")
    to("learning_rate", "AdamW with our betas, no decay, no schedule",
       learning_rate=config.learning_rate, adam_beta1=0.9, adam_beta2=0.95, weight_decay=0.0,
       lr_scheduler_type="constant")
    to("max_grad_norm", max_grad_norm=config.max_grad_norm)
    to("seed", "other random numbers than ours", seed=config.seed)
    to("device", "accelerate's")
    to("epsilon", epsilon=row.epsilon)
    to("epsilon_high", **({} if row.epsilon_high is None else {"epsilon_high": row.epsilon_high}))
    if row.surrogate == "cispo":
        high = row.epsilon if row.epsilon_high is None else row.epsilon_high
        to("epsilon_high", "the cap itself", epsilon_high=1 + high)
        if row.epsilon < 1:
            lost("epsilon", "TRL's CISPO has no lower bound")
    to("delta", **({} if row.delta is None else {"delta": row.delta}))
    to("sapo_temperature_pos", sapo_temperature_pos=row.sapo_temperature_pos)
    to("sapo_temperature_neg", sapo_temperature_neg=row.sapo_temperature_neg)
    to("beta", beta=row.beta)
    to("use_bias_correction_kl", use_bias_correction_kl=row.use_bias_correction_kl)
    to("entropy_coef", "TRL takes the mean of the parts' means, ours counts each token once"
       if row.entropy_coef and step > size else "", entropy_coef=row.entropy_coef)
    to("top_entropy_quantile", top_entropy_quantile=row.top_entropy_quantile)
    to("off_policy_mask_threshold", off_policy_mask_threshold=row.off_policy_mask_threshold)
    to("mask_truncated_completions", mask_truncated_completions=row.mask_truncated_completions)
    to("std_eps", "the same, and fixed")
    if row.std_eps != 1e-4 and row.scale != "none":
        lost("std_eps", "TRL's is 1e-4")
    if loss_type is None:
        other = {"gmpo": "; trl.experimental.gmpo has it"}.get(row.surrogate, "")
        for name in ("surrogate", "aggregation"):
            lost(name, f"TRL's GRPOTrainer has no {row.surrogate} with {row.aggregation}{other}")
    else:
        to("surrogate", loss_type=loss_type)
        to("aggregation", "with surrogate; its divisor is the batch's tokens / minibatches"
           if loss_type in ("dapo", "cispo") and config.minibatches > 1 else "with surrogate")
    if row.ratio in ("token", "sequence"):
        to("ratio", importance_sampling_level=row.ratio)
    else:
        lost("ratio", "TRL has token and sequence" + (
            "; its RLOOTrainer this one" if row.ratio == "sequence_sum" else ""))
    if row.baseline == "mean":
        to("baseline", "the only one")
    else:
        lost("baseline", "TRL's GRPOTrainer takes the group's mean" + (
            "; its RLOOTrainer this one" if row.baseline == "leave_one_out" else ""))
    if row.scale in ("group", "batch", "none"):
        to("scale", scale_rewards=row.scale)
    else:
        lost("scale", "TRL has group, batch and none")
    if row.kl == "k3" or row.beta == 0:
        to("kl", "k3 is the only one")
    else:
        lost("kl", "TRL has k3")
    lost("whiten", "no counterpart", row.whiten)
    lost("kl_in_reward", "no counterpart in GRPOTrainer; RLOOTrainer has it", row.kl_in_reward)
    lost("dynamic_sampling", "no counterpart", row.dynamic_sampling)
    lost("max_num_gen_batches", "goes with dynamic_sampling", row.dynamic_sampling)
    if row.overlong_share:
        to("overlong_share", "the script adds get_soft_overlong_punishment to the rewards; it "
                             "looks at cut-off completions too")
    else:
        to("overlong_share", "off here")
    for name in OF_CRITIC:
        lost(name, "no critic in GRPOTrainer; trl.experimental.ppo has one", row.critic)
    to("measure_kl", "TRL measures it if beta is above 0")
    to("eval_every", "not in the script: TRL's evaluation samples with the training settings")
    to("eval_problems", "see eval_every")

    lines = []
    for name in [f.name for f in fields(config)]:
        trl, note, is_lost = found.pop(name)
        value = getattr(row, name) if hasattr(row, name) else getattr(config, name)
        if name in idle and name in ("epsilon", "epsilon_high", "delta", "ratio", "gamma",
                                     "gae_lambda", "kl", "std_eps"):
            note, is_lost = f"acts on nothing here, since {idle[name]}", False
        lines.append(Line(name, value, trl, note, is_lost))
    return lines


def trl_arguments(config: GRPOConfig, max_new_tokens: int, processes: int = 1) -> dict:
    """Keyword arguments for TRL's GRPOConfig; what is ``lost`` in ``translate`` is not in them."""
    arguments = {"max_completion_length": max_new_tokens, "disable_dropout": True,
                 "logging_steps": 1, "report_to": "none", "save_strategy": "steps",
                 "save_steps": 100}
    for line in translate(config, max_new_tokens, processes):
        arguments |= line.trl
    return arguments


def cautions(config: GRPOConfig, max_new_tokens: int, lora_rank: int | None = None) -> list[str]:
    """What translates, and is probably not meant for a real language model."""
    usual, how = (1e-5, "all weights") if lora_rank is None else (1e-4, "adapters")
    found = []
    if config.learning_rate > 3 * usual:
        found.append(f"learning_rate = {config.learning_rate:g}: a toy's; for {how} of a language "
                     f"model about {usual:g} is usual")
    if config.micro_batch_size is None:
        rows = config.prompts_per_step * config.group_size // config.minibatches
        found.append(f"micro_batch_size = None: {rows} completions go through the model at once; "
                     f"with {max_new_tokens} tokens each and a vocabulary of 150,000 the logits "
                     f"alone take {rows * max_new_tokens * 150_000 * 4 / 1e9:.0f} GB; 8 is a start")
    return found


def as_code(task: Task) -> str:
    """How a built-in task is made anew: its class with its arguments.

    ValueError: it is not built in, or was changed after it was made (``with_reward``), so that
    no line of code would make it again.
    """
    kind = type(task)
    names = list(inspect.signature(kind).parameters)
    if kind in TASKS.values() and all(hasattr(task, name) for name in names):
        arguments = {name: getattr(task, name) for name in names}
        if vars(kind(**arguments)) == vars(task):
            inside = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            return f"{kind.__name__}({inside})"
    raise ValueError(f"task: got a {kind.__name__} that is not built in, or was changed; allowed "
                     f"is one of {', '.join(kind.__name__ for kind in TASKS.values())} as it was "
                     f"made (write another task in a file, and import it in train.py)")


def trl_tokenizer(model: str, chat: bool = True):
    """The model's tokenizer as TRL's trainer wants it, padding token and all.

    OSError: it cannot be loaded. ValueError: no end-of-sequence token; with ``chat``, no chat
    template.
    """
    from grpo_lib.bridges.huggingface import HuggingFaceTokenizer, warn_without_pad

    tokenizer = HuggingFaceTokenizer.of(model, chat=chat).tokenizer
    if tokenizer.eos_token_id is None:  # ours can do with those of the model's settings
        raise ValueError("tokenizer: has no end-of-sequence token; TRL needs one, so set "
                         "tokenizer.eos_token to the token that ends an answer")
    warn_without_pad(tokenizer)
    return tokenizer


def as_table(lines: Sequence[Line]) -> str:
    """The translation as text, a field a line."""
    rows = [(line.field, str(line.value),
             ", ".join(f"{k}={v!r}" for k, v in line.trl.items()) or "-",
             ("LOST: " if line.lost else "") + line.note) for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)),
                                row[3]]).rstrip() for row in rows)


SCRIPT = '''r"""{title}

{written}Run it:     accelerate launch --config_file one_gpu.yaml train.py
Any option of TRL's GRPOConfig can follow: --max_steps 2, --use_vllm true, ...
"""

import torch
from accelerate import PartialState
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, TrlParser

import grpo_lib
from grpo_lib.bridges.handover import trl_arguments, trl_dataset, trl_rewards, trl_tokenizer
from grpo_lib.bridges.huggingface import adapters, end_ids

MODEL = {model!r}
LORA_RANK = {lora_rank}  # None: all weights are trained
TASK = grpo_lib.{task}
CHAT = {chat}  # True: problems in words, as a user's message; False: the task's own prompts
SETTINGS = grpo_lib.{settings}
MAX_NEW_TOKENS = {max_new_tokens}


def main():
    try:
        tokenizer = trl_tokenizer(MODEL, CHAT)
    except (OSError, ValueError) as error:
        raise SystemExit(f"train.py: {{error}}") from None
    gpu = torch.cuda.is_available()
    arguments = trl_arguments(SETTINGS, MAX_NEW_TOKENS, PartialState(cpu=not gpu).num_processes)
    rewards, weights = trl_rewards(TASK, end_ids(MODEL, tokenizer))
{overlong}    parser = TrlParser((GRPOConfig,))
    parser.set_defaults(
        output_dir="trained", model_init_kwargs={{"dtype": "float32"}}, use_cpu=not gpu,
        bf16=gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        reward_weights=weights, **arguments)
    (args,) = parser.parse_args_and_config()
    problems = SETTINGS.steps * SETTINGS.prompts_per_step  # each is asked once
    trainer = GRPOTrainer(
        model=MODEL, args=args, processing_class=tokenizer, reward_funcs=rewards,
        peft_config=None if LORA_RANK is None else adapters(LORA_RANK),
        train_dataset=Dataset.from_list(
            trl_dataset(TASK, problems, seed=args.seed, chat=CHAT)))
    trainer.train()
    trainer.save_model(args.output_dir)


if __name__ == "__main__":
    main()
'''
OVERLONG = '''    from trl.rewards import get_soft_overlong_punishment
    rewards.append(get_soft_overlong_punishment(MAX_NEW_TOKENS, {cache}))
    weights.append(1.0)
'''
SHARED = {"compute_environment": "LOCAL_MACHINE", "machine_rank": 0,
          "main_training_function": "main", "num_machines": 1, "rdzv_backend": "static",
          "same_network": True, "use_cpu": False}
# What accelerate launch reads, by file; TRL ships the same, but for the precision: the script takes
# bf16 where the device computes in it (a T4 does not), and "bf16" here would overrule it.
# "MULTI_GPU" is accelerate's name for several processes on one machine: "MULTI_CPU" wants MPI, and
# the script says itself that there is no GPU.
ACCELERATE = {
    "cpu": SHARED | {"distributed_type": "MULTI_GPU", "mixed_precision": "no", "num_processes": 2},
    "one_gpu": SHARED | {"distributed_type": "NO", "mixed_precision": "no", "num_processes": 1,
                         "gpu_ids": "0"},  # of several, the first: TRL refuses DataParallel
    "fsdp": SHARED | {"distributed_type": "FSDP", "mixed_precision": "no", "num_processes": 8,
                      "fsdp_config": {"fsdp_version": 2,
                                      "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                                      "fsdp_cpu_ram_efficient_loading": True,
                                      "fsdp_offload_params": False,
                                      "fsdp_reshard_after_forward": True,
                                      "fsdp_activation_checkpointing": False,
                                      "fsdp_state_dict_type": "FULL_STATE_DICT"}},
    "deepspeed": SHARED | {"distributed_type": "DEEPSPEED", "mixed_precision": "no",
                           "num_processes": 8,
                           "deepspeed_config": {"zero_stage": 2, "zero3_init_flag": False,
                                                "offload_optimizer_device": "none",
                                                "offload_param_device": "none",
                                                "deepspeed_multinode_launcher": "standard"}},
}
README = '''# {task} on {model}, by TRL

Needs `pip install "grpo_lib[llm]"`, in a checkout of grpo_lib `pip install -e ".[llm]"` (its
verifier is the reward), and for some lines more: `deepspeed`, or `trl[vllm]`.

| for | command |
|---|---|
| two steps on a CPU, by two processes | `{no_gpu}{launch} cpu.yaml train.py --max_steps 2` |
| one GPU | `{launch} one_gpu.yaml train.py` |
| several GPUs, weights spread by FSDP | `{launch} fsdp.yaml --num_processes 8 train.py` |
| several GPUs, optimizer spread by ZeRO-2 | `{launch} deepspeed.yaml --num_processes 8 train.py` |
| rollouts by vLLM on the same GPUs | any of these with `--use_vllm true --vllm_mode colocate` |
| rollouts by vLLM on another GPU | `{gpu}0 {serve}`, and beside it any of \
these with `--use_vllm true --vllm_mode server`, and `{gpu}1` before it (of eight, for instance \
`{gpu}4,5,6,7` and `--num_processes 4`) |

Run as it stands, with TRL 1.16: the first line. The others are written to the documentation of TRL
and accelerate, and were not run. With vLLM, TRL also weighs the loss by how far its log-probs are
from the trainer's (`--vllm_importance_sampling_correction false` switches that off). The number of
processes must divide the completions of a gradient step.

{cautions}The settings, field by field (LOST: acts in grpo_lib, and TRL has none; what that changes
is yours to judge):

```
{table}
```
'''


def yaml(content: dict, indent: str = "") -> str:
    """A dict of plain values and dicts of such as YAML."""
    text = ""
    for key, value in content.items():
        if isinstance(value, dict):
            text += f"{indent}{key}:\n{yaml(value, indent + '  ')}"
        else:
            shown = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else (
                repr(value) if value in ("no", "NO", "0") else value)
            text += f"{indent}{key}: {shown}\n"
    return text


def write_handover(folder: Path | str, task: Task, model: str, config: GRPOConfig,
                   max_new_tokens: int, *, chat: bool = True, lora_rank: int | None = None,
                   command: str | None = None) -> list[Line]:
    """Write train.py, accelerate's configurations and a README into a new folder.

    ``model``: a name on the hub, or a folder. ``chat``: problems go in words through its chat
    template; False: the task's own prompts.
    ``lora_rank``: train adapters, as ``HuggingFacePolicy.from_pretrained(lora_rank=)`` does; None:
    all weights. ``command``: what made it, to be named in train.py.
    Returns the translation; what is ``lost``, and the ``cautions``, should be told.
    FileExistsError: the folder is not empty. ValueError: the task is not built in (``as_code``),
    or the batch cannot be dealt out (``translate``).
    """
    from grpo_lib.config import config_line

    if lora_rank is not None:
        lora_rank = check_whole("lora_rank", lora_rank, 1)
    if Path(model).expanduser().is_dir():  # the script may be started anywhere
        model = str(Path(model).expanduser().resolve())
    folder, made = Path(folder).expanduser(), as_code(task)
    lines = translate(config, max_new_tokens)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: is not an empty folder; nothing was overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    share = config.choices.overlong_share
    overlong = OVERLONG.format(cache=max(1, round(share * max_new_tokens))) if share else ""
    title = f"GRPO on {model} by TRL, with grpo_lib's task {task.name!r} and its verifier."
    careful = "".join(f"- {line}\n" for line in cautions(config, max_new_tokens, lora_rank))
    files = {"train.py": SCRIPT.format(
        title=title, model=model, task=made, chat=chat, lora_rank=lora_rank,
        settings=config_line(config),
        written=f"Written by: python -m grpo_lib handover {command}\n" * bool(command),
        max_new_tokens=max_new_tokens, overlong=overlong),
        "README.md": README.format(
            task=task.name, model=model, table=as_table(lines),
            cautions=careful and f"Look at these first:\n\n{careful}\n",
            gpu="CUDA_VISIBLE_DEVICES=", no_gpu='CUDA_VISIBLE_DEVICES="" ',
            launch="accelerate launch --config_file", serve=f"trl vllm-serve --model {model}")}
    files |= {f"{name}.yaml": yaml(content) for name, content in ACCELERATE.items()}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return lines
