"""The training loop: what a step does, what it reports, and how it stops and goes on."""

import copy
import math
import re
import signal
import statistics
import threading
from dataclasses import asdict, replace

import pytest
import torch

from grpo_lib import algorithms, training, update
from grpo_lib.advantages import informative_groups
from grpo_lib.algorithms import ALGORITHMS
from grpo_lib.config import GRPOConfig, StepMetrics
from grpo_lib.critic import ValueModel
from grpo_lib.objective import AGGREGATIONS, LossOutput, grpo_loss, token_weights
from grpo_lib.policy import TinyPolicy
from grpo_lib.rollout import sample_groups
from grpo_lib.support.checkpoint import CheckpointError, load_tensors, save_tensors
from grpo_lib.support.checks import usable_device
from grpo_lib.support.processes import Processes
from grpo_lib.support.signals import finish_step_first
from grpo_lib.tasks import ChainTask
from grpo_lib.training import GRPOTrainer

SMALL = GRPOConfig(steps=6, prompts_per_step=4, group_size=4, eval_every=0, learning_rate=0.01)
DEMANDING = replace(SMALL, minibatches=3, num_iterations=2, beta=0.1, eval_every=2,
                    eval_problems=6, temperature=0.8, ratio="sequence", epsilon=0.05,
                    aggregation="sequence_mean")

SMALL_ROW = {"steps": 6, "prompts_per_step": 4, "group_size": 4, "eval_every": 0,
             "learning_rate": 0.01, "minibatches": 3}


def graded(problem, completion):
    """A reward of which an untrained policy gets something, and not always the same."""
    return (sum(map(ord, completion)) + len(completion)) % 5 / 4


@pytest.fixture
def long_sort(sort_task):
    """Sorting with room for an untrained policy to come to an end by itself."""
    sort_task.max_new_tokens = 14
    return sort_task


@pytest.fixture
def make_trainer(make_policy, long_sort):
    def make(config=SMALL, task=long_sort, reward=graded, **options):
        task = task.with_reward(reward)
        policy = make_policy(len(task.tokenizer))
        return GRPOTrainer(policy, task, config, **options)

    return make


def state_of(trainer):
    """Everything that must be the same where nothing has happened."""
    return {"policy": copy.deepcopy(trainer.policy.state_dict()),
            "ref": copy.deepcopy(trainer.ref_policy.state_dict()),
            "optimizer": copy.deepcopy(trainer.optimizer.state_dict()),
            "generator": trainer.generator.get_state(), "step": trainer.step_count,
            "history": list(trainer.history), "problems": trainer.problems,
            "rollouts": trainer.rollouts, "rewards": trainer.rewards,
            "advantages": trainer.advantages}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a is b or a == b


def timeless(history):
    """The metrics without their clocks."""
    return [{k: v for k, v in asdict(m).items() if not k.startswith("seconds")} for m in history]


def assert_same_run(one, other):
    assert timeless(one.history) == timeless(other.history)
    for key in ("policy", "ref", "optimizer", "generator", "step"):
        assert same(state_of(one)[key], state_of(other)[key]), key


# --- one step, written out ----------------------------------------------------------------

def test_one_step_is_the_algorithm_written_out(make_trainer):
    config = replace(SMALL, minibatches=1, beta=0.05, temperature=0.8, max_grad_norm=0.01)
    trainer = make_trainer(config)
    before = copy.deepcopy(trainer.policy)
    metrics = trainer.step()
    rollouts, rewards = trainer.rollouts, trainer.rewards.double()

    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    total, distance, entropy, tokens = 0.0, 0.0, 0.0, 0
    for row, length in enumerate(rollouts.lengths.int().tolist()):
        prompt = rollouts.tokens[row, : rollouts.prompt_length][rollouts.prompt_mask[row] == 1]
        completion = rollouts.completions[row, :length]
        logits = before(torch.cat((prompt, completion))[None])[0, len(prompt) - 1 : -1] / 0.8
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(1, completion[:, None])[:, 0]
        total = total + (advantages.flatten()[row] * (chosen - chosen.detach()).exp()).sum()
        d = chosen.detach() - chosen
        distance = distance + (d.exp() - d - 1).sum()
        entropy -= (log_probs.exp() * log_probs).sum().item()
        tokens += length
    loss = -total / tokens + 0.05 * distance / tokens
    loss.backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in before.parameters()))
    for p in before.parameters():
        p.grad *= 0.01 / (norm + 1e-6)
    torch.optim.AdamW(before.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0).step()

    assert metrics.loss == pytest.approx(loss.item(), abs=1e-6)
    assert metrics.grad_norm == pytest.approx(norm, rel=1e-5)
    assert norm > 0.05
    assert metrics.entropy == pytest.approx(entropy / tokens, abs=1e-9)
    assert (trainer.advantages - advantages).abs().max() < 1e-5
    for expected, got in zip(before.parameters(), trainer.policy.parameters()):
        assert (expected - got).abs().max() < 1e-5
        assert not torch.equal(got, trainer.ref_policy.get_parameter(
            next(n for n, p in trainer.policy.named_parameters() if p is got)))


@pytest.mark.parametrize("change", [
    {"epsilon": 0.1, "epsilon_high": 0.3, "delta": 2.0}, {"beta": 0.2, "kl": "k1"},
    {"beta": 0.2, "use_bias_correction_kl": True},
    {"ratio": "sequence", "aggregation": "sequence_mean"}, {"aggregation": "constant"},
    {"aggregation": "sequence_mean"}, {"surrogate": "sapo", "sapo_temperature_neg": 1.2},
    {"entropy_coef": 0.01}, {"top_entropy_quantile": 0.3}, {"off_policy_mask_threshold": 0.1},
])
def test_every_choice_of_the_config_reaches_the_loss(make_trainer, monkeypatch, change):
    calls = []

    def spy(*arguments, **options):
        calls.append((arguments[4], arguments[3], options["weights"]))
        return grpo_loss(*arguments, **options)

    monkeypatch.setattr(algorithms, "grpo_loss", spy)
    config = replace(SMALL, minibatches=16, **change)
    trainer = make_trainer(config)
    trainer.step()
    for seen, mask, weights in calls:
        for name in ("epsilon", "epsilon_high", "delta", "beta", "kl", "ratio", "aggregation",
                     "use_bias_correction_kl", "surrogate", "entropy_coef",
                     "top_entropy_quantile", "off_policy_mask_threshold"):
            assert getattr(seen, name) == getattr(config.choices, name), name
        assert torch.equal(weights, token_weights(mask, seen.aggregation,
                                                  trainer.task.max_new_tokens, dtype=weights.dtype))
    assert min(mask.shape[1] for _, mask, _ in calls) < trainer.task.max_new_tokens


