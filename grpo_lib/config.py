"""What a run is told (``GRPOConfig``) and what each of its steps reports (``StepMetrics``)."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, field, fields, replace

from grpo_lib.advantages import Baseline, Scale
from grpo_lib.algorithms import ALGORITHMS, CHOICES, Algorithm
from grpo_lib.objective import Aggregation, KLEstimator, RatioLevel, Surrogate
from grpo_lib.support.checkpoint import json_text
from grpo_lib.support.checks import check_choice, check_settings, check_whole, setting, settle


def of_row(name: str):
    """A choice of the algorithm: None means its row's."""
    return setting(None, Algorithm.__dataclass_fields__[name].metadata["about"], checked=False)


@dataclass(frozen=True)
class GRPOConfig:
    """The settings of a run. Every field is an option of ``python -m grpo_lib train``.

    ``algorithm`` names a row of ``ALGORITHMS``; the choices that follow it are None, which
    means the row's, or override it. ``choices`` is the row with the overrides. Without an
    algorithm: the row "grpo" with aggregation="token_mean", as TRL's trainer has it.

    ValueError: what is not allowed, or contradicts itself. A warning: a choice that
    changes nothing, or that has a side effect few expect.

    TRL's names where they differ: group_size is num_generations, scale is scale_rewards,
    micro_batch_size is per_device_train_batch_size, ratio is importance_sampling_level,
    aggregation and surrogate together are loss_type.
    """

    steps: int = setting(50, "rollout-and-update steps in the whole run", least=0)
    prompts_per_step: int = setting(32, "problems sampled at each step (N)", least=1)
    group_size: int = setting(16, "completions of each problem (G)", least=1)
    temperature: float = setting(1.0, "logits are divided by this, in sampling and in scoring",
                                 above=0)
    algorithm: str | None = setting(None, "row of the table of algorithms that the choices below "
                                          "start from (none: grpo, but with aggregation "
                                          "token_mean, as TRL's default)")
    baseline: Baseline | None = of_row("baseline")
    scale: Scale | None = of_row("scale")
    std_eps: float | None = of_row("std_eps")
    whiten: bool | None = of_row("whiten")
    critic: bool | None = of_row("critic")
    gamma: float | None = of_row("gamma")
    gae_lambda: float | None = of_row("gae_lambda")
    ratio: RatioLevel | None = of_row("ratio")
    surrogate: Surrogate | None = of_row("surrogate")
    epsilon: float | None = of_row("epsilon")
    epsilon_high: float | None = of_row("epsilon_high")
    delta: float | None = of_row("delta")
    sapo_temperature_pos: float | None = of_row("sapo_temperature_pos")
    sapo_temperature_neg: float | None = of_row("sapo_temperature_neg")
    beta: float | None = of_row("beta")
    kl: KLEstimator | None = of_row("kl")
    kl_in_reward: bool | None = of_row("kl_in_reward")
    use_bias_correction_kl: bool | None = of_row("use_bias_correction_kl")
    aggregation: Aggregation | None = of_row("aggregation")
    entropy_coef: float | None = of_row("entropy_coef")
    top_entropy_quantile: float | None = of_row("top_entropy_quantile")
    off_policy_mask_threshold: float | None = of_row("off_policy_mask_threshold")
    dynamic_sampling: bool | None = of_row("dynamic_sampling")
    mask_truncated_completions: bool | None = of_row("mask_truncated_completions")
    overlong_share: float | None = of_row("overlong_share")
    max_num_gen_batches: int = setting(4, "with dynamic sampling: batches sampled for one step at "
                                          "most", least=1)
    num_iterations: int = setting(1, "passes over each batch of completions", least=1)
    minibatches: int = setting(2, "gradient steps in each pass", least=1)
    micro_batch_size: int | None = setting(None, "completions that go through the policy together, "
                                                 "in scoring and in an update: less memory, the "
                                                 "same gradient (none: all)", least=1)
    learning_rate: float = setting(5e-4, "of AdamW, betas .9 and .95, no weight decay", above=0)
    value_learning_rate: float = setting(1e-3, "the same for a critic's value model", above=0)
    max_grad_norm: float = setting(1.0, "gradients longer than this are shortened to it", above=0)
    measure_kl: bool = setting(True, "at beta 0 too, score completions with the base model for the "
                                     "metric kl (False: a step takes less time)")
    eval_every: int = setting(5, "steps between held-out evaluations (0: none)", least=0)
    eval_problems: int = setting(200, "held-out problems in each of them", least=1)
    seed: int = setting(0, "of the generator that everything random in the run is drawn from",
                        least=0)
    device: str = setting("cpu", "where the policy is trained: cpu or cuda")

    def __post_init__(self):
        if self.algorithm is not None:
            check_choice("algorithm", self.algorithm, ALGORITHMS)
        if isinstance(self.epsilon_high, str) and self.epsilon_high == "inf":  # from a file
            settle(self, epsilon_high=math.inf)
        if self.surrogate is not None and not isinstance(self.surrogate, str):
            raise ValueError(f"surrogate: got {self.surrogate!r}, allowed here is a name (put a "
                             f"function into a row of ALGORITHMS)")
        choices = self.choices
        if choices.needs_group:
            check_whole("group_size", self.group_size, 2,
                        " (a completion is compared with the others of its group)")
        check_settings(self)
        settle(self, **{name: getattr(choices, name) for name in CHOICES
                        if getattr(self, name) is not None})
        if not isinstance(self.device, str):
            raise ValueError(f"device: got {self.device!r}, allowed is a device's name")
        if self.minibatches > self.prompts_per_step * self.group_size:
            raise ValueError(f"minibatches: got {self.minibatches}, allowed are at most the "
                             f"{self.prompts_per_step * self.group_size} completions of a step")
        if self.micro_batch_size is not None:
            self.check_parts("micro_batch_size", self.micro_batch_size)
        for warning in self.warnings():
            warnings.warn(warning, stacklevel=3)

    def check_parts(self, name: str, value: int) -> None:
        """ValueError where a gradient step cannot be taken in parts, as ``name`` would have it:
        where rows meet otherwise than in the mean that ``aggregation`` takes."""
        choices = self.choices
        for reason, meets in (
                ("a critic", choices.critic),
                ("top_entropy_quantile below 1", choices.top_entropy_quantile < 1),
                ("entropy_coef and another aggregation than token_mean",
                 choices.entropy_coef != 0 and choices.aggregation != "token_mean")):
            if meets:
                raise ValueError(f"{name}: got {value} with {reason}, which needs all rows of a "
                                 f"gradient step at once")

    @property
    def row(self) -> Algorithm:
        """The row of ``ALGORITHMS`` that the choices start from."""
        if self.algorithm is None:
            return replace(ALGORITHMS["grpo"], aggregation="token_mean")
        return ALGORITHMS[self.algorithm]

    @property
    def choices(self) -> Algorithm:
        """The row with this config's overrides."""
        return replace(self.row, **{name: getattr(self, name) for name in CHOICES
                                    if getattr(self, name) is not None})

    def warnings(self) -> list[str]:
        """What is allowed but probably not meant, with what will happen."""
        choices, row = self.choices, self.row
        found = [f"{name}: {getattr(self, name)!r} will change nothing, since {why}"
                 for name, why in choices.idle_choices().items()
                 if getattr(self, name) not in (None, getattr(row, name))]
        if choices.ratio in ("sequence", "sequence_sum") and (
                choices.aggregation not in ("sequence_mean", "nonempty_sequence_mean")):
            found.append(f"aggregation: {choices.aggregation!r} with ratio={choices.ratio!r} will "
                         f"count a completion's one value once for each of its tokens, so that "
                         f"long completions weigh more; 'sequence_mean' counts each once")
        return found

    def to_dict(self) -> dict:
        """All settings as JSON values, the row's filled in: a run is then described whole. An
        infinite epsilon_high, which JSON does not have, is the text "inf"."""
        filled = {name: getattr(self.choices, name) for name in CHOICES}
        filled = asdict(self) | {n: value for n, value in filled.items() if not callable(value)}
        return {name: "inf" if value == math.inf else value for name, value in filled.items()}


