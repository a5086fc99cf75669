"""The GRPO loss, one equation a function: ratio, surrogates, KL, aggregation.

Pure functions of tensors: (B, T) a row a completion, a column a token; ``mask`` (B, T) is 1
on completion tokens up to and including end-of-sequence. All log-probs are in nats and of
logits / temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lib.corrections import off_policy_mask, sampler_weights, top_entropy_mask
from grpo_lib.support.checks import (
    check_beside,
    check_choice,
    check_device,
    check_floating,
    check_number,
    check_same_shape,
    check_whole,
    is_number,
    one_number,
)

RATIOS = ("token", "sequence", "sequence_token", "sequence_sum")
SURROGATES = ("clip", "cispo", "sapo", "gmpo", "log_prob")
KLS = ("k1", "k2", "k3")
AGGREGATIONS = ("sequence_mean", "token_mean", "constant", "sequence_sum",
                "nonempty_sequence_mean")
PAPER_AGGREGATIONS = AGGREGATIONS[:3]  # GRPO's, DAPO's and Dr. GRPO's, which lessons compare


class LossOutput(NamedTuple):
    """``loss`` to minimise (scalar), and detached scalars that describe the batch."""

    loss: Tensor
    stats: dict[str, Tensor]


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor,
                     ratio: str = "token") -> Tensor:
    """How much likelier the policy makes a token than the policy that sampled it did.

    "token":          r_it = exp(log pi - log pi_old), (B, T); 1 where mask is 0.
                      2402.03300 Eq. 3.
    "sequence":       exp of the mean over a row's tokens of the same difference, (B, 1);
                      GSPO, 2507.18071.
    "sequence_token": the value of "sequence", (B, T), whose gradient goes through the token's
                      own log-prob alone; GSPO-token, same paper.
    "sequence_sum":   exp of the sum over a row's tokens, (B, 1): the ratio of the two
                      probabilities of the whole completion; TRL's RLOOTrainer.
    TRL's name is ``importance_sampling_level`` (TRL 1.16 has dropped "sequence_token").
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    check_choice("ratio", ratio, RATIOS)
    difference = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)
    if ratio == "token":
        return difference.exp()
    row = difference.sum(1, keepdim=True)
    if ratio != "sequence_sum":
        row = row / mask.sum(1, keepdim=True).clamp(min=1)
    if ratio == "sequence_token":
        row = (row.detach() + difference - difference.detach()).masked_fill(mask == 0, 0.0)
    return row.exp()


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

    epsilon 1 is no lower bound, as in the paper and TRL; verl clips below too. TRL's
    ``epsilon_high`` is the cap itself, 1 + epsilon_high here (its 5.0 is 4.0; its default
    would cap at 0.2).
    """
    epsilon, epsilon_high, _ = check_clip(epsilon, epsilon_high)
    check_beside(log_probs=log_probs, ratio=ratio, advantages=advantages)
    return ratio.detach().clamp(1 - epsilon, 1 + epsilon_high) * advantages * log_probs


def sapo_surrogate(ratio: Tensor, advantages: Tensor, temperature_pos: float = 1.0,
                   temperature_neg: float = 1.05) -> Tensor:
    """A sigmoid(tau (r - 1)) 4 / tau: a gate that closes softly on both sides, with tau =
    temperature_pos where A > 0, else temperature_neg (SAPO, 2511.20347). At r = 1 its slope
    by r is A, as the clip's is; its value there, 2 A / tau, is not."""
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
    check_same_shape(2, log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    check_floating("advantages", advantages)
    check_device("advantages", advantages, "mask", mask)
    if advantages.shape != (len(mask), 1):
        raise ValueError(f"advantages: got shape {tuple(advantages.shape)}, allowed is "
                         f"{(len(mask), 1)}, one for each row")
    low = math.log1p(-epsilon) if epsilon < 1 else -math.inf
    difference = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)
    clipped = torch.where(advantages > 0, difference.clamp(max=math.log1p(epsilon_high)),
                          difference.clamp(min=low))
    return advantages * (clipped.sum(1, keepdim=True)
                         / mask.sum(1, keepdim=True).clamp(min=1)).exp()


