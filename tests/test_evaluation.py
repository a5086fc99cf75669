"""pass@k, Wilson's interval, and evaluating policies whose skill is known."""

import itertools
import math

import pytest
import torch

from grpo_lib.evaluation import (
    Evaluation,
    evaluate,
    pass_at_k,
    wilson_interval,
)
from grpo_lib.tasks import ChainTask
from grpo_lib.tokenizer import EOS, PAD

TASK = ChainTask(1, 3)
PROBLEMS = TASK.held_out(30)


class Oracle:
    """A policy that always gives ``=> answer``, with ``shift`` added to the digit, after
    ``words`` that mean nothing."""

    def __init__(self, shift=0, stop=True, words=0):
        encode = TASK.tokenizer.encode
        self.after = {tuple(encode(p.prompt)): [
            *encode("5 " * words + f"=> {(int(p.answer) + shift) % 10}"), EOS] for p in PROBLEMS}
        self.stop = stop

    def new_cache(self, batch, length):
        return None

    def __call__(self, tokens, mask=None, cache=None):
        logits = torch.full((*tokens.shape, len(TASK.tokenizer)), -torch.inf)
        for row, ids in enumerate(tokens.tolist()):
            text = [i for i in ids if i != PAD]
            at = next(n for n, i in enumerate(text) if TASK.tokenizer.words[i] == ":") + 1
            script = self.after[tuple(text[:at])]
            done = len(text) - at
            following = script[done] if done < len(script) and self.stop else script[0]
            logits[row, -1, following] = 0.0
        return logits


def test_a_completion_ends_where_the_tokenizer_says(monkeypatch):
    task = ChainTask(1, 3)
    [arrow] = task.tokenizer.encode("=>")
    monkeypatch.setattr(task.tokenizer, "eos_id", (EOS, arrow))  # all tasks share it
    assert (evaluate(Oracle(), task, PROBLEMS).lengths == 1).all()


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize(("shift", "accuracy"), [(0, 1.0), (1, 0.0), (7, 0.0)])
def test_a_policy_that_is_always_right_or_wrong_is_found_out(temperature, shift, accuracy):
    result = evaluate(Oracle(shift), TASK, PROBLEMS, samples=2, temperature=temperature)
    assert result.accuracy == accuracy
    assert result.right.shape == result.lengths.shape == (30, 2)
    assert result.mean_length == 3
    assert result.pass_at(1) == result.pass_at(2) == accuracy
    assert result.accuracy_interval == wilson_interval(accuracy, 30)


def test_completions_are_listed_problem_by_problem():
    result = evaluate(Oracle(), TASK, PROBLEMS, samples=3, rows_at_once=7)
    assert result.completions == [f"=> {p.answer}" for p in PROBLEMS for _ in range(3)]


def test_a_completion_that_never_ends_is_wrong():
    result = evaluate(Oracle(stop=False), TASK, PROBLEMS)
    assert result.accuracy == 0
    assert result.mean_length == TASK.max_new_tokens


@pytest.mark.parametrize(("words", "accuracy"), [(TASK.max_new_tokens - 3, 1.0),
                                                 (TASK.max_new_tokens - 2, 0.0)])
def test_a_right_answer_that_was_cut_off_before_its_end_is_wrong(words, accuracy):
    result = evaluate(Oracle(words=words), TASK, PROBLEMS)
    assert result.completions == ["5 " * words + f"=> {p.answer}" for p in PROBLEMS]
    assert result.accuracy == accuracy
    assert result.mean_length == TASK.max_new_tokens


@pytest.mark.parametrize("rows_at_once", [1, 4, 7, 30, 1000])
def test_working_in_chunks_changes_no_greedy_result(make_policy, rows_at_once):
    policy = make_policy(len(TASK.tokenizer))
    usual = evaluate(policy, TASK, PROBLEMS, temperature=0)
    chunked = evaluate(policy, TASK, PROBLEMS, temperature=0, rows_at_once=rows_at_once)
    assert usual.completions == chunked.completions
    assert torch.equal(usual.lengths, chunked.lengths)
    assert len(set(usual.completions)) > 3


