"""Rewards as people write them: of any number type, abstaining, async, several; what goes wrong."""

import asyncio
import copy
import functools
import json
import math
import random
import signal
import statistics
import threading
import time
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from waiting import PATIENCE

from grpo_lib.advantages import group_advantages, informative_groups
from grpo_lib.algorithms import ALGORITHMS
from grpo_lib.config import GRPOConfig, StepMetrics
from grpo_lib.course import plots
from grpo_lib.critic import ValueModel
from grpo_lib.evaluation import evaluate
from grpo_lib.lab.xray import Xray
from grpo_lib.rollout import sample_groups
from grpo_lib.support.rewards import RewardError, check_weights
from grpo_lib.support.run_folder import RunFolder
from grpo_lib.tasks import ChainTask, Problem, SortTask, Task, is_held_out
from grpo_lib.tokenizer import Tokenizer
from grpo_lib.training import GRPOTrainer

CHAIN = ChainTask()
ONE = Problem("+0 4 :", "4")
SMALL = GRPOConfig(steps=3, prompts_per_step=4, group_size=4, eval_every=0, minibatches=1,
                   learning_rate=0.01)
NUMBERS = [True, 1, 1.0, np.bool_(True), np.float16(1), np.float32(1), np.float64(1), np.int64(1),
           np.uint8(1), Fraction(1), Fraction(2, 2), Decimal(1), torch.tensor(1.0), torch.tensor(1),
           torch.tensor(True), torch.tensor([1.0]), torch.tensor([[1.0]], dtype=torch.bfloat16),
           torch.ones((), requires_grad=True), np.array(1.0), np.array([1])]
NO_NUMBERS = ["1", "", b"1", [1.0], (1.0,), {}, 1j, np.complex64(1), torch.zeros(2),
              torch.zeros(0), np.ones(3), np.str_("1"), torch.tensor(1j), object(), len]


def kind(value):
    return f"{type(value).__name__}-{getattr(value, 'dtype', '')}"


def graded(problem, completion):
    return (sum(map(ord, completion)) + len(completion)) % 5 / 4


@pytest.fixture
def make_trainer(make_policy, sort_task):
    sort_task.max_new_tokens = 14

    def make(config=SMALL, reward=graded, weights=None, **options):
        task = sort_task.with_reward(reward, weights)
        return GRPOTrainer(make_policy(len(task.tokenizer)), task, config, **options)

    return make


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- one number, whatever its type --------------------------------------------------------

@pytest.mark.parametrize("value", NUMBERS, ids=kind)
@pytest.mark.parametrize("verifier", [False, True])
def test_whatever_is_one_number_is_taken(value, verifier):
    task = CHAIN.with_reward(lambda problem, completion: value)
    if verifier:
        task = copy.copy(CHAIN)
        task.correct = lambda problem, completion: value
        assert type(task.reward(ONE, "=> 4")) is float
        assert task.grades([ONE], ["=> 4"], [True]).tolist() == [[1.0]]
    assert task.rewards([ONE], ["=> 4", "=> 5"], [True, False]).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=kind)
@pytest.mark.parametrize("verifier", [False, True])
def test_what_is_not_one_number_is_named_with_its_completion(value, verifier):
    task = CHAIN.with_reward(lambda problem, completion: value)
    if verifier:
        task = copy.copy(CHAIN)
        task.correct = lambda problem, completion: value
    with pytest.raises(TypeError, match=r"^(reward|correct): ChainTask\.\w+ returned .* must be "
                                        r"one number.*'=> 4' of the problem '\+0 4 :'") as caught:
        (task.grades if verifier else task.rewards)([ONE], ["=> 4"], [True])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, 10**400, Decimal("NaN"),
                                   Decimal("sNaN"), Fraction(10**400), np.float32("inf"),
                                   torch.tensor(torch.nan)], ids=repr)
def test_a_number_that_is_not_finite_is_named_with_its_completion(value):
    task = CHAIN.with_reward(lambda problem, completion: value)
    with pytest.raises(ValueError, match=r"reward: .* must be a finite number .*'=> 4'"):
        task.rewards([ONE], ["=> 4"], [True])


# --- what else a function may do wrong ----------------------------------------------------

def generated(problem, completion):
    yield 1.0