def surrogate_gradient(ratio: Tensor, advantages: Tensor, epsilon: float,
                       epsilon_high: float | None = None, delta: float | None = None) -> Tensor:
    """d clipped_surrogate / d r: A where the gradient flows, 0 where it is blocked.

    Blocked are A > 0 with r > 1 + epsilon_high, A < 0 with r < 1 - epsilon, and A < 0 with
    r > delta. On an edge itself it flows, as in autograd up to torch 2.13; later ones block half
    of it there, or all. By log pi it is r times this.
    """
    epsilon, epsilon_high, delta = check_clip(epsilon, epsilon_high, delta)
    check_beside(ratio=ratio, advantages=advantages)
    if ratio.isnan().any():
        raise ValueError("ratio: contains nan, must be finite")
    low, high = clip_binds(ratio, advantages, epsilon, epsilon_high)
    blocked = low | high
    if delta is not None:
        blocked = blocked | ((advantages < 0) & (ratio > delta))
    return (advantages * torch.ones_like(ratio)).masked_fill(blocked, 0.0)


def clip_binds(ratio: Tensor, advantages: Tensor, epsilon: float,
               epsilon_high: float | None = None) -> tuple[Tensor, Tensor]:
    """Where the clip cuts off the gradient, bool: at 1 - epsilon (A < 0), and at
    1 + epsilon_high (A > 0). A ratio exactly on the edge, or
    nan, does not bind (as in TRL)."""
    epsilon, epsilon_high, _ = check_clip(epsilon, epsilon_high)
    check_beside(ratio=ratio, advantages=advantages)
    return ((advantages < 0) & (ratio < 1 - epsilon),
            (advantages > 0) & (ratio > 1 + epsilon_high))


def outside_fraction(ratio: Tensor, mask: Tensor, epsilon: float,
                     epsilon_high: float | None = None) -> Tensor:
    """Share of tokens with r outside 1 - epsilon to 1 + epsilon_high, whatever the sign of A.

    Some codes log this as the clip fraction. It is never below ``clip_stats``'s, since it
    also counts tokens whose gradient flows. ValueError: a nan among the tokens that count.
    """
    epsilon, epsilon_high, _ = check_clip(epsilon, epsilon_high)
    check_same_shape(2, ratio=ratio, mask=mask)
    if ratio.masked_fill(mask == 0, 0.0).isnan().any():
        raise ValueError("ratio: contains nan, must be finite")
    outside = ((ratio < 1 - epsilon) | (ratio > 1 + epsilon_high)) & (mask > 0)
    return share_of(outside, mask > 0, ratio)


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, kl: str = "k3") -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) at sampled tokens: (B, T), (B, T) -> (B, T).

    With d = log pi_ref - log pi:  k1 = -d;  k2 = d^2 / 2;  k3 = exp(d) - d - 1, never below 0.
    GRPO uses k3 (2402.03300 Eq. 4; joschu.net/blog/kl-approx.html). As *values* under
    samples of pi, k1 and k3 are unbiased; what their gradients do is another matter.
    """
    check_choice("kl", kl, KLS)
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    d = ref_log_probs - log_probs
    if kl == "k1":
        return -d
    return d.square() / 2 if kl == "k2" else d.expm1() - d


def aggregate(per_token: Tensor, mask: Tensor, aggregation: str,
              max_length: int | None = None) -> Tensor:
    """One number from per-token values: (B, T), (B, T) -> scalar.

    "sequence_mean": mean over a row's tokens, then over rows (GRPO, 2402.03300 Eq. 3). A row
                     with nothing to count contributes 0 and stays in B. TRL: "grpo".
    "token_mean":    mean over all tokens of the batch (DAPO, 2503.14476). TRL: "dapo", "bnpo".
    "constant":      sum over tokens / (B * max_length) (Dr. GRPO, 2503.20783). TRL: "dr_grpo".
    "sequence_sum":  sum over a row's tokens, mean over rows: what REINFORCE derives. TRL:
                     "luspo"; verl: "seq-mean-token-sum".
    "nonempty_sequence_mean": as "sequence_mean", over the rows that have something to count;
                     verl's "seq-mean-token-mean".
    Half precision is added up in float32: a sum of 16 bits would count tokens wrongly.
    """
    check_choice("aggregation", aggregation, AGGREGATIONS)
    check_same_shape(2, per_token=per_token, mask=mask)
    if mask.numel() == 0:
        raise ValueError(f"per_token: got shape {tuple(mask.shape)}, allowed is (B, T) with at "
                         f"least one token")
    per_token, mask = at_least_float32(per_token), at_least_float32(mask)
    values = per_token.masked_fill(mask == 0, 0.0) * mask
    if aggregation == "sequence_mean":
        return (values.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if aggregation == "nonempty_sequence_mean":
        return (values.sum(1) / mask.sum(1).clamp(min=1)).sum() / rows_with_tokens(mask)
    if aggregation == "token_mean":
        return values.sum() / mask.sum().clamp(min=1)
    if aggregation == "sequence_sum":
        return values.sum() / mask.shape[0]
    return values.sum() / (mask.shape[0] * check_max_length(max_length))


def at_least_float32(tensor: Tensor) -> Tensor:
    """The same numbers, half precision (16 bits) as float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def rows_with_tokens(mask: Tensor) -> Tensor:
    """How many rows have a token that counts, 1 at least: (B, T) -> scalar."""
    return (mask.sum(1) > 0).sum().clamp(min=1)


