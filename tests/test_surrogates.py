"""CISPO, SAPO, GMPO, REINFORCE and ratios of sequences: formulas in loops, gradients in closed
form or by finite differences."""

import itertools
import math

import pytest
import torch

from grpo_lib.objective import clipped_surrogate, grpo_loss, importance_ratio

LENGTHS = [4, 2, 3, 0]
ADVANTAGES = [1.5, -0.8, -1.2, 0.7]


def numbers(rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    log_probs = -2 * torch.rand(4, 4, generator=generator, dtype=torch.float64)
    old = log_probs - 0.6 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    mask = (torch.arange(4) < torch.tensor(LENGTHS)[:, None]).double()
    return log_probs, old, numbers(ADVANTAGES), mask


def tokens(mask):
    return [(b, t) for b, t in itertools.product(range(4), range(4)) if mask[b, t]]


def slopes_by_differences(loss, log_probs, step=1e-6):
    slopes = torch.zeros_like(log_probs)
    for b, t in itertools.product(*map(range, log_probs.shape)):
        around = []
        for sign in (1, -1):
            moved = log_probs.clone()
            moved[b, t] += sign * step
            around.append(loss(moved).item())
        slopes[b, t] = (around[0] - around[1]) / (2 * step)
    return slopes


def loss_and_slopes(batch, **options):
    log_probs, old, A, mask = batch
    leaf = log_probs.clone().requires_grad_()
    loss = grpo_loss(leaf, old, A, mask, aggregation="sequence_sum", **options).loss
    loss.backward()
    return loss.item(), leaf.grad


@pytest.mark.parametrize(("epsilon", "high"), [(1.0, 0.3), (0.2, 0.3), (1.0, 4.0)])
def test_cispo_weighs_log_probs_by_the_clipped_ratio(batch, epsilon, high):
    log_probs, old, A, mask = batch
    loss, slopes = loss_and_slopes(batch, surrogate="cispo", epsilon=epsilon, epsilon_high=high)
    expected, capped = 0.0, 0
    for b, t in tokens(mask):
        r = math.exp(log_probs[b, t] - old[b, t])
        w = min(max(r, 1 - epsilon), 1 + high)
        capped += w != r
        expected -= w * A[b].item() * log_probs[b, t].item() / 4
        assert slopes[b, t].item() == pytest.approx(-w * A[b].item() / 4)  # never 0
    assert loss == pytest.approx(expected)
    assert (capped > 0) == (high < 1)


def test_sapo_is_a_gate_with_the_clips_slope_at_one(batch):
    log_probs, old, A, mask = batch
    options = {"surrogate": "sapo", "sapo_temperature_pos": 1.3, "sapo_temperature_neg": 2.0}
    loss, slopes = loss_and_slopes(batch, **options)
    expected = 0.0
    for b, t in tokens(mask):
        tau = 1.3 if A[b] > 0 else 2.0
        r = math.exp(log_probs[b, t] - old[b, t])
        expected -= A[b].item() * 4 / tau / (1 + math.exp(-tau * (r - 1))) / 4
    assert loss == pytest.approx(expected)
    by_differences = slopes_by_differences(lambda x: grpo_loss(
        x, old, A, mask, aggregation="sequence_sum", **options).loss, log_probs)
    assert torch.allclose(slopes, by_differences, atol=1e-8)
    at_one = loss_and_slopes((log_probs, log_probs, A, mask), **options)[1]
    assert torch.allclose(at_one, -A[:, None] * mask / 4)


def test_sapo_takes_the_negative_temperature_at_an_advantage_of_zero_or_less():
    given = numbers([[-1.0]]), numbers([[-1.5]])
    for A, same in ((1.0, "pos"), (-1.0, "neg")):
        base, changed = (grpo_loss(*given, numbers([A]), surrogate="sapo",
                                   **{f"sapo_temperature_{same}": tau}).loss for tau in (1.0, 3.0))
        assert base != changed
        other = "neg" if same == "pos" else "pos"
        unchanged = [grpo_loss(*given, numbers([A]), surrogate="sapo",
                               **{f"sapo_temperature_{other}": tau}).loss for tau in (1.0, 3.0)]
        assert unchanged[0] == unchanged[1]


def test_gmpo_is_the_geometric_mean_clipped_on_the_side_of_the_sign(batch):
    log_probs, old, A, mask = batch
    options = {"surrogate": "gmpo", "epsilon": 0.2, "epsilon_high": 0.3}
    leaf = log_probs.clone().requires_grad_()
    loss, stats = grpo_loss(leaf, old, A, mask, **options)
    loss.backward()
    expected, blocked, above = 0.0, 0, 0
    for b, length in enumerate(LENGTHS):
        if length == 0:
            continue
        ds = [(log_probs[b, t] - old[b, t]).item() for t in range(length)]
        cut = [min(d, math.log(1.3)) if A[b] > 0 else max(d, math.log(0.8)) for d in ds]
        mean = math.exp(sum(cut) / length)
        expected -= A[b].item() * mean / 4
        for t, (d, c) in enumerate(zip(ds, cut)):
            slope = 0.0 if c != d else -A[b].item() * mean / length / 4
            assert leaf.grad[b, t].item() == pytest.approx(slope)
            blocked += c != d
            above += c < d
    assert loss.item() == pytest.approx(expected)
    assert blocked > above > 0
    assert stats["clip_fraction"].item() == pytest.approx(blocked / 9)
    assert stats["clip_fraction_high"].item() == pytest.approx(above / 9)


def test_gmpo_leaves_tokens_of_low_entropy_out_of_its_mean(batch):
    log_probs, old, A, mask = batch
    entropies = torch.arange(16, dtype=torch.float64).view(4, 4) % 5
    kept = mask * (entropies >= torch.quantile(entropies[mask > 0], 0.5))
    got = grpo_loss(log_probs, old, A, mask, surrogate="gmpo", entropies=entropies,
                    top_entropy_quantile=0.5, epsilon=1.0, epsilon_high=1e9).loss
    mean = ((log_probs - old) * kept).sum(1) / kept.sum(1).clamp(min=1)
    assert got.item() == pytest.approx(-(A * mean.exp() * (mask.sum(1) > 0)).sum().item() / 4)
    assert 0 < kept.sum() < mask.sum()


def test_gmpo_may_be_without_a_lower_bound(batch):
    log_probs, old, A, mask = batch
    free = grpo_loss(log_probs, old, A, mask, surrogate="gmpo", epsilon=1.0, epsilon_high=1e9).loss
    mean = ((log_probs - old) * mask).sum(1) / mask.sum(1).clamp(min=1)
    expected = -(A * mean.exp() * (mask.sum(1) > 0)).sum() / 4
    assert free.item() == pytest.approx(expected.item())


def test_log_prob_has_no_ratio(batch):
    log_probs, _, A, mask = batch
    loss, slopes = loss_and_slopes(batch, surrogate="log_prob")
    assert loss == pytest.approx(-(A[:, None] * log_probs * mask).sum().item() / 4)
    assert torch.allclose(slopes, -A[:, None] * mask / 4)


def test_a_function_of_ones_own_gets_log_probs_ratio_and_advantages(batch):
    log_probs, old, A, mask = batch
    seen = {}

    def mine(log_probs, ratio, advantages):
        seen.update(shapes=(log_probs.shape, ratio.shape, advantages.shape), given=log_probs)
        return ratio * advantages

    loss, _ = loss_and_slopes(batch, surrogate=mine)
    assert seen["shapes"] == ((4, 4), (4, 4), (4, 1))
    assert torch.equal(seen["given"].detach() * mask, log_probs * mask)
    free = {"epsilon": 1.0, "epsilon_high": math.inf}
    assert loss == pytest.approx(loss_and_slopes(batch, surrogate="clip", **free)[0])
    row = grpo_loss(log_probs, old, A, mask, surrogate=lambda lp, r, a: a, ratio="sequence").loss
    assert row.item() == pytest.approx(-(A * (mask.sum(1) > 0)).sum().item() / 4)


def test_surrogates_without_bounds_count_nothing_as_clipped(batch):
    log_probs, old, A, mask = batch
    for surrogate in ("sapo", "log_prob"):
        stats = grpo_loss(log_probs, old, A, mask, surrogate=surrogate, epsilon=0.01).stats
        assert stats["clip_fraction"] == stats["clip_fraction_low"] == 0
    for surrogate in ("clip", "cispo"):
        assert grpo_loss(log_probs, old, A, mask, surrogate=surrogate,
                         epsilon=0.01).stats["clip_fraction"] > 0


def test_gspo_token_has_gspos_value_and_its_gradient_where_a_row_has_one_advantage(batch):
    log_probs, old, A, mask = batch
    for options in ({}, {"epsilon": 0.05, "epsilon_high": 0.1}):
        both = []
        for ratio in ("sequence", "sequence_token"):
            leaf = log_probs.clone().requires_grad_()
            loss = grpo_loss(leaf, old, A, mask, ratio=ratio, **options).loss
            loss.backward()
            both.append((loss.item(), leaf.grad))
        assert both[0][0] == pytest.approx(both[1][0], abs=1e-14)
        assert torch.allclose(both[0][1], both[1][1], atol=1e-14)
        assert both[0][1].abs().max() > 0.01
    by_token = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).double()
    one, other = (torch.autograd.grad(grpo_loss(
        leaf := log_probs.clone().requires_grad_(), old, by_token, mask, ratio=ratio).loss, leaf)[0]
        for ratio in ("sequence", "sequence_token"))
    assert not torch.allclose(one, other, atol=1e-3)  # here each token has its own advantage


