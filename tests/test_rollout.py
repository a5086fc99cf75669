"""Sampling groups of completions, and scoring them again."""

import math
import random

import pytest
import torch

from grpo_lib.policy import TinyPolicy
from grpo_lib.rollout import (
    Rollouts,
    completion_log_probs,
    completion_logits,
    offset_log_probs,
    sample_groups,
    sample_token,
    sampling,
)
from grpo_lib.tokenizer import EOS, PAD

NARROW = {torch.float32: 1e-5, torch.float64: 1e-12}


class Scripted:
    """A policy without a cache: after token v comes script[v], surely."""

    def __init__(self, script, vocab_size=12):
        self.script, self.vocab_size = script, vocab_size

    def new_cache(self, batch, length):
        return None

    def __call__(self, tokens, mask=None, cache=None):
        following = tokens.clone().apply_(lambda token: self.script.get(token, PAD))
        return torch.nn.functional.one_hot(following, self.vocab_size).double().log()


def texts(rollouts):
    """The completions as lists of counted tokens."""
    return [row[kept > 0].tolist() for row, kept in zip(rollouts.completions, rollouts.mask)]


# --- layout -------------------------------------------------------------------------------

def test_rows_are_ordered_prompt_by_prompt(policy, sample, prompts):
    rollouts = sample(policy)
    assert rollouts.tokens.shape[0] == 12
    assert rollouts.prompt_length == 5
    assert (rollouts.group_size, rollouts.temperature) == (4, 1.0)
    for n, prompt in enumerate(prompts):
        for g in range(4):
            row = rollouts.tokens[n * 4 + g, :5].tolist()
            mask = rollouts.prompt_mask[n * 4 + g].tolist()
            assert row == [PAD] * (5 - len(prompt)) + prompt
            assert mask == [0] * (5 - len(prompt)) + [1] * len(prompt)


def test_completions_end_with_and_count_eos_and_then_hold_padding(policy, sample):
    rollouts = sample(policy)
    assert rollouts.finished.any() and not rollouts.finished.all()
    assert rollouts.mask.shape == rollouts.log_probs.shape == rollouts.completions.shape == (12, 8)
    for row, finished in enumerate(rollouts.finished.tolist()):
        completion = rollouts.completions[row].tolist()
        length = completion.index(EOS) + 1 if finished else 8
        assert (EOS in completion) == finished
        assert rollouts.mask[row].tolist() == [1.0] * length + [0.0] * (8 - length)
        assert completion[length:] == [PAD] * (8 - length)
        assert (rollouts.log_probs[row, length:] == 0).all()
        assert (rollouts.log_probs[row, :length] < 0).all()
        assert rollouts.lengths[row] == length


def test_eos_in_the_last_column_still_finishes():
    policy = Scripted({3: 4, 4: 5, 5: EOS})
    rollouts = sample_groups(policy, [[3], [4], [2, 3]], 1, max_new_tokens=3)
    assert texts(rollouts) == [[4, 5, EOS], [5, EOS], [4, 5, EOS]]
    assert rollouts.finished.tolist() == [True, True, True]


def test_a_completion_is_cut_off_at_max_new_tokens():
    policy = Scripted({3: 4, 4: 5, 5: EOS})
    rollouts = sample_groups(policy, [[3], [5]], 2, max_new_tokens=2)
    assert texts(rollouts) == [[4, 5], [4, 5], [EOS], [EOS]]
    assert rollouts.finished.tolist() == [False, False, True, True]
    assert rollouts.lengths.tolist() == [2, 2, 1, 1]


def test_columns_that_no_row_needs_are_not_kept():
    rollouts = sample_groups(Scripted({3: 4, 4: EOS}), [[3], [4]], 1, max_new_tokens=9)
    assert rollouts.completions.tolist() == [[4, EOS], [EOS, PAD]]
    assert rollouts.mask.tolist() == [[1, 1], [1, 0]]


def test_the_end_token_can_be_another():
    rollouts = sample_groups(Scripted({3: 4, 4: EOS, EOS: 7}), [[3]], 1, max_new_tokens=5,
                             eos_id=7)
    assert texts(rollouts) == [[4, EOS, 7]]


