"""Weights on tokens and rows, against their formulas on plain numbers; how the loss uses them."""

import math
import statistics

import pytest
import torch

from grpo_lib.corrections import off_policy_mask, sampler_weights, top_entropy_mask
from grpo_lib.objective import grpo_loss

LENGTHS = [4, 2, 3, 0]


def numbers(rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def batch():
    """log_probs, old_log_probs, entropies, mask of four ragged rows; padding holds rubbish."""
    generator = torch.Generator().manual_seed(0)
    log_probs, old, entropies = (-3 * torch.rand(4, 4, generator=generator, dtype=torch.float64)
                                 for _ in range(3))
    mask = (torch.arange(4) < torch.tensor(LENGTHS)[:, None]).double()
    return log_probs, old, -entropies + 9 * (1 - mask), mask


# --- tokens of high entropy ---------------------------------------------------------------

@pytest.mark.parametrize("quantile", [0.2, 0.34, 0.5, 0.9])
def test_the_tokens_of_highest_entropy_are_kept(batch, quantile):
    _, _, entropies, mask = batch
    kept = top_entropy_mask(entropies, mask, quantile)
    values = sorted(entropies[mask == 1].tolist())
    place = (1 - quantile) * (len(values) - 1)  # linear interpolation, as numpy's and TRL's
    low = values[math.floor(place)]
    threshold = low + (place - math.floor(place)) * (values[math.ceil(place)] - low)
    expected = [[float(m == 1 and e >= threshold) for e, m in zip(*rows)]
                for rows in zip(entropies.tolist(), mask.tolist())]
    assert kept.tolist() == expected
    assert 0 < kept.sum() < mask.sum()


def test_all_tokens_are_kept_at_one_and_ties_at_the_threshold(batch):
    _, _, entropies, mask = batch
    assert torch.equal(top_entropy_mask(entropies, mask, 1.0), mask)
    assert torch.equal(top_entropy_mask(torch.ones_like(mask), mask, 0.2), mask)


def test_the_loss_keeps_its_divisor_and_its_kl_without_the_other_tokens(batch):
    log_probs, old, entropies, mask = batch
    A = numbers([1.0, -0.5, 0.3, 2.0])
    given = {"entropies": entropies, "ref_log_probs": old, "beta": 0.3,
             "aggregation": "token_mean"}
    loss = grpo_loss(log_probs, log_probs, A, mask, top_entropy_quantile=0.4, **given).loss
    kept = top_entropy_mask(entropies, mask, 0.4)
    d = old - log_probs
    expected = (-(A[:, None] * kept).sum() + 0.3 * ((d.exp() - d - 1) * mask).sum()) / mask.sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_entropy_bonus_is_a_token_mean_with_its_gradient_in_the_entropies(batch):
    log_probs, _, entropies, mask = batch
    A = numbers([1.0, -0.5, 0.3, 2.0])
    for aggregation in ("token_mean", "sequence_mean"):
        leaf = entropies.clone().requires_grad_()
        plain = grpo_loss(log_probs, log_probs, A, mask, aggregation=aggregation).loss
        with_bonus = grpo_loss(log_probs, log_probs, A, mask, aggregation=aggregation,
                               entropies=leaf, entropy_coef=0.1)
        mean = statistics.fmean(entropies[mask == 1].tolist())
        assert with_bonus.loss.item() == pytest.approx(plain.item() - 0.1 * mean, abs=1e-12)
        assert with_bonus.stats["policy_loss"].item() == pytest.approx(plain.item())
        with_bonus.loss.backward()
        assert torch.allclose(leaf.grad, -0.1 * mask / mask.sum())


def test_the_bonus_counts_the_kept_tokens_alone(batch):
    log_probs, _, entropies, mask = batch
    A = numbers([1.0, -0.5, 0.3, 2.0])
    given = {"entropies": entropies, "top_entropy_quantile": 0.4}
    plain, bonus = (grpo_loss(log_probs, log_probs, A, mask, entropy_coef=c, **given).loss
                    for c in (0.0, 0.1))
    kept = entropies[top_entropy_mask(entropies, mask, 0.4) == 1].mean()
    assert (plain - bonus).item() == pytest.approx(0.1 * kept.item(), abs=1e-12)


# --- rows that the policy has left --------------------------------------------------------

def test_rows_with_a_negative_advantage_far_away_are_dropped():
    old = numbers([[-1, -1, 5]] * 4)
    now = old - numbers([[0.2, 0.6, 9], [0.2, 0.6, 9], [0.1, 0.1, 9], [-2, -2, 9]])
    mask = numbers([[1, 1, 0]] * 4)
    A = numbers([[-1], [1], [-1], [-1]])
    assert off_policy_mask(now, old, A, mask, 0.3).tolist() == [[0], [1], [1], [1]]
    assert off_policy_mask(now, old, A, mask, 0.41).tolist() == [[1]] * 4
    assert off_policy_mask(now, old, 0 * A, mask, -9).tolist() == [[1]] * 4  # A = 0 is kept
    empty = off_policy_mask(now, old, A, 0 * mask, -0.1)
    assert empty[:, 0].tolist() == [0, 1, 0, 0]  # nothing moved: 0, and 0 > -0.1


def kept_in_loops(now, old, A, mask, threshold):
    """off_policy_mask of (B, T) advantages on plain numbers."""
    kept = []
    for row in range(len(mask)):
        counted = [t for t in range(len(mask[row])) if mask[row][t]]
        moved = sum(old[row][t] - now[row][t] for t in counted) / max(1, len(counted))
        kept.append([float(any(A[row][t] >= 0 for t in counted) or moved <= threshold)])
    return kept


def test_a_row_at_the_threshold_is_kept_and_one_just_beyond_is_dropped():
    mask = numbers([[1, 1, 0]] * 3)
    old = numbers([[-1, -1, 7]] * 3)
    now = old - numbers([[0.25, 0.75, 9], [0.5, 0.5, -9], [0.5, 0.5 + 2**-40, 0]])  # exact in bits
    A = numbers([[-1]] * 3)
    assert off_policy_mask(now, old, A, mask, 0.5).tolist() == [[1], [1], [0]]
    assert off_policy_mask(now, old, A, mask, 0.5 - 2**-42).tolist() == [[0]] * 3
    assert off_policy_mask(old, old, A, mask, 0).tolist() == [[1]] * 3, "nothing moved: 0 <= 0"


@pytest.mark.parametrize("threshold", [-0.5, -0.25, 0.0, 0.25, 0.5])
def test_mixed_signs_and_ties_in_loops(threshold):
    """All patterns of signs of two tokens beside padding that holds anything, and moves that lie
    below the threshold, on it and above it, all exact in bits."""
    signs = [(a, b, c) for a in (-1.0, -0.0, 0.0, 2.0) for b in (-3.0, 0.0, 1.0)
             for c in (-1.0, 0.0, 5.0)]
    moves = [(-1.0, 0.0), (-0.25, -0.25), (0.5, -0.5), (0.75, -0.25), (0.0, 1.0), (2.0, -0.5)]
    rows = [(s, m, counts) for s in signs for m in moves
            for counts in ((1, 1, 0), (1, 0, 0), (0, 1, 0))]
    A, mask = numbers([s for s, *_ in rows]), numbers([counts for *_, counts in rows])
    old = -numbers([[1, 2, 3]] * len(rows))
    now = old - numbers([(*m, 8) for _, m, _ in rows])
    wanted = kept_in_loops(now.tolist(), old.tolist(), A.tolist(), mask.tolist(), threshold)
    assert off_policy_mask(now, old, A, mask, threshold).tolist() == wanted
    assert 0 < sum(kept for [kept] in wanted) < len(rows)
    by_row = A[:, :1]  # one advantage a row: that of its first token
    wanted = kept_in_loops(now.tolist(), old.tolist(), by_row.expand(-1, 3).tolist(),
                           mask.tolist(), threshold)
    assert off_policy_mask(now, old, by_row, mask, threshold).tolist() == wanted


def test_the_loss_keeps_rows_at_the_threshold_and_good_tokens_beside_bad_ones():
    """Four rows that moved by 0.5, 0.5 and twice by 1, the third of which has a good token."""
    mask = numbers([[1, 1, 0]] * 4)
    old = numbers([[-1, -1, 0]] * 4)
    moved = numbers([[0.5, 0.5, 0], [0.25, 0.75, 0], [1, 1, 0], [1, 1, 0]])
    A = numbers([[-1, -2, 0], [0, 0, 0], [-1, 0.5, 0], [-1, -2, 0]])
    loss = grpo_loss(old - moved, old, A, mask, off_policy_mask_threshold=0.5,
                     surrogate="log_prob", aggregation="token_mean").loss
    gains = [A[b, t].item() * (old - moved)[b, t].item() for b in (0, 1, 2) for t in (0, 1)]
    assert loss.item() == pytest.approx(-sum(gains) / 8, abs=1e-15)


def test_the_loss_drops_the_row_and_not_its_kl_nor_its_place(batch):
    log_probs, _, _, mask = batch
    old = log_probs + numbers([[0.5], [0.5], [0.0], [0.0]])
    A = numbers([-1.0, 1.0, -1.0, 1.0])
    loss = grpo_loss(log_probs, old, A, mask, off_policy_mask_threshold=0.3, ref_log_probs=old,
                     beta=0.2, surrogate="log_prob").loss
    rows = [(A[i] * log_probs[i, :n]).mean().item() if n else 0.0 for i, n in enumerate(LENGTHS)]
    rows[0] = 0.0
    kl = math.exp(0.5) - 1.5
    expected = -sum(rows) / 4 + 0.2 * (2 * kl) / 4
    assert loss.item() == pytest.approx(expected, abs=1e-12)


# --- sampler and trainer ------------------------------------------------------------------

@pytest.mark.parametrize("correction", ["token_truncate", "token_mask", "sequence_truncate",
                                        "sequence_mask"])
@pytest.mark.parametrize("bounds", [(0.6, None), (1.4, 0.7)])
def test_sampler_weights_in_loops(batch, correction, bounds):
    old, sampler, _, mask = batch
    high, low = bounds[0], bounds[1] or 0.0
    weights = sampler_weights(old, sampler, mask, correction, *bounds)
    assert weights.shape == ((4, 4) if correction.startswith("token") else (4, 1))
    seen = set()
    for b in range(4):
        moved = [(old[b, t] - sampler[b, t]).item() if mask[b, t] else 0.0 for t in range(4)]
        each = moved if correction.startswith("token") else [sum(moved)]
        for t, d in enumerate(each):
            r = math.exp(d)
            if correction.endswith("truncate"):
                expected = min(max(r, low), high)
            else:
                expected = r if low <= r <= high else 0.0
            seen.add(expected == r)
            assert weights[b, t].item() == pytest.approx(expected, abs=1e-12)
    assert seen == {True, False}


def test_no_correction_and_no_number_weigh_one(batch):
    old, sampler, _, mask = batch
    assert (sampler_weights(old, sampler, mask, "none") == 1).all()
    broken = sampler.clone()
    broken[0, 1] = math.nan
    assert sampler_weights(old, broken, mask, "token_truncate")[0, 1] == 1


def test_the_loss_is_weighed_and_the_kl_is_not(batch):
    log_probs, sampler, _, mask = batch
    A = numbers([1.0, -0.5, 0.3, 2.0])
    ref = sampler - 0.3
    leaf = log_probs.clone().requires_grad_()
    weights = sampler_weights(log_probs, sampler, mask, "token_truncate", 1.4)
    loss = grpo_loss(leaf, log_probs, A, mask, ref_log_probs=ref, beta=0.1, correction=weights,
                     aggregation="token_mean").loss
    d = ref - log_probs
    expected = (-(weights * A[:, None] * mask).sum() + 0.1 * ((d.exp() - d - 1) * mask).sum())
    assert loss.item() == pytest.approx((expected / mask.sum()).item(), abs=1e-12)
    loss.backward()
    slope = (-weights * A[:, None] + 0.1 * (1 - d.exp())) * mask / mask.sum()
    assert torch.allclose(leaf.grad, slope, atol=1e-12)


# --- errors -------------------------------------------------------------------------------

@pytest.mark.parametrize(("options", "named"), [
    ({"correction": "tis"}, "sampler_correction: got 'tis'"),
    ({"ratio_max": 0.0}, "sampler_ratio_max: got 0"),
    ({"ratio_min": 4.0}, "sampler_ratio_min: got 4"),
])
def test_bad_bounds_of_the_samplers_weights_are_named(options, named):
    with pytest.raises(ValueError, match=f"^{named}") as caught:
        sampler_weights(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3), **options)
    assert "allowed" in str(caught.value)