async def generated_later(problem, completion):
    yield 1.0


@pytest.mark.parametrize("function", [generated, generated_later])
def test_a_generator_is_told_from_a_number(function):
    with pytest.raises(TypeError, match="yield returns a generator; use return"):
        CHAIN.with_reward(function).rewards([ONE], ["=> 4"], [True])


def test_a_verifier_has_to_decide():
    task = copy.copy(CHAIN)
    task.correct = lambda problem, completion: None
    with pytest.raises(TypeError, match="a verifier has to decide; only a reward may abstain"):
        task.grades([ONE], ["=> 4"], [True])


@pytest.mark.parametrize("error", [ZeroDivisionError("of parts"), KeyError("answer"),
                                   AssertionError(), OSError(2, "no judge")], ids=repr)
@pytest.mark.parametrize("late", [False, True])
def test_an_error_in_a_reward_names_completion_and_problem(make_trainer, error, late):
    def failing(problem, completion):
        raise error

    async def failing_later(problem, completion):
        await asyncio.sleep(0)
        raise error

    trainer = make_trainer(reward=failing_later if late else failing)
    with pytest.raises(RewardError, match=f"reward: SortTask.reward raised {type(error).__name__}.*"
                                          f"for the completion '.*' of the problem '.* :'.*, at "
                                          f"step 1") as caught:
        trainer.step()
    assert caught.value.__cause__ is error and "\n" not in str(caught.value)


def test_an_error_about_a_long_completion_stays_short():
    task = CHAIN.with_reward(lambda problem, completion: 1 / 0)
    with pytest.raises(RewardError, match=r"'7 7 .*\.\.\..* 8 8'") as caught:
        task.rewards([ONE], ["7 " * 9000 + "8 8"], [True])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("returned", [
    [0.0] * 15, [[0.0] * 4] * 4, (x for x in ()), None, np.zeros((4, 4))], ids=kind)
@pytest.mark.parametrize("name", ["rewards", "grades"])
def test_rewards_of_ones_own_must_be_a_tensor(make_trainer, returned, name):
    trainer = make_trainer()
    setattr(trainer.task, name, lambda *_: returned)
    with pytest.raises(TypeError, match=rf"{name} returned .* must be a tensor of shape \(4, 4\)"):
        trainer.step()


@pytest.mark.parametrize("name", ["rewards", "grades"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rewards_of_ones_own_must_be_finite(make_trainer, name, value):
    trainer = make_trainer()
    setattr(trainer.task, name, lambda *_: torch.full((4, 4), value))
    with pytest.raises(ValueError, match=f"{name}: got {value} for prompt 0, completion 0.*step 1"):
        trainer.step()
    assert trainer.history == []


def test_rewards_of_a_huge_spread_are_refused_in_a_line(make_trainer):
    trainer = make_trainer(reward=lambda p, c: 1e30 * graded(p, c))
    trainer.policy.float(), trainer.ref_policy.float()
    with pytest.raises(ValueError, match=r"rewards: got 1\.0\d*e\+30 in size, whose") as caught:
        trainer.step()
    assert "\n" not in str(caught.value)


# --- abstaining ---------------------------------------------------------------------------

def without(values, counted):
    return [[v for v, c in zip(*row) if c] for row in zip(values, counted)]


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "batch", "none"])
@pytest.mark.parametrize("scale", ["group", "batch", "mean", "none"])
@pytest.mark.parametrize("hidden", [0.0, 1e9, math.nan])
def test_advantages_are_those_of_the_groups_without_what_abstained(baseline, scale, hidden):
    generator = torch.Generator().manual_seed(5)
    rewards = torch.rand(6, 5, dtype=torch.float64, generator=generator)
    counted = torch.rand(6, 5, generator=generator) < 0.7
    counted[0], counted[1], rewards[2] = False, torch.tensor([True, *[False] * 4]), 0.5
    rewards[~counted] = hidden
    found = group_advantages(rewards, baseline=baseline, scale=scale, counted=counted)
    groups = without(rewards.tolist(), counted.tolist())
    everything = [r for group in groups for r in group]
    for n, group in enumerate(groups):
        wanted = []
        for r in group:
            others = (sum(group) - r) / (len(group) - 1) if len(group) > 1 else 0.0
            a = r - {"mean": sum(group) / len(group), "leave_one_out": others, "none": 0.0,
                     "batch": statistics.fmean(everything)}[baseline]
            by_group = baseline in ("mean", "leave_one_out") or scale == "group"
            if len(group) == 1 and (by_group or scale == "mean"):
                a = 0.0
            elif scale == "group":
                a /= statistics.stdev(group) + 1e-4
            elif scale == "batch":
                a /= statistics.stdev(everything) + 1e-4
            elif scale == "mean":
                a /= statistics.fmean(group) + 1e-4
            wanted.append(0.0 if by_group and max(group) == min(group) else a)
        assert found[n][counted[n]].tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    assert (found[~counted] == 0).all()