def test_the_optimizer_is_the_documented_one(make_trainer):
    settings = make_trainer().optimizer.defaults
    assert (settings["lr"], settings["betas"]) == (0.01, (0.9, 0.95))
    assert settings["weight_decay"] == 0


@pytest.mark.parametrize("change", [{"baseline": "leave_one_out"}, {"scale": "none"},
                                    {"scale": "batch"}, {"baseline": "none"}, {"std_eps": 0.5}])
def test_every_choice_of_the_config_reaches_the_advantages(make_trainer, change):
    usual, other = make_trainer(), make_trainer(replace(SMALL, **change))
    usual.step()
    other.step()
    assert torch.equal(usual.rewards, other.rewards)
    assert not torch.allclose(usual.advantages, other.advantages)


@pytest.mark.parametrize(("minibatches", "num_iterations"), [(1, 1), (3, 2), (5, 1), (16, 1)])
def test_every_pass_takes_every_row_once_in_a_new_order(make_trainer, monkeypatch, minibatches,
                                                        num_iterations):
    calls, order = [], []

    def spy(log_probs, old, advantages, mask, choices, **options):
        calls.append((old, advantages, mask, options["ref_log_probs"]))
        return grpo_loss(log_probs, old, advantages, mask, choices, **options)

    monkeypatch.setattr(algorithms, "grpo_loss", spy)
    select = training.Rollouts.select
    monkeypatch.setattr(training.Rollouts, "select",
                        lambda self, rows: order.append(rows.tolist()) or select(self, rows))
    trainer = make_trainer(replace(SMALL, minibatches=minibatches, beta=0.1,
                                   num_iterations=num_iterations))
    trainer.step()
    assert len(calls) == len(order) == minibatches * num_iterations
    passes = [[row for rows in order[i * minibatches : (i + 1) * minibatches] for row in rows]
              for i in range(num_iterations)]
    assert all(sorted(rows) == list(range(16)) for rows in passes)
    assert list(range(16)) not in passes
    assert len({tuple(rows) for rows in passes}) == num_iterations
    table = trainer.advantages.flatten().double()  # fixed for whole groups, then shuffled
    with torch.no_grad():
        ref = training.completion_log_probs(trainer.ref_policy, trainer.rollouts)
    for rows, (old, advantages, mask, ref_log_probs) in zip(order, calls):
        assert torch.equal(advantages, table[rows])
        width = mask.shape[1]
        assert torch.equal(mask, trainer.rollouts.mask[rows][:, :width])
        assert torch.equal(old, trainer.rollouts.log_probs[rows][:, :width])
        assert torch.equal(ref_log_probs, ref[rows][:, :width])


def test_advantages_of_tokens_stay_with_their_rows(make_trainer, monkeypatch):
    trainer, seen = make_trainer(GRPOConfig(**SMALL_ROW, algorithm="reinforce_plus_plus")), []
    real = algorithms.grpo_loss

    def spy(log_probs, old_log_probs, advantages, mask, choices, **options):
        seen.extend(zip(old_log_probs.tolist(), advantages.tolist(), mask.sum(1).int().tolist()))
        return real(log_probs, old_log_probs, advantages, mask, choices, **options)

    monkeypatch.setattr(algorithms, "grpo_loss", spy)
    trainer.step()
    rollouts = trainer.rollouts
    assert trainer.advantages.shape == rollouts.mask.shape
    wanted = [(tuple(old[:n]), tuple(a[:n])) for old, a, n in zip(
        rollouts.log_probs.tolist(), trainer.advantages.tolist(), rollouts.lengths.int().tolist())]
    got = [(tuple(old[:n]), tuple(a[:n])) for old, a, n in seen]
    assert sorted(got) == sorted(wanted) and len(set(wanted)) > 8


def test_minibatches_are_the_gradient_steps_of_a_pass(make_trainer):
    trainer = make_trainer(replace(SMALL, prompts_per_step=3, group_size=2, minibatches=4))
    trainer.step()
    assert {int(s["step"]) for s in trainer.optimizer.state.values()} == {4}


def test_rewards_that_are_all_equal_move_nothing(make_trainer):
    trainer = make_trainer(reward=lambda problem, completion: 0.7)
    trainer.task.rewards = lambda problems, texts, finished: torch.full((4, 4), 0.7)
    before = state_of(trainer)
    metrics = trainer.step()
    assert (metrics.grad_norm, metrics.loss, metrics.zero_variance_groups) == (0, 0, 1)
    assert same(trainer.policy.state_dict(), before["policy"])
    assert metrics.reward_mean == pytest.approx(0.7)
    assert metrics.reward_std == pytest.approx(0, abs=1e-6)


def test_training_raises_the_reward(make_trainer):
    """Rewarding brevity alone: a policy that stops at random learns to stop at once."""
    trainer = make_trainer(replace(SMALL, prompts_per_step=8, group_size=8, learning_rate=0.02),
                           reward=lambda problem, completion: 1 / (1 + len(completion)))
    history = list(trainer.run(12))
    first, last = (statistics.fmean(m.length for m in part) for part in
                   (history[:3], history[-3:]))
    assert last < 0.7 * first
    assert history[-1].reward_mean > history[0].reward_mean + 0.1


def test_tiny_policy_trains_too(long_sort):
    torch.manual_seed(0)
    task = long_sort.with_reward(graded)
    policy = TinyPolicy(len(task.tokenizer), 8)
    before = copy.deepcopy(policy.state_dict())
    [metrics] = GRPOTrainer(policy, task, replace(SMALL, learning_rate=0.1)).run(1)
    assert metrics.ratio_min <= metrics.ratio_max
    assert not same(policy.state_dict(), before)


# --- the base model -----------------------------------------------------------------------

def test_the_base_model_is_a_frozen_copy_of_the_policy_as_given(make_trainer):
    trainer = make_trainer(replace(SMALL, beta=0.5, num_iterations=2))
    first = copy.deepcopy(trainer.policy.state_dict())
    list(trainer.run(3))
    assert same(trainer.ref_policy.state_dict(), first)
    assert not same(trainer.policy.state_dict(), first)
    assert all(p.grad is None and not p.requires_grad for p in trainer.ref_policy.parameters())
    assert all(p.requires_grad for p in trainer.policy.parameters())
    assert trainer.history[0].kl == pytest.approx(0, abs=1e-12)
    assert trainer.history[2].kl > 1e-4


