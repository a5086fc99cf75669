"""Estimates of the distance to the reference policy, KL(pi || pi_ref), at sampled tokens."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from grpo_lib.support.checks import check_choice, check_shapes

KLEstimator = Literal["k1", "k2", "k3"]
KLS = {"k1": lambda d: -d, "k2": lambda d: d.square() / 2, "k3": lambda d: d.expm1() - d}


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, kl: KLEstimator = "k3") -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) at sampled tokens: (B, T), (B, T) -> (B, T).

    With d = log pi_ref - log pi:  k1 = -d;  k2 = d^2 / 2;  k3 = exp(d) - d - 1, never below 0.
    GRPO uses k3 (2402.03300 Eq. 4; joschu.net/blog/kl-approx.html). As *values* under
    samples of pi, k1 and k3 are unbiased; what their gradients do is another matter.
    """
    check_choice("kl", kl, KLS)
    check_shapes(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return KLS[kl](ref_log_probs - log_probs)
