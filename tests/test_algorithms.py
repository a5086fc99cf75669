"""Rows of the table: what each chooses, what its advantages and loss are made of."""

import json
import math
import statistics
from dataclasses import fields, replace

import pytest
import torch

from grpo_lib.advantages import BASELINES, SCALES
from grpo_lib.algorithms import ALGORITHMS, CHOICES, Algorithm
from grpo_lib.config import GRPOConfig
from grpo_lib.objective import AGGREGATIONS, KLS, RATIOS, SURROGATES, LossChoices, grpo_loss

REWARDS = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
ALL_REWARDS = [r for group in REWARDS for r in group]
LENGTHS = [3, 2, 4, 1, 2, 2, 3, 4, 1, 2, 3, 4]


def numbers(rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def batch():
    """rewards (3, 4), mask (12, 4), per-token KL (12, 4) with rubbish in the padding."""
    mask = (torch.arange(4) < torch.tensor(LENGTHS)[:, None]).double()
    kl = torch.rand(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return numbers(REWARDS), mask, kl + 50 * (1 - mask)


def whitened(rows, lengths):
    """Per-token values of ragged rows, whitened over all tokens, by the statistics module."""
    flat = [v for row, n in zip(rows, lengths) for v in row[:n]]
    mean, width = statistics.fmean(flat), math.sqrt(statistics.variance(flat) + 1e-8)
    return [[(v - mean) / width for v in row[:n]] + [0.0] * (4 - n)
            for row, n in zip(rows, lengths)]


# --- the rows -----------------------------------------------------------------------------

def test_the_names():
    assert set(ALGORITHMS) >= {
        "reinforce", "reinforce_baseline", "rloo", "reinforce_plus_plus", "ppo", "grpo", "dr_grpo",
        "dapo", "gspo", "cispo", "sapo", "gmpo", "bnpo", "maxrl", "lite_ppo"}
    assert all(row.about and row.source for row in ALGORITHMS.values())


def test_the_row_grpo_is_the_papers_and_the_defaults():
    row = ALGORITHMS["grpo"]
    assert row.differences() == {}
    assert (row.baseline, row.scale, row.ratio, row.surrogate) == ("mean", "group", "token", "clip")
    assert (row.aggregation, row.epsilon, row.epsilon_high) == ("sequence_mean", 0.2, None)


@pytest.mark.parametrize(("name", "choices"), [
    ("dapo", {"epsilon": 0.2, "epsilon_high": 0.28, "aggregation": "token_mean", "scale": "group",
              "dynamic_sampling": True}),
    ("dr_grpo", {"scale": "none", "aggregation": "constant", "baseline": "mean"}),
    ("gspo", {"ratio": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}),
    ("cispo", {"surrogate": "cispo", "epsilon": 1.0, "epsilon_high": 4.0}),
    ("sapo", {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}),
    ("rloo", {"baseline": "leave_one_out", "scale": "none", "ratio": "sequence_sum",
              "kl_in_reward": True, "kl": "k1"}),
    ("lite_ppo", {"baseline": "mean", "scale": "batch", "aggregation": "token_mean"}),
    ("maxrl", {"baseline": "mean", "scale": "mean", "surrogate": "log_prob"}),
    ("ppo", {"critic": True, "baseline": "none", "whiten": True}),
])
def test_what_the_papers_say_the_rows_say(name, choices):
    assert {key: getattr(ALGORITHMS[name], key) for key in choices} == choices


def test_gmpos_bounds_are_the_papers_in_the_log():
    row = ALGORITHMS["gmpo"]
    assert math.log(1 + row.epsilon_high) == pytest.approx(0.4)
    assert math.log(1 - row.epsilon) == pytest.approx(-0.4)


def test_the_table_shows_every_row_as_text_and_as_html():
    text, html = str(ALGORITHMS), ALGORITHMS._repr_html_()
    assert text.count("\n") == len(ALGORITHMS) - 1
    assert html.count("<tr>") == len(ALGORITHMS) + 1
    for name, row in ALGORITHMS.items():
        assert f"\n{name} " in f"\n{text}" and f">{name}</td>" in html
        for choice in row.differences():
            assert choice in html
    from IPython.lib.pretty import pretty

    assert pretty(ALGORITHMS) == text


def test_an_unknown_row_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="algorithm: got 'ppo2', allowed are grpo, reinforce, "):
        ALGORITHMS["ppo2"]
    assert "ppo2" not in ALGORITHMS


def test_every_choice_is_described_and_of_a_known_kind():
    for f in fields(Algorithm):
        assert len(f.metadata["about"].split()) >= 2
    assert {f.name for f in fields(LossChoices)} <= set(CHOICES)
    assert set(CHOICES) <= {f.name for f in fields(GRPOConfig)}


# --- advantages ---------------------------------------------------------------------------

def test_advantages_of_rows_that_compare_within_the_group(batch):
    rewards, mask, _ = batch
    for name, row in ALGORITHMS.items():
        if row.critic or row.whiten:
            continue
        got = row.advantages(rewards, mask)
        assert got.shape == (12,)
        expected = []
        for group in REWARDS:
            mean = statistics.fmean(group)
            base = {"none": 0.0, "batch": statistics.fmean(ALL_REWARDS)}.get(
                row.baseline, mean)
            factor = 4 / 3 if row.baseline == "leave_one_out" else 1
            width = {"group": statistics.stdev(group), "mean": mean, "none": 1 - row.std_eps,
                     "batch": statistics.stdev(ALL_REWARDS)}[row.scale] + row.std_eps
            expected += [factor * (r - base) / width for r in group]
        assert got.tolist() == pytest.approx(expected, abs=1e-12), name


def test_maxrl_gives_a_rare_right_answer_the_most():
    row = replace(ALGORITHMS["maxrl"], std_eps=0.0)
    for right in range(5):
        rewards = numbers([[1.0] * right + [0.0] * (4 - right)])
        got = row.advantages(rewards, torch.ones(4, 1).double())
        expected = (rewards[0] - right / 4) / (right / 4) if right else torch.zeros(4).double()
        assert got.tolist() == pytest.approx(expected.tolist())
    assert row.advantages(numbers([[1.0, 0, 0, 0]]), torch.ones(4, 1).double())[0] == 3


def test_reinforce_plus_plus_whitens_over_tokens(batch):
    rewards, mask, _ = batch
    got = ALGORITHMS["reinforce_plus_plus"].advantages(rewards, mask)
    rows = [[r] * 4 for group in REWARDS for r in group]
    assert got.shape == (12, 4)
    for row, wanted in zip(got.tolist(), whitened(rows, LENGTHS)):
        assert row == pytest.approx(wanted, abs=1e-12)


def test_kl_in_the_reward_is_summed_over_a_completion(batch):
    rewards, mask, kl = batch
    row = replace(ALGORITHMS["rloo"], beta=0.1)
    less = [[REWARDS[n][g] - 0.1 * kl[4 * n + g, : LENGTHS[4 * n + g]].sum().item()
             for g in range(4)] for n in range(3)]
    expected = [(r - statistics.fmean(group)) * 4 / 3 for group in less for r in group]
    assert row.advantages(rewards, mask, kl=kl).tolist() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="kl: got None with kl_in_reward"):
        row.advantages(rewards, mask)


