"""Exact expectations, by enumeration instead of sampling, where that is possible.

First for one categorical distribution, the next token's: logits (..., V), over all V tokens.
Then for whole completions of a policy so small that all of them can be listed, and for all
groups that can be drawn from them: what an algorithm's gradient is on average, and how far a
single one strays. Nothing is random; every number is what infinitely many samples would
average to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lib.algorithms import Algorithm
from grpo_lib.objective import KLEstimator, importance_ratio, kl_estimate
from grpo_lib.policy import Policy, token_entropy
from grpo_lib.rollout import Rollouts, completion_log_probs, completion_logits
from grpo_lib.support.checks import (
    at_least_float32,
    check_device,
    check_floating,
    check_shapes,
    check_whole,
)
from grpo_lib.tokenizer import EOS, PAD

MOST_COMPLETIONS, MOST_GROUPS = 20_000, 400_000


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


def kl_estimator_moments(logits: Tensor, ref_logits: Tensor, kl: KLEstimator = "k3") -> Moments:
    """Mean and std of ``kl_estimate`` at one token v drawn from pi: (...), (...).

    mean = sum_v pi_v e_v and std = sqrt(sum_v pi_v (e_v - mean)^2), e_v the estimate at v. The
    bias is mean - kl_divergence. The average of n samples has std / sqrt(n).
    """
    check_pair("logits", logits, "ref_logits", ref_logits)
    logits, ref_logits = at_least_float32(logits), at_least_float32(ref_logits)
    log_probs, ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    probs, estimates = log_probs.exp(), kl_estimate(log_probs, ref, kl)
    mean = (probs * estimates).sum(-1)
    return Moments(mean, (probs * (estimates - mean[..., None]).square()).sum(-1).sqrt())


def kl_estimator_slope(log_probs: Tensor, ref_log_probs: Tensor, kl: KLEstimator = "k3",
                       use_bias_correction_kl: bool = False) -> Tensor:
    """d estimate / d log pi(v) at sampled tokens, with pi = pi_old: any shape -> that shape.

    With d = log pi_ref - log pi:  k1: 1;  k2: -d;  k3: 1 - exp(d);  multiplied by the ratio
    r = pi / pi_old (``use_bias_correction_kl``), whose slope at 1 is 1: the estimate itself
    comes on top, so that k3's is -d. By autograd, of the functions the loss is made of.
    """
    check_shapes(log_probs=log_probs, ref_log_probs=ref_log_probs)
    if log_probs.isnan().any() or ref_log_probs.isnan().any():
        raise ValueError("log_probs, ref_log_probs: got nan, which allows no slope")
    with torch.enable_grad():
        leaf = log_probs.detach().clone().requires_grad_()
        estimates = kl_estimate(leaf, ref_log_probs.detach(), kl)
        if use_bias_correction_kl:
            estimates = importance_ratio(leaf, leaf.detach(), torch.ones_like(leaf)) * estimates
        return torch.autograd.grad(estimates.sum(), leaf)[0]


def kl_estimator_gradient(logits: Tensor, ref_logits: Tensor, kl: KLEstimator = "k3",
                          use_bias_correction_kl: bool = False) -> Moments:
    """Gradient with respect to the logits that one sampled token gives, if the estimate
    stands in the loss: its mean (..., V), and its std (...), both exact.

    With slope s_v (``kl_estimator_slope``) token v gives g_v = s_v (onehot_v - pi), so
    mean = pi s - pi sum_v pi_v s_v and std = sqrt(sum_v pi_v |g_v|^2 - |mean|^2): how far, in
    root mean square, one sample's gradient lies from the mean.
    """
    check_pair("logits", logits, "ref_logits", ref_logits)
    logits, ref_logits = at_least_float32(logits), at_least_float32(ref_logits)
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
    check_floating(name, values)
    check_floating(other_name, others)
    if values.dim() == 0 or values.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, allowed is (..., V), V >= 1")
    if values.shape != others.shape:
        raise ValueError(f"{other_name}: got shape {tuple(others.shape)}, allowed is that of "
                         f"{name}, {tuple(values.shape)}")
    check_device(other_name, others, name, values)
    for which, tensor in ((name, values), (other_name, others)):
        if not (tensor.isfinite() | (not finite and tensor == -torch.inf)).all():
            raise ValueError(f"{which}: got nan or inf, allowed are finite numbers"
                             f"{'' if finite else ' and -inf'}")


# --- whole completions --------------------------------------------------------------------

@torch.no_grad()
def enumerate_completions(policy: Policy, prompt: Sequence[int], max_new_tokens: int, *,
                          vocab_size: int, temperature: float = 1.0,
                          eos_id: int = EOS) -> Rollouts:
    """Every completion of a prompt, once each, as one group: M rows, shortest first.

    A completion ends with ``eos_id`` or after ``max_new_tokens`` tokens, so that
    M = ((V - 1)^(T + 1) - 1) / (V - 2) for V > 2; their probabilities sum to 1. Log-probs are
    the policy's. ValueError: more than 20,000 of them, a vocabulary without eos_id.
    """
    max_new_tokens = check_whole("max_new_tokens", max_new_tokens, 1)
    vocab_size = check_whole("vocab_size", vocab_size, 1)
    if not 0 <= eos_id < vocab_size:
        raise ValueError(f"vocab_size: got {vocab_size!r}, allowed is a number above eos_id = "
                         f"{eos_id}")
    known = policy(torch.tensor([[*prompt]]), None, None).shape[-1]
    if known != vocab_size:
        raise ValueError(f"vocab_size: got {vocab_size}, allowed is the policy's, {known}")
    others = [token for token in range(vocab_size) if token != eos_id]
    count = sum(len(others) ** n for n in range(max_new_tokens + 1))
    if count > MOST_COMPLETIONS:
        raise ValueError(f"max_new_tokens: got {max_new_tokens} with vocab_size={vocab_size}, "
                         f"which makes {count} completions; allowed are {MOST_COMPLETIONS}")
    ended = [[*body, eos_id] for n in range(max_new_tokens)
             for body in itertools.product(others, repeat=n)]
    cut = [list(body) for body in itertools.product(others, repeat=max_new_tokens)]
    completions = ended + cut
    lengths = torch.tensor([len(c) for c in completions])
    padded = [[*prompt, *c, *[PAD] * (max_new_tokens - len(c))] for c in completions]
    mask = (torch.arange(max_new_tokens) < lengths[:, None]).to(next_dtype(policy))
    rollouts = Rollouts(torch.tensor(padded), torch.ones(count, len(prompt), dtype=torch.long),
                        mask, torch.zeros_like(mask),
                        torch.tensor([True] * len(ended) + [False] * len(cut)), count, temperature)
    return rollouts.scored_by(policy)


def next_dtype(policy: Policy) -> torch.dtype:
    """The dtype that a policy computes in."""
    return next(policy.parameters()).dtype


def completion_probabilities(policy: Policy, completions: Rollouts) -> Tensor:
    """pi of each whole completion, the product over its tokens: (M,), differentiable."""
    return completion_log_probs(policy, completions).sum(1).exp()


def expected_reward(policy: Policy, completions: Rollouts, rewards: Tensor) -> Tensor:
    """J = sum_i pi(o_i) r_i over all completions, rewards (M,): scalar, differentiable."""
    check_rewards(rewards, completions)
    return (completion_probabilities(policy, completions) * rewards).sum()


def check_rewards(rewards: Tensor, completions: Rollouts) -> None:
    """ValueError unless there is one finite reward for each completion."""
    check_floating("rewards", rewards)
    if rewards.shape != completions.mask.shape[:1]:
        raise ValueError(f"rewards: got shape {tuple(rewards.shape)}, allowed is one for each of "
                         f"the {len(completions.mask)} completions")
    if not rewards.isfinite().all():
        raise ValueError("rewards: got nan or inf, allowed are finite numbers")


def sequence_kl(policy: Policy, ref_policy: Policy, completions: Rollouts) -> Tensor:
    """KL(pi || pi_ref) of whole completions, in nats: scalar, differentiable.

    sum_i pi(o_i) (log pi(o_i) - log pi_ref(o_i)); equal to the sum over places of the expected
    KL of the next token, by the chain rule.
    """
    own = completion_log_probs(policy, completions).sum(1)
    ref = completion_log_probs(ref_policy, completions).sum(1).detach()
    return (own.exp() * (own - ref)).sum()


def flat_gradient(value: Tensor, policy: Policy) -> Tensor:
    """Gradient of a scalar by all the policy's parameters, in one row: (D,)."""
    gradients = torch.autograd.grad(value, list(policy.parameters()), retain_graph=True,
                                    materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def score_matrix(policy: Policy, completions: Rollouts) -> Tensor:
    """d log pi(token) / d parameter of every token of every completion: (M, T, D)."""
    log_probs = completion_log_probs(policy, completions)
    rows = [flat_gradient(value, policy) if value.requires_grad else None
            for value in log_probs.flatten()]
    return torch.stack(rows).unflatten(0, log_probs.shape)


def all_groups(probabilities: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Every group of G that can be drawn from M completions, and its probability:
    (M,) -> (K, G) indices, (K,) summing to 1.

    Groups that differ in their order alone are listed once, K = C(M + G - 1, G), with the
    multinomial probability G! prod_i p_i^c_i / c_i!. ValueError: K above 400,000.
    """
    group_size = check_whole("group_size", group_size, 1)
    count = math.comb(len(probabilities) + group_size - 1, group_size)
    if count > MOST_GROUPS:
        raise ValueError(f"group_size: got {group_size} of {len(probabilities)} completions, "
                         f"which makes {count} groups; allowed are {MOST_GROUPS}")
    members = torch.tensor(list(itertools.combinations_with_replacement(
        range(len(probabilities)), group_size)))
    counts = torch.zeros(count, len(probabilities), dtype=probabilities.dtype)
    counts.scatter_add_(1, members, torch.ones(members.shape, dtype=probabilities.dtype))
    ways = math.lgamma(group_size + 1) - torch.lgamma(counts + 1).sum(1)
    log_p = torch.where(counts > 0, counts * probabilities.log(), 0.0).sum(1)
    return members, (ways + log_p).exp()


class Estimator(NamedTuple):
    """What an algorithm's gradient is as an estimate of the true one, exactly.

    exact (D,): the gradient of the expected reward; mean (D,): the algorithm's gradient (of
    minus its loss) on average over all groups; variance: E|g - mean|^2 of one group's.
    """

    exact: Tensor
    mean: Tensor
    variance: Tensor

    @property
    def scale(self) -> float:
        """The factor c for which c * exact comes closest to the mean. A learning rate, or
        Adam, takes it up, so it is no bias that matters."""
        return (self.mean @ self.exact / (self.exact @ self.exact)).item()

    @property
    def bias(self) -> float:
        """|mean - scale * exact| / |mean|: the share of the mean gradient that points
        elsewhere, 0 to 1."""
        return ((self.mean - self.scale * self.exact).norm() / self.mean.norm()).item()

    @property
    def noise(self) -> float:
        """Standard deviation of one group's gradient, as a multiple of the mean's length."""
        return (self.variance.sqrt() / self.mean.norm()).item()


def estimator(policy: Policy, completions: Rollouts, rewards: Tensor, algorithm: Algorithm,
              group_size: int, *, old_policy: Policy | None = None,
              ref_policy: Policy | None = None, scores: Tensor | None = None) -> Estimator:
    """The gradient that ``algorithm`` takes from one group of G completions of one prompt,
    averaged over all groups there are, beside the gradient of the expected reward.

    ``completions``: all M of them (``enumerate_completions``), rewards (M,). Groups are drawn
    from ``old_policy`` (None: from the policy itself, on-policy); ``ref_policy`` is what KL is
    measured to, and stays out of ``exact``. ``scores``: the ``score_matrix``, if it is at hand.
    The batch is this one group, so that a std of the batch is the group's. ValueError: an
    algorithm with a critic or an entropy bonus, whose gradients do not come from log-probs alone.
    """
    scores = score_matrix(policy, completions) if scores is None else scores
    gradients, weights = group_gradients(policy, completions, rewards, algorithm, group_size,
                                         old_policy=old_policy, ref_policy=ref_policy,
                                         scores=scores)
    mean = weights @ gradients
    variance = weights @ (gradients - mean).square().sum(1)
    with torch.no_grad():  # grad pi(o) = pi(o) grad log pi(o)
        exact = (completion_probabilities(policy, completions) * rewards) @ scores.sum(1)
    return Estimator(exact, mean, variance)


def mean_of_prompts(estimators: Sequence[Estimator]) -> Estimator:
    """One estimator for a batch with a group of each prompt: exact and mean are averages, and
    the variance that of an average of independent groups."""
    count = len(estimators)
    if count == 0:
        raise ValueError("estimators: got none, allowed is one or more")
    return Estimator(sum(e.exact for e in estimators) / count,
                     sum(e.mean for e in estimators) / count,
                     sum(e.variance for e in estimators) / count**2)


def group_gradients(policy: Policy, completions: Rollouts, rewards: Tensor, algorithm: Algorithm,
                    group_size: int, *, old_policy: Policy | None = None,
                    ref_policy: Policy | None = None,
                    scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gradient (of minus the loss) from each group there is, and the group's probability:
    (K, D), (K,). Arguments and errors as in ``estimator``."""
    if algorithm.critic or algorithm.entropy_coef != 0:
        raise ValueError(f"algorithm: got critic={algorithm.critic}, entropy_coef="
                         f"{algorithm.entropy_coef}; allowed is one without both")
    check_rewards(rewards, completions)
    with torch.no_grad():
        old, now, ref = (completion_log_probs(p or policy, completions)
                         for p in (old_policy, policy, ref_policy))
        entropies = token_entropy(completion_logits(policy, completions))
    members, weights = all_groups(old.sum(1).exp(), group_size)
    mask, kl = completions.mask, kl_estimate(old, ref, algorithm.kl)
    shaped = algorithm.shaped_rewards(rewards[None], mask.sum(1), mask.shape[1])[0]
    if algorithm.whiten or "batch" in (algorithm.baseline, algorithm.scale):
        advantages = torch.stack([algorithm.advantages(
            shaped[group][None], mask[group], kl=kl[group]) for group in members])
    else:  # no group sees another: all at once
        advantages = algorithm.advantages(shaped[members], mask[members].flatten(0, 1),
                                          kl=kl[members].flatten(0, 1)).view_as(members)
    counted = mask
    if algorithm.mask_truncated_completions:
        counted = mask * completions.finished[:, None]

    def loss(log_probs, old, ref, entropies, mask, advantages):
        return algorithm.loss(log_probs, old, advantages, mask, ref_log_probs=ref,
                              entropies=entropies, max_length=mask.shape[1], check=False).loss

    slopes = torch.func.vmap(torch.func.grad(loss))(
        now[members], old[members], ref[members], entropies[members], counted[members], advantages)
    scores = score_matrix(policy, completions) if scores is None else scores
    by_completion = torch.zeros(len(members), *mask.shape, dtype=slopes.dtype)
    by_completion.scatter_add_(1, members[:, :, None].expand_as(slopes), slopes)
    return -by_completion.flatten(1) @ scores.flatten(0, 1), weights
