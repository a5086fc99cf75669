"""The base model's recipe: what is learned from, what counts, and how it is measured."""

import math
import random

import pytest
import torch

from grpo_lib import pretraining
from grpo_lib.pretraining import (
    PretrainConfig,
    draw_examples,
    example_loss,
    make_optimizers,
    one_step_accuracy,
    pretrain,
)
from grpo_lib.tasks import ChainTask, Problem, SortTask, is_held_out
from grpo_lib.tasks.chain import chain_values
from grpo_lib.tokenizer import EOS, PAD
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

TASK = ChainTask(1, 3)
SMALL = PolicyConfig(len(TASK.tokenizer), d_model=16, n_layers=1, n_heads=2, d_hidden=24,
                     context_length=24)
QUICK = PretrainConfig(skill_steps=40, habit_steps=10, batch_size=32, warmup_steps=5)


@pytest.fixture(scope="module")
def run():
    """Losses and final policy of a short run."""
    steps, losses, policies = zip(*pretrain(TASK, QUICK, SMALL))
    return list(steps), list(losses), policies[-1]


def test_the_loss_falls(run):
    _, losses, _ = run
    assert losses[0] == pytest.approx(math.log(len(TASK.tokenizer)), abs=0.1)
    assert sum(losses[35:40]) / 5 < 0.7 * losses[0]


def test_every_batch_of_both_stages_is_reported(run):
    steps, losses, policy = run
    assert steps == list(range(1, 51))
    assert len(losses) == 50
    assert policy.config == SMALL


def test_the_seed_decides_everything(run):
    _, losses, policy = run
    torch.manual_seed(99)
    random.seed(99)
    _, again, same = zip(*pretrain(TASK, QUICK, SMALL))
    assert list(again) == losses
    for a, b in zip(policy.parameters(), same[-1].parameters()):
        assert torch.equal(a, b)
    other = PretrainConfig(skill_steps=1, habit_steps=0, batch_size=32, seed=1)
    assert next(iter(pretrain(TASK, other, SMALL)))[1] != losses[0]


def test_first_the_skill_then_the_habit_and_other_problems_for_other_seeds(monkeypatch):
    drawn, draw = [], pretraining.draw_examples

    def recorded(task, count, share, rng):
        examples = draw(task, count, share, rng)
        drawn.append((share, count, examples))
        return examples

    monkeypatch.setattr(pretraining, "draw_examples", recorded)
    for seed in (0, 1):
        list(pretrain(TASK, PretrainConfig(skill_steps=2, habit_steps=2, batch_size=5,
                                           skill_share=0.7, seed=seed), SMALL))
    assert [share for share, _, _ in drawn] == [0.7, 0.7, 0.0, 0.0] * 2
    assert {count for _, count, _ in drawn} == {5}
    for first, other in zip(drawn[:4], drawn[4:]):
        assert first[2] != other[2]


def test_every_step_is_both_optimizers_step_on_that_batch_alone(run):
    _, losses, _ = run
    policy = TransformerPolicy(SMALL, torch.Generator().manual_seed(0))
    rng, (muon, adamw) = random.Random(0), make_optimizers(policy, QUICK, 1.0)
    for at in range(4):
        examples = draw_examples(TASK, QUICK.batch_size, QUICK.skill_share, rng)
        loss = example_loss(policy, TASK, examples)
        assert loss.item() == pytest.approx(losses[at], abs=1e-6)
        parameters = list(policy.parameters())
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = slope
        for optimizer, rate in (muon, adamw):
            optimizer.param_groups[0]["lr"] = rate * (at + 1) / 5 * (1 - 0.9 * at / 40)
            optimizer.step()


def test_without_a_shape_the_policy_fits_its_task():
    config = PretrainConfig(skill_steps=1, habit_steps=0, batch_size=2)
    [(_, _, policy)] = pretrain(TASK, config)
    assert policy.config.vocab_size == len(TASK.tokenizer)
    assert policy.config.context_length == TASK.context_length


def test_the_rates_warm_up_fall_and_are_lower_in_the_second_stage(monkeypatch):
    rates = []

    class Recorded(torch.optim.AdamW):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    config = PretrainConfig(skill_steps=10, habit_steps=10, batch_size=2, warmup_steps=4,
                            adamw_lr=1.0, habit_rate=0.1)
    assert len(list(pretrain(TASK, config, SMALL))) == 20
    first = [min(1, (at + 1) / 4) * (1 - 0.09 * at) for at in range(10)]
    assert rates == pytest.approx(first + [0.1 * rate for rate in first])


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_all_else():
    policy = TransformerPolicy(SMALL)
    (muon, muon_rate), (adamw, adamw_rate) = make_optimizers(policy, PretrainConfig(), 0.5)
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    names = {id(p): name for name, p in policy.named_parameters()}
    by_muon, by_adamw = ({names[id(p)] for p in o.param_groups[0]["params"]}
                         for o in (muon, adamw))
    assert by_muon == {n for n in names.values() if ".layers." in n and "norm" not in n}
    assert by_muon | by_adamw == set(names.values()) and not by_muon & by_adamw
    assert (muon_rate, adamw_rate) == pytest.approx((0.015, 0.005))


