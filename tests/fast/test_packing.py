"""Scoring without padding, and decoding with weights put together: the numbers of the plain way,
gradients included, in float64."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lib import ValueModel, grpo_loss
from grpo_lib.critic import completion_values
from grpo_lib.fast.decoding import Decoder, decoder_of
from grpo_lib.fast.packing import ROW, into_rows, pack, packed_outputs
from grpo_lib.policy import token_log_probs
from grpo_lib.rollout import Rollouts, completion_log_probs, completion_logits, completion_outputs
from grpo_lib.transformer import TransformerPolicy

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
    rollouts, seen, outputs = sample(uneven), [], uneven.outputs_at
    monkeypatch.setattr(uneven, "outputs_at", lambda tokens, *rest: seen.append(tokens.tolist())
                        or outputs(tokens, *rest))
    completion_log_probs(uneven, rollouts)
    completions = [row[:n - 1].tolist() for row, n in zip(rollouts.completions,
                                                          rollouts.lengths.long().tolist())]
    assert len(seen) == 1
    assert sorted(seen[0]) == sorted(
        token for text in [*prompts, *completions] for token in text)


def test_prompts_that_differ_in_their_padding_alone_are_different(uneven):
    tokens = torch.tensor([[0, 3, 5, 6], [0, 3, 5, 6]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    packed = packed_outputs(uneven, tokens, mask, 2)
    assert (packed - uneven(tokens, mask)[:, 1:-1]).abs().max() < 1e-12
    assert (packed[0] - packed[1]).abs().max() > 1e-3


def test_what_stands_in_the_padding_is_never_seen(uneven, sample):
    rollouts = sample(uneven)
    everything = torch.cat((rollouts.prompt_mask, rollouts.mask.long()), 1)
    other = torch.where(everything > 0, rollouts.tokens, 7)
    one, two = (packed_outputs(uneven, tokens, everything, rollouts.prompt_length)
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
    decoder = decoder_of(uneven)
    with torch.no_grad():
        uneven(prompts, mask, cache)
        cache.keep(torch.tensor(rows))
        texts, masks = prompts[rows], mask[rows]
        for token in (9, 2, 10):
            new = torch.full((len(rows), 1), token)
            texts = torch.cat((texts, new), 1)
            masks = torch.cat((masks, torch.ones_like(new)), 1)
            logits = decoder.step(new[:, 0], cache)
            assert logits.shape == (len(rows), 12)
            assert (logits - uneven(texts, masks)[:, -1]).abs().max() < 1e-12
        with pytest.raises(ValueError, match="cache: 7 tokens do not fit its length 6"):
            decoder.step(new[:, 0], cache)


def test_every_rollout_has_the_weights_of_now(uneven, sample):
    before = sample(uneven)
    with torch.no_grad():
        for weight in uneven.parameters():
            weight.mul_(1.1)
    now = sample(uneven)
    assert (completion_log_probs(uneven, now) - now.log_probs).abs().max() < 1e-12
    assert (completion_log_probs(uneven, before) - before.log_probs).abs().max() > 0.01


class Doubled(TransformerPolicy):
    """One whose forward has been changed, and nothing else."""

    def forward(self, tokens, mask=None, cache=None):
        return 2 * super().forward(tokens, mask, cache)


def doubled_by_its_class(policy):
    policy.__class__ = Doubled


def doubled_by_a_hook(policy):
    policy.register_forward_hook(lambda module, given, logits: 2 * logits)


def doubled_on_the_object(policy):
    forward = policy.forward
    policy.forward = lambda tokens, mask=None, cache=None: 2 * forward(tokens, mask, cache)


@pytest.mark.parametrize("change", [doubled_by_its_class, doubled_by_a_hook,
                                    doubled_on_the_object])
def test_a_policy_that_was_changed_is_called(uneven, sample, change):
    twice, values = copy.deepcopy(uneven), ValueModel(uneven)
    change(twice)
    drawn = sample(twice)
    for found in (completion_outputs(twice, drawn), 2 * completion_outputs(uneven, drawn)):
        log_probs = token_log_probs(found, drawn.completions)
        assert (log_probs - drawn.log_probs)[drawn.mask].abs().max() < 1e-12
    torch.nn.init.ones_(values.transformer.lm_head.weight)
    before = completion_values(values, drawn)
    change(values.transformer)
    assert (completion_values(values, drawn) - 2 * before).abs().max() < 1e-12
    if change is not doubled_by_its_class:
        change(values)
        assert (completion_values(values, drawn) - 4 * before).abs().max() < 1e-12


def test_sampling_decodes_and_scoring_packs(uneven, sample, monkeypatch):
    calls = []
    for kind, name in ((Decoder, "step"), (TransformerPolicy, "forward")):
        right = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, tokens, *rest, name=name, right=right:
                            calls.append((name, tokens.dim())) or right(self, tokens, *rest))
    drawn = sample(uneven)
    assert calls == [("forward", 2)] + [("step", 1)] * (drawn.mask.shape[1] - 1)
    completion_log_probs(uneven, drawn)
    assert len(calls) == drawn.mask.shape[1]


def test_completions_too_long_for_the_context_are_named(make_policy, sample):
    drawn = sample(make_policy())
    width = drawn.tokens.shape[1]
    completion_log_probs(make_policy(context_length=width - 1), drawn)  # the last scores nothing
    short = make_policy(context_length=width - 2)
    for score in (completion_log_probs, lambda policy, drawn: completion_values(
            ValueModel(policy), drawn)):
        with pytest.raises(ValueError, match=f"tokens: got {width - 1} a row, allowed are "):
            score(short, drawn)


def test_scoring_in_parts_gives_the_same(uneven, sample):
    rollouts = sample(uneven)
    whole, parts = (completion_log_probs(uneven, rollouts, at_once) for at_once in (None, 5))
    assert (whole - parts).abs().max() < 1e-12


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=60))
def test_rows_hold_every_completion_once_and_of_one_prompt(texts):
    prompt_of, lengths = [p for p, _ in texts], [n for _, n in texts]
    row, start, prompts, size = into_rows(prompt_of, lengths)
    assert size == max([ROW, *lengths])
    taken = set()
    for prompt, length, r, begin in zip(prompt_of, lengths, row, start):
        if length:
            assert prompts[r] == prompt and 0 <= begin <= size - length
        places = {(r, begin + i) for i in range(length)}
        assert not places & taken
        taken |= places
    for prompt in set(prompt_of):  # no two rows of a prompt would go into one
        filled = [sum(n for n, at in zip(lengths, row) if n and at == r)
                  for r, of in enumerate(prompts) if of == prompt]
        assert len(filled) < 2 or sum(sorted(filled)[:2]) > size


def test_rows_of_many_completions_are_found_in_time():
    row, _, prompts, _ = into_rows([0] * 20_000, [1 + i % 7 for i in range(20_000)])
    assert len(row) == 20_000 and max(row) + 1 == len(prompts) < 80_000 / ROW * 1.05


def test_a_long_prompt_makes_no_rows_of_completions_longer(uneven):
    tokens = torch.randint(2, 12, (8, 32), generator=torch.Generator().manual_seed(0))
    tokens[:, :26] = tokens[0, :26]
    mask = torch.ones_like(tokens)
    packed = pack(tokens, mask, 26)
    assert sum(queries.numel() for queries, _, _ in packed.seen) == 26 + 2 * ROW  # 8 x 5 tokens
    outputs = packed_outputs(uneven, tokens, mask, 26)
    assert (outputs - uneven(tokens, mask)[:, 25:-1]).abs().max() < 1e-12


def test_a_nan_reaches_no_other_prompts_completions(uneven):
    tokens = torch.tensor([[0, 3, 5, 6, 7], [3, 4, 5, 6, 7], [4, 4, 5, 6, 7]])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        uneven.model.embed_tokens.weight[3] = torch.nan
        found = packed_outputs(uneven, tokens, mask, 2)
    assert found[0].isnan().all() and found[1, :2].isnan().all()
    assert found[2].isfinite().all()


def test_no_completions_at_all_are_scored_as_none(uneven, sample):
    rollouts = sample(uneven)
    none = replace(rollouts, tokens=rollouts.tokens[:0], mask=rollouts.mask[:0],
                   prompt_mask=rollouts.prompt_mask[:0], log_probs=rollouts.log_probs[:0],
                   finished=rollouts.finished[:0])
    assert completion_log_probs(uneven, none).shape == (0, rollouts.mask.shape[1])


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_decoding_in_half_precision_survives_long_activations(make_policy):
    policy = make_policy(dtype=torch.float16)
    with torch.no_grad():
        long = policy.model.embed_tokens.weight[5].double()
        policy.model.embed_tokens.weight[5] = (7e4 * long / long.norm()).half()
        cache = policy.new_cache(1, 3)
        policy(torch.tensor([[3, 4]]), None, cache)
        decoded = decoder_of(policy).step(torch.tensor([5]), cache)[0]
        plain = policy(torch.tensor([[3, 4, 5]]))[0, -1]
    assert policy.model.embed_tokens.weight[5].double().norm() > 65504
    assert plain.abs().max() > 0.01 and (decoded - plain).abs().max() < 0.02 * plain.abs().max()
