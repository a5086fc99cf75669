"""The GRPO training loop: sample groups, score them, take a few gradient steps, and repeat.

Which algorithm of the family it runs is the config's ``choices``, a row of ``algorithms``.

What production trainers have and this one does not: weights spread over devices, learning-rate
schedules, and rollouts by a separate engine. One process, unless ``torchrun`` starts several
(``processes``).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grpo_lib.batches import Batch
from grpo_lib.config import GRPOConfig, StepMetrics
from grpo_lib.critic import Critic, ValueModel
from grpo_lib.dynamic_sampling import collect
from grpo_lib.evaluation import evaluate
from grpo_lib.objective import kl_estimate
from grpo_lib.policy import Policy
from grpo_lib.rollout import CompletionLogits, Rollouts, completion_log_probs, sample_groups
from grpo_lib.support.batch_metrics import batch_metrics
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
from grpo_lib.support.notices import doing, notices_of, warn
from grpo_lib.support.optim import (
    adamw,
    check_finite,
    locate_nonfinite,
    nonfinite_names,
)
from grpo_lib.support.processes import Processes, check_processes
from grpo_lib.support.rewards import Scores
from grpo_lib.support.signals import finish_step_first
from grpo_lib.support.stopwatch import Stopwatch
from grpo_lib.support.trainer_state import (
    load_trainer,
    save_reference,
    save_trainer,
    tell_other_settings,
)
from grpo_lib.tasks.base import Problem, Task
from grpo_lib.update import NoGradientError, gradient_step, update

BUILT_WITH = ("seed", "device", "eval_every", "eval_problems")  # cannot change after construction


class GRPOTrainer:
    """Trains ``policy`` on ``task`` by GRPO, or by another row of ``ALGORITHMS``.

        for metrics in GRPOTrainer(policy, task, GRPOConfig(steps=10)).run():
            print(metrics.step, metrics.reward_mean)

    ``ref_policy`` is what the KL is measured against; None: a frozen copy of the policy as given.
    ``value_model``: what an algorithm with a critic (``algorithm="ppo"``) trains beside it.
    ``sampler``: ``sample_groups``, or another of its kind (``huggingface.generate_groups``).
    ``processes``: those of a distributed run; each has its own trainer.
    After a step, ``problems``, ``rollouts``, ``rewards`` (N, G) and ``advantages`` hold its batch,
    the last (N, G), or (N * G, T) where each token has its own; ``history`` all metrics so far.
    """

    def __init__(self, policy: Policy, task: Task, config: GRPOConfig,
                 ref_policy: nn.Module | None = None, value_model: ValueModel | None = None, *,
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
        assert isinstance(policy, nn.Module)  # for type checkers, which do not know it yet
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
        self.completion_logits = self.processes.wrap(  # copies process 0's weights to all
            CompletionLogits(self.policy))
        if ref_policy is None or unwrapped(ref_policy) is unwrapped(policy):
            ref_policy = copy.deepcopy(unwrapped(policy))
        check_apart(policy, ref_policy)
        self.ref_policy = ref_policy.to(self.device).requires_grad_(False)
        self.task, self.config = task, config
        self.optimizer = adamw((p for p in policy.parameters() if p.requires_grad),
                               config.learning_rate)
        self.critic = None if value_model is None else Critic(
            value_model.to(self.device), config.value_learning_rate, config.max_grad_norm)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.held_out = task.held_out(config.eval_problems) if config.eval_every else []
        self.step_count = 0
        self.half_updated = False  # an update was interrupted: do not save its weights
        self.stepped = False  # a gradient step of the newest update has been taken
        self.history: list[StepMetrics] = []
        self.tell: Callable[[str], None] = warn  # how a person hears what is odd about a step
        self.told: set[str] = set()  # each kind once
        self.problems: list[Problem] = []
        self.rollouts: Rollouts | None = None
        self.rewards: Tensor | None = None
        self.advantages: Tensor | None = None
        self.returns: Tensor | None = None  # (N * G, T), with a critic
        self.counted: Tensor | None = None  # (N, G), in a step: where the reward did not abstain

    def run(self, steps: int | None = None) -> Iterator[StepMetrics]:
        """Take ``steps`` steps (None: what is left of config.steps), yielding their metrics.

        Ctrl-C, or a notebook's stop button, takes effect between steps: KeyboardInterrupt
        comes after the step's metrics, and calling ``run`` again goes on as if nothing had
        happened. (Press twice to stop at once.)
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
                raise ValueError(f"{name}: got {getattr(config, name)!r}, cannot change "
                                 f"after construction; allowed is {getattr(self.config, name)!r}")
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
        """Sample, score, update, measure.

        FloatingPointError: something is nan or inf; it says what, and at which step. After an error
        before the first gradient step, the generator stands where it stood before the step.
        """
        check_gradients_on("step")
        # eval mode: with dropout the ratio would not be 1 at the first gradient step
        with (explain_out_of_memory(partial(doing, self)), locate_nonfinite(self),
              eval_mode(*self.modules().values())):
            return self._step()

    def _step(self) -> StepMetrics:
        clock = Stopwatch("rollout", "scoring", "update", "evaluation")
        with self.restore_generator_on_error():
            everything, batch = collect(self, clock)
            with clock("scoring"):
                advantages = self.advantages_of(batch)
        self.problems, self.rollouts = batch.problems, batch.rollouts
        self.rewards, self.counted = batch.scores.rewards, batch.counted
        self.advantages = advantages if advantages.dim() == 2 else advantages.view_as(self.rewards)
        self.half_updated, self.stepped = True, False
        with clock("update"), self.restore_until_first_gradient_step():
            updates = self.update(batch.rollouts, self.advantages, batch.ref_log_probs)
        with clock("evaluation"):
            held_out = self.held_out_accuracy()
        seconds: dict[str, Any] = {f"seconds_{name}": s for name, s in clock.seconds.items()}
        metrics = StepMetrics(step=self.step_count + 1, held_out_accuracy=held_out,
                              **batch_metrics(everything), **updates, **seconds)
        # set together at the end, so that every counted step has its metrics
        self.half_updated, self.step_count = False, self.step_count + 1
        self.history.append(metrics)
        self.say_once(**notices_of(metrics, self.rewards, self.advantages,
                                   self.task.max_new_tokens))
        return metrics

    @contextmanager
    def restore_generator_on_error(self) -> Iterator[None]:
        """Put the generator back after an error."""
        state = self.state_before = self.generator.get_state()
        try:
            yield
        except BaseException:
            self.generator.set_state(state)
            raise

    @contextmanager
    def restore_until_first_gradient_step(self) -> Iterator[None]:
        """Put the generator back after an error before the first gradient step."""
        try:
            yield
        except (FloatingPointError, NoGradientError):
            if self.half_updated and not self.stepped:
                self.generator.set_state(self.state_before)
                self.half_updated = False
            raise
        finally:
            self.counted = None

    def advantages_of(self, batch: Batch) -> Tensor:
        """The algorithm's advantages of a batch: (N * G,), or (N * G, T), one for each token."""
        rollouts, counted = batch.rollouts, batch.counted.to(batch.rollouts.mask.device)
        rewards = batch.scores.rewards.to(counted.device).masked_fill(~counted, 0.0)
        rewards = rewards.to(torch.promote_types(rewards.dtype, rollouts.log_probs.dtype))
        kl = values = None
        if batch.ref_log_probs is not None:
            kl = kl_estimate(rollouts.log_probs, batch.ref_log_probs, self.algorithm.kl)
        if self.critic is not None:
            values = self.critic.values(rollouts)
        check_finite(log_probs=rollouts.log_probs, ref_log_probs=batch.ref_log_probs, values=values)
        if values is not None:
            self.returns = self.algorithm.returns(rewards, rollouts.mask, values, kl=kl)
        advantages = self.algorithm.advantages(rewards, rollouts.mask, kl=kl, values=values,
                                               counted=None if counted.all() else counted)
        check_finite(advantages=advantages)
        return advantages

    def held_out_accuracy(self) -> float | None:
        """The accuracy on held-out problems, if it is measured after this step."""
        config = self.config
        if not config.eval_every or (self.step_count + 1) % config.eval_every:
            return None
        return evaluate(self.policy, self.task, self.held_out, device=self.device,
                        temperature=config.temperature, sampler=self.sampler).accuracy

    def say_once(self, **found: str | None) -> None:
        """Tell a person what was found, each kind once in a run; None: nothing was."""
        for name, text in found.items():
            if text and name not in self.told:
                self.told.add(name)
                if self.processes.rank == 0:
                    self.tell(text)

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
        return scores, self.processes.gather(nn.functional.pad(ref, (0, missing)))

    def update(self, rollouts: Rollouts, advantages: Tensor, ref_log_probs: Tensor | None) -> dict:
        """The gradient steps on one batch (``update.update``); its share of the metrics.
        Advantages are (N, G), or (N * G, T) where each token has its own."""
        return update(self, rollouts, advantages, ref_log_probs)

    def gradient_step(self, *batch, **options) -> dict[str, float]:
        """One step of the optimizer on some rows of a batch (``update.gradient_step``)."""
        return gradient_step(self, *batch, **options)

    def modules(self) -> dict[str, nn.Module]:
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