def test_there_can_be_several_end_tokens():
    rollouts = sample_groups(Scripted({3: 4, 4: EOS, 5: 6, 6: 9, EOS: 7}), [[3], [5]], 1,
                             max_new_tokens=5, eos_id=(7, 9))
    assert texts(rollouts) == [[4, EOS, 7], [6, 9]] and rollouts.finished.all()


@pytest.mark.parametrize("rows", [[0, 5, 7], [3], [11, 2], list(range(12)), "ended", "shortest"])
def test_select_takes_rows_and_cuts_to_their_longest(policy, sample, rows):
    rollouts = sample(policy)
    if rows == "ended":
        rows = [row for row in range(12) if rollouts.lengths[row] < 8]
    elif rows == "shortest":
        rows = [int(rollouts.lengths.argmin())]
    assert rows
    some = rollouts.select(torch.tensor(rows))
    longest = max(len(texts(rollouts)[row]) for row in rows)
    assert some.completions.shape == some.mask.shape == some.log_probs.shape == (
        len(rows), longest)
    assert some.prompt_length == 5
    assert texts(some) == [texts(rollouts)[row] for row in rows]
    for at, row in enumerate(rows):
        assert torch.equal(some.tokens[at], rollouts.tokens[row, : 5 + longest])
        assert torch.equal(some.prompt_mask[at], rollouts.prompt_mask[row])
        assert torch.equal(some.log_probs[at], rollouts.log_probs[row, :longest])
        assert some.finished[at] == rollouts.finished[row]


# --- log-probs ----------------------------------------------------------------------------

def make_tiny(make_policy, dtype):
    torch.manual_seed(0)
    return TinyPolicy(12, 8).to(dtype)


def make_transformer(make_policy, dtype):
    return make_policy(dtype=dtype)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("make", [make_transformer, make_tiny])
