"""Scoring without padding, and decoding with weights put together: the numbers of the plain way,
gradients included, in float64."""

import pytest
import torch

from grpo_lib import ValueModel, grpo_loss
from grpo_lib.critic import completion_values
from grpo_lib.packing import pack
from grpo_lib.policy import token_log_probs
from grpo_lib.rollout import Rollouts, completion_log_probs, completion_logits, completion_outputs

ROWS = [list(range(12)), [7, 2, 9, 3], [5], [11, 0], "shortest"]


@pytest.fixture
def uneven(make_policy):
    """A policy all of whose norms weigh unevenly."""
    policy = make_policy()
    with torch.no_grad():
        for number, weight in enumerate(p for p in policy.parameters() if p.dim() == 1):
            weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(number))
    return policy


def plainly(policy, rollouts: Rollouts):
    """What stands before each completion token, all padding computed: (B, T, V)."""
    seen = torch.cat((rollouts.prompt_mask, rollouts.mask.long()), 1)
    return policy(rollouts.tokens, seen)[:, rollouts.prompt_length - 1 : -1]


def taken(rollouts, rows):
    return rollouts.select(rollouts.lengths.argsort()[:2] if rows == "shortest"
                           else torch.tensor(rows))


@pytest.mark.parametrize("rows", ROWS)
def test_outputs_are_those_of_the_padded_way(uneven, sample, rows):
    some = taken(sample(uneven), rows)
    packed, plain = completion_outputs(uneven, some), plainly(uneven, some)
    assert packed.shape == plain.shape
    counted = some.mask > 0
    assert (packed - plain)[counted].abs().max() < 1e-12
    assert (packed[~counted] == 0).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_loss_and_gradient_are_those_of_the_padded_way(uneven, sample, rows, aggregation):
    some = taken(sample(uneven), rows)
    advantages = torch.randn(len(some.mask), generator=torch.Generator().manual_seed(0),
                             dtype=torch.float64)
    found = []
    for logits in (completion_logits(uneven, some), plainly(uneven, some) / some.temperature):
        uneven.zero_grad(set_to_none=True)
        log_probs = token_log_probs(logits, some.completions)
        loss = grpo_loss(log_probs, some.log_probs - 0.1, advantages, some.mask,
                         aggregation=aggregation, beta=0.1, ref_log_probs=some.log_probs).loss
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in uneven.named_parameters()}))
    (packed, packed_slopes), (plain, plain_slopes) = found
    assert packed == pytest.approx(plain, abs=1e-12)
    for name, slope in plain_slopes.items():
        assert (packed_slopes[name] - slope).abs().max() < 1e-12 * max(1, slope.abs().max()), name
    assert max(slope.abs().max() for slope in plain_slopes.values()) > 1e-4


def test_a_policy_that_does_not_pack_is_scored_alike(uneven, sample):
    rollouts = sample(uneven)
    packed, plain = (completion_log_probs(policy, rollouts)
                     for policy in (uneven, lambda tokens, mask: uneven(tokens, mask)))
    assert (packed - plain).abs().max() < 1e-12


def test_completions_of_one_token_have_only_their_prompts(uneven, sample):
    rollouts = sample(uneven, max_new_tokens=1)
    assert (completion_outputs(uneven, rollouts) - plainly(uneven, rollouts)).abs().max() < 1e-12


def test_each_prompt_is_computed_once_and_no_padding_at_all(uneven, sample, prompts, monkeypatch):
    rollouts, seen, hidden = sample(uneven), [], uneven.hidden
    monkeypatch.setattr(uneven, "hidden", lambda tokens, *rest: seen.append(tokens.tolist())
                        or hidden(tokens, *rest))
    completion_log_probs(uneven, rollouts)
    completions = [row[:n - 1].tolist() for row, n in zip(rollouts.completions,
                                                          rollouts.lengths.long().tolist())]
    assert len(seen) == 1
    assert sorted(seen[0]) == sorted(
        token for text in [*prompts, *completions] for token in text)


def test_prompts_that_differ_in_their_padding_alone_are_different(uneven):
    tokens = torch.tensor([[0, 3, 5, 6], [0, 3, 5, 6]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    packed = uneven(tokens, mask, None, pack(tokens, mask, 2))
    assert (packed - uneven(tokens, mask)[:, 1:-1]).abs().max() < 1e-12
    assert (packed[0] - packed[1]).abs().max() > 1e-3


def test_what_stands_in_the_padding_is_never_seen(uneven, sample):
    rollouts = sample(uneven)
    everything = torch.cat((rollouts.prompt_mask, rollouts.mask.long()), 1)
    other = torch.where(everything > 0, rollouts.tokens, 7)
    one, two = (uneven(tokens, everything, None, pack(tokens, everything, rollouts.prompt_length))
                for tokens in (rollouts.tokens, other))
    assert torch.allclose(one, two, rtol=0, atol=1e-12)


def test_a_value_models_values_are_packed_too(uneven, sample):
    rollouts, values = sample(uneven), ValueModel(uneven)
    with torch.no_grad():
        values.transformer.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    found = completion_values(values, rollouts)
    plain = plainly(values.transformer, rollouts).squeeze(-1) * rollouts.mask
    assert (found - plain).abs().max() < 1e-12 and plain.abs().max() > 0.1


@pytest.mark.parametrize("rows", [[0, 1, 2], [1], [2, 0]])
def test_decoding_gives_the_numbers_of_the_plain_way(uneven, rows):
    prompts = torch.tensor([[0, 0, 3], [4, 5, 6], [0, 7, 8]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]])
    cache = uneven.new_cache(3, 6)
    cache.memory.fill_(torch.nan)  # what new memory may hold
    with torch.no_grad():
        uneven(prompts, mask, cache)
        cache.keep(torch.tensor(rows))
        texts, masks = prompts[rows], mask[rows]
        for token in (9, 2, 10):
            new = torch.full((len(rows), 1), token)
            texts = torch.cat((texts, new), 1)
            masks = torch.cat((masks, torch.ones_like(new)), 1)
            logits = uneven(new, None, cache)
            assert logits.shape == (len(rows), 1, 12)
            assert (logits[:, 0] - uneven(texts, masks)[:, -1]).abs().max() < 1e-12
        with pytest.raises(ValueError, match="cache: 7 tokens do not fit its length 6"):
            uneven(new, None, cache)


def test_a_new_cache_has_the_weights_of_now(uneven):
    def decoded():
        cache = uneven.new_cache(1, 3)
        uneven(torch.tensor([[3, 4]]), None, cache)
        return uneven(torch.tensor([[5]]), None, cache)[0, 0]

    with torch.no_grad():
        decoded()
        for weight in uneven.parameters():
            weight.mul_(1.1)
        assert (decoded() - uneven(torch.tensor([[3, 4, 5]]))[0, -1]).abs().max() < 1e-12


def test_scoring_in_parts_gives_the_same(uneven, sample):
    rollouts = sample(uneven)
    whole, parts = (completion_log_probs(uneven, rollouts, at_once) for at_once in (None, 5))
    assert (whole - parts).abs().max() < 1e-12
