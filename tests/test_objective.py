"""The loss and its gradient against loops, finite differences and closed forms."""

import itertools
import math

import pytest
import torch

from grpo_lib.objective import (
    AGGREGATIONS,
    KLS,
    RATIOS,
    aggregate,
    clip_binds,
    clip_stats,
    clipped_surrogate,
    grpo_loss,
    importance_ratio,
    kl_estimate,
    outside_fraction,
    surrogate_gradient,
    token_weights,
)

MAX_LENGTH = 7
LENGTHS = [4, 2, 3, 1, 0]  # the last row has nothing to count
RATIO_ROWS = [[0.5, 1.4, 0.9, 1.8], [1.6, 1.7, 1, 1], [1.1, 0.6, 0.7, 1], [1.45, 1, 1, 1],
              [1, 1, 1, 1]]
ADVANTAGES = [[1.5, -0.7, 0.4, -1.1], [-0.9, 1.2, 3, 3], [-2.0, 0.3, -0.6, 3], [0.8, 3, 3, 3],
              [3, 3, 3, 3]]
CHOICES = [
    pytest.param({"ratio": r, "kl": k, "aggregation": a, "epsilon_high": high, "delta": delta,
                  "beta": beta}, id=f"{r}-{k if beta else 'no_kl'}-{a}-{high}-{delta}")
    for r, a, high, delta in itertools.product(RATIOS, AGGREGATIONS, (None, 0.28), (None, 1.5))
    for k, beta in [*((k, 0.3) for k in KLS), ("k3", 0.0)]
]


