"""A ``GRPOConfig`` in the words of TRL's: ``FIELDS`` has a row for each field, which says what it
is called there, and when it acts here and would not there.

Run against TRL 1.16 (tests/llm). Nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import NamedTuple

from grpo_lib.algorithms import Algorithm
from grpo_lib.config import GRPOConfig
from grpo_lib.support.checks import check_whole
from grpo_lib.support.optim import ADAMW

# (surrogate, aggregation): TRL's loss_type
LOSS_TYPES = {("clip", "sequence_mean"): "grpo", ("clip", "token_mean"): "dapo",
              ("clip", "constant"): "dr_grpo", ("clip", "sequence_sum"): "luspo",
              ("cispo", "token_mean"): "cispo", ("sapo", "sequence_mean"): "sapo"}
# choices whose line says so where they act on nothing
TOLD_IF_IDLE = ("epsilon", "epsilon_high", "delta", "gamma", "gae_lambda", "kl", "std_eps")


class Line(NamedTuple):
    """A field of GRPOConfig: what it is in TRL. ``lost``: it acts here and would not there."""

    field: str
    value: object
    trl: dict
    note: str
    lost: bool


class Run(NamedTuple):
    """What a row of ``FIELDS`` may look at."""

    config: GRPOConfig
    row: Algorithm  # the config's choices
    size: int  # completions that go through the model at once, on one process
    parts: int  # so many times in a gradient step

    @property
    def loss_type(self) -> str | None:
        return LOSS_TYPES.get((self.row.surrogate, self.row.aggregation))

    def value(self, field: str) -> object:
        return getattr(self.row if hasattr(self.row, field) else self.config, field)


class InTRL(NamedTuple):
    """A row. ``trl``: TRL's name of the field, which takes the same value there (None: it is not
    given), or a function that makes TRL's arguments of a ``Run``. ``lost_if``: a function that
    tells whether this run loses the field, and ``lost`` says why. Texts may be functions, too."""

    trl: str | Callable[[Run], dict] | None = None
    note: str | Callable[[Run], str] = ""
    lost_if: Callable[[Run], bool] = lambda run: False
    lost: str | Callable[[Run], str] = ""


def missing(field: str, why: str) -> InTRL:
    """What TRL has no counterpart of, which matters where it is switched on."""
    return InTRL(None, "off here, and there is none", lambda run: getattr(run.row, field), why)


def cap(run: Run) -> dict:
    """The upper bound of the ratio; TRL's CISPO calls the cap itself so."""
    if run.row.surrogate == "cispo":
        high = run.row.epsilon if run.row.epsilon_high is None else run.row.epsilon_high
        return {"epsilon_high": 1 + high}
    return {} if run.row.epsilon_high is None else {"epsilon_high": run.row.epsilon_high}


def other_trainer(text: str, choice: str, of_rloo: str) -> Callable[[Run], str]:
    """Why a choice is lost, with the trainer of TRL that has it."""
    return lambda run: text + ("; its RLOOTrainer this one" if getattr(run.row, choice) == of_rloo
                               else "")


def no_loss_type(run: Run) -> str:
    return (f"TRL's GRPOTrainer has no {run.row.surrogate} with {run.row.aggregation}"
            + ("; trl.experimental.gmpo has it" if run.row.surrogate == "gmpo" else ""))


def divisor(run: Run) -> str:
    of_batch = run.loss_type in ("dapo", "cispo") and run.config.minibatches > 1
    return "with surrogate" + "; its divisor is the batch's tokens / minibatches" * of_batch


