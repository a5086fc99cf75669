"""The GRPO loss (2402.03300 Eq. 3), put together from its ratio, surrogate, KL and weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from grpo_lib.corrections import off_policy_mask, top_entropy_mask
from grpo_lib.objective.diagnostics import clip_stats
from grpo_lib.objective.kl import KLS, KLEstimator, kl_estimate
from grpo_lib.objective.ratio import RATIOS, RatioLevel, importance_ratio
from grpo_lib.objective.surrogates import CLIPPING, SURROGATES, Surrogate, Tokens, surrogate_gain
from grpo_lib.objective.weights import WEIGHTS, Aggregation, aggregate, token_weights
from grpo_lib.support.checks import (
    at_least_float32,
    check_choice,
    check_clip,
    check_not_empty,
    check_settings,
    check_shapes,
    setting,
    settle,
)


@dataclass(frozen=True)
class LossChoices:
    """The options of ``grpo_loss``; the defaults are GRPO's, as in the paper (2402.03300).

    epsilon 0.2 and beta 0 are TRL's defaults (DeepSeekMath's beta is 0.04, R1's 0.001).
    ``surrogate`` may also be a function (log_probs, ratio, advantages) -> (B, T) or (B, 1) of your
    own. ``use_bias_correction_kl`` weighs each token's KL estimate by its ratio r, through which
    gradients flow (DeepSeek-V3.2, 2512.02556; TRL's name, and its default since 1.16): with k1 or
    k3 the expected gradient is then that of KL(pi || pi_ref), where plain k3's is that of
    KL(pi_ref || pi). ``off_policy_mask_threshold`` and ``top_entropy_quantile`` multiply the
    surrogate by 0 or 1, not the KL (``corrections``).

    ValueError: a choice that is not allowed, or two that contradict each other.
    """

    ratio: RatioLevel = setting(
        "token", "importance ratio of each token, or of the whole sequence: token, sequence, "
                 "sequence_token or sequence_sum", among=RATIOS)
    surrogate: Surrogate | Callable[[Tensor, Tensor, Tensor], Tensor] = setting(
        "clip", "what is maximised: clip, cispo, sapo, gmpo or log_prob")
    epsilon: float = setting(0.2, "the ratio is clipped at 1 - epsilon", checked=False)
    epsilon_high: float | None = setting(None, "and at 1 + epsilon_high (none: epsilon)",
                                          checked=False)
    delta: float | None = setting(None, "cap on the unclipped ratio where the advantage is "
                                       "negative, the dual clip (none: no cap)", checked=False)
    sapo_temperature_pos: float = setting(1.0, "temperature of SAPO's gate for positive advantages",
                                          above=0)
    sapo_temperature_neg: float = setting(1.05, "the same for the others", above=0)
    beta: float = setting(0.0, "weight of the KL distance to the base model", least=0)
    kl: KLEstimator = setting("k3", "estimator of that distance: k1, k2 or k3", among=KLS)
    kl_in_reward: bool = setting(False, "subtract beta times the KL distance from the reward "
                                        "instead of adding it to the loss")
    use_bias_correction_kl: bool = setting(False, "weigh each token's estimate by its ratio, true "
                                                 "or false")
    aggregation: Aggregation = setting(
        "sequence_mean", "what the loss averages over: sequence_mean, token_mean, constant, "
                         "sequence_sum or nonempty_sequence_mean", among=WEIGHTS)
    entropy_coef: float = setting(0.0, "weight of the entropy bonus")
    top_entropy_quantile: float = setting(1.0, "train only on this share of the tokens, those of "
                                              "the highest entropy", above=0, most=1)
    off_policy_mask_threshold: float | None = setting(
        None, "drop completions with a negative advantage whose log-probs have moved by more than "
              "this, in nats per token (none: keep all)")

    def __post_init__(self):
        if not callable(self.surrogate):
            check_choice("surrogate", self.surrogate, SURROGATES)
        epsilon, high, delta = check_clip(self.epsilon, self.epsilon_high, self.delta)
        settle(self, epsilon=epsilon, delta=delta,
               epsilon_high=None if self.epsilon_high is None else high)
        check_settings(self)
        if self.kl_in_reward and self.use_bias_correction_kl:
            raise ValueError("use_bias_correction_kl: got True with kl_in_reward, where no "
                             "gradient flows through the distance; allowed is False")

    @property
    def kl_weight(self) -> float:
        """The weight of the KL in the loss: beta, or 0 where the KL is in the reward."""
        return 0.0 if self.kl_in_reward else self.beta

    @property
    def needs_entropies(self) -> bool:
        """Whether the loss needs the entropies of the next-token distributions."""
        return self.entropy_coef != 0 or self.top_entropy_quantile < 1


class LossOutput(NamedTuple):
    """``loss`` to minimise (scalar), and detached scalars that describe the batch."""

    loss: Tensor
    stats: dict[str, Tensor]


def grpo_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor,
              mask: Tensor | None = None, choices: LossChoices | None = None, *,
              ref_log_probs: Tensor | None = None, entropies: Tensor | None = None,
              correction: Tensor | None = None, weights: Tensor | None = None,
              max_length: int | None = None, check: bool = True, **changes) -> LossOutput:
    """-sum_it w_it (surrogate_it - beta KL_it) - entropy_coef H: the loss of 2402.03300 Eq. 3, and
    with other choices those of its relatives (``algorithms``).

    Args:
        log_probs: (B, T), under the policy being trained. Gradients flow into these, and for the
            entropy bonus into ``entropies``, and into nothing else.
        old_log_probs: (B, T), under the policy that sampled.
        advantages: (B,) or (B, T).
        mask: (B, T), the tokens that count; None: every token.
        choices: epsilon, beta, aggregation and so on (``LossChoices``); an ``Algorithm`` is
            one. Keywords override single choices: grpo_loss(..., epsilon=0.1).
        ref_log_probs: (B, T), under the policy to stay close to; needed if beta > 0.
        entropies: (B, T); needed by entropy_coef and top_entropy_quantile.
        correction: (B, T) or (B, 1), multiplies the surrogate but not the KL, as
            ``corrections.sampler_weights`` do where another engine has sampled.
        weights: (B, T), w for these rows of a larger batch (``token_weights``); None: computed
            from ``mask``.
        max_length: the limit of a completion, needed by aggregation="constant".
        check: False skips the checks of the tensors' values, which torch.func.vmap cannot take.

    stats: ``clip_fraction`` of tokens where the bound of "clip" or "gmpo" binds (their gradient
    is 0) or that of "cispo" (their weight is capped), and its parts ``clip_fraction_low``
    (A < 0, r < 1 - epsilon) and ``clip_fraction_high`` (A > 0, r > 1 + epsilon_high); 0 for
    surrogates without bounds; ``ratio_min``, ``ratio_max``; ``kl`` by k3 where ref_log_probs
    is given; ``policy_loss``, the loss without KL and entropy. ValueError names what does not fit.
    """
    c = LossChoices(**changes) if choices is None else replace(choices, **changes)
    check_loss_inputs(c, log_probs, old_log_probs, advantages, mask, check, entropies=entropies,
                      ref_log_probs=ref_log_probs, correction=correction, weights=weights)
    log_probs = at_least_float32(log_probs)
    mask = torch.ones_like(log_probs, dtype=torch.bool) if mask is None else mask != 0
    # Padding may hold anything: 0 times the infinite slope of exp(d) would be a nan gradient.
    log_probs = log_probs.masked_fill(~mask, 0.0)
    old_log_probs = old_log_probs.detach().masked_fill(~mask, 0.0)
    advantages = advantages.detach().to(log_probs.dtype)
    advantages = advantages[:, None] if advantages.dim() == 1 else advantages
    w = weights
    if w is None:
        w = token_weights(mask, c.aggregation, max_length, dtype=log_probs.dtype)
    counted = mask
    if entropies is not None and c.top_entropy_quantile < 1:
        counted = mask & (top_entropy_mask(entropies.detach(), mask, c.top_entropy_quantile) > 0)

    ratio = importance_ratio(log_probs, old_log_probs, mask, c.ratio)
    gain = surrogate_gain(Tokens(log_probs, old_log_probs, ratio, advantages, counted), c)
    if c.off_policy_mask_threshold is not None:
        gain = gain * off_policy_mask(log_probs.detach(), old_log_probs, advantages, mask,
                                      c.off_policy_mask_threshold)
    if correction is not None:
        gain = gain * correction.detach()
    included = mask if c.surrogate == "gmpo" else counted  # GMPO's mean skips the others itself
    loss = policy_loss = -(gain.masked_fill(~included, 0.0) * w).sum()

    # with advantages of 0 no token counts as clipped
    clipped = advantages if c.surrogate in CLIPPING else 0 * advantages
    stats = clip_stats(ratio.detach(), clipped, mask, c.epsilon, c.epsilon_high)
    stats["policy_loss"] = policy_loss.detach()
    if ref_log_probs is not None:
        ref = ref_log_probs.detach().masked_fill(~mask, 0.0)
        stats["kl"] = aggregate(kl_estimate(log_probs.detach(), ref), mask, "token_mean")
        if c.kl_weight > 0:
            distance = kl_estimate(log_probs, ref, c.kl)
            if c.use_bias_correction_kl:
                distance = ratio * distance  # neither detached nor capped by delta
            loss = loss + c.kl_weight * (distance.masked_fill(~mask, 0.0) * w).sum()
    if entropies is not None and c.entropy_coef != 0:
        # where w is the mean over the tokens of a larger batch, the bonus is too
        same = c.aggregation == "token_mean" and counted is mask
        v = w if same else token_weights(counted, "token_mean", dtype=log_probs.dtype)
        loss = loss - c.entropy_coef * (entropies.masked_fill(~counted, 0.0) * v).sum()
    return LossOutput(loss, stats)


def name_the_choices(function: Any) -> None:
    """Let a notebook's help show each choice with its default in place of ``**changes``."""
    signature, hints = inspect.signature(function), get_type_hints(LossChoices)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    named += [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default,
                                annotation=hints[f.name]) for f in fields(LossChoices)]
    function.__signature__ = signature.replace(parameters=named)