def numbers(rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def batch():
    """log_probs, old_log_probs, ref_log_probs, advantages, mask; no ratio is near a kink."""
    generator = torch.Generator().manual_seed(0)
    log_probs = -3 * torch.rand(5, 4, generator=generator, dtype=torch.float64)
    old = log_probs - numbers(RATIO_ROWS).log()
    ref = log_probs + 0.6 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    mask = (torch.arange(4) < torch.tensor(LENGTHS)[:, None]).double()
    for kind in RATIOS:
        r = importance_ratio(log_probs, old, mask, kind)
        assert min((r - kink).abs().min() for kink in (0.8, 1.2, 1.28, 1.5)) > 0.01
    return log_probs, old, ref, numbers(ADVANTAGES), mask


def loss_in_loops(log_probs, old, ref, advantages, mask, *, ratio, kl, aggregation, beta,
                  epsilon=0.2, epsilon_high=None, delta=None, held=None):
    """The formulas on plain numbers, one token at a time; ``held`` are log-probs through
    which no gradient flows."""
    high = epsilon if epsilon_high is None else epsilon_high
    rows = []
    for lp, o, rf, adv, keep in zip(log_probs, old, ref, advantages, mask):
        columns = [t for t in range(len(lp)) if keep[t]]
        terms = []
        for t in columns:
            if ratio == "token":
                r = math.exp(lp[t] - o[t])
            elif ratio == "sequence_token":
                moved = (held or log_probs)[len(rows)]  # only the token's own log-prob moves
                r = math.exp(sum(moved[s] - o[s] for s in columns) / len(columns)
                             + lp[t] - moved[t])
            else:
                divisor = 1 if ratio == "sequence_sum" else len(columns)
                r = math.exp(sum(lp[s] - o[s] for s in columns) / divisor)
            free = r if delta is None else min(r, delta)
            clipped = min(max(r, 1 - epsilon), 1 + high)
            d = rf[t] - lp[t]
            distance = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[kl]
            terms.append(min(free * adv[t], clipped * adv[t]) - beta * distance)
        rows.append(terms)
    if aggregation == "sequence_mean":
        return -sum(sum(terms) / len(terms) for terms in rows if terms) / len(rows)
    if aggregation == "nonempty_sequence_mean":
        return -sum(sum(terms) / len(terms) for terms in rows if terms) / sum(map(bool, rows))
    total = sum(sum(terms) for terms in rows)
    if aggregation == "sequence_sum":
        return -total / len(rows)
    if aggregation == "token_mean":
        return -total / sum(len(terms) for terms in rows)
    return -total / (len(rows) * MAX_LENGTH)


def loss_of(batch, **choice):
    log_probs, old, ref, advantages, mask = batch
    return grpo_loss(log_probs, old, advantages, mask, ref_log_probs=ref,
                     max_length=MAX_LENGTH, **choice)


@pytest.mark.parametrize("choice", CHOICES)
def test_value_and_gradient_are_those_of_the_formulas_in_loops(batch, choice):
    log_probs = batch[0].clone().requires_grad_()
    loss = loss_of((log_probs, *batch[1:]), **choice).loss
    lists = [tensor.tolist() for tensor in batch]
    assert loss.item() == pytest.approx(loss_in_loops(*lists, **choice), abs=1e-12)

    loss.backward()
    step = 1e-6
    for b, t in itertools.product(range(5), range(4)):
        value = lists[0][b][t]
        around = []
        for moved in (value + step, value - step):
            lists[0][b][t] = moved
            around.append(loss_in_loops(*lists, **choice, held=batch[0].tolist()))
        lists[0][b][t] = value
        slope = (around[0] - around[1]) / (2 * step)
        assert log_probs.grad[b, t].item() == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("choice", [c for c in CHOICES if "sequence_token" not in c.id])
def test_gradient_passes_gradcheck(batch, choice):
    log_probs = batch[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of((x, *batch[1:]), **choice).loss, log_probs)


@pytest.mark.parametrize("epsilon", [0.0, 0.35, 1.0])
def test_value_follows_epsilon(batch, epsilon):
    choice = {"ratio": "token", "kl": "k3", "aggregation": "token_mean", "beta": 0.1}
    lists = [tensor.tolist() for tensor in batch]
    expected = loss_in_loops(*lists, epsilon=epsilon, **choice)
    assert loss_of(batch, epsilon=epsilon, **choice).loss.item() == pytest.approx(expected)


def test_an_upper_width_of_zero_is_a_width_and_not_none(batch):
    log_probs, old, ref, advantages, mask = batch
    advantages = -advantages  # so that one is above 0 where the ratio is 1.1
    batch = log_probs, old, ref, advantages, mask
    choice = {"ratio": "token", "kl": "k3", "aggregation": "token_mean", "beta": 0.0}
    lists = [tensor.tolist() for tensor in batch]
    loss, stats = loss_of(batch, epsilon_high=0.0, **choice)
    assert loss.item() == pytest.approx(loss_in_loops(*lists, epsilon_high=0.0, **choice))
    assert loss.item() != pytest.approx(loss_in_loops(*lists, **choice))
    above = ((advantages > 0) & (log_probs > old))[mask == 1].double().mean().item()
    assert stats["clip_fraction_high"].item() == pytest.approx(above)
    assert loss_of(batch, **choice).stats["clip_fraction_high"].item() < above


def test_defaults_are_the_papers_with_beta_zero(batch):
    log_probs, old, ref, advantages, mask = batch
    spelled_out = grpo_loss(log_probs, old, advantages, mask, ref_log_probs=ref, epsilon=0.2,
                            epsilon_high=0.2, delta=None, beta=0.0, kl="k3", ratio="token",
                            aggregation="sequence_mean")
    assert torch.equal(grpo_loss(log_probs, old, advantages, mask).loss, spelled_out.loss)
    one = {"beta": 0.5, "ref_log_probs": ref}
    assert torch.equal(grpo_loss(log_probs, old, advantages, mask, **one).loss,
                       grpo_loss(log_probs, old, advantages, mask, kl="k3", **one).loss)


# --- at ratio 1 ---------------------------------------------------------------------------

GROUP = [[1.0, -0.5, -0.5], [0.25, 0.5, -0.75]]  # two groups, each sums to 0
GROUP_LENGTHS = [1, 4, 2, 3, 3, 1]


def weights(aggregation):
    """How much each token counts: 1 / length / B, 1 / tokens, or 1 / (B * max_length)."""
    mask = (torch.arange(4) < torch.tensor(GROUP_LENGTHS)[:, None]).double()
    by_row = mask / mask.sum(1, keepdim=True) / 6  # no row is empty
    return {"sequence_mean": by_row, "nonempty_sequence_mean": by_row, "sequence_sum": mask / 6,
            "token_mean": mask / mask.sum(), "constant": mask / (6 * MAX_LENGTH)}[aggregation]


@pytest.fixture
def on_policy():
    log_probs = -3 * torch.rand(6, 4, generator=torch.Generator().manual_seed(1)).double()
    mask = (torch.arange(4) < torch.tensor(GROUP_LENGTHS)[:, None]).double()
    return log_probs.requires_grad_(), numbers(GROUP).flatten(), mask


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_at_ratio_one_the_loss_is_minus_the_weighted_advantages(on_policy, aggregation, ratio):
    log_probs, advantages, mask = on_policy
    loss = grpo_loss(log_probs, log_probs, advantages, mask, aggregation=aggregation,
                     ratio=ratio, max_length=MAX_LENGTH).loss
    expected = -(weights(aggregation) * advantages[:, None]).sum().item()
    assert loss.item() == pytest.approx(expected, abs=1e-15)
    if aggregation.endswith("sequence_mean"):
        assert abs(loss.item()) < 1e-15
    else:
        assert abs(loss.item()) > 0.01


def test_at_ratio_one_a_split_group_leaves_a_loss(on_policy):
    log_probs, advantages, mask = on_policy
    loss = grpo_loss(log_probs[:2], log_probs[:2], advantages[:2], mask[:2]).loss
    assert loss.item() == pytest.approx(-0.25)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_at_ratio_one_the_gradient_is_reinforces_and_not_zero(on_policy, aggregation):
    log_probs, advantages, mask = on_policy
    grpo_loss(log_probs, log_probs, advantages, mask, aggregation=aggregation,
              max_length=MAX_LENGTH).loss.backward()
    reinforce = log_probs.detach().clone().requires_grad_()
    (-(weights(aggregation) * advantages[:, None] * reinforce).sum()).backward()
    assert (log_probs.grad - reinforce.grad).abs().max() < 1e-15
    assert reinforce.grad.abs().max() > 0.01


def test_gspos_gradient_at_ratio_one_is_reinforces_too(on_policy):
    log_probs, advantages, mask = on_policy
    grpo_loss(log_probs, log_probs, advantages, mask, ratio="sequence").loss.backward()
    expected = -weights("sequence_mean") * advantages[:, None]
    assert (log_probs.grad - expected).abs().max() < 1e-15


# --- the clip -----------------------------------------------------------------------------

@pytest.mark.parametrize(("advantage", "r", "value", "slope", "low", "high"), [
    (2.0, 1.5, 2.4, 0.0, 0, 1),  # good, already likelier: the clip binds
    (2.0, 0.5, 1.0, 1.0, 0, 0),  # good, made rarer: free to come back
    (-2.0, 1.5, -3.0, -3.0, 0, 0),  # bad, made likelier: free to come back
    (-2.0, 0.5, -1.6, 0.0, 1, 0),  # bad, already rarer: the clip binds
    (2.0, 1.1, 2.2, 2.2, 0, 0), (-2.0, 0.9, -1.8, -1.8, 0, 0),  # inside: nothing binds
    (0.0, 1.5, 0.0, 0.0, 0, 0),
])
def test_only_one_side_binds_for_each_sign(advantage, r, value, slope, low, high):
    log_probs = numbers([[-1.0]]).requires_grad_()
    old = log_probs.detach() - math.log(r)
    loss, stats = grpo_loss(log_probs, old, numbers([advantage]))
    loss.backward()
    assert -loss.item() == pytest.approx(value)
    assert -log_probs.grad.item() == pytest.approx(slope, abs=1e-15)
    assert (stats["clip_fraction_low"], stats["clip_fraction_high"]) == (low, high)
    assert stats["clip_fraction"] == low + high


@pytest.mark.parametrize(("advantage", "r", "value"), [
    (-1.0, 3.0, -2.0), (-1.0, 1.9, -1.9), (1.0, 3.0, 1.2), (-1.0, 0.5, -0.8),
])
def test_delta_caps_the_ratio_only_of_bad_tokens(advantage, r, value):
    got = clipped_surrogate(numbers([[r]]), numbers([[advantage]]), 0.2, None, 2.0)
    assert got.item() == pytest.approx(value)


@pytest.mark.parametrize("sign", [1.7, -1.7])
@pytest.mark.parametrize(("epsilon", "high", "delta"), [
    (0.2, None, None), (0.2, 0.28, None), (0.05, None, 1.5), (0.2, 0.28, 2.0), (1.0, 1e9, None),
    (0.0, 0.0, None), (0.0, 0.0, 1.3)])
def test_the_surrogates_gradient_is_that_of_finite_differences(sign, epsilon, high, delta):
    edges = (1 - epsilon, 1 + (epsilon if high is None else high), delta or 0)
    ratio = numbers([i / 100 for i in range(1, 300)])
    ratio = ratio[[min(abs(r - edge) for edge in edges) > 1e-3 for r in ratio.tolist()]]
    step, advantage = 1e-6, numbers(sign)
    above, below = (clipped_surrogate(r, advantage, epsilon, high, delta)
                    for r in (ratio + step, ratio - step))
    slope = (above - below) / (2 * step)
    got = surrogate_gradient(ratio, advantage, epsilon, high, delta)
    assert (got - slope).abs().max() < 1e-6
    assert epsilon == 1.0 or 0 < (got == 0).sum() < len(got)


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_on_the_very_edge_the_surrogates_gradient_is_that_of_the_side_where_it_flows(sign):
    """Up to torch 2.13 autograd says so too; later ones block it in ``clamp``, so that half of it
    flows, or none."""
    for edge in (0.75, 1.0, 1.25, 1.5):  # numbers that floats hold exactly
        ratio = numbers([edge]).requires_grad_()
        clipped_surrogate(ratio, numbers([sign]), 0.25, None, 1.5).backward()
        got, beside = (surrogate_gradient(numbers([r]), numbers([sign]), 0.25, None, 1.5).item()
                       for r in (edge, edge - 1e-9 if sign > 0 or edge == 1.5 else edge + 1e-9))
        assert got == beside
        one = numbers([1.0]).requires_grad_()
        one.clamp(0, 1).backward()
        shares = (1,) if one.grad.item() or edge == 1.0 else (1, 0.5, 0)
        assert ratio.grad.item() in [share * got for share in shares]


def test_the_surrogates_gradient_spreads_one_advantage_over_a_row():
    got = surrogate_gradient(numbers([[0.5, 1.5], [0.5, 1.5]]), numbers([[2.0], [-3.0]]), 0.2)
    assert got.tolist() == [[2.0, 0.0], [0.0, -3.0]]
    with pytest.raises(ValueError, match=r"^epsilon: "):
        surrogate_gradient(numbers([1.0]), numbers([1.0]), 1.5)


def test_the_clip_binds_on_one_side_for_each_sign():
    low, high = clip_binds(numbers([[0.5, 0.75, 1.0, 1.25, 1.4, 2.0]]),
                           numbers([[1.0], [-1.0], [0.0]]), 0.25, 0.4)
    nothing = [False] * 6
    assert low.tolist() == [nothing, [True] + [False] * 5, nothing]
    assert high.tolist() == [[False] * 5 + [True], nothing, nothing]


@pytest.mark.parametrize(("high", "expected"), [(None, 4 / 5), (0.5, 3 / 5)])
def test_outside_fraction_counts_whatever_the_sign_and_no_padding(high, expected):
    ratio = numbers([[0.5, 1.0, 1.4, 9.0], [0.7, 1.9, 9.0, 9.0]])
    mask = numbers([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert outside_fraction(ratio, mask, 0.2, high).item() == pytest.approx(expected)
    binding = clip_stats(ratio, numbers([[1.0], [-1.0]]), mask, 0.2, high)["clip_fraction"]
    assert binding < expected  # the tokens that move against their advantage are not blocked


@pytest.mark.parametrize(("r", "binds"), [(1.25, False), (1.35, True)])
def test_epsilon_high_moves_only_the_upper_edge(r, binds):
    _, stats = grpo_loss(numbers([[math.log(r)]]), numbers([[0.0]]), numbers([1.0]),
                         epsilon_high=0.3)
    assert stats["clip_fraction_high"].item() == binds
    _, stats = grpo_loss(numbers([[math.log(0.75)]]), numbers([[0.0]]), numbers([-1.0]),
                         epsilon_high=0.3)
    assert stats["clip_fraction_low"] == 1


@pytest.mark.parametrize("epsilon_high", [None, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_clip_fraction_is_the_share_of_tokens_without_gradient(seed, epsilon_high):
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(20, 10, generator=generator, dtype=torch.float64)
    log_probs = (old + 0.4 * torch.randn(20, 10, generator=generator).double()).requires_grad_()
    advantages = torch.randn(20, generator=generator)
    mask = torch.arange(10) < torch.randint(1, 11, (20, 1), generator=generator)
    loss, stats = grpo_loss(log_probs, old, advantages, mask, epsilon_high=epsilon_high)
    loss.backward()
    share = (log_probs.grad[mask] == 0).double().mean().item()
    outside = ((log_probs - old).exp() - 1).abs()[mask] > 0.2
    assert stats["clip_fraction"].item() == pytest.approx(share)
    assert 0.1 < share < outside.double().mean().item()
    parts = stats["clip_fraction_low"] + stats["clip_fraction_high"]
    assert stats["clip_fraction"].item() == pytest.approx(parts.item())


@pytest.mark.parametrize(("sign", "side"), [(1, "high"), (-1, "low")])
def test_a_clipped_sequence_counts_with_all_its_tokens(sign, side):
    old = torch.zeros(2, 4)
    log_probs = sign * torch.tensor([[0.5] * 4, [0.0] * 4])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    stats = grpo_loss(log_probs, old, sign * torch.ones(2), mask, ratio="sequence").stats
    other = {"high": "low", "low": "high"}[side]
    assert stats[f"clip_fraction_{side}"].item() == pytest.approx(3 / 4)
    assert stats["clip_fraction"].item() == pytest.approx(3 / 4)
    assert stats[f"clip_fraction_{other}"] == 0


# --- what may flow, and what may not ------------------------------------------------------

@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradients_flow_into_log_probs_alone(batch, beta):
    log_probs, old, ref, advantages = (t.clone().requires_grad_() for t in batch[:4])
    loss, stats = grpo_loss(log_probs, old, advantages, batch[4], ref_log_probs=ref, beta=beta)
    loss.backward()
    assert log_probs.grad.abs().sum() > 0
    assert old.grad is None and ref.grad is None and advantages.grad is None
    assert not any(value.requires_grad for value in stats.values())


@pytest.mark.parametrize("choice", CHOICES[::3])
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, -200.0])
def test_padding_may_hold_anything(batch, choice, rubbish):
    clean = batch[0].clone().requires_grad_()
    expected = loss_of((clean, *batch[1:]), **choice)
    expected.loss.backward()
    blank = batch[4] == 0
    dirty = batch[0].masked_fill(blank, rubbish).requires_grad_()
    for which in ({0}, {1}, {2}, {0, 1, 2}):
        tensors = [t.masked_fill(blank, rubbish) if i in which else t
                   for i, t in enumerate(batch)]
        tensors[0] = dirty = tensors[0].clone().requires_grad_()
        got = loss_of(tensors, **choice)
        got.loss.backward()
        assert torch.equal(got.loss, expected.loss)
        assert torch.equal(dirty.grad, clean.grad)
        assert all(torch.equal(got.stats[name], expected.stats[name]) for name in got.stats)


def test_one_advantage_a_row_serves_all_its_tokens(batch):
    log_probs, old, _, advantages, mask = batch
    by_row = grpo_loss(log_probs, old, advantages[:, 0], mask)
    spread = grpo_loss(log_probs, old, advantages[:, :1].expand(5, 4), mask)
    assert torch.equal(by_row.loss, spread.loss)


def test_a_square_batch_is_not_read_the_wrong_way_round():
    log_probs, old = torch.zeros(2, 2), torch.zeros(2, 2)
    mask = torch.tensor([[1, 1], [0, 0]])
    loss = grpo_loss(log_probs, old, torch.tensor([1.0, 5.0]), mask, aggregation="token_mean")
    assert loss.loss.item() == -1.0


def test_no_mask_means_every_token_counts(batch):
    log_probs, old, _, advantages, _ = batch
    ones = torch.ones(5, 4)
    for mask in (ones, ones.bool(), ones.long()):
        assert torch.equal(grpo_loss(log_probs, old, advantages).loss,
                           grpo_loss(log_probs, old, advantages, mask).loss)


def test_a_batch_with_nothing_to_count_has_loss_zero():
    log_probs = torch.zeros(2, 3, requires_grad=True)
    for aggregation in AGGREGATIONS:
        loss = grpo_loss(log_probs, torch.ones(2, 3), torch.ones(2), torch.zeros(2, 3),
                         aggregation=aggregation, max_length=3).loss
        assert loss.item() == 0


# --- the KL term, weighed by the ratio ----------------------------------------------------

@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("kl", KLS)
def test_ratio_corrected_kl_in_value_and_gradient(batch, kl, ratio, aggregation):
    choice = {"kl": kl, "ratio": ratio, "aggregation": aggregation, "delta": 1.25}
    log_probs, old, ref, _, mask = batch

    def by_hand(x):
        d, difference = ref - x, (x - old) * mask
        distance = {"k1": -d, "k2": d**2 / 2, "k3": d.exp() - d - 1}[kl]
        if ratio in ("sequence", "sequence_sum"):
            divisor = mask.sum(1).clamp(min=1) if ratio == "sequence" else 1
            difference = (difference.sum(1) / divisor)[:, None].expand_as(x)
        elif ratio == "sequence_token":  # only the token's own log-prob moves
            mean = ((log_probs - old) * mask).sum(1) / mask.sum(1).clamp(min=1)
            difference = mean[:, None] + x - log_probs
        return aggregate(difference.exp() * distance, mask, aggregation, MAX_LENGTH)

    leaf = log_probs.clone().requires_grad_()
    with_kl = loss_of((leaf, *batch[1:]), beta=0.3, use_bias_correction_kl=True, **choice).loss
    without = loss_of(batch, **choice).loss
    assert with_kl.item() == pytest.approx((without + 0.3 * by_hand(log_probs)).item(), abs=1e-12)
    plain = loss_of(batch, beta=0.3, **choice).loss
    assert abs(with_kl - plain) > 1e-5

    with_kl.backward()
    alone = log_probs.clone().requires_grad_()
    loss_of((alone, *batch[1:]), **choice).loss.backward()
    slopes, step = leaf.grad - alone.grad, 1e-6
    for b, t in itertools.product(range(5), range(4)):
        moved = torch.zeros_like(log_probs)
        moved[b, t] = step
        slope = 0.3 * (by_hand(log_probs + moved) - by_hand(log_probs - moved)) / (2 * step)
        assert slopes[b, t].item() == pytest.approx(slope.item(), abs=1e-8)


@pytest.mark.parametrize(("corrected", "slope"), [
    (True, lambda d: -d), (False, lambda d: 1 - d.exp())])
def test_at_ratio_one_corrected_k3_pulls_by_log_pi_minus_log_ref(batch, corrected, slope):
    log_probs, _, ref, _, mask = batch
    leaf = log_probs.clone().requires_grad_()
    grpo_loss(leaf, log_probs, torch.zeros(5), mask, ref_log_probs=ref, beta=1.0,
              aggregation="token_mean", use_bias_correction_kl=corrected).loss.backward()
    expected = slope(ref - log_probs) * mask / mask.sum()
    assert (leaf.grad - expected).abs().max() < 1e-12


def test_ratio_correction_is_off_by_default_and_changes_neither_stats_nor_a_loss_without_kl(batch):
    log_probs, old, ref, advantages, mask = batch
    given = {"ref_log_probs": ref, "kl": "k3"}
    for beta in (0.0, 0.3):
        plain = grpo_loss(log_probs, old, advantages, mask, beta=beta, **given)
        off = grpo_loss(log_probs, old, advantages, mask, beta=beta,
                        use_bias_correction_kl=False, **given)
        on = grpo_loss(log_probs, old, advantages, mask, beta=beta,
                       use_bias_correction_kl=True, **given)
        assert torch.equal(plain.loss, off.loss)
        assert torch.equal(plain.loss, on.loss) == (beta == 0)
        assert all(torch.equal(plain.stats[name], on.stats[name]) for name in plain.stats)


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, -200.0])
def test_padding_may_hold_anything_under_ratio_correction(batch, rubbish):
    blank, results = batch[4] == 0, []
    for tensors in (batch[:3], [t.masked_fill(blank, rubbish) for t in batch[:3]]):
        leaf = tensors[0].clone().requires_grad_()
        loss = grpo_loss(leaf, tensors[1], batch[3], batch[4], ref_log_probs=tensors[2], beta=0.3,
                         use_bias_correction_kl=True).loss
        loss.backward()
        results.append((loss, leaf.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_stats_describe_the_counted_tokens(batch):
    log_probs, old, ref, advantages, mask = batch
    _, stats = grpo_loss(log_probs, old, advantages, mask, ref_log_probs=ref, beta=0.5, kl="k1",
                         aggregation="constant", max_length=MAX_LENGTH)
    on = mask == 1
    ratios = (log_probs - old).exp()[on]
    d = (ref - log_probs)[on]
    without_kl = grpo_loss(log_probs, old, advantages, mask, aggregation="constant",
                           max_length=MAX_LENGTH).loss
    assert stats["ratio_min"] == ratios.min()
    assert stats["ratio_max"] == ratios.max()
    assert stats["kl"].item() == pytest.approx((d.exp() - d - 1).mean().item())
    assert torch.equal(stats["policy_loss"], without_kl)
    assert "kl" not in grpo_loss(log_probs, old, advantages, mask).stats


def test_padding_counts_for_no_extreme_of_the_ratio():
    log_probs, old = numbers([[0.3, 0.2, 0.0]]), numbers([[0.0, 0.0, 0.0]])
    mask = numbers([[1, 1, 0]])
    for sign, least, most in ((1, 0.2, 0.3), (-1, -0.3, -0.2)):
        stats = grpo_loss(sign * log_probs, old, numbers([1.0]), mask).stats
        assert stats["ratio_min"].item() == pytest.approx(math.exp(least))
        assert stats["ratio_max"].item() == pytest.approx(math.exp(most))


# --- the parts ----------------------------------------------------------------------------

def test_sequence_ratio_is_the_geometric_mean_of_the_token_ratios():
    log_probs = numbers([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]])
    old = numbers([[-1.5, -1.5, 0.0], [-1.0, -1.0, -1.0]])
    mask = numbers([[1, 1, 0], [1, 1, 1]])
    ratio = importance_ratio(log_probs, old, mask, "sequence")
    assert ratio.tolist() == [[1.0], [1.0]]
    ratio = importance_ratio(log_probs + numbers([[0.4, 0, 0], [0, 0, 0]]), old, mask, "sequence")
    assert ratio[0, 0].item() == pytest.approx(math.exp(0.2))
    token = importance_ratio(log_probs, old, mask)
    assert token[0].tolist() == pytest.approx([math.exp(0.5), math.exp(-0.5), 1.0])


@pytest.mark.parametrize(("kl", "value"), [("k1", -0.5), ("k2", 0.125),
                                           ("k3", math.exp(0.5) - 1.5)])
def test_each_kl_estimate_by_hand(kl, value):
    got = kl_estimate(numbers([[-1.0]]), numbers([[-0.5]]), kl)
    assert got.item() == pytest.approx(value)


@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_and_k3_is_never_negative(kl):
    generator = torch.Generator().manual_seed(2)
    log_p, log_q = torch.randn(2, 1, 9, generator=generator).double().log_softmax(-1)
    true = (log_p.exp() * (log_p - log_q)).sum()
    estimates = kl_estimate(log_p, log_q, kl)
    assert (log_p.exp() * estimates).sum().item() == pytest.approx(true.item())
    assert (estimates.min() >= 0).item() == (kl == "k3")


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_rows_and_tokens_weigh_as_the_aggregation_says(aggregation):
    values = numbers([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    mask = numbers([[1, 1, 1], [1, 0, 0]])
    expected = {"sequence_mean": (2 + 10) / 2, "token_mean": 16 / 4, "constant": 16 / (2 * 5),
                "sequence_sum": 16 / 2, "nonempty_sequence_mean": (2 + 10) / 2}
    assert aggregate(values, mask, aggregation, 5).item() == expected[aggregation]


# --- errors -------------------------------------------------------------------------------

@pytest.mark.parametrize(("change", "named"), [
    ({"log_probs": torch.zeros(4)}, "log_probs"), ({"log_probs": torch.zeros(0, 3)}, "log_probs"),
    ({"log_probs": torch.zeros(2, 0)}, "log_probs"),
    ({"old_log_probs": torch.zeros(2, 4)}, "old_log_probs"),
    ({"mask": torch.ones(2)}, "mask"), ({"mask": torch.ones(3, 2)}, "mask"),
    ({"ref_log_probs": torch.zeros(2, 1)}, "ref_log_probs"),
    ({"advantages": torch.zeros(3)}, "advantages"),
    ({"advantages": torch.zeros(2, 1)}, "advantages"),
    ({"advantages": torch.tensor([0.0, math.nan])}, "advantages"),
    ({"advantages": torch.tensor([0.0, math.inf])}, "advantages"),
    ({"mask": torch.ones(2, 3, device="meta")}, "mask"),
    ({"beta": -0.1}, "beta"), ({"beta": math.nan}, "beta"), ({"beta": math.inf}, "beta"),
    ({"beta": 0.1}, "ref_log_probs"),
    ({"epsilon": -0.1}, "epsilon"), ({"epsilon": 1.1}, "epsilon"),
    ({"epsilon": math.nan}, "epsilon"), ({"epsilon_high": -0.1}, "epsilon_high"),
    ({"epsilon_high": math.nan}, "epsilon_high"), ({"delta": 1.2}, "delta"),
    ({"delta": 1.25, "epsilon_high": 0.3}, "delta"), ({"delta": math.nan}, "delta"),
    ({"ratio": "row"}, "ratio"), ({"aggregation": "mean"}, "aggregation"),
    ({"aggregation": "constant"}, "max_length"),
    ({"aggregation": "constant", "max_length": 0}, "max_length"),
    ({"kl": "k4", "beta": 0.1, "ref_log_probs": torch.zeros(2, 3)}, "kl"),
])
def test_a_bad_argument_is_named(change, named):
    arguments = {"log_probs": torch.zeros(2, 3), "old_log_probs": torch.zeros(2, 3),
                 "advantages": torch.zeros(2)} | change
    with pytest.raises(ValueError, match=f"^{named}: ") as caught:
        grpo_loss(**arguments)
    assert "allowed" in str(caught.value)


# --- the weight of a token ----------------------------------------------------------------

@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("lengths", [LENGTHS, GROUP_LENGTHS, [0, 0], [1], [4]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.bool])
def test_token_weights_are_the_slopes_of_aggregate(aggregation, lengths, dtype):
    mask = (torch.arange(4) < torch.tensor(lengths)[:, None]).to(dtype)
    kind = dtype if dtype.is_floating_point else torch.float32
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0), dtype=kind)
    values.requires_grad_()
    number = aggregate(values, mask, aggregation, MAX_LENGTH)
    got = token_weights(mask, aggregation, MAX_LENGTH)
    assert got.dtype == kind and got.shape == mask.shape
    assert torch.allclose(got, torch.autograd.grad(number, values)[0], atol=1e-7)
    assert (got * values.detach()).sum().item() == pytest.approx(number.item(), abs=1e-6)


def test_token_weights_by_hand():
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]])
    assert token_weights(mask, "sequence_mean").tolist() == [[0.25, 0.25, 0, 0], [0.125] * 4]
    assert token_weights(mask, "token_mean").tolist() == [
        pytest.approx([1 / 6, 1 / 6, 0, 0]), pytest.approx([1 / 6] * 4)]
    assert token_weights(mask, "constant", 5).tolist() == [
        pytest.approx([0.1, 0.1, 0, 0]), pytest.approx([0.1] * 4)]


