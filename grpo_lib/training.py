"""The GRPO training loop: sample groups, score them, take a few gradient steps, again.

Which algorithm of the family it runs is the config's ``choices``, a row of ``algorithms``.

Left out of production trainers: weights spread over devices, learning-rate schedules, and
rollouts by a separate engine. One process, unless ``torchrun`` starts several (``processes``).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lib.advantages import informative_groups
from grpo_lib.config import GRPOConfig, StepMetrics
from grpo_lib.critic import Critic, ValueModel
from grpo_lib.evaluation import evaluate
from grpo_lib.objective import aggregate, aggregation_share, kl_estimate
from grpo_lib.policy import Policy, token_entropy, token_log_probs
from grpo_lib.rollout import Rollouts, completion_log_probs, completion_logits, sample_groups
from grpo_lib.support.batch_metrics import NO_UPDATE, batch_metrics
from grpo_lib.support.checks import check_whole, explain_out_of_memory, usable_device
from grpo_lib.support.modules import (
    check_apart,
    check_gradients_on,
    check_policy,
    check_trainable,
    check_vocabulary,
    eval_mode,
    named_weights,
    unwrapped,
)
from grpo_lib.support.notices import not_finite, nothing_to_learn, warn
from grpo_lib.support.off_policy import off_policy
from grpo_lib.support.optim import (
    adamw,
    check_finite,
    clip_grad_norm,
    locate_nonfinite,
    nonfinite_names,
)
from grpo_lib.support.processes import Processes, check_processes
from grpo_lib.support.signals import finish_step_first
from grpo_lib.support.trainer_state import (
    load_trainer,
    save_reference,
    save_trainer,
    tell_other_settings,
)
from grpo_lib.tasks.base import Problem, Task
from grpo_lib.tasks.scoring import RewardError, Scores

BUILT_WITH = ("seed", "device", "eval_every", "eval_problems")  # settings that stay


class NoGradientError(RuntimeError):
    """The loss has no gradient to train by."""


class Batch(NamedTuple):
    """N problems with their scored completions; row n * G + g."""

    problems: list[Problem]
    rollouts: Rollouts
    scores: Scores
    ref_log_probs: Tensor | None  # (N * G, T)

    @property
    def counted(self) -> Tensor:
        """Where the reward did not abstain: bool (N, G)."""
        return ~self.scores.rewards.isnan()

    @staticmethod
    def join(parts: list[Batch]) -> Batch:
        """Several batches as one."""
        rollouts = Rollouts.join([part.rollouts for part in parts])
        width = rollouts.mask.shape[1]
        ref = [torch.nn.functional.pad(p.ref_log_probs, (0, width - p.ref_log_probs.shape[1]))
               for p in parts if p.ref_log_probs is not None]
        return Batch([problem for p in parts for problem in p.problems], rollouts,
                     Scores.join([p.scores for p in parts]), torch.cat(ref) if ref else None)

    def groups(self, which: Tensor) -> Batch:
        """Some of its groups: indices (n,)."""
        size = self.rollouts.group_size
        rows = (which[:, None] * size + torch.arange(size)).flatten().to(self.rollouts.mask.device)
        rollouts = self.rollouts.select(rows)
        return Batch([self.problems[n] for n in which.tolist()], rollouts,
                     self.scores.groups(which),
                     rows_of(self.ref_log_probs, rows, rollouts.mask.shape[1]))


class GRPOTrainer:
    """Trains ``policy`` on ``task`` by GRPO, or by another row of ``ALGORITHMS``.

        for metrics in GRPOTrainer(policy, task, GRPOConfig(steps=10)).run():
            print(metrics.step, metrics.reward_mean)

    ``ref_policy`` is what KL is measured to; None: a frozen copy of the policy as given.
    ``value_model``: what an algorithm with a critic (``algorithm="ppo"``) trains beside it.
    ``sampler``: ``sample_groups``, or another of its kind (``huggingface.generate_groups``).
    ``processes``: those that share the work, each with a trainer like this one.
    After a step, ``problems``, ``rollouts``, ``rewards`` (N, G) hold what it was made of,
    ``advantages`` (N, G), or (N * G, T) where the tokens of a completion differ, and
    ``history`` all metrics so far.
    """

    def __init__(self, policy: Policy, task: Task, config: GRPOConfig,
                 ref_policy: Policy | None = None, value_model: ValueModel | None = None, *,
                 sampler: Callable[..., Rollouts] = sample_groups,
                 processes: Processes | None = None):
        if not isinstance(config, GRPOConfig):
            raise TypeError(f"config: got a {type(config).__name__}, must be a GRPOConfig, as "
                            f"GRPOConfig(steps=50)")
        self.algorithm = config.choices
        if self.algorithm.critic != (value_model is not None):
            allowed = ("ValueModel(policy), which the algorithm's critic needs"
                       if self.algorithm.critic else "None, since the algorithm has no critic")
            raise ValueError(f"value_model: got {type(value_model).__name__} with algorithm="
                             f"{config.algorithm!r}, allowed is {allowed}")
        check_policy(policy)
        if isinstance(task, type) or not hasattr(task, "tokenizer"):
            came = f"the class {task.__name__}" if isinstance(task, type) else \
                f"a {type(task).__name__}"
            raise TypeError(f"task: got {came}, must be a task, as ChainTask()")
        check_trainable("policy", policy)
        check_vocabulary(policy, task.tokenizer)
        self.processes = processes or Processes()
        self.sampler = self.processes.sampler(sampler)
        check_processes(config, self.processes.size)
        self.device = usable_device(config.device)
        self.policy = policy.to(self.device)
        self.wrapped = self.processes.wrap(self.policy)  # which gives all the first one's weights
        own = ref_policy is not None and unwrapped(ref_policy) is not unwrapped(policy)
        self.ref_policy = ref_policy if own else copy.deepcopy(unwrapped(policy))
        check_apart(policy, self.ref_policy)
        self.ref_policy.to(self.device).requires_grad_(False)
        self.task, self.config = task, config
        self.optimizer = adamw((p for p in policy.parameters() if p.requires_grad),
                               config.learning_rate)
        self.critic = None if value_model is None else Critic(
            value_model.to(self.device), config.value_learning_rate, config.max_grad_norm)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.held_out = task.held_out(config.eval_problems) if config.eval_every else []
        self.step_count = 0
        self.half_updated = False  # an update was broken off: weights belong to no step
        self.stepped = False  # a gradient step of the newest update has been taken
        self.history: list[StepMetrics] = []
        self.tell: Callable[[str], None] = warn  # how a person hears what is odd about a step
        self.told: set[str] = set()  # each kind once
        self.problems: list[Problem] = []
        self.rollouts: Rollouts | None = None
        self.rewards = self.advantages = self.returns = None
        self.counted: Tensor | None = None  # (N, G), in a step: where the reward did not abstain

    def run(self, steps: int | None = None) -> Iterator[StepMetrics]:
        """Take ``steps`` steps (None: what is left of config.steps), yielding their metrics.

        Ctrl-C, or a notebook's stop button, takes effect between steps: KeyboardInterrupt
        comes after the step's metrics, and calling ``run`` again goes on as if nothing had
        happened. (Twice means at once.)
        """
        if steps is None:
            steps = self.config.steps - self.step_count
        else:
            steps = check_whole("steps", steps, 0)
        for _ in range(steps):
            with finish_step_first() as interrupted:
                metrics = self.step()
            yield metrics
            if interrupted:
                raise KeyboardInterrupt

    def change(self, config: GRPOConfig) -> None:
        """Other settings from the next step on; weights, optimizer and generator stay.

        ValueError: one that the trainer was built with (``BUILT_WITH``) differs, or the critic
        would have to come or go. Nothing has changed then.
        """
        for name in BUILT_WITH:
            if getattr(config, name) != getattr(self.config, name):
                raise ValueError(f"{name}: got {getattr(config, name)!r}, allowed in a trainer "
                                 f"that is built is {getattr(self.config, name)!r}")
        if config.choices.critic != self.algorithm.critic:
            raise ValueError(f"algorithm: got {config.algorithm!r}, allowed are rows "
                             f"{'with' if self.algorithm.critic else 'without'} a critic, as the "
                             f"one that the trainer was built with")
        check_processes(config, self.processes.size)
        self.config, self.algorithm = config, config.choices
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate
        if self.critic is not None:
            self.critic.change(config.value_learning_rate, config.max_grad_norm)

    def step(self) -> StepMetrics:
        """Sample, score, update, measure. An error before the update leaves no trace.

        FloatingPointError: something is nan or inf; it says what, and at which step. If no
        gradient step of the update had been taken, that leaves no trace either.
        """
        check_gradients_on("step")
        with (explain_out_of_memory(self.doing), locate_nonfinite(self),
              eval_mode(*self.modules().values())):
            return self._step()

    def doing(self) -> tuple[str, str]:
        """What is being done, and how it would take less memory."""
        config = self.config
        what = "the update" if self.half_updated else "sampling and scoring"
        advice = (f"prompts_per_step and group_size (now {config.prompts_per_step} x "
                  f"{config.group_size}) make it smaller")
        try:
            config.check_parts("micro_batch_size", 1)
        except ValueError:  # rows of a gradient step belong together
            return f"{what} of step {self.step_count + 1}", advice
        return f"{what} of step {self.step_count + 1}", (
            f"micro_batch_size (now {config.micro_batch_size}) makes updates and scoring smaller "
            f"without changing a number; {advice}, sampling too")

    def _step(self) -> StepMetrics:
        config, state = self.config, self.generator.get_state()
        try:
            everything, batch, seconds_rollout, seconds_scoring = self.gather()
            start = time.perf_counter()
            rollouts = batch.rollouts
            kl = values = None
            if batch.ref_log_probs is not None:
                kl = kl_estimate(rollouts.log_probs, batch.ref_log_probs, self.algorithm.kl)
            counted = batch.counted.to(rollouts.mask.device)
            rewards = batch.scores.rewards.to(rollouts.mask.device).masked_fill(~counted, 0.0)
            if self.critic is not None:
                values = self.critic.values(rollouts)
            check_finite(log_probs=rollouts.log_probs, ref_log_probs=batch.ref_log_probs,
                         values=values)
            if self.critic is not None:
                self.returns = self.algorithm.returns(rewards, rollouts.mask, values, kl=kl)
            advantages = self.algorithm.advantages(
                rewards, rollouts.mask, kl=kl, values=values,
                counted=None if counted.all() else counted)
            check_finite(advantages=advantages)
        except BaseException:
            self.generator.set_state(state)
            raise
        self.problems, self.rollouts, self.rewards = (batch.problems, rollouts,
                                                      batch.scores.rewards)
        self.advantages = advantages if advantages.dim() == 2 else advantages.view_as(
            self.rewards)
        self.counted = batch.counted
        self.half_updated, self.stepped = True, False
        scored = time.perf_counter()
        try:
            updates = self.update(rollouts, self.advantages, batch.ref_log_probs)
        except (FloatingPointError, NoGradientError):
            if self.half_updated and not self.stepped:
                self.generator.set_state(state)
                self.half_updated = False
            raise
        finally:
            self.counted = None
        updated = time.perf_counter()
        held_out = None
        if config.eval_every and (self.step_count + 1) % config.eval_every == 0:
            held_out = evaluate(self.policy, self.task, self.held_out, device=self.device,
                                temperature=config.temperature, sampler=self.sampler).accuracy
        metrics = StepMetrics(
            step=self.step_count + 1, held_out_accuracy=held_out, **batch_metrics(everything),
            **updates, seconds_rollout=seconds_rollout,
            seconds_scoring=seconds_scoring + scored - start, seconds_update=updated - scored,
            seconds_evaluation=time.perf_counter() - updated)
        # together, so that a step that is counted has its metrics, whatever evaluation met with
        self.half_updated, self.step_count = False, self.step_count + 1
        self.history.append(metrics)
        self._notice(metrics)
        return metrics

    def _notice(self, metrics: StepMetrics) -> None:
        """Tell, once, what a person should know of a step."""
        found = {}
        abstained = int(self.rewards.isnan().sum())
        nothing = metrics.step == 1 and nothing_to_learn(
            metrics, self.rewards, self.advantages, self.task.max_new_tokens)
        if nothing:
            found["nothing"] = nothing
        elif abstained:
            found["abstained"] = (f"the reward abstained (None) from {abstained} of the "
                                  f"{self.rewards.numel()} completions of step {metrics.step}, "
                                  f"which leave their groups")
        found |= {name: f"{name}: got {metrics.to_dict()[name]} at step {metrics.step}; files say "
                        f"null there" for name in not_finite(metrics)}
        self.say_once(**found)

    def say_once(self, **found: str | None) -> None:
        """Tell a person what was found, each kind once in a run; None: nothing was."""
        for name, text in found.items():
            if text and name not in self.told:
                self.told.add(name)
                if self.processes.rank == 0:
                    self.tell(text)

    def gather(self) -> tuple[Batch, Batch, float, float]:
        """All that this step sampled; what of it is trained on; seconds of each work.

        The two are the same without dynamic sampling (DAPO, 2503.14476 Eq. 11). With it,
        groups without spread are thrown away and as many sampled again, up to
        ``max_num_gen_batches`` batches; if there are too few even then, the step makes do with
        those there are, and with everything if there are none. Spread is that of the task's
        rewards, before long completions are punished.
        """
        parts, rollout, scoring, informative = [], 0.0, 0.0, torch.zeros(0)
        for _ in range(self.config.max_num_gen_batches if self.algorithm.dynamic_sampling else 1):
            start = time.perf_counter()
            problems, rollouts = self.sample()
            sampled = time.perf_counter()
            try:
                scores, ref_log_probs = self.judge(problems, rollouts)
                kept = informative_groups(scores.rewards, ~scores.rewards.isnan())
            except (RewardError, TypeError, ValueError) as error:
                if type(error) not in (RewardError, TypeError, ValueError):
                    raise  # one of another making
                raise type(error)(f"{error}, at step {self.step_count + 1}") from error.__cause__
            shaped = self.algorithm.shaped_rewards(scores.rewards, rollouts.lengths.cpu(),
                                                   self.task.max_new_tokens)
            parts.append(Batch(problems, rollouts, scores._replace(rewards=shaped),
                               ref_log_probs))
            rollout += sampled - start
            scoring += time.perf_counter() - sampled
            informative = torch.cat((informative, kept))
            if informative.sum() >= self.config.prompts_per_step:
                break
        everything = Batch.join(parts)
        which = informative.nonzero().flatten()[: self.config.prompts_per_step]
        if not self.algorithm.dynamic_sampling or len(which) == 0:
            return everything, everything, rollout, scoring
        return everything, everything.groups(which), rollout, scoring

    def sample(self) -> tuple[list[Problem], Rollouts]:
        """New training problems, and a group of completions of each."""
        config = self.config
        rng = random.Random(torch.randint(2**62, (), generator=self.generator).item())
        problems = self.task.problems(config.prompts_per_step, rng)
        rollouts = self.sampler(
            self.policy, [self.task.encode(p) for p in problems],
            config.group_size, max_new_tokens=self.task.max_new_tokens,
            temperature=config.temperature, generator=self.generator,
            eos_id=self.task.tokenizer.eos_id, device=self.device)
        return problems, rollouts

    def score(self, problems: list[Problem], rollouts: Rollouts,
              ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rewards (N, G), nan where the reward abstained, grades (N, G) and the base model's
        log-probs (N*G, T), if needed."""
        scores, ref_log_probs = self.judge(problems, rollouts)
        return scores.rewards, scores.grades, ref_log_probs

    @torch.no_grad()
    def judge(self, problems: list[Problem], rollouts: Rollouts) -> tuple[Scores, Tensor | None]:
        """The task's scores, and the base model's log-probs (N*G, T), if needed."""
        texts = self.task.tokenizer.decode_rows(rollouts.completions, rollouts.mask)
        scores = self.task.scores(problems, texts, rollouts.finished.tolist())
        if not self.config.measure_kl and self.algorithm.beta == 0:
            return scores, None
        rows = self.processes.split(torch.arange(len(texts), device=self.device))
        mine = rollouts if len(rows) == len(texts) else rollouts.select(rows)
        ref = completion_log_probs(self.ref_policy, mine, self.config.micro_batch_size)
        missing = rollouts.mask.shape[1] - ref.shape[1]
        return scores, self.processes.gather(torch.nn.functional.pad(ref, (0, missing)))

    def update(self, rollouts: Rollouts, advantages: Tensor, ref_log_probs: Tensor | None) -> dict:
        """The gradient steps on one batch; returns its share of the metrics.

        Advantages belong to whole groups and are fixed before the rows are shuffled; a
        minibatch may split a group. They are (N, G), or (N * G, T) where tokens differ. In a
        step, rows whose reward abstained take no part.
        """
        config = self.config
        by_token = advantages.shape == rollouts.mask.shape
        row_advantages = (advantages if by_token else advantages.flatten()).to(
            self.device, rollouts.log_probs.dtype)
        # in the precision of the loss: what shares of it are made of
        loss_mask = self.algorithm.loss_mask(rollouts.mask.to(rollouts.log_probs.dtype),
                                             rollouts.finished)
        counted = torch.arange(len(rollouts.tokens)) if self.counted is None else (
            self.counted.flatten().nonzero().flatten())
        counted = counted.to(self.device)
        stats, entropy, tokens = [], 0.0, rollouts.mask[counted].sum().item()
        minibatches, groups = config.minibatches, len(rollouts.tokens) // rollouts.group_size
        if groups < config.prompts_per_step:  # dynamic sampling left few: a group's rows at least
            minibatches = min(minibatches, groups)
        minibatches = min(minibatches, len(counted) // self.processes.size)
        if minibatches == 0:  # the reward abstained from everything
            return NO_UPDATE
        for iteration in range(config.num_iterations):
            order = torch.randperm(len(counted), generator=self.generator).to(self.device)
            for rows in counted[order].tensor_split(minibatches):
                step = self.gradient_step(rollouts, rows, row_advantages, loss_mask, ref_log_probs,
                                          with_entropy=iteration == 0)
                if self.counted is not None and not stats and "ratio" not in self.told:
                    self.say_once(ratio=off_policy(self.policy, rollouts, step))
                if iteration == 0:
                    entropy += step["entropy"] * rollouts.mask[rows].sum().item() / tokens
                stats.append(step)
        if self.nonfinite_weights():
            raise FloatingPointError("weights: the update has made them nan or inf")
        mean = {name: sum(s[name] for s in stats) / len(stats) for name in stats[0]}
        low, high = min(s["ratio_min"] for s in stats), max(s["ratio_max"] for s in stats)
        if low > high:  # no token counted
            low = high = 1.0
        return {"entropy": entropy, "loss": mean["loss"], "grad_norm": mean["grad_norm"],
                "clip_fraction_low": mean["clip_fraction_low"],
                "clip_fraction_high": mean["clip_fraction_high"],
                "ratio_min": low, "ratio_max": high}

    def gradient_step(self, rollouts: Rollouts, rows: Tensor, advantages: Tensor,
                      loss_mask: Tensor, ref_log_probs: Tensor | None, with_entropy: bool,
                      ) -> dict[str, float]:
        """One step of the optimizer on some rows of a batch; what the metrics need of it.

        The rows may go through the policy in parts, and on several processes: each part's loss
        counts by its share in the loss of all, so that the gradient is that of all at once.
        """
        algorithm, processes = self.algorithm, self.processes
        whole, tokens = loss_mask[rows], rollouts.mask[rows].sum()
        mine = processes.split(rows)
        parts = mine.split(self.config.micro_batch_size or len(mine))
        seen: list[dict[str, Tensor]] = []
        self.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts, start=1):
            batch = rollouts.select(part)
            width = batch.mask.shape[1]
            counted = loss_mask[part][:, :width]
            share = aggregation_share(counted, whole, algorithm.aggregation)
            with processes.sync_gradients(last=number == len(parts)):
                logits = completion_logits(self.wrapped, batch)
                output = algorithm.loss(
                    token_log_probs(logits, batch.completions), batch.log_probs,
                    advantages[part, :width] if advantages.dim() == 2 else advantages[part],
                    counted, max_length=self.task.max_new_tokens,
                    ref_log_probs=rows_of(ref_log_probs, part, width),
                    entropies=token_entropy(logits) if algorithm.needs_entropies else None)
                if not output.loss.isfinite():
                    scores = token_log_probs(logits, batch.completions)
                    found = nonfinite_names(
                        [("log_probs", scores.masked_fill(batch.mask == 0, 0.0))])
                    raise FloatingPointError(
                        f"loss: got {output.loss.item()} at step {self.step_count + 1}"
                        f"{' from log_probs' if found else ''}; that gradient step was not taken")
                if not output.loss.requires_grad:
                    raise NoGradientError(
                        "loss: depends on no weight that is trained; either the policy's forward "
                        "computes without gradient (inside torch.no_grad()), or what is not "
                        "frozen has no part in its logits")
                # several processes: their gradients are averaged, and are to be added
                (output.loss * share * processes.size).backward()
            entropy = output.loss.new_zeros(())
            if with_entropy:
                entropy = aggregate(token_entropy(logits.detach()), batch.mask, "token_mean")
            seen.append(output.stats | {
                "loss": output.loss.detach() * share,
                "entropy": entropy * (batch.mask.sum() / tokens),
                "of_tokens": aggregation_share(counted, whole, "token_mean")})
        norm = clip_grad_norm(self.policy, self.config.max_grad_norm, "gradient")
        self.stepped = True
        self.optimizer.step()
        if self.critic is not None:
            self.critic.update(batch, self.returns[part, :width])
        for part in seen:
            for side in ("clip_fraction_low", "clip_fraction_high"):
                part[side] = part[side] * part["of_tokens"]
        return {"grad_norm": norm.item()} | {
            name: processes.reduce(sum(part[name] for part in seen), "sum").item()
            for name in ("loss", "entropy", "clip_fraction_low", "clip_fraction_high")} | {
            "ratio_min": processes.reduce(min(p["ratio_min"] for p in seen), "min").item(),
            "ratio_max": processes.reduce(max(p["ratio_max"] for p in seen), "max").item()}

    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds the weights of, by its name there."""
        critic = {} if self.critic is None else {"value_model": self.critic.value_model}
        return {"policy": self.policy, "ref_policy": self.ref_policy} | critic

    def nonfinite_weights(self) -> list[str]:
        """Names of the weights that hold nan or inf, as in a checkpoint."""
        return [f"{part}.{name}" for part, module in self.modules().items()
                for name in nonfinite_names(named_weights(module).items())]

    def optimizers(self) -> dict[str, tuple]:
        """(module, optimizer) of what is trained, by the name of the state in a checkpoint."""
        critic = {} if self.critic is None else {
            "value_optimizer": (self.critic.value_model, self.critic.optimizer)}
        return {"optimizer": (self.policy, self.optimizer)} | critic

    def save(self, path: Path | str, reference: Path | str | None = None) -> None:
        """Everything needed to go on, bit for bit: weights, optimizer, base model, generator,
        settings. ``reference``: a file of ``save_reference``, which has the base model already.

        RuntimeError if the last update was broken off half-way: ``load`` a checkpoint first.
        """
        if self.half_updated:
            raise RuntimeError(f"save: the update of step {self.step_count + 1} was broken off "
                               f"half-way; load the last checkpoint first")
        save_trainer(self, path, reference)

    def save_reference(self, path: Path | str) -> None:
        """The base model alone, which no step changes, so that checkpoints can refer to it."""
        save_reference(self, path)

    def load(self, path: Path | str) -> None:
        """Go back (or on) to a state written by ``save``; ``history`` is cut to its step.

        The settings come back too, but for ``steps`` and those of ``BUILT_WITH``; where a new
        trainer was made with others, a warning says so.

        CheckpointError: damaged, or of another task or shape; then nothing has changed.
        """
        fresh, made_with = self.step_count == 0, self.config
        load_trainer(self, path)
        if fresh and self.processes.rank == 0:
            tell_other_settings(made_with, self.config, path)
        self.problems, self.rollouts = [], None  # they belong to a step that is not this one
        self.rewards = self.advantages = self.returns = None
        self.history = [m for m in self.history if m.step <= self.step_count]


def rows_of(tensor: Tensor | None, rows: Tensor, width: int) -> Tensor | None:
    """Some rows of (B, T), cut to ``width`` columns, if there is a tensor."""
    return None if tensor is None else tensor[rows, :width]
