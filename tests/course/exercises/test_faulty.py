"""Each fault changes what it says it changes, and nothing else; the explorer of recorded ones."""

import pytest
import torch

from grpo_lib.config import GRPOConfig
from grpo_lib.course.exercises.curves import steps_of
from grpo_lib.course.exercises.faulty import FAULTS, SILENT, FaultyTrainer
from grpo_lib.course.explorers import broken_runs_explorer
from grpo_lib.course.recorded import load
from grpo_lib.training import GRPOTrainer

CONFIG = GRPOConfig(steps=3, prompts_per_step=3, group_size=4, eval_every=0, learning_rate=0.01)


def graded(problem, completion):
    return (sum(map(ord, completion)) + len(completion)) % 5 / 4


@pytest.fixture
def stepped(make_policy, sort_task):
    """A trainer after a step, and what its update would be given."""
    sort_task.max_new_tokens = 14
    task = sort_task.with_reward(graded)
    trainer = GRPOTrainer(make_policy(len(task.tokenizer)), task, CONFIG)
    trainer.step()
    given = trainer.rollouts, trainer.advantages, trainer.rollouts.log_probs - 0.1
    return trainer, given


def changed(stepped, name):
    trainer, given = stepped
    return FAULTS[name].change(trainer, *given)


def test_no_fault_changes_nothing(stepped):
    assert all(a is b for a, b in zip(changed(stepped, "none"), stepped[1]))


def test_the_sign_is_turned(stepped):
    assert torch.equal(changed(stepped, "sign")[1], -stepped[1][1])


def test_other_rows_get_another_prompts(stepped):
    wrong = changed(stepped, "other rows")[1]
    assert torch.equal(wrong[1], stepped[1][1][0]) and not torch.equal(wrong, stepped[1][1])


def test_without_a_baseline_the_advantages_are_the_rewards_plus_one(stepped):
    assert torch.equal(changed(stepped, "no baseline")[1], stepped[0].rewards + 1)


def test_interleaved_groups_compare_across_prompts(stepped):
    trainer, (_, right, _) = stepped
    rewards = trainer.rewards.flatten().tolist()
    wrong = changed(stepped, "interleaved groups")[1]
    assert wrong.shape == right.shape and not torch.allclose(wrong.to(right), right)
    flat = wrong.flatten()
    for start in range(3):  # rows start, start + 3, ...: a group of four
        members = torch.tensor([rewards[start + 3 * i] for i in range(4)])
        wanted = (members - members.mean()) / (members.std() + 1e-4)
        assert torch.allclose(flat[start::3], wanted, atol=1e-5)


def test_the_end_is_masked_out_where_there_is_one_and_something_before_it(stepped):
    before, after = stepped[1][0].mask, changed(stepped, "end masked out")[0].mask
    for row, (a, b, done) in enumerate(zip(before, after, stepped[1][0].finished)):
        lost = [t for t in range(len(a)) if a[t] != b[t]]
        length = int(a.sum())
        assert lost == ([length - 1] if done and length > 1 else []), row


def test_the_reference_stands_for_the_old_policy(stepped):
    rollouts, _, ref = changed(stepped, "reference for old")
    assert rollouts.log_probs is ref


def test_scored_at_another_temperature(stepped):
    assert changed(stepped, "other temperature")[0].temperature == 2.0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_trainer_takes_steps_and_only_its_update_differs(make_policy, sort_task, fault):
    task = sort_task.with_reward(graded)
    runs, noticed = [], []
    for trainer in (GRPOTrainer(make_policy(len(task.tokenizer)), task, CONFIG),
                    FaultyTrainer(fault, make_policy(len(task.tokenizer)), task, CONFIG)):
        trainer.tell = noticed.append
        first, second = trainer.step(), trainer.step()
        runs.append((first.reward_mean, first.tokens, trainer.policy.state_dict(), second))
    assert runs[0][:2] == runs[1][:2]  # the first step samples before any update
    same = all(torch.equal(a, b) for a, b in zip(runs[0][2].values(), runs[1][2].values()))
    assert same == (fault == "none")
    # the trainer itself notices the two that spoil the ratio
    assert bool(noticed) == (fault in ("reference for old", "other temperature"))


def test_an_unknown_fault_is_named():
    with pytest.raises(ValueError, match="fault: got 'signs', allowed are none, sign"):
        FaultyTrainer("signs", None, None, CONFIG)


@pytest.mark.slow
def test_the_explorer_shows_each_recorded_run_beside_the_healthy_one():
    record = load("broken")
    explorer = broken_runs_explorer(record)
    for run in record["runs"]:
        text = explorer.set(fault=run["fault"], seed=run["seed"]).text
        assert text.startswith(f"{run['fault']}, seed {run['seed']}: {FAULTS[run['fault']].says}")
        assert f"{run['accuracy'][-1]:.0%} right" in text and f"KL {run['kl'][-1]:.2f}" in text
        drawn = [list(line.get_ydata()) for line in explorer.figure.axes[0].lines]
        [healthy] = [r for r in record["runs"] if (r["fault"], r["seed"]) == ("none", run["seed"])]
        assert run["accuracy"] in drawn and healthy["accuracy"] in drawn
    with pytest.raises(ValueError, match="fault: got 'x', allowed are none"):
        broken_runs_explorer(record, "x")


def test_the_recorded_symptoms_are_those_that_are_told():
    """What ``shows`` says of each fault, on the recorded runs."""
    runs = {}
    for run in load("broken")["runs"]:
        runs.setdefault(run["fault"], []).append(run)
    assert runs.keys() == FAULTS.keys()

    def ends(fault, name):
        return [sum(r[name][-5:]) / 5 for r in runs[fault]]

    for fault in SILENT:
        assert min(ends(fault, "accuracy")) > 0.95
    assert max(ends("sign", "accuracy")) < 0.1 and max(ends("other rows", "accuracy")) < 0.2
    assert min(ends("other rows", "entropy")) > 0.8
    assert max(ends("reference for old", "kl")) < 0.05
    for side in ("low", "high"):
        assert min(ends("reference for old", f"clip_fraction_{side}")) > 0.02
    assert min(r["clip_fraction_low"][0] for r in runs["other temperature"]) > 0.15
    assert max(r["clip_fraction_low"][0] for r in runs["none"]) < 0.05
    for broken, healthy in zip(runs["no baseline"], runs["none"]):
        at = next(i for i, e in enumerate(broken["entropy"]) if e < 0.8)
        assert broken["accuracy"][at] < 0.35
        assert sum(broken["accuracy"]) < sum(healthy["accuracy"])
    steps = steps_of(runs["none"][0])
    assert [s["step"] for s in steps] == list(range(1, 26))
