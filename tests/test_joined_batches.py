"""Batches that dynamic sampling joins and cuts: every row is that row computed alone, for every
field, and every log-prob is of the policy that it is said to be of."""

import copy
from dataclasses import replace

import pytest
import torch

from grpo_lib.algorithms import ALGORITHMS
from grpo_lib.batches import Batch
from grpo_lib.config import GRPOConfig
from grpo_lib.dynamic_sampling import collect
from grpo_lib.rollout import Rollouts, completion_log_probs, sample_groups
from grpo_lib.support.stopwatch import Stopwatch
from grpo_lib.training import GRPOTrainer

SETTINGS = GRPOConfig(steps=3, prompts_per_step=4, group_size=3, eval_every=0, learning_rate=0.05,
                      dynamic_sampling=True, beta=0.1, minibatches=1)


@pytest.fixture
def task(sort_task):
    """Some groups have a spread and some have none; completions and prompts of many lengths."""
    sort_task.max_new_tokens = 9
    return sort_task.with_reward(
        lambda problem, text: len(text) % 3 / 2 if sum(map(ord, problem.prompt)) % 3 else 1.0)


@pytest.fixture
def trainer(make_policy, task):
    """Its reference is another policy, and it has taken a step, so that all three differ."""
    size = len(task.tokenizer)
    made = GRPOTrainer(make_policy(size), task, SETTINGS, make_policy(size, seed=5))
    made.step()
    return made


