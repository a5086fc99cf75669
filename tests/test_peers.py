"""Other libraries' formulas, written down anew from their code, beside ours; and every option's
gradient against finite differences, many at once.

verl as of 2026-08-22 (trainer/ppo/core_algos.py). Where it and ours differ on purpose, a test
says by what. TRL's own code is called in tests/parity.
"""

import itertools

import pytest
import torch

from grpo_lib import (
    ALGORITHMS,
    gae,
    group_advantages,
    grpo_loss,
    sampler_weights,
    token_rewards,
    whiten,
)

ROWS, WIDTH = 8, 6


@pytest.fixture(params=range(6))
def batch(request):
    """log_probs, old_log_probs, ref_log_probs, advantages (B,), mask; ratios within e^-2 to e^2."""
    g = torch.Generator().manual_seed(request.param)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    log_probs = -normal(ROWS, WIDTH).abs()
    mask = (torch.arange(WIDTH) < torch.randint(1, WIDTH + 1, (ROWS, 1), generator=g)).double()
    old, ref = (log_probs - normal(ROWS, WIDTH).clamp(-2, 2) for _ in range(2))
    return log_probs, old, ref, normal(ROWS), mask


# --- verl ---------------------------------------------------------------------------------

def verl_agg(loss, mask, mode):
    """agg_loss: three of its modes."""
    if mode == "token-mean":
        return (loss * mask).sum() / mask.sum()
    by_row = (loss * mask).sum(-1)
    if mode == "seq-mean-token-sum":
        return by_row.mean()
    counted = (mask.sum(-1) > 0).double()
    return (by_row / (mask.sum(-1) + 1e-8) * counted).sum() / counted.sum()


def verl_vanilla(log_prob, old, A, mask, mode, low=0.2, high=0.2, c=3.0):
    """compute_policy_loss_vanilla, dual clip and all."""
    ratio = (log_prob - old).clamp(-20, 20).exp()
    A = A[:, None]
    first = torch.maximum(-A * ratio, -A * ratio.clamp(1 - low, 1 + high))
    return verl_agg(torch.where(A < 0, torch.minimum(-A * c, first), first), mask, mode)


def verl_gspo(log_prob, old, A, mask, low, high):
    """compute_policy_loss_gspo: value of the sequence, gradient of the token."""
    mean = ((log_prob - old) * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    log_ratio = (log_prob - log_prob.detach() + mean.detach()[:, None]).clamp(max=10)
    ratio, A = log_ratio.exp(), A[:, None]
    loss = torch.maximum(-A * ratio, -A * ratio.clamp(1 - low, 1 + high))
    return verl_agg(loss, mask, "seq-mean-token-mean")


def verl_cispo(log_prob, old, A, mask, low, high):
    weight = (log_prob - old).exp().clamp(1 - low, 1 + high).detach()
    return verl_agg(-weight * A[:, None] * log_prob, mask, "token-mean")


def verl_geo_mean(log_prob, old, A, mask, low, high):
    """compute_policy_loss_geo_mean: clipped in log space on the side of the sign of A."""
    d, sign = (log_prob - old).clamp(-20, 20), A.sign()[:, None]
    clipped = sign * torch.minimum(sign * d, sign * d.clamp(-low, high))
    ratio = ((clipped * mask).sum(-1) / (mask.sum(-1) + 1e-8)).exp()
    return (-A * ratio).mean()


def masked_whiten(x, mask):
    mean = (x * mask).sum() / mask.sum()
    variance = (((x - mean) ** 2) * mask).sum() / mask.sum()
    variance = variance * mask.sum() / (mask.sum() - 1)
    return (x - mean) * torch.rsqrt(variance + 1e-8)


def same(theirs, ours, log_probs):
    """Loss and gradient of two functions of the log-probs."""
    results = []
    for function in (theirs, ours):
        leaf = log_probs.clone().requires_grad_()
        value = function(leaf)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    return all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(*results))


AGGREGATIONS = {"token-mean": "token_mean", "seq-mean-token-sum": "sequence_sum",
                "seq-mean-token-mean": "nonempty_sequence_mean"}


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("c", [1.5, 3.0])
def test_verls_clip_with_its_dual_clip_as_delta(batch, mode, c):
    log_probs, old, _, A, mask = batch
    mask = mask.clone()
    mask[0] = 0  # seq-mean-token-mean leaves such a row out of the mean
    assert same(lambda x: verl_vanilla(x, old, A, mask, mode, 0.2, 0.28, c),
                lambda x: grpo_loss(x, old, A, mask, epsilon=0.2, epsilon_high=0.28, delta=c,
                                    aggregation=AGGREGATIONS[mode]).loss, log_probs)


def test_verls_gspo_is_our_gspo_token(batch):
    log_probs, old, _, A, mask = batch
    assert same(lambda x: verl_gspo(x, old, A, mask, 3e-4, 4e-4),
                lambda x: ALGORITHMS["gspo_token"].loss(x, old, A, mask).loss, log_probs)


def test_verls_cispo_clips_below_too(batch):
    log_probs, old, _, A, mask = batch
    assert same(lambda x: verl_cispo(x, old, A, mask, 0.4, 0.6),
                lambda x: grpo_loss(x, old, A, mask, surrogate="cispo", epsilon=0.4,
                                    epsilon_high=0.6, aggregation="token_mean").loss, log_probs)


def test_verls_geometric_mean_is_gmpo(batch):
    log_probs, old, _, A, mask = batch
    assert same(lambda x: verl_geo_mean(x, old, A, mask, 0.4, 0.4),
                lambda x: ALGORITHMS["gmpo"].loss(x, old, A, mask).loss, log_probs)