def test_ratios_of_sequences(batch):
    log_probs, old, _, mask = batch
    mean = importance_ratio(log_probs, old, mask, "sequence")
    total = importance_ratio(log_probs, old, mask, "sequence_sum")
    each = importance_ratio(log_probs, old, mask, "sequence_token")
    for b, length in enumerate(LENGTHS):
        d = sum((log_probs[b, t] - old[b, t]).item() for t in range(length))
        assert total[b].item() == pytest.approx(math.exp(d))
        assert mean[b].item() == pytest.approx(math.exp(d / max(length, 1)))
        for t in range(4):
            assert each[b, t].item() == pytest.approx(mean[b].item() if t < length else 1.0)


def test_delta_is_the_dual_clip():
    """1912.09729: for A < 0, max(min(r A, clip(r) A), c A); verl's clip_ratio_c."""
    r = torch.linspace(0.01, 9, 400, dtype=torch.float64)[:, None]
    for A in (2.0, -1.5, 0.0):
        plain = clipped_surrogate(r, numbers([[A]]), 0.2, 0.28)
        dual = torch.maximum(plain, numbers([[3.0 * A]])) if A < 0 else plain
        assert torch.allclose(clipped_surrogate(r, numbers([[A]]), 0.2, 0.28, delta=3.0), dual)
    assert (dual == plain).all()
