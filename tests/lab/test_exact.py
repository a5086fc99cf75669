"""Exact expectations against loops, finite differences and closed forms."""

import math

import pytest
import torch

from grpo_lib.lab.exact import (
    kl_divergence,
    kl_divergence_gradient,
    kl_estimator_gradient,
    kl_estimator_moments,
    kl_estimator_slope,
)
from grpo_lib.objective import KLS, kl_estimate

VOCABULARY = 7
CORRECTED = [(kl, corrected) for kl in KLS for corrected in (False, True)]


def two(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(2, *shape, VOCABULARY, generator=generator, dtype=torch.float64)


def kl_in_loops(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def estimate_in_loops(p, q, kl):
    d = math.log(q / p)
    return {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[kl]


def slopes_by_differences(function, logits, step=1e-5):
    """d function / d logit, one logit at a time."""
    slopes = torch.zeros_like(logits)
    for v in range(len(logits)):
        moved = logits.clone()
        moved[v] += step
        up = function(moved)
        moved[v] -= 2 * step
        slopes[v] = (up - function(moved)) / (2 * step)
    return slopes


# --- the distance -------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(3))
def test_kl_divergence_is_the_sum_over_the_vocabulary(seed):
    p, q = two(seed, 2, 3).log_softmax(-1)
    got = kl_divergence(p, q)
    assert got.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            expected = kl_in_loops(p[i, j].exp().tolist(), q[i, j].exp().tolist())
            assert got[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_kl_divergence_is_zero_of_itself_positive_otherwise_and_has_a_direction():
    p, q = two(0).log_softmax(-1)
    assert kl_divergence(p, p) == 0
    assert kl_divergence(p, q) > 0 and kl_divergence(q, p) > 0
    assert abs(kl_divergence(p, q) - kl_divergence(q, p)) > 0.01


def test_a_token_that_p_never_takes_adds_nothing_and_one_that_q_never_takes_makes_it_infinite():
    p = torch.tensor([0.5, 0.5, 0.0]).log().requires_grad_()
    q = torch.tensor([0.25, 0.25, 0.5]).log()
    distance = kl_divergence(p, q)
    assert distance.item() == pytest.approx(math.log(2))
    distance.backward()
    assert p.grad.isfinite().all()
    assert kl_divergence(q, p.detach()) == math.inf


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_the_distance_is_that_of_finite_differences(seed):
    logits, ref_logits = two(seed)
    ref = ref_logits.softmax(-1).tolist()
    expected = slopes_by_differences(lambda x: kl_in_loops(x.softmax(-1).tolist(), ref), logits)
    assert (kl_divergence_gradient(logits, ref_logits) - expected).abs().max() < 1e-9


# --- the estimators' values ---------------------------------------------------------------

@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("seed", range(3))
def test_moments_are_those_of_the_sum_over_the_vocabulary(kl, seed):
    logits, ref_logits = two(seed, 2)
    mean, std = kl_estimator_moments(logits, ref_logits, kl)
    for i in range(2):
        p, q = logits[i].softmax(-1).tolist(), ref_logits[i].softmax(-1).tolist()
        values = [estimate_in_loops(a, b, kl) for a, b in zip(p, q)]
        expected = sum(a * v for a, v in zip(p, values))
        variance = sum(a * (v - expected) ** 2 for a, v in zip(p, values))
        assert mean[i].item() == pytest.approx(expected, abs=1e-12)
        assert std[i].item() == pytest.approx(math.sqrt(variance), abs=1e-12)


@pytest.mark.parametrize("kl", KLS)
def test_k1_and_k3_are_unbiased_and_k2_is_not(kl):
    logits, ref_logits = two(4)
    bias = kl_estimator_moments(logits, ref_logits, kl).mean - kl_divergence(
        logits.log_softmax(-1), ref_logits.log_softmax(-1))
    assert (abs(bias) < 1e-12) == (kl != "k2")


def test_moments_are_what_many_samples_approach():
    logits, ref_logits = two(5)
    tokens = torch.multinomial(logits.softmax(-1), 200_000, replacement=True,
                               generator=torch.Generator().manual_seed(0))
    for kl in KLS:
        samples = kl_estimate(logits.log_softmax(-1), ref_logits.log_softmax(-1), kl)[tokens]
        mean, std = kl_estimator_moments(logits, ref_logits, kl)
        assert abs(samples.mean() - mean) < 4 * std / math.sqrt(200_000)
        assert samples.std().item() == pytest.approx(std.item(), rel=0.1)


# --- the estimators' gradients ------------------------------------------------------------

@pytest.mark.parametrize(("kl", "corrected"), CORRECTED)
def test_slopes_are_the_closed_forms(kl, corrected):
    log_probs, ref = two(6, 3).log_softmax(-1)
    d = ref - log_probs
    plain = {"k1": torch.ones_like(d), "k2": -d, "k3": 1 - d.exp()}[kl]
    expected = plain + kl_estimate(log_probs, ref, kl) if corrected else plain
    slope = kl_estimator_slope(log_probs, ref, kl, corrected)
    assert (slope - expected).abs().max() < 1e-12
    if (kl, corrected) == ("k3", True):
        assert (slope + d).abs().max() < 1e-12


@pytest.mark.parametrize(("kl", "corrected"), CORRECTED)
@pytest.mark.parametrize("seed", range(2))
def test_gradient_moments_are_those_of_finite_differences_of_every_token(kl, corrected, seed):
    logits, ref_logits = two(seed)
    ref, old = ref_logits.log_softmax(-1), logits.log_softmax(-1)
    probs = old.exp()

    def of_token(v):
        def value(moved):
            log_prob = moved.log_softmax(-1)[v]
            estimate = estimate_in_loops(log_prob.exp().item(), ref[v].exp().item(), kl)
            return estimate * (log_prob - old[v]).exp().item() if corrected else estimate
        return slopes_by_differences(value, logits)

    gradients = torch.stack([of_token(v) for v in range(VOCABULARY)])
    mean = (probs[:, None] * gradients).sum(0)
    std = (probs * (gradients - mean).square().sum(1)).sum().sqrt()
    got = kl_estimator_gradient(logits, ref_logits, kl, corrected)
    assert (got.mean - mean).abs().max() < 1e-7
    assert got.std.item() == pytest.approx(std.item(), abs=1e-6)


@pytest.mark.parametrize(("kl", "corrected", "of"), [
    ("k1", False, "nothing"), ("k2", False, "reverse"), ("k3", False, "forward"),
    ("k1", True, "reverse"), ("k3", True, "reverse"), ("k2", True, None),
])
def test_whose_gradient_each_estimator_has_in_expectation(kl, corrected, of):
    logits, ref_logits = two(7, 4)
    ref = ref_logits.log_softmax(-1)
    leaf = logits.clone().requires_grad_()
    log_probs = leaf.log_softmax(-1)
    true = {"nothing": torch.zeros_like(leaf),
            "reverse": torch.autograd.grad(kl_divergence(log_probs, ref).sum(), leaf,
                                           retain_graph=True)[0],
            "forward": torch.autograd.grad(kl_divergence(ref, log_probs).sum(), leaf)[0]}
    mean = kl_estimator_gradient(logits, ref_logits, kl, corrected).mean
    matches = [name for name, gradient in true.items() if (mean - gradient).abs().max() < 1e-10]
    assert matches == ([] if of is None else [of])


def test_k1s_gradient_is_noise_alone():
    logits, ref_logits = two(8)
    mean, std = kl_estimator_gradient(logits, ref_logits, "k1")
    assert mean.abs().max() < 1e-15 and std > 0.5


def test_a_nearly_certain_policy_has_little_noise_but_with_plain_k3_without_bound():
    logits = torch.tensor([40.0, 0, 0], dtype=torch.float64)
    for kl, corrected in CORRECTED:
        std = kl_estimator_gradient(logits, torch.zeros(3).double(), kl, corrected).std
        if (kl, corrected) == ("k3", False):  # a token has 1 - exp(d), which outgrows its rarity
            assert std > 1e7
        else:
            assert std < 1e-5


def test_nothing_flows_back_and_grad_mode_does_not_matter():
    logits, ref_logits = two(9)
    with torch.no_grad():
        mean, std = kl_estimator_gradient(logits.requires_grad_(), ref_logits, "k3", True)
    assert not mean.requires_grad and not std.requires_grad and logits.grad is None


# --- errors -------------------------------------------------------------------------------

@pytest.mark.parametrize(("bad", "named"), [
    ((torch.tensor(1.0), torch.tensor(1.0)), "first"), ((torch.zeros(0), torch.zeros(0)), "first"),
    ((torch.zeros(3), torch.zeros(4)), "second"), ((torch.zeros(2, 3), torch.zeros(3)), "second"),
    ((torch.tensor([0.0, math.nan]), torch.zeros(2)), "first"),
    ((torch.zeros(2), torch.tensor([0.0, math.inf])), "second"),
])
def test_a_bad_argument_is_named(bad, named):
    for function, names in ((kl_divergence, ("log_probs_p", "log_probs_q")),
                            (kl_estimator_moments, ("logits", "ref_logits")),
                            (kl_estimator_gradient, ("logits", "ref_logits"))):
        name = names[named == "second"]
        with pytest.raises(ValueError, match=f"^{name}: got .*allowed"):
            function(*bad)


def test_logits_of_minus_infinity_are_refused_where_estimates_would_be_nan():
    logits = torch.tensor([0.0, -math.inf])
    for function in (kl_estimator_moments, kl_estimator_gradient):
        with pytest.raises(ValueError, match=r"^logits: got nan or inf"):
            function(logits, torch.zeros(2))
        with pytest.raises(ValueError, match="kl: got 'k4'"):
            function(torch.zeros(2), torch.zeros(2), "k4")