def metric(about: str):
    return field(metadata={"about": about})


@dataclass(frozen=True)
class StepMetrics:
    """What one step did. It describes the completions that the step sampled, so the policy
    *before* the step's update; entropy, ratios, clip fractions, loss and gradient are read
    during the update, and held_out_accuracy after it. A number that is not finite is
    written as null in files."""

    step: int = metric("number of the step, from 1")
    reward_mean: float | None = metric("mean reward of the step's completions; here and in kl, "
                                       "entropy, ratios and loss those from which the reward "
                                       "abstained do not count (null: it abstained from all)")
    reward_std: float | None = metric("standard deviation (n - 1) of those rewards over the whole "
                                      "batch")
    zero_variance_groups: float = metric("share of groups whose rewards are all equal, which "
                                         "teach nothing")
    accuracy: float = metric("share of completions that the verifier calls right")
    held_out_accuracy: float | None = metric("the same on held-out problems, after this step's "
                                             "update; null where not measured")
    length: float = metric("mean tokens in a completion, end-of-sequence counted")
    length_right: float | None = metric("the same over the right completions; null if none")
    length_wrong: float | None = metric("the same over the wrong completions; null if none")
    finished: float = metric("share of completions that ended with end-of-sequence")
    entropy: float | None = metric("mean entropy of the next-token distributions, in nats, over "
                                   "the first pass of the update")
    kl: float | None = metric("mean k3 estimate per token of KL(policy || base model), in nats; "
                              "null where not measured")
    ratio_min: float = metric("smallest importance ratio of any token in the update")
    ratio_max: float = metric("largest importance ratio of any token in the update")
    clip_fraction_low: float = metric("share of tokens blocked at 1 - epsilon (advantage < 0), "
                                      "mean over the gradient steps")
    clip_fraction_high: float = metric("share of tokens blocked at 1 + epsilon_high "
                                       "(advantage > 0), mean over the gradient steps")
    loss: float = metric("the loss, mean over the gradient steps; it says little, watch the reward")
    grad_norm: float = metric("length of the gradient before it is shortened, mean over the "
                              "gradient steps")
    tokens: int = metric("tokens sampled in this step")
    seconds_rollout: float = metric("seconds spent sampling")
    seconds_scoring: float = metric("seconds spent on rewards, advantages and the base model's "
                                    "log-probs")
    seconds_update: float = metric("seconds spent on the gradient steps")
    seconds_evaluation: float = metric("seconds spent on held-out problems")
    rewards: dict[str, float | None] = field(default_factory=dict, metadata={
        "about": "with several rewards: rewards/<name>/mean and rewards/<name>/std of each, before "
                 "it is weighed, over the completions from which it did not abstain; in files each "
                 "stands beside the other metrics"})

    def to_dict(self) -> dict:
        """All metrics by name, those of several rewards among the others."""
        values = asdict(self)
        parts = values.pop("rewards")
        return values | parts

    def to_json(self) -> str:
        """The same as a line of JSON, rounded to six digits."""
        return json_text({name: round(value, 6) if isinstance(value, float) else value
                          for name, value in self.to_dict().items()})


def measured(value: float | None, form: str) -> str:
    """A metric in a line of text."""
    return "not measured" if value is None else format(value, form)


def describe_fields(cls) -> dict[str, str]:
    """Field name -> its sentence, for GRPOConfig and StepMetrics."""
    return {f.name: f.metadata["about"] for f in fields(cls)}


def config_line(config: GRPOConfig) -> str:
    """Python that makes this config: ``GRPOConfig(steps=40, epsilon=0.1)``."""
    differ = [f"{f.name}={getattr(config, f.name)!r}" for f in fields(config)
              if getattr(config, f.name) != f.default]
    return f"GRPOConfig({', '.join(differ)})"