def test_the_temperature_reaches_the_sampling(make_policy, seeded):
    policy = make_policy(len(TASK.tokenizer))
    greedy = [evaluate(policy, TASK, PROBLEMS, samples=2, temperature=0, generator=seeded(s))
              for s in (1, 2)]
    assert greedy[0].completions == greedy[1].completions
    assert greedy[0].completions[::2] == greedy[0].completions[1::2]
    hot, cold = (evaluate(policy, TASK, PROBLEMS, temperature=t).completions for t in (2.0, 0.5))
    assert hot != cold


def test_the_lengths_stand_beside_their_problem(make_policy):
    policy = make_policy(len(TASK.tokenizer), seed=4)
    once, thrice = (evaluate(policy, TASK, PROBLEMS, samples=n, temperature=0) for n in (1, 3))
    assert len(set(once.lengths.flatten().tolist())) > 1
    assert torch.equal(thrice.lengths, once.lengths.expand(30, 3))


def test_a_problem_with_more_samples_than_rows_at_once_is_still_one_piece(make_policy):
    result = evaluate(make_policy(len(TASK.tokenizer)), TASK, PROBLEMS[:3], samples=4,
                      rows_at_once=2)
    assert result.right.shape == (3, 4)


def test_accuracy_is_the_verifiers_whatever_the_reward():
    lying = TASK.with_reward(lambda problem, completion: 1.0)
    assert evaluate(Oracle(1), lying, PROBLEMS).accuracy == 0


def test_evaluation_repeats_itself_and_follows_its_generator(make_policy):
    policy = make_policy(len(TASK.tokenizer))
    before = torch.get_rng_state()
    one, same = (evaluate(policy, TASK, PROBLEMS) for _ in range(2))
    other = evaluate(policy, TASK, PROBLEMS, generator=torch.Generator().manual_seed(9))
    assert one.completions == same.completions != other.completions
    assert torch.equal(torch.get_rng_state(), before)


def test_shares_are_means_over_all_samples():
    right = torch.tensor([[True, False, False, True], [False] * 4, [True] * 4])
    lengths = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]])
    result = Evaluation(right, lengths, [])
    assert result.accuracy == 0.5
    assert result.mean_length == 6.0
    assert result.pass_at(1) == pytest.approx(0.5)
    assert result.pass_at(2) == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert result.accuracy_interval == wilson_interval(0.5, 3)


@pytest.mark.parametrize("samples", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples):
    for right in range(samples + 1):
        marks = [1] * right + [0] * (samples - right)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(marks, k))
            share = sum(any(s) for s in subsets) / len(subsets)
            assert pass_at_k(samples, right, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_is_exact_for_large_numbers():
    assert pass_at_k(1000, 1, 500) == pytest.approx(0.5)
    assert pass_at_k(1000, 3, 1) == pytest.approx(0.003)


@pytest.mark.parametrize(("share", "count", "interval"), [
    (0.5, 10, (0.2366, 0.7634)), (0.0, 10, (0.0, 0.2775)), (1.0, 10, (0.7225, 1.0)),
    (0.7, 200, (0.6332, 0.7593)), (0.1, 50, (0.0435, 0.2136)),
])
def test_wilsons_interval_has_its_known_values(share, count, interval):
    assert wilson_interval(share, count) == pytest.approx(interval, abs=2e-4)


def test_wilsons_interval_solves_its_equation():
    for share, count in itertools.product((0.05, 0.3, 0.9), (5, 60)):
        for edge in wilson_interval(share, count):
            z = abs(share - edge) / math.sqrt(edge * (1 - edge) / count)
            assert z == pytest.approx(1.96)


@pytest.mark.parametrize(("call", "named"), [
    (lambda: pass_at_k(4, 5, 1), "right: got 5"), (lambda: pass_at_k(4, -1, 1), "right: got -1"),
    (lambda: pass_at_k(4, 1, 0), "k: got 0"), (lambda: pass_at_k(4, 1, 5), "k: got 5"),
    (lambda: wilson_interval(1.1, 5), "share: got 1.1"),
    (lambda: wilson_interval(0.5, 0), "count: got 0"),
    (lambda: wilson_interval(math.nan, 5), "share: got nan"),
    (lambda: evaluate(Oracle(), TASK, []), "problems: got none"),
    (lambda: evaluate(Oracle(), TASK, PROBLEMS, samples=0), "samples: got 0"),
])
def test_a_bad_argument_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