def test_informative_groups_do_not_look_at_what_abstained():
    rewards = torch.tensor([[1.0, 1.0, 5.0], [1.0, 2.0, torch.nan], [1.0, 2.0, 3.0], [0.0] * 3])
    counted = torch.tensor([[True, True, False], [True, True, False], [True, False, False],
                            [False] * 3])
    assert informative_groups(rewards, counted).tolist() == [False, True, False, False]
    for bad, error in (([True], TypeError), (torch.ones(4, 3), TypeError),
                       (torch.ones(3, 4, dtype=torch.bool), ValueError)):
        with pytest.raises(error, match="counted: got"):
            informative_groups(rewards, bad)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_that_is_not_said_to_have_abstained_is_refused(value):
    rewards = torch.tensor([[0.0, value], [0.0, 1.0]])
    for call in (informative_groups, group_advantages,
                 lambda r: ALGORITHMS["grpo"].advantages(r, torch.ones(4, 3))):
        with pytest.raises(ValueError, match=f"rewards: got {value} for prompt 0, completion 1"):
            call(rewards)


def abstaining(problem, completion):
    return None if len(completion) % 3 == 0 else graded(problem, completion)


def by_hand(trainer, policy, aggregation, beta):
    """Loss of the rows that did not abstain, one at a time, in plain Python but for the policy."""
    rollouts, gains = trainer.rollouts, []
    for n, group in enumerate(trainer.rewards.tolist()):
        scored = [r for r in group if not math.isnan(r)]
        for g, r in enumerate(group):
            row, width = 4 * n + g, rollouts.prompt_length
            length = int(rollouts.lengths[row])
            prompt = rollouts.tokens[row, :width][rollouts.prompt_mask[row] == 1]
            completion = rollouts.completions[row, :length]
            if math.isnan(r):
                continue
            flat = len(scored) < 2 or max(scored) == min(scored)
            a = 0.0 if flat else ((r - statistics.fmean(scored))
                                  / (statistics.stdev(scored) + 1e-4))
            seen = torch.cat((prompt, completion))[None]
            new, ref = (model(seen)[0, len(prompt) - 1 : -1].log_softmax(-1).gather(
                1, completion[:, None])[:, 0] for model in (policy, trainer.ref_policy))
            d = ref.detach() - new
            gains.append(a * (new - new.detach()).exp() - beta * (d.exp() - d - 1))
    tokens = sum(len(gain) for gain in gains)
    divisors = {"token_mean": lambda gain: tokens, "sequence_sum": lambda gain: len(gains),
                "constant": lambda gain: len(gains) * trainer.task.max_new_tokens}
    divisor = divisors.get(aggregation, lambda gain: len(gains) * len(gain))
    return -sum(gain.sum() / divisor(gain) for gain in gains), len(gains), tokens


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant", "sequence_sum",
                                         "nonempty_sequence_mean"])
