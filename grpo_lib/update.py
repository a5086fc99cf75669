"""The gradient steps of one training step, on its batch of scored completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo_lib.objective import LossOutput, aggregate, token_weights
from grpo_lib.policy import token_entropy, token_log_probs
from grpo_lib.rollout import Rollouts
from grpo_lib.support.batch_metrics import NO_UPDATE, update_metrics
from grpo_lib.support.off_policy import off_policy
from grpo_lib.support.optim import clip_grad_norm, nonfinite_names

if TYPE_CHECKING:
    from grpo_lib.training import GRPOTrainer

CLIP_FRACTIONS = ("clip_fraction_low", "clip_fraction_high")


class NoGradientError(RuntimeError):
    """No gradient reaches the weights that are trained."""


def update(trainer: GRPOTrainer, rollouts: Rollouts, advantages: Tensor,
           ref_log_probs: Tensor | None) -> dict[str, float | None]:
    """The gradient steps on one batch; returns the metrics that they measure.

    Advantages belong to whole groups and are fixed before the rows are shuffled; a minibatch
    may split a group. They are (N, G), or (N * G, T) where each token has its own. Inside
    ``trainer.step()`` rows whose reward abstained take no part.
    """
    config = trainer.config
    by_token = advantages.shape == rollouts.mask.shape
    advantages = (advantages if by_token else advantages.flatten()).to(
        trainer.device, rollouts.log_probs.dtype)
    loss_mask = trainer.algorithm.loss_mask(rollouts.mask, rollouts.finished)
    counted = torch.arange(len(rollouts.tokens)) if trainer.counted is None else (
        trainer.counted.flatten().nonzero().flatten())
    counted = counted.to(trainer.device)
    minibatches, groups = config.minibatches, len(rollouts.tokens) // rollouts.group_size
    if groups < config.prompts_per_step:  # dynamic sampling left few: a group or more each
        minibatches = min(minibatches, groups)
    minibatches = min(minibatches, len(counted) // trainer.processes.size)
    if minibatches == 0:  # the reward abstained from everything
        return NO_UPDATE
    steps: list[dict[str, float]] = []
    tokens: list[int] = []
    for iteration in range(config.num_iterations):
        order = torch.randperm(len(counted), generator=trainer.generator).to(trainer.device)
        for rows in counted[order].tensor_split(minibatches):
            step = trainer.gradient_step(rollouts, rows, advantages, loss_mask, ref_log_probs,
                                         with_entropy=iteration == 0)
            if trainer.counted is not None and not steps and "ratio" not in trainer.told:
                trainer.say_once(ratio=off_policy(trainer.policy, rollouts, step))
            steps.append(step)
            tokens.append(int(rollouts.mask[rows].sum()))
    if trainer.nonfinite_weights():
        raise FloatingPointError("weights: the update has made them nan or inf")
    return update_metrics(steps, tokens[:minibatches])


def gradient_step(trainer: GRPOTrainer, rollouts: Rollouts, rows: Tensor, advantages: Tensor,
                  loss_mask: Tensor, ref_log_probs: Tensor | None, with_entropy: bool,
                  ) -> dict[str, float]:
    """One step of the optimizer on some rows of a batch; returns the numbers for the metrics.

    The rows may go through the policy in parts, and on several processes: each token has the
    weight that it has in the loss of all rows, so that the gradient is that of all at once.
    """
    algorithm, processes = trainer.algorithm, trainer.processes
    weights = token_weights(loss_mask[rows], algorithm.aggregation, trainer.task.max_new_tokens,
                            dtype=rollouts.log_probs.dtype)
    mine = processes.split(torch.arange(len(rows), device=rows.device))  # positions in ``rows``
    parts = mine.split(trainer.config.micro_batch_size or len(mine))
    seen: list[dict[str, Tensor]] = []
    trainer.optimizer.zero_grad(set_to_none=True)
    for number, positions in enumerate(parts, start=1):
        part = rows[positions]
        batch = rollouts.select(part)
        width = batch.mask.shape[1]
        part_advantages = advantages[part, :width] if advantages.dim() == 2 else advantages[part]
        ref = None if ref_log_probs is None else ref_log_probs[part, :width]
        with processes.sync_gradients(last=number == len(parts)):
            logits = trainer.completion_logits(batch)
            output = algorithm.loss(
                token_log_probs(logits, batch.completions), batch.log_probs, part_advantages,
                loss_mask[part, :width], weights=weights[positions, :width], ref_log_probs=ref,
                entropies=token_entropy(logits) if algorithm.needs_entropies else None)
            check_loss(output, logits, batch, trainer.step_count + 1)
            # DDP averages gradients over processes; their sum is needed
            (output.loss * processes.size).backward()
        entropy = output.loss.new_zeros(())
        if with_entropy:
            entropy = aggregate(token_entropy(logits.detach()), batch.mask, "token_mean")
            entropy = entropy * (batch.mask.sum() / rollouts.mask[rows].sum())
        token_share = loss_mask[part].sum() / loss_mask[rows].sum().clamp(min=1)
        fractions = {name: value * token_share for name, value in output.stats.items()
                     if name in CLIP_FRACTIONS}
        seen.append(output.stats | fractions | {"loss": output.loss.detach(), "entropy": entropy})
    norm = clip_grad_norm(trainer.policy, trainer.config.max_grad_norm, "gradient")
    trainer.stepped = True  # set first: a step that is interrupted may have changed some weights
    trainer.optimizer.step()
    if trainer.critic is not None:  # no micro-batches with a critic, so ``batch`` is all rows
        assert trainer.returns is not None  # set together with the critic's advantages
        trainer.critic.update(batch, trainer.returns[part, :width])
    return {"grad_norm": norm.item()} | {
        name: processes.reduce(sum((p[name] for p in seen[1:]), seen[0][name]), "sum").item()
        for name in ("loss", "entropy", *CLIP_FRACTIONS)} | {
        "ratio_min": processes.reduce(min(p["ratio_min"] for p in seen), "min").item(),
        "ratio_max": processes.reduce(max(p["ratio_max"] for p in seen), "max").item()}


def check_loss(output: LossOutput, logits: Tensor, batch: Rollouts, step: int) -> None:
    """FloatingPointError, NoGradientError: a loss that cannot be trained on."""
    if not output.loss.isfinite():
        scores = token_log_probs(logits, batch.completions).masked_fill(~batch.mask, 0.0)
        found = nonfinite_names([("log_probs", scores)])
        raise FloatingPointError(f"loss: got {output.loss.item()} at step {step}"
                                 f"{' from log_probs' if found else ''}; that gradient step was "
                                 f"not taken")
    if not output.loss.requires_grad:
        raise NoGradientError(
            "loss: depends on no weight that is trained; either the policy's forward "
            "computes without gradient (inside torch.no_grad()), or what is not "
            "frozen has no part in its logits")
