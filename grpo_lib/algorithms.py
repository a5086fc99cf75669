"""The GRPO family as one table: each algorithm is a row of choices, all run by the same code.

``ALGORITHMS["dapo"]`` is a row; ``GRPOConfig(algorithm="dapo", epsilon=0.1)`` starts from it
and overrides. A new algorithm is a new row, or one function and a row:

    ALGORITHMS["mine"] = replace(ALGORITHMS["grpo"], about="...", surrogate=my_function)
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from grpo_lib.advantages import (
    BASELINES,
    SCALES,
    check_counted,
    gae,
    group_advantages,
    soft_overlong_punishment,
    token_rewards,
    whiten,
)
from grpo_lib.objective import (
    AGGREGATIONS,
    KLS,
    RATIOS,
    SURROGATES,
    LossOutput,
    check_clip,
    grpo_loss,
)
from grpo_lib.support.checks import check_bool, check_choice, check_number, settle


def choice(default: object, about: str):
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Algorithm:
    """The choices that make an algorithm; the defaults are GRPO's, as in the paper.

    ValueError at once where choices contradict each other.
    """

    about: str = choice("", "what sets it apart, in a line")
    source: str = choice("", "the paper")
    baseline: str = choice("mean", "what a reward is compared with: mean, leave_one_out (both of "
                                   "the group), batch or none")
    scale: str = choice("group", "what advantages are divided by: the std of the group or batch, "
                                 "the group's mean, or none")
    std_eps: float = choice(1e-4, "added to that divisor")
    whiten: bool = choice(False, "whiten the advantages over all tokens of the batch")
    critic: bool = choice(False, "advantages come from a value model (GAE)")
    gamma: float = choice(1.0, "discount of a critic's GAE, a token")
    gae_lambda: float = choice(0.95, "lambda of a critic's GAE")
    ratio: str = choice("token", "importance ratio of each token, or of the whole sequence: token, "
                                 "sequence, sequence_token or sequence_sum")
    surrogate: str | Callable = choice(  # noqa: RUF009
        "clip", "what is maximised: clip, cispo, sapo, gmpo or log_prob")
    epsilon: float = choice(0.2, "the ratio is clipped at 1 - epsilon")
    epsilon_high: float | None = choice(None, "and at 1 + epsilon_high (none: epsilon)")
    delta: float | None = choice(None, "cap on the unclipped ratio where the advantage is "
                                       "negative, the dual clip (none: no cap)")
    sapo_temperature_pos: float = choice(1.0, "of SAPO's gate where the advantage is positive")
    sapo_temperature_neg: float = choice(1.05, "of SAPO's gate where it is not")
    beta: float = choice(0.0, "weight of the KL distance to the base model")
    kl: str = choice("k3", "estimator of that distance: k1, k2 or k3")
    kl_in_reward: bool = choice(False, "take beta times the distance from the reward, not into the "
                                       "loss")
    use_bias_correction_kl: bool = choice(False, "weigh each token's estimate by its ratio, true "
                                                 "or false")
    aggregation: str = choice("sequence_mean", "what the loss averages over: sequence_mean, "
                                               "token_mean, constant, sequence_sum or "
                                               "nonempty_sequence_mean")
    entropy_coef: float = choice(0.0, "weight of the entropy bonus")
    top_entropy_quantile: float = choice(1.0, "train only on this share of the tokens, those of "
                                              "the highest entropy")
    off_policy_mask_threshold: float | None = choice(
        None, "drop rows with a negative advantage that the policy has moved away from by more, "
              "nats a token (none: keep all)")
    dynamic_sampling: bool = choice(False, "sample again in place of groups without spread")
    mask_truncated_completions: bool = choice(False, "leave completions without end-of-sequence "
                                                     "out of the loss")
    overlong_share: float = choice(0.0, "last share of the length limit in which longer "
                                        "completions lose up to 1 of their reward (0: none)")

    def __post_init__(self):
        for name, allowed in (("baseline", BASELINES), ("scale", SCALES), ("ratio", RATIOS),
                              ("kl", KLS), ("aggregation", AGGREGATIONS)):
            check_choice(name, getattr(self, name), allowed)
        if not callable(self.surrogate):
            check_choice("surrogate", self.surrogate, SURROGATES)
        epsilon, high, delta = check_clip(self.epsilon, self.epsilon_high, self.delta)
        settle(self, epsilon=epsilon, delta=delta,
               epsilon_high=None if self.epsilon_high is None else high)
        for name, bounds in (("std_eps", {"least": 0}), ("beta", {"least": 0}),
                             ("gamma", {"least": 0, "most": 1}), ("entropy_coef", {}),
                             ("gae_lambda", {"least": 0, "most": 1}),
                             ("sapo_temperature_pos", {"above": 0}),
                             ("sapo_temperature_neg", {"above": 0}),
                             ("top_entropy_quantile", {"above": 0, "most": 1}),
                             ("overlong_share", {"least": 0, "most": 1})):
            settle(self, **{name: check_number(name, getattr(self, name), **bounds)})
        if self.off_policy_mask_threshold is not None:
            settle(self, off_policy_mask_threshold=check_number(
                "off_policy_mask_threshold", self.off_policy_mask_threshold))
        for f in fields(self):
            if f.type == "bool":
                settle(self, **{f.name: check_bool(f.name, getattr(self, f.name))})
        if self.critic and (self.baseline, self.scale) != ("none", "none"):
            raise ValueError(f"critic: got True with baseline={self.baseline!r} and "
                             f"scale={self.scale!r}; a critic's values are the baseline, so "
                             f"allowed with it are baseline='none' and scale='none'")
        if self.critic and self.dynamic_sampling:
            raise ValueError("dynamic_sampling: got True with a critic; a group without spread "
                             "still teaches a critic, so allowed is False")
        if self.surrogate == "gmpo" and (self.ratio != "token" or self.critic or self.whiten):
            raise ValueError(f"surrogate: got 'gmpo' with ratio={self.ratio!r}, "
                             f"critic={self.critic}, whiten={self.whiten}; it makes one ratio of "
                             f"each row, so allowed are ratio='token' and advantages of rows")
        if self.kl_in_reward and self.use_bias_correction_kl:
            raise ValueError("use_bias_correction_kl: got True with kl_in_reward, where no "
                             "gradient flows through the distance; allowed is False")

    @property
    def needs_group(self) -> bool:
        """Whether a completion is compared with others of its group (then G >= 2)."""
        return (self.baseline in ("mean", "leave_one_out") or self.scale in ("group", "mean")
                or self.dynamic_sampling)

    @property
    def needs_entropies(self) -> bool:
        """Whether the loss needs the entropies of the next-token distributions."""
        return self.entropy_coef != 0 or self.top_entropy_quantile < 1

    def shaped_rewards(self, rewards: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        """Rewards (N, G) with the punishment of long completions; lengths (N * G,) in tokens."""
        if self.overlong_share == 0:
            return rewards
        cache = max(1, round(self.overlong_share * max_length))
        punishment = soft_overlong_punishment(lengths, max_length, cache)
        return rewards + punishment.view_as(rewards).to(rewards)

    def loss_mask(self, mask: Tensor, finished: Tensor) -> Tensor:
        """The tokens (B, T) that the loss counts; ``finished`` (B,) completions ended by
        themselves."""
        return mask * finished[:, None] if self.mask_truncated_completions else mask

    def advantages(self, rewards: Tensor, mask: Tensor, *, kl: Tensor | None = None,
                   values: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
        """Advantages of the N * G completions: (N * G,), or (N * G, T) where tokens differ.

        rewards (N, G); mask (N * G, T); ``kl`` per-token estimates (N * G, T), needed if
        kl_in_reward and beta > 0; ``values`` (N * G, T), needed by a critic; ``counted`` (N, G)
        bool, False where a reward abstained: advantage 0 there, and no part in the others'.
        """
        kl = self._kl_in_reward(kl)
        if counted is not None:
            check_counted(counted, rewards)
            rewards = rewards.masked_fill(~counted, 0.0)
            mask = mask * counted.flatten()[:, None].to(mask.device)
        if self.critic:
            if values is None:
                raise ValueError("values: got None; this algorithm's advantages come from a value "
                                 "model, allowed is a tensor (N * G, T)")
            given = token_rewards(rewards.flatten(), mask, kl, self.beta)
            result = gae(given, values, mask, self.gamma, self.gae_lambda)
        else:
            if kl is not None and not self.whiten:
                distance = kl.masked_fill(mask == 0, 0.0).sum(1)
                rewards = rewards - self.beta * distance.view_as(rewards)
            result = group_advantages(rewards, baseline=self.baseline, scale=self.scale,
                                      std_eps=self.std_eps, counted=counted).flatten()
            if self.whiten:  # of the returns: what a token still has before it
                given = token_rewards(result, mask, kl, self.beta)
                result = gae(given, torch.zeros_like(mask), mask, 1.0, 1.0)
        return whiten(result, mask) if self.whiten else result

    def returns(self, rewards: Tensor, mask: Tensor, values: Tensor, *,
                kl: Tensor | None = None) -> Tensor:
        """What a critic's values are trained towards, A + V with GAE's A: (N * G, T)."""
        given = token_rewards(rewards.flatten(), mask, self._kl_in_reward(kl), self.beta)
        return gae(given, values, mask, self.gamma, self.gae_lambda) + values * mask

    def _kl_in_reward(self, kl: Tensor | None) -> Tensor | None:
        """The estimates, if this algorithm takes them from the reward."""
        if not (self.kl_in_reward and self.beta > 0):
            return None
        if kl is None:
            raise ValueError("kl: got None with kl_in_reward, allowed is a tensor (N * G, T)")
        return kl

    def loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor,
             mask: Tensor | None = None, *, max_length: int | None = None,
             **others) -> LossOutput:
        """``grpo_loss`` with this algorithm's choices; ``others`` are the ref_log_probs,
        entropies and so on that it takes beside them."""
        options = {name: getattr(self, name) for name in LOSS_CHOICES}
        if self.kl_in_reward:
            options["beta"] = 0.0
        return grpo_loss(log_probs, old_log_probs, advantages, mask, max_length=max_length,
                         **options, **others)

    def idle_choices(self) -> dict[str, str]:
        """Choices that differ from the default and yet change nothing: name -> why."""
        bounded = callable(self.surrogate) or self.surrogate in ("clip", "cispo", "gmpo")
        idle = {}
        for names, works, why in (
                (("epsilon", "epsilon_high"), bounded,
                 f"surrogate={self.surrogate!r} has no bounds"),
                (("delta",), self.surrogate == "clip", "only surrogate='clip' has it"),
                (("sapo_temperature_pos", "sapo_temperature_neg"), self.surrogate == "sapo",
                 "only surrogate='sapo' has it"),
                (("kl", "kl_in_reward", "use_bias_correction_kl"), self.beta > 0,
                 "beta is 0, so no KL distance is taken"),
                (("std_eps",), self.scale != "none", "scale='none' divides by nothing"),
                (("gamma", "gae_lambda"), self.critic, "there is no critic")):
            if not works:
                idle |= {name: why for name in names if getattr(self, name) != DEFAULTS[name]}
        return idle

    def differences(self) -> dict[str, object]:
        """The choices in which it differs from the paper's GRPO."""
        return {name: getattr(self, name) for name in DEFAULTS
                if getattr(self, name) != DEFAULTS[name]}


