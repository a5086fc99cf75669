"""TRL's own code, called without a model: its trainers' methods on a trainer that was never set up.

``__init__`` is left out, since it wants a language model; of everything that the methods then
ask for, only what a model would give (log-probs, entropies, completions, rewards) is put in
its place. All arithmetic is TRL's.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from trl import GRPOTrainer, RLOOTrainer
from trl.experimental.gmpo import GMPOTrainer

TRAINERS = {"grpo": GRPOTrainer, "gmpo": GMPOTrainer, "rloo": RLOOTrainer}
PAD_ID = 0


class Model:
    """Stands where a model would; nothing is asked of it but whether it trains."""

    training = True
    is_gradient_checkpointing = False


@contextmanager
def float64():
    """Lists of log-probs become float64 tensors, not float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def trainer(kind: str, defaults, **options):
    """A trainer of TRL's with ``options`` over TRL's defaults (a config of its own class)."""
    args = SimpleNamespace(**(vars(defaults) | options))
    made = object.__new__(TRAINERS[kind])
    vars(made).update(vars(args))  # most attributes have the names of their settings
    vars(made).update(
        args=args, model=Model(), ref_model=Model(), accelerator=Accelerator(cpu=True),
        epsilon_low=args.epsilon,
        epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
        num_generations_eval=args.num_generations, aux_loss_enabled=False, tools=None,
        environment_factories=None, environments=None, rollout_func=None, _is_vlm=False,
        _tokenizer=SimpleNamespace(pad_token_id=PAD_ID), pad_to_multiple_of=None,
        eos_token_ids=[1], reward_funcs=[None], reward_func_names=["reward"],
        reward_weights=torch.ones(1), current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=getattr(args, "entropy_coef", 0.0) != 0.0,
        _metrics={"train": defaultdict(list)}, log_multimodal=False,
        _logs=defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)},
        _pending_extra_logs=defaultdict(list), _pending_metrics=defaultdict(list))
    made.args.steps_per_generation = made.steps_per_generation = 1
    made.args.gradient_accumulation_steps = 1
    return made


def loss(kind: str, defaults, case, **options):
    """TRL's loss of a case, its metrics, and gradients by log_probs and entropies."""
    made = trainer(kind, defaults, **options)
    log_probs = case.log_probs.clone().requires_grad_()
    entropies = case.entropies.clone().requires_grad_()
    made._get_per_token_logps_and_entropies = lambda *_, **__: (log_probs, entropies, None)
    batch = {"prompt_ids": torch.zeros(len(case.mask), 1), "completion_ids": case.mask,
             "prompt_mask": torch.ones(len(case.mask), 1), "completion_mask": case.mask,
             "advantages": case.advantages, "num_items_in_batch": case.mask.sum()}
    if kind == "rloo":
        batch["old_logps"] = (case.old_log_probs * case.mask).sum(1)
    else:
        batch |= {"old_per_token_logps": case.old_log_probs,
                  "ref_per_token_logps": case.ref_log_probs}
    if options.get("use_vllm"):
        batch |= {"sampling_per_token_logps": case.sampler_log_probs,
                  "importance_sampling_ratio": sampler_weights(defaults, case, **options)}
    value = made._compute_loss(made.model, batch)
    by_log_probs, by_entropies = torch.autograd.grad(
        value, (log_probs, entropies), materialize_grads=True)
    metrics = {name: values[-1] for name, values in made._metrics["train"].items()}
    return value.detach(), by_log_probs, by_entropies, metrics


def scored(made, rewards, completions=None, old=None, ref=None, sampler=None):
    """What TRL makes of completions and their rewards (N, G), before any loss."""
    rows = rewards.numel()
    completions = completions or [[2, 1]] * rows
    made.num_generations = rewards.shape[1]
    made._calculate_rewards = lambda *_: rewards.reshape(rows, 1)
    made._get_per_token_logps_and_entropies = lambda model, *_, **__: (
        (ref if model is made.ref_model else old), None, None)
    made._generate = lambda prompts: (
        ([[2]] * rows, completions, [""] * rows) if isinstance(made, RLOOTrainer) else
        ([[2]] * rows, completions, None, [""] * rows, sampler, {}, None, None))
    with float64():
        return made._generate_and_score_completions([{"prompt": ""} for _ in range(rows)])


def sampler_weights(defaults, case, **options):
    """TRL's weights for the difference between trainer and inference engine: (B, T) or (B, 1)."""
    made = trainer("grpo", defaults, **options)
    lengths = case.mask.sum(1).int().tolist()
    width = case.mask.shape[1]
    # TRL makes the mask of the completions' lengths; those of a masked row are zeroed here.
    completions = [[2] * max(length, 1) for length in lengths]
    longest = max(map(len, completions))
    old, sampler = (torch.where(case.mask > 0, t, 0.0)[:, :longest]
                    for t in (case.old_log_probs, case.sampler_log_probs))
    out = scored(made, torch.zeros(1, len(lengths)), completions, old, old,
                 [row[:len(c)] for row, c in zip(sampler.tolist(), completions)])
    weights = out["importance_sampling_ratio"]
    if weights.shape[1] == 1:
        return weights
    return torch.nn.functional.pad(weights, (0, width - longest), value=1.0)