name_the_choices(grpo_loss)


def check_loss_inputs(choices: LossChoices, log_probs, old_log_probs, advantages, mask,
                      check_values: bool, **optional) -> None:
    """ValueError with the argument's name if the tensors do not belong together, or one is missing
    that the choices need."""
    if mask is not None:
        optional["mask"] = mask
    letters = {"correction": "B T | B 1"}
    check_shapes("B T", log_probs=log_probs)
    check_not_empty("log_probs", log_probs)
    check_shapes("B T", log_probs=log_probs, old_log_probs=old_log_probs,
                 advantages=(advantages, "B | B T"),
                 **{name: (tensor, letters.get(name, "B T")) for name, tensor in optional.items()
                    if tensor is not None})
    for name, needs, why in (
            ("ref_log_probs", choices.kl_weight > 0,
             f"beta={choices.beta}, which weighs the distance to the reference policy"),
            ("entropies", choices.needs_entropies,
             f"entropy_coef={choices.entropy_coef}, "
             f"top_entropy_quantile={choices.top_entropy_quantile}")):
        if needs and optional[name] is None:
            raise ValueError(f"{name}: got None with {why}; allowed is a tensor (B, T)")
    if choices.surrogate == "gmpo" and (choices.ratio != "token" or advantages.dim() != 1):
        raise ValueError(f"surrogate: got 'gmpo' with ratio={choices.ratio!r} and advantages of "
                         f"{advantages.dim()} dimensions; it makes its own ratio of each row, so "
                         f"allowed are ratio='token' and advantages (B,)")
    if not check_values:
        return
    if not advantages.isfinite().all():
        raise ValueError("advantages: got nan or inf, allowed are finite numbers")
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask: got other numbers, allowed are only 0 and 1")