def test_examples_are_training_problems_with_their_worked_texts():
    examples = draw_examples(TASK, 300, 0.5, random.Random(0))
    worked = 0
    for prompt_ids, completion_ids in examples:
        prompt, completion = (TASK.tokenizer.decode(ids) for ids in (prompt_ids, completion_ids))
        assert completion_ids[-1] == EOS and EOS not in completion_ids[:-1]
        assert not is_held_out(prompt)
        values = chain_values(prompt)
        assert TASK.correct(Problem(prompt, str(values[-1])), completion)
        worked += completion.count("=") == len(values)
    assert len(examples) == 300
    assert 110 < worked < 190


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_skill_share_decides_the_style(share):
    for prompt, completion in draw_examples(TASK, 100, share, random.Random(0)):
        steps = len(chain_values(TASK.tokenizer.decode(prompt))) - 1
        assert (len(completion) == 2 * steps + 3) == (share == 1.0)


def test_the_loss_is_the_mean_over_the_completions_tokens_alone(make_policy):
    policy = make_policy()
    examples = [([3, 4, 5], [6, 7, EOS]), ([8], [9, EOS]), ([2, 3, 4, 5, 6], [7, 8, 9, EOS])]
    total = 0.0
    for prompt, completion in examples:
        for t, token in enumerate(completion):
            logits = policy(torch.tensor([prompt + completion[:t]]))[0, -1]
            total -= (logits[token] - logits.logsumexp(0)).item()
    loss = example_loss(policy, TASK, examples)
    assert loss.item() == pytest.approx(total / 9, abs=1e-12)
    loss.backward()
    assert all(p.grad is not None for p in policy.parameters())


class Knows:
    """A policy that adds ``off`` to the right value of the marked step."""

    def __init__(self, off):
        self.off = off
        self.seen = []

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, tokens, mask=None, cache=None):
        logits = torch.zeros(*tokens.shape, len(TASK.tokenizer))
        for row, ids in enumerate(tokens.tolist()):
            assert mask[row].tolist() == [int(i != PAD) for i in ids]
            assert ids[-1] != PAD, "the newest token stands in the last column"
            text = TASK.tokenizer.decode(ids)
            self.seen.append(text)
            prompt, _, steps = text.partition(" :")
            step = int(steps.split()[-1][1:-1])
            value = (chain_values(prompt + " :")[step] + self.off[row % len(self.off)]) % 10
            logits[row, -1, TASK.tokenizer.encode(str(value))[0]] = 1.0
        return logits


@pytest.mark.parametrize(("off", "accuracy"), [([0], 1.0), ([1], 0.0), ([0, 1, 0, 0], 0.75)])
def test_one_step_accuracy_is_the_share_of_right_next_words(off, accuracy):
    assert one_step_accuracy(Knows(off), TASK, 200) == accuracy


def test_one_step_accuracy_asks_the_same_questions_every_time():
    first, again, other = Knows([0]), Knows([0]), Knows([0])
    one_step_accuracy(first, TASK, 50)
    one_step_accuracy(again, TASK, 50)
    one_step_accuracy(other, TASK, 50, seed=1)
    assert first.seen == again.seen != other.seen
    assert len(first.seen) == 50


def test_a_task_without_a_probe_has_no_one_step_accuracy(make_policy):
    assert one_step_accuracy(make_policy(), SortTask(), 10) is None


@pytest.mark.parametrize(("name", "value"), [
    ("skill_steps", 0), ("batch_size", 0), ("warmup_steps", 0), ("habit_steps", -1),
    ("seed", -1), ("skill_share", 1.1), ("skill_share", -0.1),
])
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        PretrainConfig(**{name: value})


def test_the_recipe_survives_its_dict():
    assert PretrainConfig(**QUICK.to_dict()) == QUICK


def test_a_loss_that_is_no_number_stops_at_that_batch_and_changes_nothing(monkeypatch):
    loss, calls = pretraining.example_loss, []

    def spoiled(*arguments):
        calls.append(1)
        return loss(*arguments) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(pretraining, "example_loss", spoiled)
    before = {}
    with pytest.raises(FloatingPointError, match=r"loss: got nan at step 3; that step was not"):
        for _, _, policy in pretrain(TASK, QUICK, SMALL):
            before = {name: t.clone() for name, t in policy.state_dict().items()}
    assert all(torch.equal(t, before[name]) for name, t in policy.state_dict().items())