ABOUT = ("about", "source")
DEFAULTS = {f.name: f.default for f in fields(Algorithm) if f.name not in ABOUT}
CHOICES = tuple(DEFAULTS)
LOSS_CHOICES = ("ratio", "surrogate", "epsilon", "epsilon_high", "delta", "sapo_temperature_pos",
                "sapo_temperature_neg", "beta", "kl", "use_bias_correction_kl", "aggregation",
                "entropy_coef", "top_entropy_quantile", "off_policy_mask_threshold")


class AlgorithmTable(dict):
    """Name -> Algorithm. An unknown name is answered with the known ones; in a notebook it
    shows itself as a table."""

    def __missing__(self, name):
        raise ValueError(f"algorithm: got {name!r}, allowed are {', '.join(self)}")

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(name, what sets it apart, how it differs from GRPO's row, source) of each."""
        return [(name, row.about, ", ".join(f"{k}={shown(v)}" for k, v in
                                            row.differences().items()), row.source)
                for name, row in self.items()]

    def __str__(self) -> str:
        return "\n".join(f"{name:<20} {differs or 'the defaults'}"
                         for name, _, differs, _ in self.rows())

    def _repr_pretty_(self, printer, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{cell}</th>" for cell in ("algorithm", "what sets it apart",
                                                       "its choices, beside GRPO's", "source"))
        body = "".join("<tr>" + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>'
                                        for cell in row) + "</tr>" for row in self.rows())
        return f"<table><tr>{head}</tr>{body}</table>"