def test_with_whitening_a_token_has_the_kl_still_before_it(batch):
    rewards, mask, kl = batch
    row = replace(ALGORITHMS["reinforce_plus_plus"], beta=0.1, kl_in_reward=True)
    rows = [[REWARDS[i // 4][i % 4] - 0.1 * kl[i, t: LENGTHS[i]].sum().item() for t in range(4)]
            for i in range(12)]
    got = row.advantages(rewards, mask, kl=kl)
    for values, wanted in zip(got.tolist(), whitened(rows, LENGTHS)):
        assert values == pytest.approx(wanted, abs=1e-12)


def gae_in_loops(rewards, values, kl, beta, gamma, lam):
    rows = []
    for i, n in enumerate(LENGTHS):
        r = [-beta * kl[i, t].item() for t in range(n)]
        r[-1] += rewards[i // 4][i % 4]
        v = [*values[i, :n].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
        rows.append([sum((gamma * lam) ** k * delta[t + k] for k in range(n - t))
                     for t in range(n)] + [0.0] * (4 - n))
    return rows


@pytest.mark.parametrize(("gamma", "lam", "beta"), [(1.0, 0.95, 0.0), (0.9, 0.7, 0.2),
                                                    (1.0, 1.0, 0.1)])
def test_ppos_advantages_and_returns_in_loops(batch, gamma, lam, beta):
    rewards, mask, kl = batch
    values = torch.rand(12, 4, generator=torch.Generator().manual_seed(5)).double()
    row = replace(ALGORITHMS["ppo"], gamma=gamma, gae_lambda=lam, beta=beta)
    rows = gae_in_loops(REWARDS, values, kl, beta, gamma, lam)
    got = row.advantages(rewards, mask, kl=kl, values=values)
    for values_of, wanted in zip(got.tolist(), whitened(rows, LENGTHS)):
        assert values_of == pytest.approx(wanted, abs=1e-10)
    returns = row.returns(rewards, mask, values, kl=kl)
    for i, n in enumerate(LENGTHS):
        wanted = [rows[i][t] + values[i, t].item() for t in range(n)] + [0.0] * (4 - n)
        assert returns[i].tolist() == pytest.approx(wanted, abs=1e-12)
    with pytest.raises(ValueError, match="values: got None"):
        row.advantages(rewards, mask, kl=kl)


def test_long_completions_lose_reward():
    row = ALGORITHMS["dapo"]  # the last fifth of 10 tokens: 2
    rewards = torch.ones(1, 5)
    lengths = torch.tensor([1, 8, 9, 10, 11])
    assert row.shaped_rewards(rewards, lengths, 10).tolist() == [[1.0, 1.0, 0.5, 0.0, 0.0]]
    assert ALGORITHMS["grpo"].shaped_rewards(rewards, lengths, 10) is rewards


# --- the loss -----------------------------------------------------------------------------

@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_loss_is_grpo_loss_with_the_rows_choices(name):
    generator = torch.Generator().manual_seed(2)
    log_probs, old, ref = (-2 * torch.rand(4, 3, generator=generator).double() for _ in range(3))
    A = numbers([1.0, -1.0, 0.5, -0.5])
    row = replace(ALGORITHMS[name], beta=0.1)
    options = {choice: getattr(row, choice) for choice in [f.name for f in fields(LossChoices)]}
    if row.kl_in_reward:
        options["beta"] = 0.0
    expected = grpo_loss(log_probs, old, A, max_length=7, ref_log_probs=ref, **options).loss
    assert row.loss(log_probs, old, A, max_length=7, ref_log_probs=ref).loss == expected


def test_a_kl_in_the_reward_is_not_in_the_loss_too():
    row = replace(ALGORITHMS["rloo"], beta=5.0)
    log_probs, ref = numbers([[-1.0, -2.0]]), numbers([[-3.0, -0.5]])
    assert row.loss(log_probs, log_probs, numbers([0.0]), ref_log_probs=ref).loss == 0


# --- contradictions -----------------------------------------------------------------------

@pytest.mark.parametrize(("choices", "named"), [
    ({"critic": True}, "critic: got True with baseline='mean'"),
    ({"critic": True, "baseline": "none"}, "critic: got True with baseline='none' and scale="),
    ({"critic": True, "baseline": "none", "scale": "none", "dynamic_sampling": True},
     "dynamic_sampling: got True with a critic"),
    ({"surrogate": "gmpo", "ratio": "sequence"}, "surrogate: got 'gmpo' with ratio='sequence'"),
    ({"surrogate": "gmpo", "whiten": True}, "surrogate: got 'gmpo'"),
    ({"kl_in_reward": True, "use_bias_correction_kl": True}, "use_bias_correction_kl: got True"),
    ({"surrogate": "ppo"}, "surrogate: got 'ppo', allowed are clip, cispo"),
    ({"delta": 1.1}, "delta: got 1.1"), ({"overlong_share": 2}, "overlong_share: got 2"),
    ({"whiten": 1}, "whiten: got 1, allowed are True and False"),
])
def test_contradictory_choices_are_refused(choices, named):
    with pytest.raises(ValueError, match=f"^{named}") as caught:
        Algorithm(**choices)
    assert "allowed" in str(caught.value)


def test_which_rows_need_a_group_or_entropies():
    without = {"reinforce", "reinforce_baseline", "reinforce_plus_plus", "ppo"}
    assert {name for name, row in ALGORITHMS.items() if not row.needs_group} == without
    assert not any(row.needs_entropies for row in ALGORITHMS.values())
    assert Algorithm(entropy_coef=0.1).needs_entropies
    assert Algorithm(top_entropy_quantile=0.2).needs_entropies


def test_every_combination_is_a_row_or_an_error_never_a_surprise():
    made = 0
    for baseline in BASELINES:
        for scale in SCALES:
            for ratio in RATIOS:
                for surrogate in SURROGATES:
                    try:
                        row = Algorithm(baseline=baseline, scale=scale, ratio=ratio,
                                        surrogate=surrogate)
                    except ValueError as error:
                        assert surrogate == "gmpo" and ratio != "token", error
                        continue
                    log_probs = numbers([[-1.0, -2.0], [-0.5, -0.1]])
                    A = row.advantages(numbers([[1.0, 0.0]]), torch.ones(2, 2).double())
                    for aggregation in AGGREGATIONS:
                        loss = replace(row, aggregation=aggregation).loss(
                            log_probs, log_probs - 0.1, A, max_length=4).loss
                        assert loss.isfinite()
                    made += 1
    assert made == 4 * 4 * (4 * 4 + 1)
    assert all(replace(Algorithm(beta=0.1), kl=kl).idle_choices() == {} for kl in KLS)


# --- a row of one's own -------------------------------------------------------------------

def test_a_row_of_ones_own_trains_and_is_described(monkeypatch, make_policy, sort_task):
    from grpo_lib.training import GRPOTrainer

    def mine(log_probs, ratio, advantages):
        return ratio * advantages

    monkeypatch.setitem(ALGORITHMS, "mine", replace(ALGORITHMS["grpo"], surrogate=mine))
    config = GRPOConfig(algorithm="mine", prompts_per_step=2, group_size=4, eval_every=0)
    policy = make_policy(len(sort_task.tokenizer), torch.float32)
    trainer = GRPOTrainer(policy, sort_task.with_reward(lambda p, c: len(c) % 3 / 2), config)
    assert trainer.step().grad_norm > 0
    assert "surrogate=mine" in str(ALGORITHMS)
    described = json.loads(json.dumps(config.to_dict()))
    assert described["surrogate"] is None
    assert GRPOConfig(**described).choices.surrogate is mine