def token_weights(mask: Tensor, aggregation: str, max_length: int | None = None) -> Tensor:
    """How much each token counts in ``aggregate``, d aggregate / d per_token: (B, T) -> (B, T).

    "sequence_mean": 1 / (B |o_i|);  "token_mean": 1 / sum_j |o_j|;
    "constant": 1 / (B * max_length);  "sequence_sum": 1 / B;  "nonempty_sequence_mean":
    1 / (rows with tokens * |o_i|); 0 where mask is 0.
    """
    check_same_shape(2, mask=mask)
    mask = at_least_float32(mask)
    counts = (mask != 0).to(torch.get_default_dtype() if not mask.is_floating_point()
                            else mask.dtype)
    lengths = counts.sum(1, keepdim=True)
    check_choice("aggregation", aggregation, AGGREGATIONS)
    if aggregation == "sequence_mean":
        return counts / lengths.clamp(min=1) / len(mask)
    if aggregation == "nonempty_sequence_mean":
        return counts / lengths.clamp(min=1) / rows_with_tokens(counts)
    if aggregation == "token_mean":
        return counts / lengths.sum().clamp(min=1)
    if aggregation == "sequence_sum":
        return counts / len(mask)
    return counts / (len(mask) * check_max_length(max_length))


def aggregation_share(part: Tensor, whole: Tensor, aggregation: str) -> Tensor:
    """How much ``aggregate`` over some rows counts in ``aggregate`` over all of them: masks
    (b, T), (B, T) -> scalar.

    For rows dealt out to parts, sum_p share_p * aggregate(part p) = aggregate(whole): what makes
    a loss taken in parts (gradient accumulation, several processes) the loss of the whole. The
    mean of the parts' means is another number wherever parts hold unlike numbers of tokens (the
    bug of many trainers: unsloth.ai/blog/gradient, transformers #34191).
    """
    check_choice("aggregation", aggregation, AGGREGATIONS)
    for name, mask in (("part", part), ("whole", whole)):
        if not isinstance(mask, Tensor):
            raise TypeError(f"{name}: got a {type(mask).__name__}, allowed is a mask")
        check_device(name, mask, "part", part)
        if mask.dim() != 2 or len(mask) == 0 or mask.shape[0] < part.shape[0]:
            raise ValueError(f"{name}: got shape {tuple(mask.shape)}, allowed are masks (b, T) and "
                             f"(B, T) with b up to B")
    part, whole = at_least_float32(part), at_least_float32(whole)
    # counts are whole numbers, whose quotient would be float32 in a run of float64
    dtype = part.dtype if part.is_floating_point() else torch.get_default_dtype()
    if aggregation == "token_mean":
        return part.sum(dtype=dtype) / whole.sum().clamp(min=1)
    if aggregation == "nonempty_sequence_mean":
        return (part.sum(1) > 0).sum(dtype=dtype) / rows_with_tokens(whole)
    return torch.tensor(part.shape[0] / whole.shape[0], device=part.device, dtype=dtype)