@pytest.mark.parametrize("kl, verl", [("k1", lambda d: -d), ("k2", lambda d: d**2 / 2),
                                      ("k3", lambda d: (d.exp() - d - 1).clamp(-10, 10))])
def test_verls_kl_in_the_loss(batch, kl, verl):
    """Its k3 is clamped to 10, where it has no gradient; none of these gets there."""
    log_probs, old, ref, A, mask = batch
    assert ((ref - log_probs).exp() < 10).all()
    assert same(lambda x: verl_vanilla(x, old, A, mask, "token-mean", c=1e9)
                + 0.3 * verl_agg(verl(ref - x), mask, "token-mean"),
                lambda x: grpo_loss(x, old, A, mask, ref_log_probs=ref, beta=0.3, kl=kl,
                                    aggregation="token_mean").loss, log_probs)


def test_verls_advantages(batch):
    """GRPO (1e-6), Dr. GRPO, RLOO, REINFORCE++: a number for each token there."""
    *_, rewards, mask = batch
    groups = rewards.view(2, 4)
    mean, std = groups.mean(1, keepdim=True), groups.std(1, keepdim=True)
    assert torch.allclose(group_advantages(groups, std_eps=1e-6), (groups - mean) / (std + 1e-6))
    assert torch.allclose(group_advantages(groups, scale="none"), groups - mean)
    others = groups * 4 / 3 - mean * 4 / 3  # rloo: r n / (n - 1) - mean n / (n - 1)
    assert torch.allclose(group_advantages(groups, baseline="leave_one_out", scale="none"), others)
    at_the_end = token_rewards(rewards, mask)
    returns = at_the_end.flip(1).cumsum(1).flip(1)
    assert torch.allclose(ALGORITHMS["reinforce_plus_plus"].advantages(groups, mask),
                          masked_whiten(returns, mask) * mask)


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (1.0, 0.95), (0.9, 0.7)])
def test_verls_gae(batch, gamma, lam):
    """compute_gae_advantage_return, written as its loop; it whitens at the end."""
    values, rewards, mask = batch[2:]
    given = token_rewards(rewards, mask)
    last, next_values, found = 0.0, 0.0, []
    for t in reversed(range(WIDTH)):
        delta = given[:, t] + gamma * next_values - values[:, t]
        step = delta + gamma * lam * last
        next_values = values[:, t] * mask[:, t] + (1 - mask[:, t]) * next_values
        last = step * mask[:, t] + (1 - mask[:, t]) * last
        found.append(last)
    advantages = torch.stack(found[::-1], 1)
    ours = gae(given, values, mask, gamma, lam)
    assert torch.allclose(ours, advantages * mask)
    assert torch.allclose(whiten(ours, mask), masked_whiten(advantages, mask) * mask)


# --- finite differences -------------------------------------------------------------------

def tilted(log_probs, ratio, advantages):
    """A surrogate of a learner's own."""
    return ratio * advantages - 0.1 * log_probs.square()


OPTIONS = [
    {"surrogate": s, "ratio": r, "aggregation": a, "beta": beta, "kl": kl,
     "use_bias_correction_kl": corrected, **extra}
    for (s, r), (a, extra), (beta, kl, corrected) in itertools.product(
        [("clip", "token"), ("clip", "sequence"), ("clip", "sequence_sum"), ("sapo", "token"),
         ("sapo", "sequence"), ("gmpo", "token"), ("log_prob", "token"), (tilted, "token"),
         (tilted, "sequence")],
        [("sequence_mean", {"off_policy_mask_threshold": 0.1}),
         ("token_mean", {"top_entropy_quantile": 0.5, "entropy_coef": 0.2}),
         ("constant", {"correction": ("token_truncate", 1.5)}),
         ("sequence_sum", {"correction": ("sequence_mask",), "entropy_coef": -0.1}),
         ("nonempty_sequence_mean", {"epsilon_high": 0.31, "off_policy_mask_threshold": -0.1,
                                     "top_entropy_quantile": 0.25,
                                     "correction": ("sequence_truncate",)})],
        [(0.0, "k3", False), (0.3, "k1", False), (0.2, "k2", True), (0.1, "k3", True)])]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(
    v.__name__ if callable(v) else str(v) for v in o.values()))
def test_gradients_of_many_options_at_once_are_the_differences(options):
    g = torch.Generator().manual_seed(9)
    log_probs, move, ref, engine = (torch.randn(4, 5, generator=g, dtype=torch.float64)
                                    for _ in range(4))
    log_probs = -log_probs.abs().clamp(max=2)
    mask = (torch.arange(5) < torch.tensor([[5], [3], [1], [0]])).double()
    old = log_probs - 0.4 * move
    given = (log_probs.clone().requires_grad_(),
             torch.rand(4, 5, generator=g, dtype=torch.float64).requires_grad_())

    options = dict(options)
    if "correction" in options:
        options["correction"] = sampler_weights(old, old + 0.3 * engine, mask,
                                                *options["correction"])

    def loss(x, entropies):
        return grpo_loss(x, old, torch.tensor([1.0, -2.0, 0.7, 3.0]), mask,
                         ref_log_probs=log_probs + 0.5 * ref, entropies=entropies, max_length=9,
                         **options).loss

    assert torch.autograd.gradcheck(loss, given)
    assert torch.autograd.grad(loss(*given), given[0])[0].abs().max() > 0
