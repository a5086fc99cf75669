"""Surrogates: what is maximised for each token. PPO's clip, and its relatives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from grpo_lib.objective.ratio import row_mean
from grpo_lib.support.checks import check_beside, check_clip, check_number, check_shapes

if TYPE_CHECKING:
    from grpo_lib.objective.loss import LossChoices


def clipped_surrogate(ratio: Tensor, advantages: Tensor, epsilon: float,
                      epsilon_high: float | None = None, delta: float | None = None) -> Tensor:
    """min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A), to be maximised: shape of ``ratio``.

    PPO (1707.06347 Eq. 7); ``epsilon_high`` above epsilon is DAPO's clip-higher (2503.14476),
    None means epsilon. ``delta`` caps r in the unclipped branch (INTELLECT-2, 2505.07291):
    it matters where A < 0 and r > delta, and must exceed 1 + epsilon_high. It is the dual
    clip of 1912.09729, max(surrogate, c A) for A < 0, which verl has on by default as
    ``clip_ratio_c`` = 3: the same function, with c = delta.

    Why the min: without it, a token that has moved too far in the *wrong* direction would be
    clipped too and could never move back. So only one side binds for each sign of A.
    """
    epsilon, epsilon_high, delta = check_clip(epsilon, epsilon_high, delta)
    check_beside(ratio=ratio, advantages=advantages)
    unclipped = ratio if delta is None else ratio.clamp(max=delta)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    return torch.minimum(unclipped * advantages, clipped * advantages)


def cispo_surrogate(log_probs: Tensor, ratio: Tensor, advantages: Tensor, epsilon: float,
                    epsilon_high: float | None = None) -> Tensor:
    """sg(clip(r, 1 - epsilon, 1 + epsilon_high)) A log pi: the weight is clipped, no gradient
    is cut off (CISPO, MiniMax-M1, 2506.13585). sg: no gradient flows through the weight.

    Shape of ``log_probs``. epsilon 1 is no lower bound, as in the paper and TRL; verl clips below
    too. TRL's
    ``epsilon_high`` is the cap itself, 1 + epsilon_high here (its 5.0 is 4.0; its default
    would cap at 0.2).
    """
    epsilon, epsilon_high, _ = check_clip(epsilon, epsilon_high)
    check_beside(log_probs=log_probs, ratio=ratio, advantages=advantages)
    return ratio.detach().clamp(1 - epsilon, 1 + epsilon_high) * advantages * log_probs


def sapo_surrogate(ratio: Tensor, advantages: Tensor, temperature_pos: float = 1.0,
                   temperature_neg: float = 1.05) -> Tensor:
    """A sigmoid(tau (r - 1)) 4 / tau: a gate that closes softly on both sides, with tau =
    temperature_pos where A > 0, else temperature_neg (SAPO, 2511.20347). At r = 1 its
    derivative with respect to r is A, as the clip's is, but its value is 2 A / tau."""
    for name, value in (("sapo_temperature_pos", temperature_pos),
                        ("sapo_temperature_neg", temperature_neg)):
        check_number(name, value, above=0)
    check_beside(ratio=ratio, advantages=advantages)
    tau = torch.where(advantages > 0, ratio.new_tensor(float(temperature_pos)),
                      ratio.new_tensor(float(temperature_neg)))
    return advantages * torch.sigmoid(tau * (ratio - 1)) * 4 / tau


def gmpo_surrogate(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor,
                   epsilon: float, epsilon_high: float | None = None) -> Tensor:
    """A times the geometric mean of a row's clipped ratios: (B, T), ..., A (B, 1) -> (B, 1).

    The log of each token's ratio is clipped on the side that its A binds: at
    log(1 + epsilon_high) where A > 0, at log(1 - epsilon) where A < 0 (GMPO, 2507.20673). The
    paper and TRL give the bound of the log itself, 0.4: epsilon_high exp(.4) - 1 = 0.49,
    epsilon 1 - exp(-.4) = 0.33.
    """
    epsilon, epsilon_high, _ = check_clip(epsilon, epsilon_high)
    check_shapes("B T", log_probs=log_probs, old_log_probs=old_log_probs, mask=mask,
                 advantages=(advantages, "B 1"))
    low = math.log1p(-epsilon) if epsilon < 1 else -math.inf
    difference = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)
    clipped = torch.where(advantages > 0, difference.clamp(max=math.log1p(epsilon_high)),
                          difference.clamp(min=low))
    return advantages * row_mean(clipped, mask).exp()


class Tokens(NamedTuple):
    """What a surrogate may be made of; ``counted`` (B, T), bool, are the tokens that it counts."""

    log_probs: Tensor
    old_log_probs: Tensor
    ratio: Tensor
    advantages: Tensor
    counted: Tensor


Surrogate = Literal["clip", "cispo", "sapo", "gmpo", "log_prob"]
# name: (tokens, choices) -> (B, T) or (B, 1)
SURROGATES = {
    "clip": lambda t, c: clipped_surrogate(t.ratio, t.advantages, c.epsilon, c.epsilon_high,
                                           c.delta),
    "cispo": lambda t, c: cispo_surrogate(t.log_probs, t.ratio, t.advantages, c.epsilon,
                                          c.epsilon_high),
    "sapo": lambda t, c: sapo_surrogate(t.ratio, t.advantages, c.sapo_temperature_pos,
                                        c.sapo_temperature_neg),
    "gmpo": lambda t, c: gmpo_surrogate(t.log_probs, t.old_log_probs, t.advantages, t.counted,
                                        c.epsilon, c.epsilon_high),
    "log_prob": lambda t, c: t.advantages * t.log_probs,  # REINFORCE, which has no ratio
}
CLIPPING = ("clip", "cispo", "gmpo")  # the surrogates with bounds at 1 - epsilon, 1 + epsilon_high


def surrogate_gain(tokens: Tokens, choices: LossChoices) -> Tensor:
    """What each token adds to the objective by the surrogate chosen: (B, T)."""
    shape = tokens.log_probs.shape
    if not callable(choices.surrogate):
        return SURROGATES[choices.surrogate](tokens, choices).expand(shape)
    gain = choices.surrogate(tokens.log_probs, tokens.ratio, tokens.advantages)
    if gain.shape not in (shape, (shape[0], 1)):
        raise ValueError(f"surrogate: returned shape {tuple(gain.shape)}, must be (B, T) or (B, 1) "
                         f"with (B, T) = {tuple(shape)}")
    return gain.expand(shape)
