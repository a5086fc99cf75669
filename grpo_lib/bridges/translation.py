"""A ``GRPOConfig`` in the words of TRL's: ``FIELDS`` has a row for each field, which says what it
is called there, and when it acts here and would not there.

Run against TRL 1.16 (tests/llm). Nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import NamedTuple

from grpo_lib.config import GRPOConfig
from grpo_lib.support.checks import check_whole
from grpo_lib.support.optim import ADAMW

# (surrogate, aggregation): TRL's loss_type
LOSS_TYPES = {("clip", "sequence_mean"): "grpo", ("clip", "token_mean"): "dapo",
              ("clip", "constant"): "dr_grpo", ("clip", "sequence_sum"): "luspo",
              ("cispo", "token_mean"): "cispo", ("sapo", "sequence_mean"): "sapo"}
Run = SimpleNamespace  # all that a row may look at, by name
# choices whose line says so where they act on nothing
TOLD_IF_IDLE = ("epsilon", "epsilon_high", "delta", "gamma", "gae_lambda", "kl", "std_eps")


class Line(NamedTuple):
    """A field of GRPOConfig: what it is in TRL. ``lost``: it acts here and would not there."""

    field: str
    value: object
    trl: dict
    note: str
    lost: bool


class InTRL(NamedTuple):
    """A row of ``FIELDS``. ``trl``: TRL's name of the field, which takes the same value there
    (None: nothing is given), or a function that makes TRL's arguments. ``lost_if``: whether the
    field is lost, ``lost``: why. Functions take what ``dealt_out`` returns; texts may be some."""

    trl: str | Callable[[Run], dict] | None = None
    note: str | Callable[[Run], str] = ""
    lost_if: Callable[[Run], bool] = lambda r: False
    lost: str | Callable[[Run], str] = ""


def missing(field: str, why: str) -> InTRL:
    """What TRL has no counterpart of, which matters where it is switched on."""
    return InTRL(None, "off here, and there is none", lambda r: getattr(r, field), why)


def cap(r: Run) -> dict:
    """The upper bound of the ratio; TRL's CISPO calls the cap itself so."""
    high = r.epsilon_high
    if r.surrogate == "cispo":
        high = 1 + (r.epsilon if high is None else high)
    return {} if high is None else {"epsilon_high": high}


def no_loss_type(r: Run) -> str:
    return (f"TRL's GRPOTrainer has no {r.surrogate} with {r.aggregation}"
            + "; trl.experimental.gmpo has it" * (r.surrogate == "gmpo"))


NO_LOSS_TYPE = {"lost_if": lambda r: r.loss_type is None, "lost": no_loss_type}
NO_CRITIC = missing("critic", "no critic in GRPOTrainer; trl.experimental.ppo has one")
FIELDS = {
    "steps": InTRL(lambda r: {"max_steps": r.steps * r.minibatches * r.num_iterations},
                   "TRL counts gradient steps"),
    "prompts_per_step": InTRL(None, "follows from the batch sizes"),
    "group_size": InTRL("num_generations"),
    "temperature": InTRL("temperature"),
    "algorithm": InTRL(None, "the row of the table, whose choices follow"),
    "baseline": InTRL(None, "the only one", lambda r: r.baseline != "mean", lambda r: (
        "TRL's GRPOTrainer takes the group's mean"
        + "; its RLOOTrainer this one" * (r.baseline == "leave_one_out"))),
    "scale": InTRL("scale_rewards", lost_if=lambda r: r.scale == "mean",
                   lost="TRL has group, batch and none"),
    "std_eps": InTRL(None, "the same, and fixed", lambda r: r.std_eps != 1e-4, "TRL's is 1e-4"),
    "whiten": missing("whiten", "no counterpart"),
    "critic": NO_CRITIC, "gamma": NO_CRITIC, "gae_lambda": NO_CRITIC,
    "ratio": InTRL("importance_sampling_level",
                   lost_if=lambda r: r.ratio not in ("token", "sequence"),
                   lost=lambda r: "TRL has token and sequence"
                   + "; its RLOOTrainer this one" * (r.ratio == "sequence_sum")),
    "surrogate": InTRL(lambda r: {"loss_type": r.loss_type}, **NO_LOSS_TYPE),
    "epsilon": InTRL("epsilon", lost_if=lambda r: r.surrogate == "cispo" and r.epsilon < 1,
                     lost="TRL's CISPO has no lower bound"),
    "epsilon_high": InTRL(cap, lambda r: "the cap itself" * (r.surrogate == "cispo")),
    "delta": InTRL(lambda r: {} if r.delta is None else {"delta": r.delta}),
    "sapo_temperature_pos": InTRL("sapo_temperature_pos"),
    "sapo_temperature_neg": InTRL("sapo_temperature_neg"),
    "beta": InTRL("beta"),
    "kl": InTRL(None, "k3 is the only one", lambda r: r.kl != "k3" and r.beta > 0, "TRL has k3"),
    "kl_in_reward": missing("kl_in_reward", "no counterpart in GRPOTrainer; RLOOTrainer has it"),
    "use_bias_correction_kl": InTRL("use_bias_correction_kl"),
    "aggregation": InTRL(None, lambda r: "with surrogate" + (
        "; its divisor is the batch's tokens / minibatches"
        * (r.loss_type in ("dapo", "cispo") and r.minibatches > 1)), **NO_LOSS_TYPE),
    "entropy_coef": InTRL("entropy_coef", lambda r: (
        "TRL takes the mean of the parts' means, ours counts each token once"
        * (r.entropy_coef != 0 and r.parts > 1))),
    "top_entropy_quantile": InTRL("top_entropy_quantile"),
    "off_policy_mask_threshold": InTRL("off_policy_mask_threshold"),
    "dynamic_sampling": missing("dynamic_sampling", "no counterpart"),
    "mask_truncated_completions": InTRL("mask_truncated_completions"),
    "overlong_share": InTRL(None, lambda r: (
        "the script adds get_soft_overlong_punishment to the rewards; it looks at cut-off "
        "completions too" if r.overlong_share else "off here")),
    "max_num_gen_batches": missing("dynamic_sampling", "goes with dynamic_sampling"),
    "num_iterations": InTRL("num_iterations"),
    "minibatches": InTRL(lambda r: {"steps_per_generation": r.minibatches * r.parts}, lambda r: (
        "TRL draws them once for all passes over a batch" * (r.num_iterations > 1))),
    "micro_batch_size": InTRL(lambda r: {"per_device_train_batch_size": r.size,
                                         "gradient_accumulation_steps": r.parts}),
    "learning_rate": InTRL(lambda r: {
        "learning_rate": r.learning_rate, "adam_beta1": ADAMW["betas"][0],
        "adam_beta2": ADAMW["betas"][1], "weight_decay": ADAMW["weight_decay"],
        "lr_scheduler_type": "constant"}, "AdamW with our betas, no decay, no schedule"),
    "value_learning_rate": NO_CRITIC,
    "max_grad_norm": InTRL("max_grad_norm"),
    "measure_kl": InTRL(None, "TRL measures it if beta is above 0"),
    "eval_every": InTRL(
        None, "not in the script: TRL's evaluation samples with the training settings"),
    "eval_problems": InTRL(None, "see eval_every"),
    "seed": InTRL("seed", "other random numbers than ours"),
    "device": InTRL(None, "accelerate's"),
}