def test_a_base_model_of_ones_own_is_what_kl_is_measured_to(make_policy, make_trainer, sort_task):
    other = make_policy(len(sort_task.tokenizer), seed=5)
    trainer = make_trainer(ref_policy=other)
    assert trainer.ref_policy is other
    assert trainer.step().kl > 0.01


def test_the_kl_term_pulls_towards_the_base_model(make_trainer):
    free, held = (make_trainer(replace(SMALL, beta=beta)) for beta in (0.0, 5.0))
    list(free.run(6))
    list(held.run(6))
    assert held.history[-1].kl < 0.5 * free.history[-1].kl


@pytest.mark.parametrize("config", [
    SMALL, replace(SMALL, dynamic_sampling=True), replace(SMALL, micro_batch_size=2)])
def test_without_kl_the_base_model_is_left_alone_and_nothing_else_changes(make_trainer, config):
    measured, other = (make_trainer(replace(config, measure_kl=m)) for m in (True, False))
    other.ref_policy.forward = None  # cannot be called
    list(measured.run(3))
    list(other.run(3))
    assert same(measured.policy.state_dict(), other.policy.state_dict())
    assert [m.kl for m in other.history] == [None] * 3
    assert all(m.kl is not None for m in measured.history)
    assert timeless([replace(m, kl=None) for m in measured.history]) == timeless(other.history)


def test_a_weight_of_another_memory_order_goes_on_bit_for_bit(make_trainer, tmp_path):
    def trainer():
        made = make_trainer()
        weight = made.policy.lm_head.weight
        weight.data = weight.data.T.contiguous().T
        return made

    whole, stopped, resumed = trainer(), trainer(), trainer()
    list(whole.run(4))
    list(stopped.run(2))
    stopped.save(tmp_path / "a")
    resumed.load(tmp_path / "a")
    list(resumed.run(2))
    assert not whole.policy.lm_head.weight.is_contiguous()
    assert same(whole.policy.state_dict(), resumed.policy.state_dict())


def test_weights_of_whole_numbers_are_no_matter(make_trainer):
    trainer = make_trainer()
    trainer.policy.table = torch.nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    assert trainer.step().grad_norm > 0 and trainer.nonfinite_weights() == []


@pytest.mark.parametrize("change", [{"beta": 0.5}, {"beta": 0.5, "kl_in_reward": True},
                                    {"measure_kl": True}])
def test_the_base_model_is_scored_from_the_step_on_that_needs_it(make_trainer, change):
    trainer = make_trainer(replace(SMALL, measure_kl=False))
    trainer.step()
    trainer.change(replace(trainer.config, **change))
    assert trainer.step().kl > 1e-6
    always = make_trainer(SMALL)
    always.step()
    always.change(replace(SMALL, **change))
    assert always.step().kl == trainer.history[-1].kl
    assert same(always.policy.state_dict(), trainer.policy.state_dict())


# --- which of the samples count ---------------------------------------------------------

@pytest.mark.parametrize("name", [n for n, row in ALGORITHMS.items() if not row.critic])
def test_every_row_takes_steps(make_trainer, name):
    trainer = make_trainer(replace(SMALL, algorithm=name))
    before = copy.deepcopy(trainer.policy.state_dict())
    for metrics in trainer.run(2):
        assert math.isfinite(metrics.loss) and metrics.grad_norm > 0
    assert not same(before, trainer.policy.state_dict())


def some_flat(trainer, flat_rows):
    """Makes the groups of these rows of every batch silent."""
    def rewards(problems, texts, finished):
        values = torch.arange(16.0).view(4, 4) / 16
        values[flat_rows] = 0.25
        return values

    trainer.task.rewards = rewards


def test_dynamic_sampling_fills_the_batch_with_groups_that_teach(make_trainer):
    trainer = make_trainer(replace(SMALL, algorithm="dapo", overlong_share=0.0))
    some_flat(trainer, [1, 2])
    batches = []
    sample = trainer.sample
    trainer.sample = lambda: batches.append(sample()) or batches[-1]
    metrics = trainer.step()
    assert len(batches) == 2  # two of four groups are good, twice
    assert informative_groups(trainer.rewards).all() and trainer.rewards.shape == (4, 4)
    both = [batches[0][0][i] for i in (0, 3)] + [batches[1][0][i] for i in (0, 3)]
    assert trainer.problems == both
    texts = [trainer.task.tokenizer.decode_rows(r.completions, r.mask) for _, r in batches]
    kept = trainer.task.tokenizer.decode_rows(trainer.rollouts.completions, trainer.rollouts.mask)
    assert kept == texts[0][:4] + texts[0][12:] + texts[1][:4] + texts[1][12:]
    assert metrics.tokens == sum(int(r.mask.sum()) for _, r in batches)  # all that was paid for
    assert metrics.zero_variance_groups == 0.5
    own = trainer.rollouts.log_probs
    assert torch.allclose(own, torch.cat([torch.nn.functional.pad(
        r.log_probs[rows], (0, own.shape[1] - r.log_probs.shape[1]))
        for _, r in batches for rows in (slice(0, 4), slice(12, 16))])[:, : own.shape[1]])


def test_dynamic_sampling_gives_up_in_time(make_trainer):
    trainer = make_trainer(replace(SMALL, algorithm="dapo", max_num_gen_batches=3))
    some_flat(trainer, [0, 1, 2])
    trainer.step()
    assert trainer.rewards.shape == (3, 4)  # one of each batch
    silent = make_trainer(replace(SMALL, algorithm="dapo", max_num_gen_batches=2,
                                  overlong_share=0.0))
    some_flat(silent, [0, 1, 2, 3])
    before = copy.deepcopy(silent.policy.state_dict())
    assert silent.step().grad_norm == 0
    assert silent.rewards.shape == (8, 4)
    assert same(before, silent.policy.state_dict())