@pytest.mark.parametrize("max_length", [None, 0, -3])
def test_token_weights_name_bad_input(max_length):
    with pytest.raises(ValueError, match=r"max_length: got .*'constant' divides by it"):
        token_weights(torch.ones(2, 2), "constant", max_length)
    with pytest.raises(ValueError, match="aggregation: got 'sum', allowed are sequence_mean"):
        token_weights(torch.ones(2, 2), "sum")


def test_sequence_mean_is_constant_with_advantages_over_length(on_policy):
    log_probs, advantages, mask = on_policy
    options = {"max_length": MAX_LENGTH}
    first = grpo_loss(log_probs, log_probs, advantages, mask, aggregation="sequence_mean").loss
    second = grpo_loss(log_probs, log_probs, advantages * MAX_LENGTH / mask.sum(1), mask,
                       aggregation="constant", **options).loss
    slopes = [torch.autograd.grad(loss, log_probs, retain_graph=True)[0]
              for loss in (first, second)]
    assert (slopes[0] - slopes[1]).abs().max() < 1e-15 < slopes[0].abs().max()


def test_token_mean_over_micro_batches_of_one_row_is_sequence_mean(on_policy):
    values, mask = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), on_policy[2]
    rows = [aggregate(values[i: i + 1], mask[i: i + 1], "token_mean") for i in range(6)]
    assert sum(rows).item() / 6 == pytest.approx(
        aggregate(values, mask, "sequence_mean").item(), abs=1e-6)
    assert abs(sum(rows).item() / 6 - aggregate(values, mask, "token_mean").item()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_is_counted_in_float32(dtype):
    """Log-probs of 16 bits are taken as they are; ratios and sums are not rounded again."""
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(4, 50, generator=generator).to(dtype)
    old = (log_probs.float() - 0.1 * torch.rand(4, 50, generator=generator)).to(dtype)
    advantages, mask = torch.randn(4, generator=generator), torch.ones(4, 50)
    half = grpo_loss(log_probs, old, advantages.to(dtype), mask.to(dtype)).loss
    whole = grpo_loss(log_probs.float(), old.float(), advantages.to(dtype).float(), mask).loss
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=1e-6)