def grpo_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor,
              mask: Tensor | None = None, *, ref_log_probs: Tensor | None = None,
              entropies: Tensor | None = None, sampler_log_probs: Tensor | None = None,
              epsilon: float = 0.2, epsilon_high: float | None = None,
              delta: float | None = None, beta: float = 0.0, kl: str = "k3",
              ratio: str = "token", surrogate: str | Callable = "clip",
              aggregation: str = "sequence_mean", max_length: int | None = None,
              use_bias_correction_kl: bool = False, sapo_temperature_pos: float = 1.0,
              sapo_temperature_neg: float = 1.05, entropy_coef: float = 0.0,
              top_entropy_quantile: float = 1.0,
              off_policy_mask_threshold: float | None = None, sampler_correction: str = "none",
              sampler_ratio_max: float = 3.0, sampler_ratio_min: float | None = None,
              check: bool = True) -> LossOutput:
    """-aggregate(surrogate - beta KL) - entropy_coef H: the loss of 2402.03300 Eq. 3, and with
    other choices those of its relatives (``algorithms``).

    log_probs (B, T) under the policy being trained; old_log_probs (B, T) under the policy
    that sampled; ref_log_probs (B, T) under the policy to stay close to, needed if beta > 0;
    advantages (B,) or (B, T); mask (B, T), None means every token counts. Gradients flow
    into ``log_probs``, and for the entropy bonus into ``entropies``, alone.

    epsilon 0.2 and beta 0 are TRL's defaults (DeepSeekMath's beta is 0.04, R1's 0.001).

    ``surrogate``, to be maximised: "clip" (``clipped_surrogate``), "cispo", "sapo", "gmpo" (the
    functions of those names), "log_prob" (A log pi, REINFORCE, which has no ratio), or a
    function (log_probs, ratio, advantages) -> (B, T) or (B, 1) of your own.

    ``use_bias_correction_kl`` weighs each token's KL estimate by its ratio r, through which
    gradients flow (DeepSeek-V3.2, 2512.02556; TRL's name, and its default since 1.16): with k1
    or k3 the expected gradient is then that of KL(pi || pi_ref), where plain k3's is that of
    KL(pi_ref || pi).

    What multiplies the surrogate, not the KL, in TRL's order (``corrections``):
    ``off_policy_mask_threshold``; ``top_entropy_quantile`` and ``entropy_coef``, which need
    ``entropies`` (B, T) ("gmpo" leaves the other tokens out of its geometric mean, as TRL does);
    ``sampler_correction`` with its bounds, which needs
    ``sampler_log_probs`` (B, T): those of the engine that sampled, where old_log_probs were
    computed anew. ``check`` False leaves out the look at the tensors' values, which
    torch.func.vmap cannot take.

    stats: ``clip_fraction`` of tokens where the bound of "clip" or "gmpo" binds (their gradient
    is 0) or that of "cispo" (their weight is capped), and its parts ``clip_fraction_low``
    (A < 0, r < 1 - epsilon) and ``clip_fraction_high`` (A > 0, r > 1 + epsilon_high); 0 for
    surrogates without bounds; ``ratio_min``, ``ratio_max``; ``kl`` by k3 where ref_log_probs
    is given; ``policy_loss``, the loss without KL and entropy.
    """
    check_loss_inputs(log_probs, old_log_probs, advantages, mask, ref_log_probs, entropies,
                      sampler_log_probs)
    if check:
        check_loss_values(advantages, mask)
    beta = check_number("beta", beta, least=0)
    entropy_coef = check_number("entropy_coef", entropy_coef)
    top_entropy_quantile = check_number("top_entropy_quantile", top_entropy_quantile, above=0,
                                        most=1)
    for name, needs, why in (
            ("ref_log_probs", beta > 0, f"beta={beta}, which weighs the distance to the reference "
                                        f"policy"),
            ("entropies", entropy_coef != 0 or top_entropy_quantile < 1,
             f"entropy_coef={entropy_coef}, top_entropy_quantile={top_entropy_quantile}"),
            ("sampler_log_probs", sampler_correction != "none",
             f"sampler_correction={sampler_correction!r}")):
        if needs and locals()[name] is None:
            raise ValueError(f"{name}: got None with {why}; allowed is a tensor (B, T)")
    if surrogate == "gmpo" and (ratio != "token" or advantages.dim() != 1):
        raise ValueError(f"surrogate: got 'gmpo' with ratio={ratio!r} and advantages of "
                         f"{advantages.dim()} dimensions; it makes its own ratio of each row, so "
                         f"allowed are ratio='token' and advantages (B,)")
    log_probs = at_least_float32(log_probs)
    mask = torch.ones_like(log_probs) if mask is None else mask.to(log_probs.dtype)
    # Padding may hold anything: 0 times the infinite slope of exp(d) would be a nan gradient.
    log_probs = log_probs.masked_fill(mask == 0, 0.0)
    old_log_probs = old_log_probs.detach().masked_fill(mask == 0, 0.0)
    advantages = advantages.detach().to(log_probs.dtype)
    if advantages.dim() == 1:
        advantages = advantages[:, None]

    counted = mask
    if top_entropy_quantile < 1:
        counted = mask * top_entropy_mask(entropies.detach(), mask, top_entropy_quantile)

    r = importance_ratio(log_probs, old_log_probs, mask, ratio)
    if surrogate == "clip":
        gain = clipped_surrogate(r, advantages, epsilon, epsilon_high, delta)
    elif surrogate == "cispo":
        gain = cispo_surrogate(log_probs, r, advantages, epsilon, epsilon_high)
    elif surrogate == "sapo":
        gain = sapo_surrogate(r, advantages, sapo_temperature_pos, sapo_temperature_neg)
    elif surrogate == "gmpo":
        gain = gmpo_surrogate(log_probs, old_log_probs, advantages, counted, epsilon, epsilon_high)
    elif surrogate == "log_prob":
        gain = advantages * log_probs
    elif callable(surrogate):
        gain = surrogate(log_probs, r, advantages)
        if gain.shape not in (log_probs.shape, (len(log_probs), 1)):
            raise ValueError(f"surrogate: returned shape {tuple(gain.shape)}, allowed is (B, T) or "
                             f"(B, 1) with (B, T) = {tuple(log_probs.shape)}")
    else:
        check_choice("surrogate", surrogate, SURROGATES)
    gain = gain.expand_as(log_probs)

    sampler = old_log_probs if sampler_log_probs is None else sampler_log_probs.detach()
    if off_policy_mask_threshold is not None:
        gain = gain * off_policy_mask(log_probs.detach(), sampler, advantages, mask,
                                      off_policy_mask_threshold)
    if surrogate != "gmpo":  # whose geometric mean has left them out already
        gain = gain * counted
    if sampler_correction != "none":
        gain = gain * sampler_weights(old_log_probs, sampler, mask, sampler_correction,
                                      sampler_ratio_max, sampler_ratio_min)

    policy_loss = -aggregate(gain, mask, aggregation, max_length)
    bounded = surrogate in ("clip", "cispo", "gmpo")
    stats = clip_stats(r.detach(), advantages if bounded else 0 * advantages, mask,
                       epsilon, epsilon_high)
    loss, stats["policy_loss"] = policy_loss, policy_loss.detach()
    if ref_log_probs is not None:
        ref = ref_log_probs.detach()
        stats["kl"] = aggregate(kl_estimate(log_probs.detach(), ref), mask, "token_mean")
        if beta > 0:
            distance = kl_estimate(log_probs, ref.masked_fill(mask == 0, 0.0), kl)
            if use_bias_correction_kl:
                distance = r * distance  # r as it is: neither detached nor capped by delta
            loss = loss + beta * aggregate(distance, mask, aggregation, max_length)
    if entropy_coef != 0:
        loss = loss - entropy_coef * aggregate(entropies, counted, "token_mean")
    return LossOutput(loss, stats)