NO_LOSS_TYPE = {"lost_if": lambda run: run.loss_type is None, "lost": no_loss_type}
NO_CRITIC = missing("critic", "no critic in GRPOTrainer; trl.experimental.ppo has one")
FIELDS = {
    "steps": InTRL(lambda run: {"max_steps": run.config.steps * run.config.minibatches
                                * run.config.num_iterations}, "TRL counts gradient steps"),
    "prompts_per_step": InTRL(note="follows from the batch sizes"),
    "group_size": InTRL("num_generations"),
    "temperature": InTRL("temperature"),
    "algorithm": InTRL(note="the row of the table, whose choices follow"),
    "baseline": InTRL(None, "the only one", lambda run: run.row.baseline != "mean", other_trainer(
        "TRL's GRPOTrainer takes the group's mean", "baseline", "leave_one_out")),
    "scale": InTRL("scale_rewards", "", lambda run: run.row.scale == "mean",
                   "TRL has group, batch and none"),
    "std_eps": InTRL(None, "the same, and fixed", lambda run: run.row.std_eps != 1e-4,
                     "TRL's is 1e-4"),
    "whiten": missing("whiten", "no counterpart"),
    "critic": NO_CRITIC,
    "gamma": NO_CRITIC,
    "gae_lambda": NO_CRITIC,
    "ratio": InTRL("importance_sampling_level", "",
                   lambda run: run.row.ratio not in ("token", "sequence"),
                   other_trainer("TRL has token and sequence", "ratio", "sequence_sum")),
    "surrogate": InTRL(lambda run: {"loss_type": run.loss_type}, **NO_LOSS_TYPE),
    "epsilon": InTRL("epsilon", "", lambda run: run.row.surrogate == "cispo" and (
        run.row.epsilon < 1), "TRL's CISPO has no lower bound"),
    "epsilon_high": InTRL(cap, lambda run: "the cap itself" * (run.row.surrogate == "cispo")),
    "delta": InTRL(lambda run: {} if run.row.delta is None else {"delta": run.row.delta}),
    "sapo_temperature_pos": InTRL("sapo_temperature_pos"),
    "sapo_temperature_neg": InTRL("sapo_temperature_neg"),
    "beta": InTRL("beta"),
    "kl": InTRL(None, "k3 is the only one", lambda run: run.row.kl != "k3" and run.row.beta > 0,
                "TRL has k3"),
    "kl_in_reward": missing("kl_in_reward", "no counterpart in GRPOTrainer; RLOOTrainer has it"),
    "use_bias_correction_kl": InTRL("use_bias_correction_kl"),
    "aggregation": InTRL(None, divisor, **NO_LOSS_TYPE),
    "entropy_coef": InTRL("entropy_coef", lambda run: (
        "TRL takes the mean of the parts' means, ours counts each token once"
        if run.row.entropy_coef and run.parts > 1 else "")),
    "top_entropy_quantile": InTRL("top_entropy_quantile"),
    "off_policy_mask_threshold": InTRL("off_policy_mask_threshold"),
    "dynamic_sampling": missing("dynamic_sampling", "no counterpart"),
    "mask_truncated_completions": InTRL("mask_truncated_completions"),
    "overlong_share": InTRL(None, lambda run: (
        "the script adds get_soft_overlong_punishment to the rewards; it looks at cut-off "
        "completions too" if run.row.overlong_share else "off here")),
    "max_num_gen_batches": missing("dynamic_sampling", "goes with dynamic_sampling"),
    "num_iterations": InTRL("num_iterations"),
    "minibatches": InTRL(
        lambda run: {"steps_per_generation": run.config.minibatches * run.parts},
        lambda run: "TRL draws them once for all passes over a batch" * (
            run.config.num_iterations > 1)),
    "micro_batch_size": InTRL(lambda run: {"per_device_train_batch_size": run.size,
                                           "gradient_accumulation_steps": run.parts}),
    "learning_rate": InTRL(lambda run: {
        "learning_rate": run.config.learning_rate, "adam_beta1": ADAMW["betas"][0],
        "adam_beta2": ADAMW["betas"][1], "weight_decay": ADAMW["weight_decay"],
        "lr_scheduler_type": "constant"}, "AdamW with our betas, no decay, no schedule"),
    "value_learning_rate": NO_CRITIC,
    "max_grad_norm": InTRL("max_grad_norm"),
    "measure_kl": InTRL(note="TRL measures it if beta is above 0"),
    "eval_every": InTRL(
        note="not in the script: TRL's evaluation samples with the training settings"),
    "eval_problems": InTRL(note="see eval_every"),
    "seed": InTRL("seed", "other random numbers than ours"),
    "device": InTRL(note="accelerate's"),
}


def translate(config: GRPOConfig, max_new_tokens: int, processes: int = 1) -> list[Line]:
    """Every field of ``config`` in the words of TRL's GRPOConfig, or why there are none.

    ``max_new_tokens``: the longest completion. ``processes``: of how many the work is dealt out;
    TRL's batch sizes are those of one. ValueError: a gradient step's completions cannot be dealt
    out evenly.
    """
    check_whole("max_new_tokens", max_new_tokens, 1)
    run = dealt_out(config, check_whole("processes", processes, 1))
    return [line_of(field.name, run) for field in fields(config)]


def dealt_out(config: GRPOConfig, processes: int) -> Run:
    """How many completions of a gradient step each process takes at once, and how many times."""
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
    return Run(config, config.choices, size, step // size)


def line_of(field: str, run: Run) -> Line:
    """A field's row of ``FIELDS``, applied to a run."""
    entry, value, idle = FIELDS[field], run.value(field), run.row.idle_choices()
    lost = entry.lost_if(run)
    trl, note = {}, entry.lost if lost else entry.note
    if not lost and callable(entry.trl):
        trl = entry.trl(run)
    elif not lost and entry.trl is not None:
        trl = {entry.trl: value}
    if field in idle and field in TOLD_IF_IDLE:
        return Line(field, value, trl, f"acts on nothing here, since {idle[field]}", False)
    return Line(field, value, trl, note(run) if callable(note) else note, bool(lost))


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