def score(policy, task, problem, completion, temperature=1.0):
    """log pi of each token of a completion after a prompt, with nothing beside them."""
    prompt = task.encode(problem)
    logits = policy(torch.tensor([[*prompt, *completion]]))[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def assert_every_row_is_itself(batch, task, policy, ref_policy):
    rollouts, size = batch.rollouts, batch.rollouts.group_size
    rows = len(rollouts.tokens)
    scores = batch.scores
    assert rows == len(batch.problems) * size == scores.rewards.numel() == scores.grades.numel()
    for row in range(rows):
        problem = batch.problems[row // size]
        counts = rollouts.mask[row] > 0
        length = int(counts.sum())
        assert counts[:length].all()  # padded on the right
        prompt = rollouts.tokens[row, : rollouts.prompt_length]
        there = rollouts.prompt_mask[row] > 0
        assert prompt[there].tolist() == task.encode(problem)
        assert not there[: len(there) - int(there.sum())].any()  # padded on the left
        own = rollouts.completions[row][counts].tolist()
        text = task.tokenizer.decode_rows(torch.tensor([own]), torch.ones(1, length))[0]
        finished = own[-1] == task.tokenizer.eos_id
        assert rollouts.finished[row] == finished
        for kept, judge in ((scores.rewards, task.rewards), (scores.grades, task.grades)):
            assert kept.flatten()[row] == judge([problem], [text], [finished]).flatten()[0]
        assert rollouts.lengths[row] == length
        for found, model in ((rollouts.log_probs, policy), (batch.ref_log_probs, ref_policy)):
            alone = score(model, task, problem, own)
            assert (found[row][counts] - alone).abs().max() < 1e-12
            assert (found[row][~counts] == 0).all()


def batches(trainer, count):
    """Scored batches as ``collect`` makes them, of different widths."""
    made = []
    for _ in range(count):
        problems, rollouts = trainer.sample()
        made.append(Batch(problems, rollouts, *trainer.judge(problems, rollouts)))
    return made


def narrowed(trainer, batch):
    """The same rows of short completions alone, whose batch is narrower."""
    short = batch.rollouts.lengths.view(-1, 3).amax(1).argsort()[:1]
    return batch.groups(short)


@torch.no_grad()
def test_joined_and_selected_rows_are_those_rows_alone(trainer, task):
    parts = batches(trainer, 3)
    parts.insert(1, narrowed(trainer, parts[0]))
    widths = {part.rollouts.mask.shape[1] for part in parts}
    assert len(widths) > 1 and len({part.rollouts.prompt_length for part in parts}) >= 1
    whole = Batch.join(parts)
    policy, ref = trainer.policy, trainer.ref_policy
    for part in [*parts, whole]:
        assert_every_row_is_itself(part, task, policy, ref)
    for which in ([0], [12, 3], [7, 7, 1], [4], list(range(12, -1, -1))):
        assert_every_row_is_itself(whole.groups(torch.tensor(which)), task, policy, ref)
    distances = (whole.rollouts.log_probs - whole.ref_log_probs).abs()
    assert distances.max() > 0.1  # else the references would not be noticed


@torch.no_grad()
def test_what_dynamic_sampling_trains_on_is_rows_alone(trainer, task, monkeypatch):
    old = copy.deepcopy(trainer.policy)
    everything, batch = collect(trainer, Stopwatch("rollout", "scoring"))
    assert len(everything.problems) > len(batch.problems)  # joined, and some thrown away
    for each in (everything, batch):
        assert_every_row_is_itself(each, task, old, trainer.ref_policy)
    spread = batch.scores.rewards.amax(1) - batch.scores.rewards.amin(1)
    assert (spread > 0).all()


def test_an_update_gets_the_references_and_log_probs_of_its_own_rows(trainer, task, monkeypatch):
    """Also where a minibatch is some rows of a joined batch, in another order."""
    old, seen = copy.deepcopy(trainer.policy), []
    loss = trainer.algorithm.loss

    def watched(log_probs, old_log_probs, advantages, mask, **others):
        seen.append((log_probs.detach(), old_log_probs, mask, others["ref_log_probs"]))
        return loss(log_probs, old_log_probs, advantages, mask, **others)

    monkeypatch.setattr(type(trainer.algorithm), "loss", lambda self, *a, **o: watched(*a, **o))
    trainer.change(replace(trainer.config, micro_batch_size=2))
    metrics = trainer.step()
    monkeypatch.undo()
    assert len(seen) == 6
    found = {}
    with torch.no_grad():
        wanted = completion_log_probs(old, trainer.rollouts)
        references = completion_log_probs(trainer.ref_policy, trainer.rollouts)
    for row, counts in enumerate(trainer.rollouts.mask > 0):
        found[tuple(wanted[row][counts].tolist())] = references[row][counts]
    for new, sampled, mask, ref in seen:
        for row, counts in enumerate(mask > 0):
            assert (new[row] - sampled[row])[counts].abs().max() < 1e-12  # before any step
            key = min(found, key=lambda values: abs(len(values) - int(counts.sum())) or sum(
                abs(a - b) for a, b in zip(values, sampled[row][counts].tolist())))
            assert sampled[row][counts].tolist() == pytest.approx(key, abs=1e-12)
            assert (ref[row][counts] - found[key]).abs().max() < 1e-12
    assert metrics.ratio_min == pytest.approx(1) and metrics.ratio_max == pytest.approx(1)


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo"])
def test_the_policy_that_samples_is_the_one_whose_log_probs_are_old(make_policy, task, name):
    """At every step: the tokens are those that the policy before the update draws, and the kept
    log-probs are its own, not the reference's and not those after the update."""
    size = len(task.tokenizer)
    assert name in ALGORITHMS
    config = GRPOConfig(algorithm=name, steps=3, prompts_per_step=4, group_size=3, eval_every=0,
                        learning_rate=0.05, max_num_gen_batches=1)
    trainer = GRPOTrainer(make_policy(size), task, config, make_policy(size, seed=5))
    for _ in range(3):
        before = copy.deepcopy(trainer.policy)
        generator = torch.Generator()
        generator.set_state(trainer.generator.get_state())
        torch.randint(2**62, (), generator=generator)  # which problems
        asked = []
        problems = trainer.task.problems
        trainer.task.problems = lambda *a: asked.extend(problems(*a)) or asked  # noqa: B023
        trainer.step()
        trainer.task.problems = problems
        drawn = sample_groups(before, [task.encode(p) for p in asked], 3, generator=generator,
                              max_new_tokens=task.max_new_tokens, eos_id=task.tokenizer.eos_id)
        chosen = [asked.index(p) for p in trainer.problems]
        rows = torch.tensor([n * 3 + g for n in chosen for g in range(3)])
        some = drawn.select(rows)
        assert torch.equal(some.completions, trainer.rollouts.completions)
        assert (some.log_probs - trainer.rollouts.log_probs).abs().max() < 1e-12
        with torch.no_grad():
            after = completion_log_probs(trainer.policy, trainer.rollouts)
            ref = completion_log_probs(trainer.ref_policy, trainer.rollouts)
        assert (after - trainer.rollouts.log_probs).abs().max() > 1e-3
        assert (ref - trainer.rollouts.log_probs).abs().max() > 0.1


def test_parts_of_several_widths_are_joined_on_the_right_sides(policy, sample):
    """Prompts are padded on the left and completions on the right, in tokens and all masks."""
    parts = [sample(policy, [[2] * n], max_new_tokens=t, seed=n)
             for n, t in ((1, 8), (6, 2), (3, 5))]
    whole = Rollouts.join(parts)
    at = 0
    for part in parts:
        for row in range(4):
            there, counts = whole.prompt_mask[at] > 0, whole.mask[at] > 0
            width = part.mask.shape[1]
            assert there.tolist() == sorted(there.tolist())
            assert torch.equal(whole.tokens[at, : len(there)][there],
                               part.tokens[row, : part.prompt_length])
            assert torch.equal(whole.mask[at, :width], part.mask[row])
            assert not counts[width:].any() and (whole.completions[at, width:] == 0).all()
            assert torch.equal(whole.completions[at, :width], part.completions[row])
            assert torch.equal(whole.log_probs[at, :width], part.log_probs[row])
            assert whole.finished[at] == part.finished[row]
            at += 1
