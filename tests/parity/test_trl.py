"""Loss, gradient and advantages against TRL's own code, for every option that both have.

Loss and gradients in float64 to rtol 1e-6 + atol 1e-9. TRL takes rewards as float32, so
advantages are compared to rtol 1e-5.
"""

import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
import trl_peer
from trl import GRPOConfig as TRLConfig
from trl import RLOOConfig
from trl.experimental.gmpo import GMPOConfig
from trl.rewards import get_soft_overlong_punishment

from grpo_lib import (
    ALGORITHMS,
    Algorithm,
    aggregate,
    group_advantages,
    grpo_loss,
    off_policy_mask,
    sampler_weights,
    soft_overlong_punishment,
)

MAX_LENGTH = 9
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """What TRL and transformers warn of is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def defaults(tmp_path_factory):
    """TRL's configs as they come, by trainer."""
    folder = str(tmp_path_factory.mktemp("trl"))
    return {kind: config(output_dir=folder, report_to=[], use_cpu=True, bf16=False,
                         max_completion_length=MAX_LENGTH)
            for kind, config in (("grpo", TRLConfig), ("gmpo", GMPOConfig), ("rloo", RLOOConfig))}


def make_case(seed, kind="plain"):
    """A batch of 6 rows of up to 7 tokens: ragged, the last row of seed 1, 4, ... masked whole.

    "holes": masked tokens in the middle too; "extreme": ratios from e^-30 to e^30; "masked": no
    token counts at all. Padding holds other numbers than 0.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(scale, *shape):
        return scale * torch.randn(*shape, generator=g, dtype=torch.float64)

    lengths = torch.randint(1, 8, (6,), generator=g)
    if seed % 3 == 1:
        lengths[-1] = 0
    mask = (torch.arange(7) < lengths[:, None]).double()
    if kind == "holes":
        mask = mask * (torch.rand(6, 7, generator=g) < 0.7)
    if kind == "masked":
        mask = 0 * mask
    log_probs = -normal(1.5, 6, 7).abs()
    spread = 15.0 if kind == "extreme" else 0.3
    old = log_probs + normal(spread, 6, 7).clamp(-30, 30)
    if kind == "edge":  # the ratio is exactly 1: on-policy
        old = log_probs.clone()
    advantages = normal(1.0, 6)
    advantages[seed % 6] = 0.0
    # entropies (and quantiles below) that float32 holds exactly: TRL takes quantiles in float32
    entropies = (torch.rand(6, 7, generator=g) * 3).double()
    return SimpleNamespace(mask=mask, log_probs=log_probs, old_log_probs=old,
                           ref_log_probs=log_probs + normal(0.5, 6, 7),
                           sampler_log_probs=old + normal(0.4, 6, 7), entropies=entropies,
                           advantages=advantages)


def ours(case, **options):
    """Our loss of a case, its stats, and gradients by log_probs and entropies."""
    log_probs = case.log_probs.clone().requires_grad_()
    entropies = case.entropies.clone().requires_grad_()
    out = grpo_loss(log_probs, case.old_log_probs, case.advantages, case.mask,
                    ref_log_probs=case.ref_log_probs, entropies=entropies,
                    max_length=MAX_LENGTH, **options)
    gradients = torch.autograd.grad(out.loss, (log_probs, entropies), materialize_grads=True)
    return out.loss.detach(), *gradients, out.stats


# TRL's loss_type: our surrogate and aggregation
LOSS_TYPES = {"grpo": ("clip", "sequence_mean"), "bnpo": ("clip", "token_mean"),
              "dapo": ("clip", "token_mean"), "dr_grpo": ("clip", "constant"),
              "luspo": ("clip", "sequence_sum"), "cispo": ("cispo", "token_mean"),
              "sapo": ("sapo", "sequence_mean")}
BOUNDS = ({}, {"epsilon": 0.1, "epsilon_high": 0.28}, {"epsilon_high": 0.3, "delta": 1.5})
DISTANCES = ({}, {"beta": 0.04, "use_bias_correction_kl": False},
             {"beta": 0.7, "use_bias_correction_kl": True})
EXTRAS = {
    "plain": {}, "holes": {}, "extreme": {}, "edge": {}, "masked": {},
    "off_policy": {"off_policy_mask_threshold": 0.02},
    "top_entropy": {"top_entropy_quantile": 0.25},
    "entropy_bonus": {"entropy_coef": 0.01},
    "both_entropies": {"entropy_coef": -0.3, "top_entropy_quantile": 0.75},
    "token_truncate": {}, "token_mask": {}, "sequence_truncate": {}, "sequence_mask": {},
    "all_at_once": {"off_policy_mask_threshold": 0.02, "top_entropy_quantile": 0.5,
                    "entropy_coef": 0.02},
}
GRPO_CASES = [(i, *chosen) for i, chosen in enumerate(itertools.product(
    LOSS_TYPES, ("token", "sequence"), range(len(BOUNDS)), range(len(DISTANCES)), EXTRAS))]


@pytest.mark.parametrize("seed, loss_type, level, bounds, distance, extra", GRPO_CASES)
def test_loss_and_gradient(defaults, count, seed, loss_type, level, bounds, distance, extra):
    case = make_case(seed, extra)
    if extra == "extreme" and distance:  # k3 of e^30 would drown everything beside it
        case.ref_log_probs = case.log_probs - 0.1
    shared = BOUNDS[bounds] | DISTANCES[distance] | EXTRAS[extra]
    theirs, mine = dict(shared), dict(shared)
    if loss_type == "cispo":  # TRL's epsilon_high is the cap itself, and there is no lower one
        theirs["epsilon_high"] = 1 + shared.get("epsilon_high", 4.0)
        mine |= {"epsilon": 1.0, "epsilon_high": shared.get("epsilon_high", 4.0)}
        mine.pop("delta", None)
    if loss_type == "sapo":
        # TRL keeps temperatures in float32, which holds these exactly (1.05 it does not)
        temperatures = {"sapo_temperature_neg": 1.0625} | (
            {"sapo_temperature_pos": 0.75} if bounds else {})
        theirs, mine = theirs | temperatures, mine | temperatures
    if "beta" not in shared:
        mine["use_bias_correction_kl"] = False
    correction = extra if extra.startswith(("token_", "sequence_")) else (
        "sequence_mask" if extra == "all_at_once" else "none")
    if correction != "none":
        low = 0.8 if seed % 2 else None
        theirs |= {"use_vllm": True, "vllm_importance_sampling_mode": correction,
                   "vllm_importance_sampling_clip_max": 1.3,
                   "vllm_importance_sampling_clip_min": low}
        weights = sampler_weights(case.old_log_probs, case.sampler_log_probs, case.mask, correction,
                                  1.3, low)
        threshold = mine.pop("off_policy_mask_threshold", None)
        if threshold is not None:  # then TRL measures from the engine that sampled
            weights = weights * off_policy_mask(case.log_probs, case.sampler_log_probs,
                                                case.advantages[:, None], case.mask, threshold)
        mine["correction"] = weights
    elif "off_policy_mask_threshold" in shared:  # then TRL measures from the old policy
        case.sampler_log_probs = case.old_log_probs
    surrogate, aggregation = LOSS_TYPES[loss_type]
    wanted = trl_peer.loss("grpo", defaults["grpo"], case, loss_type=loss_type,
                           importance_sampling_level=level, **theirs)
    got = ours(case, surrogate=surrogate, aggregation=aggregation, ratio=level, **mine)
    for name, a, b in zip(("loss", "gradient", "gradient by entropies"), got, wanted):
        assert torch.allclose(a, b, **TOLERANCE), (name, a, b)
    if surrogate == "clip" and level == "token":
        for side in ("low", "high"):
            assert got[3][f"clip_fraction_{side}"].item() == pytest.approx(
                wanted[3][f"clip_ratio/{side}_mean"], abs=1e-6)
    if "beta" in shared and not shared["use_bias_correction_kl"]:
        assert got[3]["kl"].item() == pytest.approx(wanted[3]["kl"], rel=1e-5, abs=1e-8)
    count("loss and gradient", moved=got[1].abs().max() > 0)


@pytest.mark.parametrize("seed, bounds, beta, quantile", [
    (i, *chosen) for i, chosen in enumerate(itertools.product(
        ("plain", "holes", "extreme", "edge", "masked"), (0.0, 0.05), (1.0, 0.5, 0.25)))])
def test_gmpo(defaults, count, seed, bounds, beta, quantile):
    """TRL's bound is of the log. A row without tokens has ratio exp(0) = 1 there, a constant
    -A without gradient, which ours leaves out: that constant is taken off."""
    case = make_case(seed, bounds)
    if bounds == "extreme":
        case.ref_log_probs = case.log_probs - 0.1
    wanted = trl_peer.loss("gmpo", defaults["gmpo"], case, beta=beta,
                           top_entropy_quantile=quantile)
    row = ALGORITHMS["gmpo"]
    got = ours(case, surrogate="gmpo", epsilon=row.epsilon, epsilon_high=row.epsilon_high,
               beta=beta, top_entropy_quantile=quantile)
    empty = case.mask.sum(1) == 0
    constant = -(case.advantages * empty).sum() / len(empty)
    assert torch.allclose(got[0], wanted[0] - constant, **TOLERANCE)
    assert torch.allclose(got[1], wanted[1], **TOLERANCE)
    if quantile == 1:
        for side in ("low", "high"):
            assert got[3][f"clip_fraction_{side}"].item() == pytest.approx(
                wanted[3][f"clip_ratio/{side}_mean"], abs=1e-6)
    count("loss and gradient", moved=got[1].abs().max() > 0)


@pytest.mark.parametrize("seed", range(60))
def test_rloo(defaults, count, seed):
    """The ratio of whole completions. A row without tokens is a constant -A in TRL, as above."""
    case = make_case(seed, ("plain", "holes", "extreme", "edge", "masked")[seed % 5])
    if seed % 5 == 2:  # a product of seven ratios of up to e^30
        case.old_log_probs = case.log_probs + (case.old_log_probs - case.log_probs) / 7
    bounds = [{}, {"epsilon": 0.1, "epsilon_high": 0.5}][seed % 2]
    wanted = trl_peer.loss("rloo", defaults["rloo"], case, **bounds)
    got = ours(case, ratio="sequence_sum", **bounds)
    empty = case.mask.sum(1) == 0
    constant = -(case.advantages * empty).sum() / len(empty)
    assert torch.allclose(got[0], wanted[0] - constant, **TOLERANCE)
    assert torch.allclose(got[1], wanted[1], **TOLERANCE)
    count("loss and gradient", moved=got[1].abs().max() > 0)


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate",
                                  "sequence_mask"])
@pytest.mark.parametrize("seed", range(10))
def test_sampler_weights(defaults, seed, mode):
    case = make_case(seed)
    bounds = {"vllm_importance_sampling_clip_max": 1.2,
              "vllm_importance_sampling_clip_min": 0.9 if seed % 2 else None}
    wanted = trl_peer.sampler_weights(defaults["grpo"], case, use_vllm=True,
                                      vllm_importance_sampling_mode=mode, **bounds)
    got = sampler_weights(case.old_log_probs, case.sampler_log_probs, case.mask, mode, 1.2,
                          bounds["vllm_importance_sampling_clip_min"])
    counted = case.mask if wanted.shape[1] > 1 else case.mask[:, :1]
    assert torch.allclose(got * counted, wanted * counted, **TOLERANCE)


# --- advantages ---------------------------------------------------------------------------

def rewards_of(seed, groups=4, group_size=5):
    """Rewards (N, G) in float32, as TRL has them; binary where the seed is even."""
    g = torch.Generator().manual_seed(seed)
    rewards = torch.rand(groups, group_size, generator=g)
    return (rewards < 0.4).float() if seed % 2 == 0 else rewards


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("seed", range(40))
def test_advantages(defaults, count, seed, scale):
    rewards = rewards_of(seed, 1 + seed % 5, 2 + seed % 7)
    made = trl_peer.trainer("grpo", defaults["grpo"], scale_rewards=scale)
    wanted = trl_peer.scored(made, rewards)["advantages"]
    got = group_advantages(rewards, scale=scale, std_eps=1e-4).flatten()
    silent = (rewards == rewards[:, :1]).all(1).repeat_interleave(rewards.shape[1])
    assert wanted.dtype == torch.float32
    assert torch.allclose(got[~silent], wanted[~silent], rtol=1e-5, atol=1e-6)
    assert (got[silent] == 0).all()
    count("advantages")


@pytest.mark.parametrize("group_size", [3, 5, 6, 7])
def test_a_group_without_spread_is_0_where_trl_is_left_with_rounding(defaults, group_size):
    rewards = torch.full((2, group_size), 0.1)  # whose mean in float32 is not always 0.1
    rewards[1] = torch.linspace(0, 1, group_size)
    left = []
    for value in (0.1, 0.3, 0.7, 1.1, 2.3):
        rewards[0] = value
        made = trl_peer.trainer("grpo", defaults["grpo"])
        left.append(trl_peer.scored(made, rewards)["advantages"][:group_size].abs().max().item())
        assert (group_advantages(rewards)[0] == 0).all()
        assert (group_advantages(rewards.double())[0] == 0).all()
    assert max(left) < 0.01
    if group_size in (6, 7):
        assert max(left) > 0, "TRL no longer leaves rounding: say so in the documents"


@pytest.mark.parametrize("beta", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(20))
def test_rloo_advantages_with_the_distance_in_the_reward(defaults, count, seed, beta):
    rewards = rewards_of(seed, 3, 2)
    case = make_case(seed)
    completions = [[2] * max(int(n), 1) for n in case.mask.sum(1)]
    longest = max(map(len, completions))
    mask = torch.tensor([[1.0] * len(c) + [0.0] * (longest - len(c)) for c in completions],
                        dtype=torch.float64)
    old, ref = case.old_log_probs[:, :longest], case.ref_log_probs[:, :longest]
    made = trl_peer.trainer("rloo", defaults["rloo"], beta=beta)
    wanted = trl_peer.scored(made, rewards, completions, old, ref)["advantages"]
    row = Algorithm(**{**ALGORITHMS["rloo"].differences(), "beta": beta})
    got = row.advantages(rewards.double(), mask, kl=old - ref)
    assert torch.allclose(got, wanted.double(), rtol=1e-5, atol=1e-6)
    count("advantages")


@pytest.mark.parametrize(("max_length", "cache"), [(20, 5), (7, 7), (100, 1)])
def test_soft_overlong_punishment(max_length, cache):
    lengths = list(range(2 * max_length))
    wanted = get_soft_overlong_punishment(max_length, cache)([[0] * n for n in lengths])
    got = soft_overlong_punishment(torch.tensor(lengths, dtype=torch.float64), max_length, cache)
    assert torch.allclose(got, torch.tensor(wanted, dtype=torch.float64))


def test_masking_truncated_completions_empties_their_rows(defaults):
    """TRL zeroes the mask of what did not end; the row stays in B, and its reward in its
    group: our trainer does the same (test_training), here the two losses."""
    case = make_case(2)
    case.mask = torch.ones_like(case.mask)
    completions = [[2] * 7 if i % 2 else [2] * 6 + [1] for i in range(6)]
    made = trl_peer.trainer("grpo", defaults["grpo"], mask_truncated_completions=True)
    out = trl_peer.scored(made, torch.rand(2, 3), completions, case.old_log_probs)
    finished = torch.tensor([c[-1] == 1 for c in completions])
    assert torch.equal(out["completion_mask"].double(), case.mask * finished[:, None])
    case.mask = out["completion_mask"].double()
    wanted = trl_peer.loss("grpo", defaults["grpo"], case, loss_type="grpo")
    assert torch.allclose(ours(case)[0], wanted[0], **TOLERANCE)


# --- defaults -----------------------------------------------------------------------------

def test_our_defaults_are_trls(defaults):
    trl, row = defaults["grpo"], ALGORITHMS["grpo"]
    for name in ("epsilon", "epsilon_high", "delta", "beta", "sapo_temperature_pos",
                 "sapo_temperature_neg", "entropy_coef", "top_entropy_quantile",
                 "off_policy_mask_threshold", "mask_truncated_completions"):
        assert getattr(row, name) == getattr(trl, name), name
    assert (trl.scale_rewards, trl.importance_sampling_level) == (row.scale, row.ratio)
    assert trl.use_bias_correction_kl and not row.use_bias_correction_kl, "the one that differs"
    assert (trl.vllm_importance_sampling_mode, trl.vllm_importance_sampling_clip_max,
            trl.vllm_importance_sampling_clip_min) == ("sequence_mask", 3.0, None)


def test_a_wrong_loss_is_told_from_a_right_one(defaults):
    """The comparison can fail: one option of ours left out, and they differ."""
    case = make_case(5)
    wanted = trl_peer.loss("grpo", defaults["grpo"], case, loss_type="grpo", beta=0.04,
                           use_bias_correction_kl=True)
    got = ours(case, beta=0.04)
    assert not torch.allclose(got[1], wanted[1], **TOLERANCE)
    assert torch.allclose(aggregate(case.mask, case.mask, "sequence_mean"),
                          (case.mask.sum(1) > 0).double().mean())


def test_there_are_cases_enough():
    assert len(GRPO_CASES) >= 500