def translate(config: GRPOConfig, max_new_tokens: int, processes: int = 1) -> list[Line]:
    """Every field of ``config`` in the words of TRL's GRPOConfig, or why there are none.

    ``max_new_tokens``: the longest completion. ``processes``: of how many the work is dealt out;
    TRL's batch sizes are those of one. ValueError: a gradient step's completions cannot be dealt
    out evenly.
    """
    check_whole("max_new_tokens", max_new_tokens, 1)
    run, idle = dealt_out(config, processes), config.choices.idle_choices()
    return [line_of(field.name, run, idle) for field in fields(config)]


def dealt_out(config: GRPOConfig, processes: int) -> Run:
    """The settings, with all choices of the algorithm, and how a gradient step is dealt out: each
    process takes ``size`` completions at once, ``parts`` times."""
    processes = check_whole("processes", processes, 1)
    if config.group_size < 2 or config.steps < 1:
        raise ValueError(f"group_size, steps: got {config.group_size}, {config.steps}; TRL's "
                         f"GRPOTrainer takes groups of 2 or more, and 1 step or more")
    rows = config.prompts_per_step * config.group_size
    step, rest = divmod(rows, config.minibatches * processes)
    size = min(config.micro_batch_size or step, max(step, 1))
    if rest or step % size:
        raise ValueError(f"micro_batch_size, minibatches, processes: got "
                         f"{config.micro_batch_size}, {config.minibatches}, {processes}; TRL deals "
                         f"the {rows} completions of a step out evenly, so allowed are numbers "
                         f"whose product divides that")
    row = config.choices
    return Run(**vars(config) | vars(row), size=size, parts=step // size,
               loss_type=LOSS_TYPES.get((row.surrogate, row.aggregation)))


def line_of(field: str, run: Run, idle: dict[str, str]) -> Line:
    """A field's row of ``FIELDS``, applied to a run; ``idle``: choices that do nothing, and why."""
    entry, value = FIELDS[field], getattr(run, field)
    lost = bool(entry.lost_if(run))
    trl, note = ({}, entry.lost) if lost else (entry.trl, entry.note)
    if callable(trl):
        trl = trl(run)
    elif not isinstance(trl, dict):
        trl = {} if trl is None else {trl: value}
    if field in idle and field in TOLD_IF_IDLE:
        return Line(field, value, trl, f"acts on nothing here, since {idle[field]}", False)
    return Line(field, value, trl, note(run) if callable(note) else note, lost)


def trl_arguments(config: GRPOConfig, max_new_tokens: int, processes: int = 1) -> dict:
    """Keyword arguments for TRL's GRPOConfig; what is ``lost`` in ``translate`` is not in them."""
    arguments = {"max_completion_length": max_new_tokens, "disable_dropout": True,
                 "logging_steps": 1, "report_to": "none", "save_strategy": "steps",
                 "save_steps": 100}
    for line in translate(config, max_new_tokens, processes):
        arguments |= line.trl
    return arguments


def as_table(lines: Sequence[Line]) -> str:
    """The translation as text, a field a line."""
    rows = [(line.field, str(line.value),
             ", ".join(f"{k}={v!r}" for k, v in line.trl.items()) or "-",
             ("LOST: " if line.lost else "") + line.note) for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)),
                                row[3]]).rstrip() for row in rows)