def clip_stats(ratio: Tensor, advantages: Tensor, mask: Tensor, epsilon: float,
               epsilon_high: float | None = None) -> dict[str, Tensor]:
    """Share of tokens whose gradient the clip cuts off, and the extremes of the ratio.

    Counted by the sign of A, since each sign binds on one side; |r - 1| > epsilon alone
    would overstate it. A nan advantage never counts as clipped; a nan ratio shows in ``ratio_min``
    and ``ratio_max``.
    """
    check_same_shape(2, mask=mask)
    if mask.numel() == 0:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, allowed is (B, T) with at least "
                         f"one token")
    for name, tensor in (("ratio", ratio), ("advantages", advantages)):
        check_floating(name, tensor)
        check_device(name, tensor, "mask", mask)
        if tensor.dim() != 2 or any(size not in (1, whole)
                                    for size, whole in zip(tensor.shape, mask.shape)):
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, allowed is that of mask, "
                             f"{tuple(mask.shape)}, or (B, 1)")
    counts = mask > 0
    low, high = (where & counts
                 for where in clip_binds(ratio, advantages, epsilon, epsilon_high))
    everywhere = ratio.expand_as(mask)
    return {"clip_fraction": share_of(low | high, counts, ratio),
            "clip_fraction_low": share_of(low, counts, ratio),
            "clip_fraction_high": share_of(high, counts, ratio),
            "ratio_min": everywhere.masked_fill(~counts, torch.inf).amin(),
            "ratio_max": everywhere.masked_fill(~counts, -torch.inf).amax()}