def test_loss_and_gradient_are_those_without_the_rows_that_abstained(
        make_trainer, make_policy, sort_task, in_float64, aggregation):
    config = replace(SMALL, aggregation=aggregation, beta=0.3, max_grad_norm=1e9)
    trainer = make_trainer(config, abstaining,
                           ref_policy=make_policy(len(sort_task.tokenizer), seed=7))
    before = copy.deepcopy(trainer.policy)
    with pytest.warns(UserWarning, match=r"abstained \(None\) from \d+ of the 16 completions"):
        metrics = trainer.step()
    loss, kept, _ = by_hand(trainer, before, aggregation, 0.3)
    assert 4 < kept < 16
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-12, abs=1e-12)
    loss.backward()
    for wanted, got in zip(before.parameters(), trainer.policy.parameters()):
        assert (wanted.grad - got.grad).abs().max() < 1e-12 * (1 + wanted.grad.abs().max())
    scored = trainer.rewards[~trainer.rewards.isnan()].tolist()
    assert metrics.reward_mean == pytest.approx(statistics.fmean(scored), rel=1e-12, abs=1e-12)
    assert metrics.reward_std == pytest.approx(statistics.stdev(scored), rel=1e-12, abs=1e-12)
    assert (trainer.advantages[trainer.rewards.isnan()] == 0).all()


@pytest.mark.parametrize("name", ["grpo", "dapo", "ppo", "reinforce_plus_plus", "gmpo", "maxrl"])
def test_what_abstained_has_no_influence_whatever_its_tokens_are(make_trainer, monkeypatch, name):
    """Two batches that differ in the rows that abstained alone give the same update."""
    config = replace(SMALL, algorithm=name, prompts_per_step=6, minibatches=2, num_iterations=2)
    ends = []
    for change in (False, True):
        critic = ValueModel(make_trainer().policy) if config.choices.critic else None
        trainer = make_trainer(config, abstaining, value_model=critic)
        trainer.tell = lambda text: None
        sampler = trainer.sampler

        def spoiled(*arguments, change=change, trainer=trainer, sampler=sampler, **options):
            rollouts = sampler(*arguments, **options)
            texts = trainer.task.tokenizer.decode_rows(rollouts.completions, rollouts.mask)
            rows = torch.tensor([done and len(text) % 3 == 0
                                 for text, done in zip(texts, rollouts.finished.tolist())])
            assert 1 < rows.sum() < len(rows)
            log_probs = rollouts.log_probs - 0.7 * rows[:, None] * (rollouts.mask != 0)
            return replace(rollouts, log_probs=log_probs) if change else rollouts

        monkeypatch.setattr(trainer, "sampler", spoiled)
        metrics = trainer.step()
        ends.append((metrics.loss, metrics.kl, metrics.entropy, metrics.ratio_max,
                     torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])))
    assert ends[0][:4] == ends[1][:4]
    assert torch.equal(ends[0][4], ends[1][4])


def test_a_group_in_which_all_abstain_is_silent(make_trainer):
    def by_problem(problem, completion):
        return None if "7" in problem.prompt else graded(problem, completion)

    trainer, seen = make_trainer(replace(SMALL, prompts_per_step=12), by_problem), []
    trainer.tell = seen.append
    trainer.sampler = whole(trainer.sampler)
    metrics = trainer.step()
    silent = torch.tensor(["7" in problem.prompt for problem in trainer.problems])
    assert 0 < silent.sum() < 12
    assert trainer.rewards[silent].isnan().all() and not trainer.advantages[silent].any()
    assert trainer.advantages[~silent].any()
    assert metrics.zero_variance_groups >= silent.float().mean().item() - 1e-6
    trainer.step()
    assert len(seen) == 1  # and not again and again


def test_a_step_in_which_all_abstain_changes_nothing_and_says_so(make_trainer, tmp_path):
    trainer = make_trainer(reward=lambda p, c: None)
    trainer.sampler = whole(trainer.sampler)  # what is cut off has a reward of 0
    before = copy.deepcopy(trainer.policy.state_dict())
    with pytest.warns(UserWarning, match=r"abstained \(None\) from all 16 completions"):
        metrics = trainer.step()
    assert all(torch.equal(t, before[n]) for n, t in trainer.policy.state_dict().items())
    assert (metrics.reward_mean, metrics.reward_std, metrics.entropy, metrics.kl) == (None,) * 4
    assert (metrics.loss, metrics.grad_norm, metrics.zero_variance_groups) == (0.0, 0.0, 1.0)
    run = RunFolder.create(tmp_path / "run", trainer)
    run.record(metrics)
    assert run.metrics()[0].reward_mean is None
    plots.training_curves([metrics.to_dict()], ("reward", "rewards", *plots.PANELS))


