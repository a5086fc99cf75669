"""The GRPO training loop: sample groups, score them, take a few gradient steps, again.

Left out of production trainers: several machines, gradient accumulation, learning-rate
schedules, and rollouts by a separate engine. One process, one device.
"""

from __future__ import annotations

import copy
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from grpo_lib.advantages import group_advantages, informative_groups
from grpo_lib.checkpoint import CheckpointError, check_weights, load_tensors, save_tensors
from grpo_lib.config import GRPOConfig, StepMetrics
from grpo_lib.evaluation import evaluate
from grpo_lib.objective import aggregate, grpo_loss, kl_estimate
from grpo_lib.policy import Policy, token_entropy, token_log_probs
from grpo_lib.rollout import Rollouts, completion_log_probs, completion_logits, sample_groups
from grpo_lib.tasks.base import Problem, Task


class GRPOTrainer:
    """Trains ``policy`` on ``task`` by GRPO.

        for metrics in GRPOTrainer(policy, task, GRPOConfig(steps=10)).run():
            print(metrics.step, metrics.reward_mean)

    ``ref_policy`` is what KL is measured to; None: a frozen copy of the policy as given.
    After a step, ``problems``, ``rollouts``, ``rewards`` (N, G), ``advantages`` (N, G) hold what
    it was made of, and ``history`` all metrics so far.
    """

    def __init__(self, policy: Policy, task: Task, config: GRPOConfig,
                 ref_policy: Policy | None = None):
        self.device = check_device(config.device)
        self.policy = policy.to(self.device)
        own = ref_policy is not None and ref_policy is not policy
        self.ref_policy = ref_policy if own else copy.deepcopy(policy)
        self.ref_policy.to(self.device).requires_grad_(False)
        self.task, self.config = task, config
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate,
                                           betas=(0.9, 0.95), weight_decay=0.0)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.held_out = task.held_out(config.eval_problems) if config.eval_every else []
        self.step_count = 0
        self.half_updated = False  # an update was broken off: weights belong to no step
        self.history: list[StepMetrics] = []
        self.problems: list[Problem] = []
        self.rollouts: Rollouts | None = None
        self.rewards = self.advantages = None

    def run(self, steps: int | None = None) -> Iterator[StepMetrics]:
        """Take ``steps`` steps (None: what is left of config.steps), yielding their metrics.

        Ctrl-C, or a notebook's stop button, takes effect between steps: KeyboardInterrupt
        comes after the step's metrics, and calling ``run`` again goes on as if nothing had
        happened. (Twice means at once.)
        """
        if steps is None:
            steps = self.config.steps - self.step_count
        for _ in range(steps):
            with finish_step_first() as interrupted:
                metrics = self.step()
            yield metrics
            if interrupted:
                raise KeyboardInterrupt

    def step(self) -> StepMetrics:
        """Sample, score, update, measure. An error before the update leaves no trace."""
        config, state = self.config, self.generator.get_state()
        try:
            start = time.perf_counter()
            problems, rollouts = self.sample()
            sampled = time.perf_counter()
            rewards, grades, ref_log_probs = self.score(problems, rollouts)
            advantages = group_advantages(rewards, baseline=config.baseline,
                                          scale=config.scale, std_eps=config.std_eps)
            scored = time.perf_counter()
        except BaseException:
            self.generator.set_state(state)
            raise
        self.problems, self.rollouts = problems, rollouts
        self.rewards, self.advantages = rewards, advantages
        self.half_updated = True
        updates = self.update(rollouts, advantages, ref_log_probs)
        self.half_updated = False
        updated = time.perf_counter()
        self.step_count += 1
        held_out = None
        if config.eval_every and self.step_count % config.eval_every == 0:
            held_out = evaluate(self.policy, self.task, self.held_out,
                                temperature=config.temperature, device=self.device).accuracy
        metrics = StepMetrics(
            step=self.step_count, held_out_accuracy=held_out,
            **batch_metrics(rollouts, rewards, grades, ref_log_probs), **updates,
            seconds_rollout=sampled - start, seconds_scoring=scored - sampled,
            seconds_update=updated - scored, seconds_evaluation=time.perf_counter() - updated)
        self.history.append(metrics)
        return metrics

    def sample(self) -> tuple[list[Problem], Rollouts]:
        """New training problems, and a group of completions of each."""
        config = self.config
        rng = random.Random(torch.randint(2**62, (), generator=self.generator).item())
        problems = self.task.problems(config.prompts_per_step, rng)
        rollouts = sample_groups(
            self.policy, [self.task.tokenizer.encode(p.prompt) for p in problems],
            config.group_size, max_new_tokens=self.task.max_new_tokens,
            temperature=config.temperature, generator=self.generator, device=self.device)
        return problems, rollouts

    @torch.no_grad()
    def score(self, problems: list[Problem], rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards (N, G), grades (N, G) and the base model's log-probs (N*G, T)."""
        texts = self.task.tokenizer.decode_rows(rollouts.completions, rollouts.mask)
        finished = rollouts.finished.tolist()
        rewards = self.task.rewards(problems, texts, finished)
        grades = self.task.grades(problems, texts, finished)
        if rewards.shape != (len(problems), rollouts.group_size):
            raise ValueError(f"rewards: got shape {tuple(rewards.shape)}, allowed is one for each "
                             f"completion, {(len(problems), rollouts.group_size)}")
        return rewards, grades, completion_log_probs(self.ref_policy, rollouts)

    def update(self, rollouts: Rollouts, advantages: Tensor, ref_log_probs: Tensor) -> dict:
        """The gradient steps on one batch; returns its share of the metrics.

        Advantages belong to whole groups and are fixed before the rows are shuffled; a
        minibatch may split a group.
        """
        config = self.config
        row_advantages = advantages.flatten().to(self.device, rollouts.log_probs.dtype)
        stats, entropy, tokens = [], 0.0, rollouts.mask.sum().item()
        for iteration in range(config.num_iterations):
            order = torch.randperm(len(rollouts.tokens), generator=self.generator).to(self.device)
            for rows in order.tensor_split(config.minibatches):
                batch = rollouts.select(rows)
                logits = completion_logits(self.policy, batch)
                output = grpo_loss(
                    token_log_probs(logits, batch.completions), batch.log_probs,
                    row_advantages[rows], batch.mask,
                    ref_log_probs=ref_log_probs[rows, : batch.mask.shape[1]],
                    epsilon=config.epsilon, epsilon_high=config.epsilon_high, delta=config.delta,
                    beta=config.beta, kl=config.kl, ratio=config.ratio,
                    aggregation=config.aggregation, max_length=self.task.max_new_tokens,
                    use_bias_correction_kl=config.use_bias_correction_kl)
                if not output.loss.isfinite():
                    raise FloatingPointError(f"loss: got {output.loss.item()} at step "
                                             f"{self.step_count + 1}; that gradient step was not "
                                             f"taken")
                self.optimizer.zero_grad(set_to_none=True)
                output.loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(
                    self.policy.parameters(), config.max_grad_norm, error_if_nonfinite=True)
                self.optimizer.step()
                if iteration == 0:
                    with torch.no_grad():
                        entropy += aggregate(token_entropy(logits), batch.mask, "token_mean"
                                             ).item() * batch.mask.sum().item() / tokens
                stats.append({name: value.item() for name, value in output.stats.items()}
                             | {"loss": output.loss.item(), "grad_norm": norm.item()})
        mean = {name: sum(s[name] for s in stats) / len(stats) for name in stats[0]}
        return {"entropy": entropy, "loss": mean["loss"], "grad_norm": mean["grad_norm"],
                "clip_fraction_low": mean["clip_fraction_low"],
                "clip_fraction_high": mean["clip_fraction_high"],
                "ratio_min": min(s["ratio_min"] for s in stats),
                "ratio_max": max(s["ratio_max"] for s in stats)}

    def save(self, path: Path | str) -> None:
        """Everything needed to go on, bit for bit: weights, optimizer, base model, generator.

        RuntimeError if the last update was broken off half-way: ``load`` a checkpoint first.
        """
        if self.half_updated:
            raise RuntimeError(f"save: the update of step {self.step_count + 1} was broken off "
                               f"half-way; load the last checkpoint first")
        names = {p: name for name, p in self.policy.named_parameters()}
        tensors = {f"policy.{name}": t for name, t in self.policy.state_dict().items()}
        tensors |= {f"ref_policy.{name}": t for name, t in self.ref_policy.state_dict().items()}
        tensors |= {f"optimizer.{names[p]}.{key}": torch.as_tensor(value)
                    for p, state in self.optimizer.state.items() for key, value in state.items()}
        tensors["generator"] = self.generator.get_state()
        save_tensors(path, tensors, {"kind": "trainer", "step": self.step_count,
                                     "task": self.task.name, "config": self.config.to_dict()})

    def load(self, path: Path | str) -> None:
        """Go back (or on) to a state written by ``save``; ``history`` is cut to its step.

        CheckpointError: damaged, or of another task or shape; then nothing has changed.
        """
        tensors, about = load_tensors(path, "trainer")
        if about.get("task") != self.task.name:
            raise CheckpointError(f"{path}: is of a run on the task {about.get('task')!r}, allowed "
                                  f"is {self.task.name!r}")
        parts: dict[str, dict[str, Tensor]] = {"policy": {}, "ref_policy": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = tensor
        check_weights(self.policy, parts["policy"], path)
        check_weights(self.ref_policy, parts["ref_policy"], path)
        parameters, state = dict(self.policy.named_parameters()), {}
        try:
            step, generator = about["step"] + 0, torch.Generator()
            generator.set_state(tensors["generator"])
            for name, tensor in parts["optimizer"].items():
                parameter, key = name.rsplit(".", 1)
                values = state.setdefault(parameters[parameter], {})
                values[key] = tensor.to("cpu" if key == "step" else self.device)
                if key != "step" and tensor.shape != parameters[parameter].shape:
                    raise ValueError(f"optimizer.{name} has shape {tuple(tensor.shape)}")
            if any(values.keys() != {"step", "exp_avg", "exp_avg_sq"} for values in state.values()):
                raise ValueError("the optimizer's state is incomplete")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: is incomplete or damaged ({error})") from None
        self.policy.load_state_dict(parts["policy"])
        self.ref_policy.load_state_dict(parts["ref_policy"])
        self.optimizer.state.clear()
        self.optimizer.state.update(state)
        self.generator, self.step_count, self.half_updated = generator, step, False
        self.history = [m for m in self.history if m.step <= self.step_count]


def batch_metrics(rollouts: Rollouts, rewards: Tensor, grades: Tensor,
                  ref_log_probs: Tensor) -> dict:
    """The metrics that describe a batch of scored rollouts."""
    lengths, right = rollouts.lengths.float().cpu(), grades.flatten() > 0
    distance = kl_estimate(rollouts.log_probs, ref_log_probs, "k3")
    return {
        "reward_mean": rewards.mean().item(), "reward_std": rewards.std().item(),
        "zero_variance_groups": 1 - informative_groups(rewards).float().mean().item(),
        "accuracy": grades.mean().item(), "length": lengths.mean().item(),
        "length_right": lengths[right].mean().item() if right.any() else None,
        "length_wrong": lengths[~right].mean().item() if (~right).any() else None,
        "finished": rollouts.finished.float().mean().item(),
        "kl": aggregate(distance, rollouts.mask, "token_mean").item(),
        "tokens": int(rollouts.mask.sum())}


@contextmanager
def finish_step_first() -> Iterator[list]:
    """Hold back Ctrl-C until the block ends; the list is then not empty. A second one acts
    at once. Outside the main thread, where Python delivers no signals, it does nothing."""
    interrupts: list = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.getsignal(signal.SIGINT)

    def hold(signum, frame):
        interrupts.append(signum)
        if len(interrupts) > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hold)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def check_device(name: str) -> torch.device:
    """The device of this name, or a ValueError saying that it is not there."""
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device: got {name!r}, which cannot be used here "
                         f"({str(error).splitlines()[0]})") from None
    return device