def share_of(some: Tensor, counts: Tensor, like: Tensor) -> Tensor:
    """The share of ``some`` in ``counts``, both bool, as precise as ``like``; float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return some.sum(dtype=dtype) / counts.sum().clamp(min=1)


def check_max_length(max_length: int | None) -> int:
    return check_whole("max_length", max_length, 1, "; aggregation='constant' divides by it")


def check_clip(epsilon: float, epsilon_high: float | None,
               delta: float | None = None) -> tuple[float, float, float | None]:
    """epsilon, the upper clip width and delta as Python's numbers, after checking all three."""
    epsilon = check_number("epsilon", epsilon, least=0, most=1)
    high = epsilon if epsilon_high is None else one_number(epsilon_high)
    if high != math.inf:  # which is no upper edge
        high = check_number("epsilon_high", epsilon_high if high is None else high, least=0)
    if delta is None:
        return epsilon, high, None
    if not (is_number(delta) and one_number(delta) > 1 + high):
        raise ValueError(f"delta: got {delta!r}, allowed is a number above 1 + epsilon_high = "
                         f"{1 + high}")
    return epsilon, high, one_number(delta)


def check_loss_inputs(log_probs, old_log_probs, advantages, mask=None, ref_log_probs=None,
                      entropies=None, sampler_log_probs=None) -> None:
    """ValueError with the argument's name if the tensors do not belong together."""
    check_floating("log_probs", log_probs)
    if log_probs.dim() != 2 or log_probs.numel() == 0:
        raise ValueError(f"log_probs: got shape {tuple(log_probs.shape)}, allowed is (B, T) "
                         f"with at least one token")
    shape = tuple(log_probs.shape)
    for name, tensor, allowed in (("old_log_probs", old_log_probs, [shape]),
                                  ("mask", mask, [shape]),
                                  ("ref_log_probs", ref_log_probs, [shape]),
                                  ("entropies", entropies, [shape]),
                                  ("sampler_log_probs", sampler_log_probs, [shape]),
                                  ("advantages", advantages, [shape[:1], shape])):
        if tensor is None and name not in ("old_log_probs", "advantages"):
            continue
        if name != "mask" or not hasattr(tensor, "shape"):
            check_floating(name, tensor)
        if tuple(tensor.shape) not in allowed:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, allowed is "
                             f"{' or '.join(map(str, allowed))}")
        check_device(name, tensor, "log_probs", log_probs)


def check_loss_values(advantages: Tensor, mask: Tensor | None) -> None:
    """ValueError if an advantage is no number, or a mask says anything but 0 and 1."""
    if not advantages.isfinite().all():
        raise ValueError("advantages: got nan or inf, allowed are finite numbers")
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask: got other numbers than 0 and 1, which alone are allowed")