@pytest.mark.parametrize(("options", "named"), [
    ({"entropy_coef": 0.1}, "entropies: got None"),
    ({"top_entropy_quantile": 0.5}, "entropies: got None"),
    ({"top_entropy_quantile": 0.0}, "top_entropy_quantile: got 0"),
    ({"top_entropy_quantile": 1.5}, "top_entropy_quantile: got 1.5"),
    ({"entropy_coef": math.nan}, "entropy_coef: got nan"),
    ({"off_policy_mask_threshold": math.nan}, "off_policy_mask_threshold: got nan"),
    ({"entropies": torch.zeros(2, 2)}, r"entropies: got shape \(2, 2\)"),
    ({"correction": torch.zeros(3)}, r"correction: got shape \(3,\)"),
    ({"weights": torch.zeros(2, 1)}, r"weights: got shape \(2, 1\)"),
    ({"surrogate": "clipped"}, "surrogate: got 'clipped'"),
    ({"surrogate": "gmpo", "ratio": "sequence"}, "surrogate: got 'gmpo'"),
    ({"surrogate": "gmpo", "advantages": torch.zeros(2, 3)}, "surrogate: got 'gmpo'"),
    ({"surrogate": "sapo", "sapo_temperature_pos": 0.0}, "sapo_temperature_pos: got 0"),
])
def test_bad_options_are_named(options, named):
    given = {"log_probs": torch.zeros(2, 3), "old_log_probs": torch.zeros(2, 3),
             "advantages": torch.zeros(2)} | options
    with pytest.raises(ValueError, match=f"^{named}") as caught:
        grpo_loss(**given)
    assert "allowed" in str(caught.value)