def whole(sampler):
    """A sampler whose completions all came to their end."""
    def sample(*arguments, **options):
        rollouts = sampler(*arguments, **options)
        return replace(rollouts, finished=torch.ones_like(rollouts.finished))

    return sample


def test_the_token_xray_leaves_out_what_abstained(make_trainer):
    trainer = make_trainer(reward=abstaining)
    trainer.tell = lambda text: None
    trainer.step()
    update = Xray.of(trainer).update("before the step")
    rows = trainer.rewards.isnan().flatten()
    assert rows.any() and not update.push[rows].any() and (update.state[rows] == 0).all()
    kept = ~rows
    alone = trainer.algorithm.loss(
        (leaf := trainer.rollouts.log_probs[kept].double().requires_grad_()),
        trainer.rollouts.log_probs[kept].double(), trainer.advantages.flatten()[kept].double(),
        trainer.rollouts.mask[kept].double()).loss
    assert torch.allclose(update.push[kept], -torch.autograd.grad(alone, leaf)[0], atol=1e-9)


# --- async --------------------------------------------------------------------------------

async def graded_later(problem, completion):
    await asyncio.sleep(0.001)
    return graded(problem, completion)


def test_async_rewards_are_awaited_and_give_the_same_run(make_trainer):
    at_once, later = make_trainer(), make_trainer(reward=graded_later)
    assert [m.reward_mean for m in at_once.run()] == [m.reward_mean for m in later.run()]
    for a, b in zip(at_once.policy.parameters(), later.policy.parameters()):
        assert torch.equal(a, b)


def test_async_rewards_are_awaited_where_a_loop_is_running(make_trainer):
    trainer = make_trainer(reward=graded_later)

    async def cell():
        return trainer.step()

    assert asyncio.run(cell()).reward_mean == make_trainer().step().reward_mean


def test_the_calls_of_a_batch_are_awaited_together():
    inside, most = [0], [0]

    async def counting(problem, completion):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        await asyncio.sleep(0.05)
        inside[0] -= 1
        return 1.0

    CHAIN.with_reward({"one": counting, "two": counting}).rewards([ONE], ["=> 4"] * 8, [True] * 8)
    assert most[0] == 16


def test_async_functions_meet_one_loop_in_all_steps(make_trainer):
    """As a client of a web service has to: it belongs to the loop that it was first used in."""
    loops = set()

    async def remembering(problem, completion):
        loops.add(id(asyncio.get_running_loop()))
        return graded(problem, completion)

    list(make_trainer(reward=remembering).run())
    assert len(loops) == 1


def test_a_verifier_may_be_async(make_policy):
    class Later(SortTask):
        async def correct(self, problem, completion):
            await asyncio.sleep(0)
            return completion == problem.answer

    task, usual = Later(2, 3), SortTask(2, 3)
    problems = usual.problems(5, random.Random(0))
    policy = make_policy(len(task.tokenizer))
    one, other = (evaluate(policy, t, problems, samples=4) for t in (task, usual))
    assert torch.equal(one.right, other.right)
    plain = ChainTask()
    plain.correct = Later.correct.__get__(plain)
    assert plain.rewards([ONE], ["4", "5"], [True, True]).tolist() == [[1.0, 0.0]]


def test_ctrl_c_ends_the_wait_for_an_async_reward():
    started, cancelled = threading.Event(), threading.Event()

    async def endless(problem, completion):
        started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def press():
        started.wait(PATIENCE)
        time.sleep(0.5)  # until the main thread waits
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.main_thread().ident
    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        CHAIN.with_reward(endless).rewards([ONE], ["=> 4"], [True])
    assert cancelled.wait(PATIENCE)


# --- several rewards ----------------------------------------------------------------------

def right(problem, completion):
    return completion == problem.answer


def short(problem, completion):
    return None if not completion else -len(completion) / 10