def shown(value: object) -> str:
    """A choice in a few letters."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value.__name__ if callable(value) else str(value)


ALGORITHMS = AlgorithmTable(
    grpo=Algorithm(
        about="the paper's: group mean and std, clip, mean over each completion's tokens",
        source="DeepSeekMath 2402.03300"),
    reinforce=Algorithm(
        about="reward times log-prob, nothing subtracted",
        source="Williams 1992", baseline="none", scale="none", surrogate="log_prob",
        aggregation="sequence_sum"),
    reinforce_baseline=Algorithm(
        about="the mean reward of the batch subtracted",
        source="Williams 1992", baseline="batch", scale="none", surrogate="log_prob",
        aggregation="sequence_sum"),
    reinforce_plus_plus=Algorithm(
        about="no group: returns whitened over all tokens of the batch",
        source="2501.03262", baseline="none", scale="none", whiten=True,
        aggregation="token_mean"),
    rloo=Algorithm(
        about="compared with the mean of the other completions; ratio of whole completions",
        source="2402.14740", baseline="leave_one_out", scale="none", ratio="sequence_sum",
        kl="k1", kl_in_reward=True),
    ppo=Algorithm(
        about="advantages from a value model (critic), GAE",
        source="1707.06347, 1506.02438", baseline="none", scale="none", critic=True,
        whiten=True, kl="k1", kl_in_reward=True, aggregation="token_mean"),
    dr_grpo=Algorithm(
        about="no std, and one divisor for all completions",
        source="2503.20783", scale="none", aggregation="constant"),
    bnpo=Algorithm(
        about="mean over the tokens of the minibatch; what TRL calls bnpo (the paper of that "
              "name, 2506.02864, is about something else)",
        source="TRL loss_type", aggregation="token_mean"),
    dapo=Algorithm(
        about="clip-higher, token mean, groups without spread sampled again, long completions "
              "punished and cut-off ones left out",
        source="2503.14476", epsilon_high=0.28, aggregation="token_mean", dynamic_sampling=True,
        mask_truncated_completions=True, overlong_share=0.2),
    lite_ppo=Algorithm(
        about="group mean, std of the whole batch, token mean",
        source="2508.08221", scale="batch", aggregation="token_mean"),
    gspo=Algorithm(
        about="one ratio for the whole completion, with a narrow clip",
        source="2507.18071", ratio="sequence", epsilon=3e-4, epsilon_high=4e-4),
    gspo_token=Algorithm(
        about="the same value, the gradient through each token's own log-prob",
        source="2507.18071", ratio="sequence_token", epsilon=3e-4, epsilon_high=4e-4),
    cispo=Algorithm(
        about="the ratio is a clipped weight; no token's gradient is cut off",
        source="MiniMax-M1 2506.13585", surrogate="cispo", epsilon=1.0, epsilon_high=4.0,
        aggregation="token_mean"),
    sapo=Algorithm(
        about="a gate that closes softly in place of the clip",
        source="2511.20347", surrogate="sapo"),
    gmpo=Algorithm(
        about="geometric mean of the tokens' clipped ratios",
        source="2507.20673", surrogate="gmpo", epsilon=-math.expm1(-0.4),
        epsilon_high=math.expm1(0.4)),
    maxrl=Algorithm(
        about="divided by the group's mean reward: rare right answers weigh most",
        source="2602.02710", scale="mean", std_eps=1e-6, surrogate="log_prob",
        aggregation="sequence_sum"),
)