@pytest.mark.parametrize("spread, steps", [(1, 1), (2, 2), (4, 4), (5, 6)])
def test_a_batch_of_few_groups_has_few_minibatches(make_trainer, monkeypatch, spread, steps):
    """Each has a group's rows at least; a whole batch is divided as the settings say."""
    trainer = make_trainer(GRPOConfig(algorithm="dapo", max_num_gen_batches=1, eval_every=0,
                                      prompts_per_step=5, group_size=4, minibatches=6))
    sizes, gradient_step = [], GRPOTrainer.gradient_step

    def rewards(problems, texts, finished):
        some = torch.zeros(5, 4)
        some[:spread, 0] = 1
        return some

    def counted(self, rollouts, rows, *arguments, **options):
        sizes.append(len(rows))
        return gradient_step(self, rollouts, rows, *arguments, **options)

    monkeypatch.setattr(trainer.task, "rewards", rewards)
    monkeypatch.setattr(GRPOTrainer, "gradient_step", counted)
    trainer.step()
    assert len(sizes) == steps and sum(sizes) == 4 * spread
    assert min(sizes) >= (4 if spread < 5 else 3)


def test_without_dynamic_sampling_one_batch_is_sampled(make_trainer):
    trainer = make_trainer()
    some_flat(trainer, [0, 1, 2, 3])
    assert trainer.step().zero_variance_groups == 1
    assert trainer.rewards.shape == (4, 4)


def test_cut_off_completions_leave_the_loss_and_stay_in_the_group(make_trainer, monkeypatch):
    masks = []

    def spy(log_probs, old, advantages, mask, choices, **options):
        masks.append(mask)
        return grpo_loss(log_probs, old, advantages, mask, choices, **options)

    monkeypatch.setattr(algorithms, "grpo_loss", spy)
    trainer = make_trainer(replace(SMALL, mask_truncated_completions=True, minibatches=1))
    trainer.step()
    finished = trainer.rollouts.finished
    assert 0 < finished.sum() < 16
    order = masks[0].sum(1).sort().values
    expected = (trainer.rollouts.lengths * finished).sort().values
    assert torch.equal(order, expected.to(order))
    assert trainer.advantages.shape == (4, 4)


