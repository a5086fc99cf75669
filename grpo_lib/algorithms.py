"""The GRPO family as one table: each algorithm is a row of choices, all run by the same code.

``ALGORITHMS["dapo"]`` is a row; ``GRPOConfig(algorithm="dapo", epsilon=0.1)`` starts from it
and overrides. A new algorithm is a new row, or one function and a row:

    ALGORITHMS["mine"] = replace(ALGORITHMS["grpo"], about="...", surrogate=my_function)
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from grpo_lib.advantages import (
    AdvantageChoices,
    check_counted,
    group_advantages,
    soft_overlong_punishment,
)
from grpo_lib.objective import CLIPPING, LossChoices, LossOutput, grpo_loss
from grpo_lib.returns import gae, token_rewards, whiten
from grpo_lib.support.checks import setting


@dataclass(frozen=True)
class Algorithm(LossChoices, AdvantageChoices):
    """The choices that make an algorithm: how rewards become advantages, those of the loss, and
    what happens around them. The defaults are GRPO's, as in the paper.

    ValueError at once where choices contradict each other.
    """

    about: str = setting("", "what sets it apart, in a line")
    source: str = setting("", "the paper")
    dynamic_sampling: bool = setting(False, "sample again in place of groups without spread")
    mask_truncated_completions: bool = setting(False, "leave completions without end-of-sequence "
                                                     "out of the loss")
    overlong_share: float = setting(0.0, "last share of the length limit in which longer "
                                        "completions lose up to 1 of their reward (0: none)",
                                     least=0, most=1)

    def __post_init__(self):
        super().__post_init__()
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

    @property
    def needs_group(self) -> bool:
        """Whether a completion is compared with others of its group (then G >= 2)."""
        return (self.baseline in ("mean", "leave_one_out") or self.scale in ("group", "mean")
                or self.dynamic_sampling)

    def shaped_rewards(self, rewards: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        """Rewards (N, G) with the punishment of long completions; lengths (N * G,) in tokens."""
        if self.overlong_share == 0:
            return rewards
        cache = max(1, round(self.overlong_share * max_length))
        punishment = soft_overlong_punishment(lengths, max_length, cache)
        return rewards + punishment.view_as(rewards).to(rewards)

    def loss_mask(self, mask: Tensor, finished: Tensor) -> Tensor:
        """The tokens (B, T) that the loss counts; ``finished`` (B,): whether a completion ended
        with end-of-sequence."""
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
                result = gae(given, torch.zeros_like(given), mask, 1.0, 1.0)
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
             mask: Tensor | None = None, **others) -> LossOutput:
        """``grpo_loss`` with this algorithm's choices; ``others`` are the ref_log_probs,
        entropies, max_length and so on that it takes beside them."""
        return grpo_loss(log_probs, old_log_probs, advantages, mask, self, **others)

    def idle_choices(self) -> dict[str, str]:
        """Choices that differ from the default and yet change nothing: name -> why."""
        idle: dict[str, str] = {}
        for names, works, why in (
                (("epsilon", "epsilon_high"), self.surrogate in CLIPPING,
                 f"surrogate={shown(self.surrogate)!r} has "
                 f"{'its own' if callable(self.surrogate) else 'no'} bounds"),
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


class AlgorithmTable(dict[str, Algorithm]):
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


def shown(value: Any) -> str:
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