def test_the_reward_is_the_weighted_sum_of_those_that_do_not_abstain():
    never = {"right": right, "short": short, "never": lambda p, c: None}
    task = SortTask().with_reward(never, [1, np.float32(0.5), 3])
    problem, texts = Problem("2 1 :", "1 2"), ["1 2", "", "2"]
    assert task.rewards([problem], texts, [True] * 3).tolist() == [
        [pytest.approx(0.85), 0.0, pytest.approx(-0.05)]]
    assert task.rewards([problem], texts, [False] * 3).tolist() == [[0.0] * 3]
    assert task.reward(problem, "1 2") == pytest.approx(0.85)
    alone = SortTask().with_reward([short])
    assert alone.rewards([problem], ["", "1"], [True] * 2).isnan().tolist() == [[True, False]]
    assert alone.reward(problem, "") is None
    assert task.grades([problem], texts, [True] * 3).tolist() == [[1.0, 0.0, 0.0]]
    back = task.with_reward(right)
    assert back.rewards([problem], texts, [True] * 3).tolist() == [[1.0, 0.0, 0.0]]


def test_several_rewards_have_trls_metrics(make_trainer, tmp_path):
    trainer = make_trainer(reward=[graded, short], weights=[1, 0.5])
    trainer.tell = lambda text: None
    run = RunFolder.create(tmp_path / "run", trainer)
    for metrics in trainer.run():
        run.record(metrics)
        texts = trainer.task.tokenizer.decode_rows(trainer.rollouts.completions,
                                                   trainer.rollouts.mask)
        done = trainer.rollouts.finished.tolist()
        for name, function in (("graded", graded), ("short", short)):
            scores = [function(trainer.problems[i // 4], text) if done[i] else 0.0
                      for i, text in enumerate(texts)]
            scores = [s for s in scores if s is not None]
            assert metrics.rewards[f"rewards/{name}/mean"] == pytest.approx(
                statistics.fmean(scores), abs=1e-6)
            assert metrics.rewards[f"rewards/{name}/std"] == pytest.approx(
                statistics.stdev(scores), abs=1e-6)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all("rewards" not in row and "rewards/short/mean" in row for row in rows)
    assert run.metrics()[-1].rewards == pytest.approx(trainer.history[-1].rewards, abs=1e-6)
    figure = plots.training_curves(rows, ("rewards",))
    names = [line.get_label() for line in figure.axes[0].lines]
    assert names == ["graded", "short", "their weighted sum"]


def test_a_part_that_is_no_number_in_metrics_jsonl_is_named(make_trainer, tmp_path):
    trainer = make_trainer(reward={"a": graded, "b": graded})
    run = RunFolder.create(tmp_path / "run", trainer)
    run.record(trainer.step())
    path = run.path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"rewards/b/mean": ', '"rewards/b/mean": "x", "_": '))
    with pytest.raises(ValueError, match="line 1 cannot be read"):
        run.metrics()


@pytest.mark.parametrize(("weights", "shown"), [
    ([1], r"\[1\]"), ([1, 2, 3], r"\[1, 2, 3\]"), (2, "2"), ("12", "'12'"), ([1, "2"], "'2'"),
    ([1, None], "None"), ([1, math.nan], "nan"), ([True, 1], "True"), ({"a": 1, "b": 2}, "{")])
def test_bad_weights_are_named(weights, shown):
    with pytest.raises(ValueError, match=f"reward_weights: got {shown}"):
        CHAIN.with_reward({"a": right, "b": short}, weights)


@pytest.mark.parametrize(("rewards", "named"), [
    ([right, right], "two functions with the name 'right'"), ([], "got none"), ({}, "got none"),
    ({"a": 1}, "must be a function"), ([1.0], "must be a function"), ({1: right}, "got 1")])
def test_bad_reward_functions_are_named(rewards, named):
    with pytest.raises((TypeError, ValueError), match=f"reward: .*{named}|reward: {named}"):
        CHAIN.with_reward(rewards)


def test_one_reward_takes_no_weights():
    with pytest.raises(ValueError, match=r"reward_weights: got \[2\] with a single reward"):
        CHAIN.with_reward(right, [2])


def test_functions_are_named_as_in_trl():
    class Judge:
        def __call__(self, problem, completion):
            return 1.0

    task = CHAIN.with_reward([functools.partial(right), Judge()])
    assert list(task.reward_funcs) == ["right", "Judge"]
    assert check_weights(None, ["a", "b"]) == [1.0, 1.0]


# --- handing them over --------------------------------------------------------------------

def test_trl_gets_each_reward_with_its_weight():
    from grpo_lib.bridges.handover import trl_reward, trl_rewards

    task = CHAIN.with_reward({"right": CHAIN.correct, "short": short, "later": graded_later},
                             [1, 0.5, 0.25])
    functions, weights = trl_rewards(task, eos_id=1)
    assert [f.__name__ for f in functions] == ["right", "short", "later"]
    assert weights == [1.0, 0.5, 0.25]
    columns = {"problem": ["+0 4 :"] * 3, "answer": ["4"] * 3}
    ids = [[5, 1], [1], [5]]
    found = [f(prompts=None, completions=["=> 4", "", "=> 4"], completion_ids=ids, **columns)
             for f in functions]
    assert found == [[1.0, 0.0, 0.0], [pytest.approx(-0.4), None, 0.0],
                     [graded(ONE, "=> 4"), graded(ONE, ""), 0.0]]
    [one], [weight] = trl_rewards(CHAIN)
    assert (one.__name__, weight) == ("chain_reward", 1.0)
    assert trl_reward(task)(prompts=None, completions=["=> 4"], problem=["+0 4 :"], answer=["4"]
                            ) == [pytest.approx(1 - 0.2 + graded(ONE, "=> 4") / 4)]


# --- which prompts are held out -----------------------------------------------------------

WORDS = [f"w{i}" for i in range(400)]
HELD = [w for w in WORDS if is_held_out(w)]
TRAINED = [w for w in WORDS if not is_held_out(w)]


class Few(Task):
    """A task of a few prompts, to be learned by heart."""

    name, tokenizer, max_new_tokens = "few", Tokenizer(WORDS), 4

    def __init__(self, *prompts):
        self.prompts = prompts

    def problem(self, rng):
        return Problem(rng.choice(self.prompts), "w0")

    def correct(self, problem, completion):
        return completion == problem.answer


@pytest.mark.parametrize("prompts", [HELD[:1], TRAINED[:1], HELD[:2], TRAINED[:2],
                                     HELD[:1] + TRAINED[:1]])
def test_few_prompts_are_refused_with_the_way_round_and_then_trained_on(make_policy, prompts):
    task, policy = Few(*prompts), make_policy(len(Few.tokenizer))
    config = GRPOConfig(steps=2, prompts_per_step=3, group_size=4, eval_every=1)
    with pytest.raises(ValueError, match="holds_out = False"):
        list(GRPOTrainer(policy, task, config).run())
    task.holds_out = False
    with pytest.warns(UserWarning, match="Few holds no prompt out, so accuracy is measured"):
        trainer = GRPOTrainer(policy, task, config)
    assert sorted(p.prompt for p in trainer.held_out) == sorted(prompts)
    trainer.tell = lambda text: None
    assert all(m.held_out_accuracy is not None for m in trainer.run())
    assert {p.prompt for p in trainer.problems} <= set(prompts)


def test_without_evaluation_nothing_needs_to_be_held_out(make_policy):
    task = Few(*TRAINED[:1])
    trainer = GRPOTrainer(make_policy(len(task.tokenizer)), task, replace(SMALL, steps=1))
    trainer.tell = lambda text: None
    assert len(list(trainer.run())) == 1


def test_the_docstring_says_how_problems_are_split():
    assert "held out" in Task.__doc__ and "holds_out = False" in Task.__doc__


@pytest.mark.parametrize("kind", ["bool", "int64", "float16", "float64"])
def test_rewards_and_grades_of_ones_own_may_be_of_any_number_type(make_policy, kind):
    class Own(SortTask):
        def rewards(self, problems, completions, finished):
            numbers = np.arange(len(completions)) % 2
            return torch.from_numpy(numbers.reshape(len(problems), -1).astype(kind))

        grades = rewards

    task = Own(2, 3)
    trainer = GRPOTrainer(make_policy(len(task.tokenizer)), task, replace(
        SMALL, steps=1, eval_every=1, eval_problems=4))
    [metrics] = trainer.run()
    assert metrics.reward_mean == metrics.accuracy == 0.5 and metrics.grad_norm > 0
    assert metrics.zero_variance_groups == 0 and metrics.held_out_accuracy is not None
    assert trainer.rewards.is_floating_point()


@pytest.mark.parametrize("reward", ["accuracy", "", {CHAIN.correct, CHAIN.reward}, 1, None],
                         ids=["text", "empty", "set", "number", "none"])
def test_several_rewards_are_a_list_or_a_dict(reward):
    """A set has no order, by which reward_weights could belong to its functions."""
    with pytest.raises(TypeError, match=r"^reward: got .*, as a list or a dict of name: "):
        CHAIN.with_reward(reward, [1, 2])


# --- arguments that come from people ------------------------------------------------------

@pytest.mark.parametrize("make", [np.float32, np.float64, Fraction, Decimal, torch.tensor],
                         ids=lambda m: m.__name__)
def test_settings_of_any_number_type_are_pythons_own(make):
    config = GRPOConfig(epsilon=make(0.25), learning_rate=make(0.5), std_eps=make(0.125),
                        temperature=make(0.5), delta=make(2.0), beta=make(0.5))
    for name, value in (("epsilon", 0.25), ("learning_rate", 0.5), ("std_eps", 0.125),
                        ("temperature", 0.5), ("delta", 2.0), ("beta", 0.5)):
        assert type(getattr(config, name)) is float and getattr(config, name) == value
        if hasattr(config.choices, name):
            assert type(getattr(config.choices, name)) is float
    json.dumps(config.to_dict())


@pytest.mark.parametrize("make", [np.int64, np.uint8, np.array, torch.tensor],
                         ids=lambda m: m.__name__)
def test_counts_of_any_integer_type_are_pythons_own(make, make_policy, tmp_path):
    config = GRPOConfig(steps=make(1), prompts_per_step=make(2), group_size=make(4), seed=make(3),
                        eval_every=make(0), minibatches=make(1), micro_batch_size=make(3))
    assert all(type(getattr(config, name)) is int for name in (
        "steps", "prompts_per_step", "group_size", "seed", "eval_every", "micro_batch_size"))
    task = SortTask(make(2), make(3))
    trainer = GRPOTrainer(make_policy(len(task.tokenizer)), task, config)
    trainer.tell = lambda text: None
    RunFolder.create(tmp_path / "run", trainer, held_out=make(5), save_every=make(2))
    assert len(list(trainer.run(make(1)))) == 1
    assert len(task.problems(make(3), random.Random(0))) == len(task.held_out(make(3))) == 3
    assert sample_groups(trainer.policy, [[3]], make(2), max_new_tokens=make(4)).group_size == 2


@pytest.mark.parametrize(("name", "value"), [
    ("group_size", np.float32(8)), ("group_size", np.bool_(True)), ("seed", np.int64(-1)),
    ("group_size", Fraction(8)), ("epsilon", np.float32("nan")), ("epsilon", "0.2"),
    ("epsilon", np.array([0.1, 0.2])), ("epsilon", torch.tensor([0.1, 0.2])), ("beta", 1j),
    ("learning_rate", [0.1]), ("measure_kl", np.int64(1)), ("epsilon", np.bool_(True)),
    ("epsilon_high", np.float32(-1)), ("delta", Decimal(1))])
def test_what_is_no_such_number_is_still_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}: got ") as caught:
        GRPOConfig(**{name: value})
    assert "\n" not in str(caught.value)


def test_a_bool_of_numpy_is_a_bool():
    assert GRPOConfig(measure_kl=np.bool_(False)).measure_kl is False
    assert GRPOConfig(whiten=np.bool_(True)).choices.whiten is True


def test_an_infinite_setting_survives_its_file():
    config = GRPOConfig(epsilon_high=np.float32("inf"))
    text = json.dumps(config.to_dict(), allow_nan=False)
    assert GRPOConfig(**json.loads(text)).epsilon_high == math.inf


def test_metrics_say_what_is_not_measured():
    values = dict.fromkeys(StepMetrics.__dataclass_fields__, 0.5) | {
        "step": 1, "tokens": 3, "rewards": {}, "reward_mean": None, "kl": math.inf}
    content = json.loads(StepMetrics(**values).to_json(), parse_constant=pytest.fail)
    assert content["kl"] is None and content["reward_mean"] is None


@pytest.mark.parametrize("reward", [3, None, "exact_match"])
def test_a_reward_that_is_no_function_is_named(sort_task, reward):
    with pytest.raises(TypeError, match=r"reward: got .*, must be a function"):
        sort_task.with_reward(reward)