class OneOf(Processes):
    """A process that works alone on its share of the rows."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def loss_in_loops(now, old, A, mask, aggregation, max_length, epsilon=0.2):
    """(loss, its slope by each log-prob, share of clipped tokens), of lists of plain numbers: rows
    with nothing to count stay in the number of rows, but for the mean over those with tokens."""
    counted = [[t for t, m in enumerate(row) if m] for row in mask]
    tokens = sum(map(len, counted))
    loss, clipped, slopes = 0.0, 0, [[0.0] * len(row) for row in mask]
    for b, row in enumerate(counted):
        for t in row:
            weight = {"sequence_mean": 1 / len(mask) / len(row), "token_mean": 1 / tokens,
                      "constant": 1 / (len(mask) * max_length), "sequence_sum": 1 / len(mask),
                      "nonempty_sequence_mean": 1 / sum(map(bool, counted)) / len(row),
                      }[aggregation]
            ratio = math.exp(now[b][t] - old[b][t])
            bound = min(max(ratio, 1 - epsilon), 1 + epsilon)
            cut = bound * A[b] < ratio * A[b]
            loss -= weight * (bound if cut else ratio) * A[b]
            slopes[b][t] = 0.0 if cut else -weight * ratio * A[b]
            clipped += cut
    return loss, slopes, clipped / tokens


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("processes, micro", [(1, None), (1, 1), (1, 3), (3, None), (3, 2)])
def test_cut_off_completions_leave_the_divisors_of_all_parts(make_trainer, aggregation, processes,
                                                             micro):
    """One gradient step in parts, against plain numbers, to the last digits of float64."""
    trainer = make_trainer(replace(SMALL, mask_truncated_completions=True, max_grad_norm=1e9,
                                   aggregation=aggregation, micro_batch_size=micro))
    trainer.optimizer.step = lambda: None
    _, rollouts = trainer.sample()
    assert rollouts.log_probs.dtype == torch.float64 and 0 < rollouts.finished[:13].sum() < 13
    generator = torch.Generator().manual_seed(1)
    now = rollouts.log_probs.clone()
    rollouts.log_probs.add_(0.3 * torch.randn(now.shape, generator=generator, dtype=now.dtype))
    advantages = torch.randn(16, generator=generator, dtype=torch.float64)
    rows = torch.randperm(16, generator=generator)[:13]
    mask = trainer.algorithm.loss_mask(rollouts.mask, rollouts.finished)
    loss, slopes, clipped = loss_in_loops(
        now[rows].tolist(), rollouts.log_probs[rows].tolist(), advantages[rows].tolist(),
        mask[rows].tolist(), aggregation, trainer.task.max_new_tokens)
    parameters = list(trainer.policy.parameters())
    log_probs = training.completion_log_probs(trainer.policy, rollouts)[rows]
    wanted = torch.autograd.grad((torch.tensor(slopes, dtype=now.dtype) * log_probs).sum(),
                                 parameters)
    found, gradients = [], []
    for rank in range(processes):
        trainer.processes = OneOf(rank, processes)
        found.append(trainer.gradient_step(rollouts, rows, advantages, mask, None, False))
        gradients.append([p.grad / processes for p in parameters])  # averaged, as DDP does
    assert sum(step["loss"] for step in found) == pytest.approx(loss, rel=1e-13)
    assert sum(step["clip_fraction_low"] + step["clip_fraction_high"] for step in found
               ) == pytest.approx(clipped, rel=1e-13)
    assert 0 < clipped < 1 and abs(loss) > 1e-3
    for gradient, *parts in zip(wanted, *gradients):
        assert torch.allclose(sum(parts), gradient, rtol=0, atol=1e-13 * gradient.abs().max())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_where_everything_was_cut_off_nothing_is_learned_and_nothing_is_nan(make_trainer,
                                                                            aggregation):
    def draw(*arguments, **options):
        rollouts = sample_groups(*arguments, **options)
        return replace(rollouts, finished=torch.zeros_like(rollouts.finished))

    trainer = make_trainer(replace(SMALL, mask_truncated_completions=True, micro_batch_size=3,
                                   aggregation=aggregation), sampler=draw)
    with pytest.warns(UserWarning, match="no completion came to its end") as heard:
        metrics = trainer.step()
    assert (metrics.finished, metrics.loss, metrics.grad_norm) == (0, 0, 0)
    assert (metrics.ratio_min, metrics.ratio_max) == (1, 1) and len(heard) == 1


def test_a_mask_of_another_type_gives_the_loss_of_the_policys_own(make_trainer):
    """A sampler may hand out its mask in float32, or as bool; shares are as exact as the loss."""
    found = []
    for dtype in (torch.float64, torch.float32, torch.bool):
        def draw(*arguments, dtype=dtype, **options):
            rollouts = sample_groups(*arguments, **options)
            return replace(rollouts, mask=rollouts.mask.to(dtype))

        trainer = make_trainer(replace(SMALL, aggregation="token_mean", micro_batch_size=3,
                                       minibatches=1), sampler=draw)
        trainer.step()
        found.append(torch.cat([p.grad.flatten() for p in trainer.policy.parameters()]))
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=0, atol=1e-15)


def test_long_completions_lose_reward_and_the_metrics_say_so(make_trainer):
    plain, punished = (make_trainer(replace(SMALL, overlong_share=share)) for share in (0.0, 1.0))
    one, other = plain.step(), punished.step()
    lengths = punished.rollouts.lengths.view(4, 4)
    limit = punished.task.max_new_tokens
    expected = plain.rewards - (lengths / limit).clamp(0, 1).to(plain.rewards)
    assert torch.allclose(punished.rewards, expected)
    assert other.reward_mean == pytest.approx(expected.mean().item())
    assert one.accuracy == other.accuracy


def test_kl_in_the_reward_reaches_the_advantages(make_trainer, make_policy, sort_task):
    other = make_policy(len(sort_task.tokenizer), seed=5)
    config = replace(SMALL, algorithm="rloo", beta=0.3)
    trainer = make_trainer(config, ref_policy=other)
    trainer.step()
    rollouts = trainer.rollouts
    with torch.no_grad():
        ref = training.completion_log_probs(other, rollouts)
    less = trainer.rewards - 0.3 * ((rollouts.log_probs - ref) * rollouts.mask).sum(1).view(4, 4)
    expected = (less - less.mean(1, keepdim=True)) * 4 / 3
    assert torch.allclose(trainer.advantages.double(), expected.double(), atol=1e-5)


def test_an_entropy_bonus_keeps_entropy_up(make_trainer):
    plain, bonus = (make_trainer(replace(SMALL, entropy_coef=c)) for c in (0.0, 2.0))
    list(plain.run(6))
    list(bonus.run(6))
    assert bonus.history[-1].entropy > plain.history[-1].entropy


# --- metrics ------------------------------------------------------------------------------

def test_metrics_follow_from_the_rollouts_and_rewards(make_trainer, long_sort):
    task = long_sort
    trainer = make_trainer(replace(SMALL, num_iterations=2, minibatches=2, epsilon=0.01))
    trainer.step()
    policy = copy.deepcopy(trainer.policy)
    metrics = trainer.step()
    rollouts, rewards = trainer.rollouts, trainer.rewards.tolist()
    flat = [r for group in rewards for r in group]
    texts = task.tokenizer.decode_rows(rollouts.completions, rollouts.mask)
    lengths = [int(sum(mask)) for mask in rollouts.mask.tolist()]
    finished = rollouts.finished.tolist()
    right = [done and trainer.task.correct(trainer.problems[row // 4], text)
             for row, (text, done) in enumerate(zip(texts, finished))]
    assert flat == pytest.approx([trainer.task.reward(trainer.problems[row // 4], text)
                                  if done else 0.0
                                  for row, (text, done) in enumerate(zip(texts, finished))])
    assert metrics.step == 2
    assert metrics.held_out_accuracy is None
    assert metrics.reward_mean == pytest.approx(statistics.fmean(flat))
    assert metrics.reward_std == pytest.approx(statistics.stdev(flat))
    assert metrics.zero_variance_groups == pytest.approx(
        sum(len(set(group)) == 1 for group in rewards) / 4)
    assert metrics.accuracy == pytest.approx(sum(right) / 16)
    assert metrics.length == pytest.approx(statistics.fmean(lengths))
    for wanted, value in ((True, metrics.length_right), (False, metrics.length_wrong)):
        chosen = [n for n, r in zip(lengths, right) if r == wanted]
        assert value == (pytest.approx(statistics.fmean(chosen)) if chosen else None)
    assert metrics.finished == pytest.approx(sum(finished) / 16)
    assert metrics.tokens == sum(lengths)
    with torch.no_grad():
        own, ref = (training.completion_log_probs(p, rollouts)
                    for p in (policy, trainer.ref_policy))
        d = (ref - own)[rollouts.mask == 1]
    assert metrics.kl == pytest.approx((d.exp() - d - 1).mean().item())
    assert metrics.ratio_min < 1 < metrics.ratio_max
    assert metrics.clip_fraction_low > 0 and metrics.clip_fraction_high > 0
    assert min(metrics.seconds_rollout, metrics.seconds_scoring, metrics.seconds_update) > 0
    assert trainer.history[-1] is metrics


def test_right_and_wrong_lengths_are_those_of_the_right_and_wrong(make_trainer):
    trainer = make_trainer()
    trainer.task.correct = lambda problem, completion: len(completion) >= 5
    metrics = trainer.step()
    lengths, finished = trainer.rollouts.lengths, trainer.rollouts.finished
    right = finished & (lengths >= 4)
    assert 0 < right.sum() < 16
    assert metrics.length_right == pytest.approx(lengths[right].mean().item())
    assert metrics.length_wrong == pytest.approx(lengths[~right].mean().item())
    assert metrics.accuracy == pytest.approx(right.double().mean().item())


def test_update_metrics_are_means_and_extremes_over_its_gradient_steps(make_trainer, monkeypatch):
    outputs, entropies = [], []

    def spy(*arguments, **options):
        outputs.append(grpo_loss(*arguments, **options))
        return outputs[-1]

    def entropy_spy(logits):
        entropies.append(logits)
        return torch.full(logits.shape[:2], float(len(entropies)))

    monkeypatch.setattr(algorithms, "grpo_loss", spy)
    monkeypatch.setattr(update, "token_entropy", entropy_spy)
    trainer = make_trainer(replace(SMALL, num_iterations=2, minibatches=3, epsilon=0.01))
    counts = []
    select = training.Rollouts.select
    monkeypatch.setattr(training.Rollouts, "select", lambda self, rows: counts.append(
        self.mask[rows].sum().item()) or select(self, rows))
    metrics = trainer.step()
    assert len(outputs) == 6 and len(entropies) == 3

    def values(name):
        return [o.stats[name].item() for o in outputs]

    assert metrics.loss == pytest.approx(statistics.fmean(o.loss.item() for o in outputs))
    for name in ("clip_fraction_low", "clip_fraction_high"):
        assert getattr(metrics, name) == pytest.approx(statistics.fmean(values(name)))
    assert metrics.ratio_min == min(values("ratio_min"))
    assert metrics.ratio_max == max(values("ratio_max"))
    weighted = sum(n * at for at, n in enumerate(counts[:3], 1)) / sum(counts[:3])
    assert metrics.entropy == pytest.approx(weighted)


def test_held_out_accuracy_comes_every_few_steps_after_the_update(make_trainer, monkeypatch):
    asked = []

    def fake(policy, task, problems, **options):
        asked.append((copy.deepcopy(policy.state_dict()), problems, options))
        return type("E", (), {"accuracy": 0.25})

    monkeypatch.setattr(training, "evaluate", fake)
    trainer = make_trainer(replace(SMALL, eval_every=2, eval_problems=7, temperature=0.5))
    weights = []
    for _ in trainer.run(5):
        weights.append(copy.deepcopy(trainer.policy.state_dict()))
    assert [m.held_out_accuracy for m in trainer.history] == [None, 0.25, None, 0.25, None]
    for at, (state, problems, options) in zip((1, 3), asked):
        assert same(state, weights[at])
        assert problems == trainer.task.held_out(7)
        assert options["temperature"] == 0.5


def test_a_sampler_of_ones_own_samples_everything_to_the_tokenizers_end(make_trainer, long_sort,
                                                                        monkeypatch):
    asked = []

    def sampler(policy, prompts, group_size, **options):
        asked.append((len(prompts), options["eos_id"], options["temperature"]))
        return sample_groups(policy, prompts, group_size, **options)

    monkeypatch.setattr(long_sort.tokenizer, "eos_id", (1, 3))
    trainer = make_trainer(replace(SMALL, eval_every=2, eval_problems=7, temperature=0.5),
                           sampler=sampler)
    list(trainer.run(2))
    assert asked == [(4, (1, 3), 0.5), (4, (1, 3), 0.5), (7, (1, 3), 0.5)]


def test_evaluating_does_not_change_the_run(make_trainer):
    never, often = (make_trainer(replace(SMALL, eval_every=n, eval_problems=5)) for n in (0, 1))
    list(never.run(3))
    list(often.run(3))
    assert same(never.policy.state_dict(), often.policy.state_dict())
    assert all(m.held_out_accuracy is not None for m in often.history)


# --- the same again -----------------------------------------------------------------------

def test_the_seed_decides_everything(make_trainer):
    torch.manual_seed(1)
    one = make_trainer(DEMANDING)
    list(one.run(3))
    torch.manual_seed(2)
    other = make_trainer(DEMANDING)
    before = torch.get_rng_state()
    list(other.run(3))
    assert_same_run(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    third = make_trainer(replace(DEMANDING, seed=1))
    third.step()
    assert third.problems != one.problems
    assert timeless(third.history)[0] != timeless(one.history)[0]


def test_steps_differ_from_one_another(make_trainer):
    trainer = make_trainer()
    seen = []
    for _ in trainer.run(3):
        seen.append(tuple(p.prompt for p in trainer.problems))
    assert len(set(seen)) == 3


def test_resuming_is_never_having_stopped_bit_for_bit(make_trainer, make_policy, tmp_path):
    straight = make_trainer(DEMANDING)
    list(straight.run(6))

    first = make_trainer(DEMANDING)
    list(first.run(3))
    first.save(tmp_path / "at3")
    resumed = make_trainer(DEMANDING)
    with torch.no_grad():
        for p in [*resumed.policy.parameters(), *resumed.ref_policy.parameters()]:
            p.add_(1.0)  # nothing of the new trainer's weights may survive
    resumed.generator.manual_seed(77)
    resumed.load(tmp_path / "at3")
    resumed.history = list(first.history)
    assert resumed.step_count == 3
    list(resumed.run())
    assert len(resumed.history) == 6
    assert_same_run(straight, resumed)


def test_a_trainer_goes_back_to_its_own_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(DEMANDING)
    list(trainer.run(2))
    trainer.save(tmp_path / "at2")
    list(trainer.run(2))
    first_time = timeless(trainer.history)
    weights = copy.deepcopy(trainer.policy.state_dict())
    trainer.load(tmp_path / "at2")
    assert (trainer.step_count, len(trainer.history)) == (2, 2)
    list(trainer.run(2))
    assert timeless(trainer.history) == first_time
    assert same(trainer.policy.state_dict(), weights)


def test_a_trainer_goes_back_to_before_its_first_step(make_trainer, tmp_path):
    trainer = make_trainer(DEMANDING)
    trainer.save(tmp_path / "at0")
    list(trainer.run(2))
    first_time = timeless(trainer.history)
    trainer.load(tmp_path / "at0")
    assert not trainer.optimizer.state and trainer.history == []
    list(trainer.run(2))
    assert timeless(trainer.history) == first_time


def test_a_checkpoint_of_another_task_or_shape_is_refused(make_trainer, make_policy, sort_task,
                                                          tmp_path):
    trainer = make_trainer()
    trainer.save(tmp_path / "sort")
    with pytest.raises(CheckpointError, match="on the task 'sort', allowed is 'chain'"):
        make_trainer(task=ChainTask(1, 2)).load(tmp_path / "sort")
    wider = GRPOTrainer(make_policy(len(sort_task.tokenizer), d_model=20), sort_task, SMALL)
    before = state_of(wider)
    with pytest.raises(CheckpointError, match=r"is .* allowed is"):
        wider.load(tmp_path / "sort")
    assert same(state_of(wider), before)


@pytest.mark.parametrize("name", ["policy.", "ref_policy."])
def test_a_checkpoint_without_its_weights_is_refused(make_trainer, tmp_path, name):
    trainer = make_trainer()
    trainer.save(tmp_path / "whole")
    tensors, about = load_tensors(tmp_path / "whole", "trainer")
    kept = {k: t for k, t in tensors.items() if not k.startswith(name)}
    save_tensors(tmp_path / "part", kept, about)
    with pytest.raises(CheckpointError, match="is nothing, allowed is"):
        trainer.load(tmp_path / "part")


def test_run_takes_what_is_left_of_the_configs_steps(make_trainer):
    trainer = make_trainer()
    assert [m.step for m in trainer.run(2)] == [1, 2]
    assert [m.step for m in trainer.run()] == [3, 4, 5, 6]
    assert list(trainer.run()) == []
    assert [m.step for m in trainer.run(1)] == [7]


# --- stopping -----------------------------------------------------------------------------

def interrupting(at, times=1):
    """A sort reward that presses Ctrl-C during its ``at``-th call."""
    calls = iter(range(10**6))

    def reward(problem, completion):
        if next(calls) == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return graded(problem, completion)

    return reward


def test_ctrl_c_takes_effect_between_steps_and_the_run_can_go_on(make_trainer):
    straight = make_trainer(reward=interrupting(-1))
    list(straight.run())
    finished = straight.history[0].finished * 16
    trainer = make_trainer(reward=interrupting(int(finished) + 2))  # during the second step
    handler = signal.getsignal(signal.SIGINT)
    delivered = []
    with pytest.raises(KeyboardInterrupt):
        for metrics in trainer.run():
            delivered.append(metrics.step)
    assert delivered == [1, 2]
    assert trainer.step_count == 2
    assert signal.getsignal(signal.SIGINT) is handler
    list(trainer.run())
    assert_same_run(straight, trainer)


def test_ctrl_c_twice_acts_at_once_and_leaves_no_trace(make_trainer):
    trainer = make_trainer(reward=interrupting(2, times=2))
    before = state_of(trainer)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        list(trainer.run())
    assert same(state_of(trainer), before)
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_between_steps_is_not_held_back(make_trainer):
    with pytest.raises(KeyboardInterrupt):
        for _ in make_trainer().run():
            signal.raise_signal(signal.SIGINT)


def test_under_torchrun_both_signals_wait_for_the_step_however_often(make_trainer):
    """It ends the others by SIGTERM, and passes on the Ctrl-C that they have had already."""
    trainer, taken = make_trainer(), []
    update = trainer.update

    def disturbed(*arguments):
        for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(sent)
        return update(*arguments)

    trainer.update = disturbed
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as in processes.joined
    try:
        with pytest.raises(KeyboardInterrupt):
            for metrics in trainer.run():
                taken.append(metrics.step)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [1] and trainer.step_count == 1 and not trainer.half_updated


def test_sigterm_is_left_alone_where_nobody_made_it_a_ctrl_c(make_trainer):
    before = signal.getsignal(signal.SIGTERM)
    with finish_step_first():
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_in_another_thread_leaves_signals_alone(make_trainer):
    trainer, handlers = make_trainer(), []

    def work():
        with finish_step_first() as interrupted:
            handlers.append(signal.getsignal(signal.SIGINT))
            assert interrupted == []
        list(trainer.run(1))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
    assert trainer.step_count == 1


# --- errors -------------------------------------------------------------------------------

def failing(problem, completion):
    raise ZeroDivisionError("in the reward")


@pytest.mark.parametrize(("reward", "error", "message"), [
    (lambda p, c: math.nan, ValueError, "returned nan, must be a finite number.*at step 2"),
    (lambda p, c: math.inf, ValueError, "returned inf, must be a finite number"),
    (lambda p, c: torch.zeros(2), TypeError, r"returned tensor\(\[0., 0.\]\), must be one number"),
    (lambda p, c: "1", TypeError, "returned '1'"),
    (failing, RuntimeError, "raised ZeroDivisionError: in the reward .*at step 2"),
])
def test_an_error_in_the_reward_leaves_no_trace(make_trainer, reward, error, message):
    trainer, healthy = make_trainer(), make_trainer()
    list(trainer.run(1))
    list(healthy.run(2))
    usual = trainer.task
    trainer.task = usual.with_reward(reward)
    before = state_of(trainer)
    with pytest.raises(error, match=message):
        trainer.step()
    assert same(state_of(trainer), before)
    trainer.task = usual
    trainer.step()
    assert_same_run(healthy, trainer)


@pytest.mark.parametrize("shape", [(4, 3), (16,), (16, 1), (4, 4, 1), (2, 8)])
def test_rewards_of_another_shape_leave_no_trace(make_trainer, shape):
    trainer = make_trainer()
    trainer.task.rewards = lambda problems, texts, finished: torch.zeros(shape)
    before = state_of(trainer)
    with pytest.raises(ValueError, match="rewards: got shape"):
        trainer.step()
    assert same(state_of(trainer), before)


WITH_CRITIC = replace(SMALL, algorithm="ppo")


def in_weights(trainer, patch, value):
    with torch.no_grad():
        trainer.policy.lm_head.weight[0, 0] = value


def in_reference(trainer, patch, value):
    with torch.no_grad():
        trainer.ref_policy.lm_head.weight[0, 0] = value


def in_values(trainer, patch, value):
    with torch.no_grad():
        trainer.critic.value_model.transformer.lm_head.weight[0, 0] = value


def in_reward(trainer, patch, value):
    patch.setattr(trainer.task, "reward", lambda problem, text: value)


def in_logits(trainer, patch, value):
    forward = trainer.policy.forward
    patch.setattr(trainer.policy, "forward", lambda *a, **k: forward(*a, **k) * value)


def in_logits_of_the_update(trainer, patch, value):
    forward = trainer.policy.forward
    patch.setattr(trainer.policy, "forward", lambda *a, **k: forward(*a, **k) * (
        value if torch.is_grad_enabled() else 1))


def in_sampled_log_probs(trainer, patch, value):
    sampler = trainer.sampler

    def spoiled(*arguments, **options):
        rollouts = sampler(*arguments, **options)
        return replace(rollouts, log_probs=rollouts.log_probs + value)

    patch.setattr(trainer, "sampler", spoiled)


def in_advantages(trainer, patch, value):
    patch.setattr(algorithms, "group_advantages", lambda rewards, **_: rewards * value)


def in_loss(trainer, patch, value):
    patch.setattr(algorithms, "grpo_loss", lambda log_probs, *_, **__: LossOutput(
        log_probs.sum() * value, {}))


def in_gradient(trainer, patch, value):
    patch.setattr(algorithms, "grpo_loss", lambda log_probs, *_, **__: LossOutput(
        (log_probs * 0).sum().sqrt(), {}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("spoil", "error", "culprit", "config"), [
    (in_reward, ValueError, "reward: .* returned -?(nan|inf)", SMALL),
    (in_weights, FloatingPointError, r"logits: .*policy\.lm_head\.weight", SMALL),
    (in_logits, FloatingPointError, "logits: ", SMALL),
    (in_logits_of_the_update, FloatingPointError, "loss: got .* from log_probs", SMALL),
    (in_sampled_log_probs, FloatingPointError, "log_probs: got", SMALL),
    (in_reference, FloatingPointError, r"ref_log_probs: .*ref_policy\.lm_head\.weight", SMALL),
    (in_values, FloatingPointError, r"values: .*value_model\.transformer\.lm_head\.weight",
     WITH_CRITIC),
    (in_advantages, FloatingPointError, "advantages: got", SMALL),
    (in_loss, FloatingPointError, "loss: got", SMALL),
    (in_gradient, FloatingPointError, "gradient: .* non-finite, .* lm_head.weight", SMALL),
], ids=lambda x: getattr(x, "__name__", ""))
def test_what_is_no_number_stops_the_run_at_that_step_and_leaves_no_trace(
        make_trainer, tmp_path, monkeypatch, spoil, error, culprit, config, value):
    """The culprit and the step are named, and the run can go on as if nothing had been."""
    def made():
        critic = ValueModel(make_trainer().policy) if config.choices.critic else None
        return make_trainer(config, value_model=critic)

    healthy, trainer = made(), made()
    list(healthy.run(2))
    trainer.step()
    trainer.save(tmp_path / "before")
    with monkeypatch.context() as patch:
        spoil(trainer, patch, value)
        before = state_of(trainer)
        with pytest.raises(error, match=f"^{culprit}") as caught:
            trainer.step()
        assert "at step 2" in str(caught.value) and "\n" not in str(caught.value)
        for key in ("optimizer", "generator", "step", "history"):
            assert same(state_of(trainer)[key], before[key])
        for key in ("policy", "ref"):  # nan is not equal to itself
            assert same(*({n: t.nan_to_num(7, 8, 9) for n, t in state[key].items()}
                          for state in (state_of(trainer), before)))
        assert not trainer.half_updated
        trainer.save(tmp_path / "after")
    if spoil in (in_weights, in_reference, in_values):  # which no checkpoint may bring back
        with pytest.raises(CheckpointError, match="holds nan or inf"):
            trainer.load(tmp_path / "after")
        trainer.load(tmp_path / "before")
    else:
        trainer.load(tmp_path / "after")
    trainer.step()
    assert timeless(healthy.history) == timeless(trainer.history)
    assert same(state_of(healthy)["policy"], state_of(trainer)["policy"])


def test_a_learning_rate_that_makes_weights_infinite_stops_before_they_are_saved(make_trainer,
                                                                               tmp_path):
    trainer = make_trainer(replace(SMALL, learning_rate=1e308, minibatches=1))
    with pytest.raises(FloatingPointError, match=r"weights: the update has .* at step 1; nan or "
                                                 r"inf in policy\.model\.embed_tokens\.weight"):
        trainer.step()
    assert trainer.half_updated and trainer.history == []
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.save(tmp_path / "no")


def test_a_number_that_goes_wrong_in_the_second_gradient_step_forbids_saving(
        make_trainer, monkeypatch, tmp_path):
    trainer, calls = make_trainer(), []
    trainer.save(tmp_path / "start")
    loss = algorithms.grpo_loss

    def second(*arguments, **options):
        calls.append(1)
        output = loss(*arguments, **options)
        return output if len(calls) == 1 else LossOutput(output.loss * math.nan, output.stats)

    monkeypatch.setattr(algorithms, "grpo_loss", second)
    with pytest.raises(FloatingPointError, match="loss: got nan at step 1"):
        trainer.step()
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.save(tmp_path / "no")
    monkeypatch.undo()
    trainer.load(tmp_path / "start")
    trainer.step()
    assert_same_run(trainer, (healthy := make_trainer(), healthy.step())[0])


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there_is_named(make_trainer, name):
    with pytest.raises(ValueError, match=f"device: got '{name}'") as caught:
        make_trainer(replace(SMALL, device=name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mps", "mps:0", "gpu", "xla", "vulkan", "hpu", "", None, 3])
def test_a_device_of_no_use_is_one_short_line(name):
    """torch's own words go on with a thousand characters of backends."""
    with pytest.raises(ValueError, match=r"^device: got ") as caught:
        usable_device(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 160


def test_mps_says_what_a_mac_is_to_use():
    for name in ("mps", "mps:0", torch.device("mps")):
        with pytest.raises(ValueError, match="must be cpu: a Mac's mps has no float64"):
            usable_device(name)


def test_a_context_that_is_too_short_is_said_before_anything_happens(make_policy, sort_task):
    policy = make_policy(len(sort_task.tokenizer), context_length=8)
    trainer = GRPOTrainer(policy, sort_task, SMALL)
    before = state_of(trainer)
    with pytest.raises(ValueError, match="context_length"):
        trainer.step()
    assert same(state_of(trainer), before)


def test_every_metric_is_filled_by_a_step(make_trainer):
    metrics = make_trainer(DEMANDING).step()
    missing = {name for name, value in asdict(metrics).items() if value is None}
    assert missing <= {"held_out_accuracy", "length_right", "length_wrong"}
    assert isinstance(metrics, StepMetrics)


def test_a_checkpoint_that_does_not_fit_changes_nothing(make_trainer, tmp_path):
    """The policy fits and the base model does not: neither may be loaded."""
    trainer = make_trainer()
    trainer.step()
    trainer.save(tmp_path / "whole.safetensors")
    tensors, about = load_tensors(tmp_path / "whole.safetensors", "trainer")
    for lost in ("ref_policy.lm_head.weight", "generator"):
        rest = {name: t + 1 if name.startswith("policy.") else t for name, t in tensors.items()
                if name != lost}
        save_tensors(tmp_path / "rest.safetensors", rest, about)
        before = {name: t.clone() for name, t in trainer.policy.state_dict().items()}
        with pytest.raises(CheckpointError, match=lost.removeprefix("ref_policy.")):
            trainer.load(tmp_path / "rest.safetensors")
        assert all(torch.equal(t, before[name])
                   for name, t in trainer.policy.state_dict().items())


def test_a_step_whose_evaluation_fails_is_not_counted_and_not_saved(make_trainer, monkeypatch,
                                                                    tmp_path):
    trainer = make_trainer(replace(SMALL, eval_every=2, eval_problems=7))
    trainer.step()
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.step()
    assert trainer.step_count == len(trainer.history) == 1 and trainer.half_updated
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.save(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("place", "given", "says"), [
    (1, "chain", "task: got a str, must be a task, as ChainTask()"),
    (1, ChainTask, "task: got the class ChainTask, must be a task, as ChainTask()"),
    (2, {"steps": 5}, "config: got a dict, must be a GRPOConfig, as GRPOConfig(steps=50)"),
])
def test_a_task_or_config_of_another_kind_is_named(make_policy, sort_task, place, given, says):
    arguments = [make_policy(), sort_task, GRPOConfig(steps=1)]
    arguments[place] = given
    with pytest.raises(TypeError, match=re.escape(says)):
        GRPOTrainer(*arguments)