@pytest.mark.parametrize("use_cache", [True, False])
def test_sampled_log_probs_are_the_recomputed_ones(make_policy, sample, dtype, temperature, make,
                                                   use_cache):
    policy = make(make_policy, dtype)
    rollouts = sample(policy, temperature=temperature, use_cache=use_cache)
    again = completion_log_probs(policy, rollouts)
    assert rollouts.log_probs.dtype == dtype and rollouts.mask.dtype == torch.bool
    assert not rollouts.log_probs.requires_grad
    assert (again - rollouts.log_probs).abs().max() < NARROW[dtype]
    assert (again[rollouts.mask == 0] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_each_token_is_scored_by_what_stands_before_it(policy, sample, prompts, temperature):
    rollouts = sample(policy, temperature=temperature)
    scored = completion_log_probs(policy, rollouts)
    for row, completion in enumerate(texts(rollouts)):
        prompt = prompts[row // 4]
        for t, token in enumerate(completion):
            logits = policy(torch.tensor([prompt + completion[:t]]))[0, -1] / temperature
            by_hand = logits[token] - logits.logsumexp(0)
            assert (scored[row, t] - by_hand).abs() < 1e-12
            assert (rollouts.log_probs[row, t] - by_hand).abs() < 1e-12


def test_scoring_is_differentiable_and_sampling_is_not(policy, sample):
    rollouts = sample(policy)
    completion_log_probs(policy, rollouts).sum().backward()
    assert policy.lm_head.weight.grad.abs().sum() > 0
    assert not rollouts.tokens.requires_grad
    assert completion_logits(policy, rollouts).shape == (12, rollouts.mask.shape[1], 12)


def test_a_minibatch_is_scored_as_in_the_whole_batch(policy, sample):
    rollouts = sample(policy)
    rows = torch.tensor([9, 0, 6])
    part, whole = (completion_log_probs(policy, r) for r in (rollouts.select(rows), rollouts))
    assert (part - whole[rows][:, : part.shape[1]]).abs().max() < 1e-12


def test_greedy_rollouts_have_no_log_probs_to_score(policy, sample):
    with pytest.raises(ValueError, match="rollouts: sampled at temperature 0"):
        completion_log_probs(policy, sample(policy, temperature=0))


# --- what a row samples depends on its own uniform numbers alone ---------------------------

def test_the_cache_changes_no_token(policy, sample):
    for seed in range(4):
        with_cache, without = (sample(policy, seed=seed, use_cache=u) for u in (True, False))
        assert torch.equal(with_cache.tokens, without.tokens)
        assert torch.equal(with_cache.finished, without.finished)
        assert (with_cache.log_probs - without.log_probs).abs().max() < 1e-12


def test_without_the_cache_none_is_made(policy, sample, monkeypatch):
    monkeypatch.setattr(policy, "new_cache", None)
    assert sample(policy, use_cache=False).tokens.shape[0] == 12
    with pytest.raises(TypeError):
        sample(policy)


@pytest.mark.parametrize("share", [0.0, 0.34, 2.0])
@pytest.mark.parametrize("use_cache", [True, False])
def test_dropping_finished_rows_changes_nothing(policy, sample, monkeypatch, share, use_cache):
    usual = sample(policy, use_cache=use_cache, max_new_tokens=16)
    assert len(set(usual.lengths.tolist())) > 4
    monkeypatch.setattr(sampling, "DROP_SHARE", share)
    other = sample(policy, use_cache=use_cache, max_new_tokens=16)
    assert torch.equal(usual.tokens, other.tokens)
    assert torch.equal(usual.mask, other.mask)
    assert torch.equal(usual.finished, other.finished)
    assert (usual.log_probs - other.log_probs).abs().max() < 1e-12


@pytest.mark.parametrize("use_cache", [True, False])
def test_finished_rows_stop_costing(policy, prompts, seeded, use_cache):
    seen = []

    class Counted:
        new_cache = staticmethod(policy.new_cache)

        def __call__(self, tokens, mask=None, cache=None):
            seen.append(len(tokens))
            return policy(tokens, mask, cache)

    rollouts = sample_groups(Counted(), prompts, 8, max_new_tokens=20, generator=seeded(),
                             use_cache=use_cache)
    running = [(rollouts.lengths > step + 1).sum().item() for step in range(20)]
    assert seen[0] == 3  # every prompt once, not once for each of its completions
    assert all(rows <= live / 0.9 + 1 for rows, live in zip(seen[1:], running))
    assert seen[-1] < 12


def test_a_prompt_more_changes_nothing_for_the_others(policy, sample, prompts):
    fewer = sample(policy, prompts)
    more = sample(policy, [*prompts, [2, 3, 4, 5, 6, 7, 8, 9]])
    assert texts(more)[:12] == texts(fewer)
    assert len(texts(more)) == 16


def test_prompts_in_another_order_sample_the_same(policy, sample, prompts, monkeypatch):
    usual = sample(policy)
    uniforms = torch.rand(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    moved = torch.cat([uniforms[8:], uniforms[:8]])
    monkeypatch.setattr(sampling.torch, "rand", lambda *shape, **options: moved.view(shape))
    other = sample(policy, [prompts[2], prompts[0], prompts[1]])
    assert texts(other) == texts(usual)[8:] + texts(usual)[:8]


def test_the_members_of_a_group_differ(policy, sample):
    rows = texts(sample(policy))
    assert all(len({tuple(row) for row in rows[n * 4 : n * 4 + 4]}) > 1 for n in range(3))


def test_the_same_seed_gives_the_same_result_and_another_another(policy, sample):
    one, same, other = sample(policy, seed=1), sample(policy, seed=1), sample(policy, seed=2)
    assert torch.equal(one.tokens, same.tokens)
    assert torch.equal(one.log_probs, same.log_probs)
    assert texts(one) != texts(other)


def test_all_random_numbers_are_drawn_first_one_a_row_and_column(policy, prompts, seeded):
    generator, expected = seeded(5), seeded(5)
    sample_groups(policy, prompts, 4, max_new_tokens=6, generator=generator)
    torch.rand(12, 6, dtype=torch.float64, generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())


def test_the_global_generators_are_neither_read_nor_changed(policy, sample):
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), random.getstate()
        drawn.append(texts(sample(policy)))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
    assert drawn[0] == drawn[1]


def test_without_a_generator_every_call_differs(policy, prompts):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two = (texts(sample_groups(policy, prompts, 4, max_new_tokens=8)) for _ in range(2))
    assert one != two
    assert torch.equal(torch.get_rng_state(), before)


# --- choosing one token -------------------------------------------------------------------

def test_temperature_zero_takes_the_most_likely_token(policy, sample, prompts):
    rollouts = sample(policy, temperature=0)
    assert (rollouts.log_probs == 0).all()
    for row, completion in enumerate(texts(rollouts)):
        for t, token in enumerate(completion):
            logits = policy(torch.tensor([prompts[row // 4] + completion[:t]]))[0, -1]
            assert token == logits.argmax()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_tokens_are_drawn_from_the_softmax_at_the_temperature(temperature):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -torch.inf, 1.0, -4.0])
    count = 40_000
    uniforms = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen, log_probs = sample_token(logits.expand(count, 7), uniforms, temperature)
    p = [math.exp(x / temperature) for x in logits.tolist()]
    p = [x / sum(p) for x in p]
    seen = chosen.bincount(minlength=7).tolist()
    assert seen[4] == 0
    chi_square = sum((n - count * q) ** 2 / (count * q) for n, q in zip(seen, p) if q > 0)
    assert chi_square < 20.5  # 99.9th percentile with 5 degrees of freedom
    assert torch.allclose(log_probs, torch.tensor(p).log()[chosen], atol=1e-5)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (1 - 2**-53, 4), (0.499, 1),
                                                (0.501, 4)])
def test_a_token_of_probability_zero_is_never_chosen(dtype, uniform, token):
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, -torch.inf, 0.0, -torch.inf]])
    uniforms = torch.tensor([uniform], dtype=torch.float64)
    chosen, log_probs = sample_token(logits.to(dtype), uniforms, 1.0)
    assert chosen.item() == token
    assert log_probs.item() == pytest.approx(-math.log(2))


