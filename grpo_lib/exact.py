"""Exact expectations, by enumeration instead of sampling, where that is possible.

Here for one categorical distribution, the next token's: logits (..., V), over all V tokens.
Nothing is random; every number is what infinitely many samples would average to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lib.objective import importance_ratio, kl_estimate


class Moments(NamedTuple):
    """``mean`` and ``std`` of what one sample gives."""

    mean: Tensor
    std: Tensor


def kl_divergence(log_probs_p: Tensor, log_probs_q: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), in nats: (..., V), (..., V) -> (...).

    Differentiable. A token with p_v = 0 contributes 0, its limit; one with p_v > 0 = q_v
    makes the distance inf. ValueError: shapes that differ, or nan.
    """
    check_pair("log_probs_p", log_probs_p, "log_probs_q", log_probs_q, finite=False)
    impossible = log_probs_p == -torch.inf
    difference = log_probs_p.masked_fill(impossible, 0.0) - log_probs_q.masked_fill(impossible, 0.0)
    return (log_probs_p.exp() * difference).sum(-1)


def kl_divergence_gradient(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Gradient of KL(pi || pi_ref) with respect to the logits of pi: (..., V) -> (..., V).

    pi_v (log pi_v - log pi_ref,v - KL): a token is pushed up if it is rarer, against the
    reference, than the average token drawn.
    """
    check_pair("logits", logits, "ref_logits", ref_logits)
    log_probs, ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return log_probs.exp() * (log_probs - ref - kl_divergence(log_probs, ref)[..., None])


def kl_estimator_moments(logits: Tensor, ref_logits: Tensor, kl: str = "k3") -> Moments:
    """Mean and std of ``kl_estimate`` at one token v drawn from pi: (...), (...).

    mean = sum_v pi_v e_v and std = sqrt(sum_v pi_v (e_v - mean)^2), e_v the estimate at v. The
    bias is mean - kl_divergence. The average of n samples has std / sqrt(n).
    """
    check_pair("logits", logits, "ref_logits", ref_logits)
    log_probs, ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    probs, estimates = log_probs.exp(), kl_estimate(log_probs, ref, kl)
    mean = (probs * estimates).sum(-1)
    return Moments(mean, (probs * (estimates - mean[..., None]).square()).sum(-1).sqrt())


def kl_estimator_slope(log_probs: Tensor, ref_log_probs: Tensor, kl: str = "k3",
                       use_bias_correction_kl: bool = False) -> Tensor:
    """d estimate / d log pi(v) at sampled tokens, with pi = pi_old: any shape -> that shape.

    With d = log pi_ref - log pi:  k1: 1;  k2: -d;  k3: 1 - exp(d);  multiplied by the ratio
    r = pi / pi_old (``use_bias_correction_kl``), whose slope at 1 is 1: the estimate itself
    comes on top, so that k3's is -d. By autograd, of the functions the loss is made of.
    """
    with torch.enable_grad():
        leaf = log_probs.detach().clone().requires_grad_()
        estimates = kl_estimate(leaf, ref_log_probs.detach(), kl)
        if use_bias_correction_kl:
            estimates = importance_ratio(leaf, leaf.detach(), torch.ones_like(leaf)) * estimates
        return torch.autograd.grad(estimates.sum(), leaf)[0]


def kl_estimator_gradient(logits: Tensor, ref_logits: Tensor, kl: str = "k3",
                          use_bias_correction_kl: bool = False) -> Moments:
    """Gradient with respect to the logits that one sampled token gives, if the estimate
    stands in the loss: its mean (..., V), and its std (...), both exact.

    With slope s_v (``kl_estimator_slope``) token v gives g_v = s_v (onehot_v - pi), so
    mean = pi s - pi sum_v pi_v s_v and std = sqrt(sum_v pi_v |g_v|^2 - |mean|^2): how far, in
    root mean square, one sample's gradient lies from the mean.
    """
    check_pair("logits", logits, "ref_logits", ref_logits)
    log_probs = logits.detach().log_softmax(-1)
    probs = log_probs.exp()
    slope = kl_estimator_slope(log_probs, ref_logits.log_softmax(-1), kl, use_bias_correction_kl)
    mean = probs * (slope - (probs * slope).sum(-1, keepdim=True))
    squares = slope.square() * (1 - 2 * probs + probs.square().sum(-1, keepdim=True))
    variance = (probs * squares).sum(-1) - mean.square().sum(-1)
    return Moments(mean, variance.clamp(min=0).sqrt())


def check_pair(name: str, values: Tensor, other_name: str, others: Tensor,
               finite: bool = True) -> None:
    """ValueError unless both are over the same vocabulary, in one shape, without nan or inf
    (``finite`` False: -inf is allowed, the log-prob of the impossible)."""
    if values.dim() == 0 or values.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, allowed is (..., V), V >= 1")
    if values.shape != others.shape:
        raise ValueError(f"{other_name}: got shape {tuple(others.shape)}, allowed is that of "
                         f"{name}, {tuple(values.shape)}")
    for which, tensor in ((name, values), (other_name, others)):
        if not (tensor.isfinite() | (not finite and tensor == -torch.inf)).all():
            raise ValueError(f"{which}: got nan or inf, allowed are finite numbers"
                             f"{'' if finite else ' and -inf'}")
