"""What a run is told (``GRPOConfig``) and what each of its steps reports (``StepMetrics``)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields

from grpo_lib.advantages import BASELINES, SCALES
from grpo_lib.objective import AGGREGATIONS, KLS, RATIOS, check_choice, check_clip


def setting(default, about: str):
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class GRPOConfig:
    """The settings of a run. Every field is an option of ``python -m grpo_lib train``.

    TRL's names where they differ: group_size is num_generations, scale is scale_rewards,
    ratio is importance_sampling_level, aggregation is loss_type.
    """

    steps: int = setting(50, "rollout-and-update steps in the whole run")
    prompts_per_step: int = setting(32, "problems sampled at each step (N)")
    group_size: int = setting(16, "completions of each problem (G)")
    temperature: float = setting(1.0, "logits are divided by this, in sampling and in scoring")
    epsilon: float = setting(0.2, "the ratio is clipped at 1 - epsilon")
    epsilon_high: float | None = setting(None, "and at 1 + epsilon_high (none: epsilon)")
    delta: float | None = setting(None, "cap on the unclipped ratio where the advantage is "
                                        "negative (none: no cap)")
    beta: float = setting(0.0, "weight of the KL distance to the base model in the loss")
    kl: str = setting("k3", "estimator of that distance: k1, k2 or k3")
    use_bias_correction_kl: bool = setting(False, "weigh each token's estimate by its ratio, true "
                                                  "or false")
    baseline: str = setting("mean", "what a reward is compared with: mean, leave_one_out or none")
    scale: str = setting("group", "whose std advantages are divided by: group, batch or none")
    std_eps: float = setting(1e-4, "added to that std")
    ratio: str = setting("token", "importance ratio of each token, or of the whole sequence")
    aggregation: str = setting("token_mean", "what the loss averages over: sequence_mean (the "
                                             "paper's), token_mean (TRL's default) or constant")
    num_iterations: int = setting(1, "passes over each batch of completions")
    minibatches: int = setting(2, "gradient steps in each pass")
    learning_rate: float = setting(5e-4, "of AdamW, betas .9 and .95, no weight decay")
    max_grad_norm: float = setting(1.0, "gradients longer than this are shortened to it")
    eval_every: int = setting(5, "steps between held-out evaluations (0: none)")
    eval_problems: int = setting(200, "held-out problems in each of them")
    seed: int = setting(0, "of the generator that everything random in the run is drawn from")
    device: str = setting("cpu", "where the policy is trained: cpu or cuda")

    def __post_init__(self):
        whole = {"steps": 0, "prompts_per_step": 1, "group_size": 2, "num_iterations": 1,
                 "minibatches": 1, "eval_every": 0, "eval_problems": 1, "seed": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                why = (" (a completion is compared with the others of its group)"
                       if name == "group_size" else "")
                raise ValueError(f"{name}: got {value!r}, allowed is a whole number from "
                                 f"{least}{why}")
        for name in ("temperature", "learning_rate", "max_grad_norm", "std_eps", "beta"):
            value = getattr(self, name)
            positive = name in ("temperature", "learning_rate", "max_grad_norm")
            if not (isinstance(value, (int, float)) and 0 <= value < float("inf")) or (
                    positive and value == 0):
                raise ValueError(f"{name}: got {value!r}, allowed is a finite number "
                                 f"{'above' if positive else 'from'} 0")
        if self.seed >= 2**63 or not isinstance(self.device, str):
            raise ValueError(f"seed, device: got {self.seed!r}, {self.device!r}; allowed are a "
                             f"seed below 2**63 and a device's name")
        check_clip(self.epsilon, self.epsilon_high, self.delta)
        for name, allowed in (("kl", KLS), ("baseline", BASELINES), ("scale", SCALES),
                              ("ratio", RATIOS), ("aggregation", AGGREGATIONS)):
            check_choice(name, getattr(self, name), allowed)
        if not isinstance(self.use_bias_correction_kl, bool):
            raise ValueError(f"use_bias_correction_kl: got {self.use_bias_correction_kl!r}, "
                             f"allowed are True and False")
        if self.minibatches > self.prompts_per_step * self.group_size:
            raise ValueError(f"minibatches: got {self.minibatches}, allowed are at most the "
                             f"{self.prompts_per_step * self.group_size} completions of a step")

    def to_dict(self) -> dict:
        return asdict(self)


def metric(about: str):
    return field(metadata={"about": about})


@dataclass(frozen=True)
class StepMetrics:
    """What one step did. It describes the completions that the step sampled, so the policy
    *before* the step's update; entropy, ratios, clip fractions, loss and gradient are read
    during the update, and held_out_accuracy after it."""

    step: int = metric("number of the step, from 1")
    reward_mean: float = metric("mean reward of the step's completions")
    reward_std: float = metric("standard deviation (n - 1) of those rewards over the whole batch")
    zero_variance_groups: float = metric("share of groups whose rewards are all equal, which "
                                         "teach nothing")
    accuracy: float = metric("share of completions that the verifier calls right")
    held_out_accuracy: float | None = metric("the same on held-out problems, after this step's "
                                             "update; null where not measured")
    length: float = metric("mean tokens in a completion, end-of-sequence counted")
    length_right: float | None = metric("the same over the right completions; null if none")
    length_wrong: float | None = metric("the same over the wrong completions; null if none")
    finished: float = metric("share of completions that ended with end-of-sequence")
    entropy: float = metric("mean entropy of the next-token distributions, in nats, over the "
                            "first pass of the update")
    kl: float = metric("mean k3 estimate per token of KL(policy || base model), in nats")
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

    def to_json(self) -> str:
        return json.dumps({name: round(value, 6) if isinstance(value, float) else value
                           for name, value in asdict(self).items()})


def describe_fields(cls) -> dict[str, str]:
    """Field name -> its sentence, for GRPOConfig and StepMetrics."""
    return {f.name: f.metadata["about"] for f in fields(cls)}