def test_the_extreme_uniform_numbers_give_a_token_of_the_vocabulary():
    logits = torch.randn(200, 31, generator=torch.Generator().manual_seed(0)) * 5
    for uniform in (0.0, 2**-53, 1 - 2**-53):
        uniforms = torch.full((200,), uniform, dtype=torch.float64)
        chosen, log_probs = sample_token(logits, uniforms, 1.0)
        assert ((chosen >= 0) & (chosen < 31)).all()
        assert log_probs.isfinite().all()


def test_a_token_is_the_first_whose_cumulative_probability_exceeds_the_number():
    logits = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log()
    uniforms = torch.tensor([0.0, 0.2, 0.3, 0.45, 0.55, 0.99], dtype=torch.float64)
    chosen, _ = sample_token(logits.expand(6, 3), uniforms, 1.0)
    assert chosen.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_token_too_rare_for_single_precision_is_still_drawn():
    logits = torch.tensor([[0.0, -20.0]])  # the second has probability 2e-9
    chosen, log_probs = sample_token(logits, torch.tensor([1 - 1e-9], dtype=torch.float64), 1.0)
    assert chosen.item() == 1
    assert log_probs.item() == pytest.approx(-20)


# --- errors -------------------------------------------------------------------------------

@pytest.mark.parametrize(("change", "named"), [
    ({"prompts": []}, "prompts: got none"),
    ({"prompts": [[3], []]}, "prompts: got none, or an empty one"),
    ({"group_size": 0}, "group_size: got 0"), ({"group_size": 2.0}, "group_size: got 2.0"),
    ({"group_size": True}, "group_size: got True"),
    ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
    ({"max_new_tokens": -3}, "max_new_tokens: got -3"),
    ({"max_new_tokens": None}, "max_new_tokens: got None"),
    ({"temperature": -0.1}, "temperature: got -0.1"),
    ({"temperature": math.nan}, "temperature: got nan"),
    ({"temperature": math.inf}, "temperature: got inf"),
    ({"max_new_tokens": 32}, "length: prompt and completion need 33 tokens, allowed are 32"),
])
def test_a_bad_argument_is_named(policy, change, named):
    arguments = {"prompts": [[3]], "group_size": 2, "max_new_tokens": 4} | change
    with pytest.raises(ValueError, match=named):
        sample_groups(policy, arguments.pop("prompts"), arguments.pop("group_size"), **arguments)


def test_the_context_may_be_filled_to_the_last_place(policy, seeded):
    rollouts = sample_groups(policy, [[3]], 30, max_new_tokens=31, generator=seeded())
    assert rollouts.lengths.max() == 31
    assert (completion_log_probs(policy, rollouts) - rollouts.log_probs).abs().max() < 1e-12


@pytest.mark.parametrize("offset", [-3, -2, -1, 0, 1, 2])
def test_offset_log_probs_reads_the_logits_of_another_column(policy, sample, offset):
    rollouts = sample(policy, temperature=1.3)
    seen = torch.cat((rollouts.prompt_mask, rollouts.mask.long()), 1)
    with torch.no_grad():
        logits = policy(rollouts.tokens, seen) / 1.3
        found = offset_log_probs(policy, rollouts, offset)
    assert found.shape == rollouts.mask.shape
    for row in range(len(found)):
        for t, counts in enumerate(rollouts.mask[row].tolist()):
            column = rollouts.prompt_length + t
            if not counts:
                assert found[row, t] == 0
            elif column + offset >= rollouts.tokens.shape[1]:
                assert found[row, t].isnan()
            else:
                expected = logits[row, column + offset].log_softmax(-1)
                assert found[row, t] == pytest.approx(
                    expected[rollouts.tokens[row, column]].item(), abs=1e-12)


def test_offset_log_probs_at_minus_one_is_completion_log_probs(policy, sample):
    rollouts = sample(policy)
    with torch.no_grad():
        right = completion_log_probs(policy, rollouts)
        torch.testing.assert_close(offset_log_probs(policy, rollouts, -1), right, rtol=0,
                                   atol=1e-12)
        assert not torch.allclose(offset_log_probs(policy, rollouts, 0), right)


@pytest.mark.parametrize("offset", [-6, 9, 0.5, None])
def test_an_offset_outside_the_text_is_named(policy, sample, offset):
    with pytest.raises(ValueError, match=r"offset: got .*, allowed is a whole number from -5 to"):
        offset_log_probs(policy, sample(policy), offset)


# --- batches joined -----------------------------------------------------------------------

def test_joined_batches_keep_their_rows_and_score_the_same(policy, sample, prompts):
    parts = [sample(policy, prompts[:1], seed=1, max_new_tokens=3),
             sample(policy, prompts[1:], seed=2, max_new_tokens=7)]
    joined = Rollouts.join(parts)
    assert joined.group_size == 4
    assert joined.prompt_length == max(p.prompt_length for p in parts)
    assert joined.mask.shape[1] == max(p.mask.shape[1] for p in parts)
    scores = completion_log_probs(policy, joined)
    row = 0
    for part in parts:
        for i in range(len(part.mask)):
            n, own = int(part.lengths[i]), part.prompt_mask[i] == 1
            assert joined.lengths[row] == n
            assert torch.equal(joined.completions[row, :n], part.completions[i, :n])
            theirs = joined.tokens[row, : joined.prompt_length][joined.prompt_mask[row] == 1]
            assert torch.equal(theirs, part.tokens[i, : part.prompt_length][own])
            assert torch.equal(joined.log_probs[row, :n], part.log_probs[i, :n])
            assert torch.allclose(scores[row, :n], part.log_probs[i, :n], atol=1e-10)
            assert joined.finished[row] == part.finished[i]
            row += 1
    assert row == len(joined.mask) == 12
    assert Rollouts.join(parts[:1]) is parts[0]


def test_batches_of_different_groups_are_not_joined(policy, sample):
    with pytest.raises(ValueError, match="parts: got different group sizes or temperatures"):
        Rollouts.join([sample(policy), sample(policy, group_size=2)])


def test_other_log_probs_for_the_same_completions(policy, make_policy, sample):
    rollouts = sample(policy)
    other = make_policy(seed=9)
    scored = rollouts.scored_by(other)
    assert torch.equal(scored.tokens, rollouts.tokens)
    assert torch.allclose(scored.log_probs, completion_log_probs(other, rollouts))
    assert not torch.allclose(scored.log_probs, rollouts.log_probs)
    assert not scored.log_probs.requires_grad


@pytest.mark.parametrize("prompts", ["1 +2 :", ["1 +2 :"], [3, 4, 5], 3])
def test_prompts_that_are_no_lists_of_token_ids_are_told_what_to_be(policy, prompts):
    with pytest.raises(TypeError, match=r"prompts: got .*, must be lists of token ids"):
        sample_groups(policy, prompts, 2, max_new_tokens=3)
