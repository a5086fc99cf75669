"""What the X-ray says of a token is what the gradient of the loss does to it."""

from dataclasses import replace

import pytest
import torch

from grpo_lib import (
    ALGORITHMS,
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    ValueModel,
    clip_binds,
    completion_log_probs,
    kl_estimate,
    load_base_model,
)
from grpo_lib.lab.xray import (
    BLOCKED,
    DOWN,
    NOT_COUNTED,
    SILENT,
    STATES,
    UP,
    Xray,
    agreement,
    token_update,
)

ROWS = [name for name, row in ALGORITHMS.items() if not row.critic]


@pytest.fixture(scope="module")
def trainer():
    made = GRPOTrainer(load_base_model("chain"), ChainTask(), GRPOConfig(
        steps=2, prompts_per_step=6, group_size=6, eval_every=0, num_iterations=4,
        learning_rate=1e-3))
    list(made.run())
    return made


@pytest.fixture(scope="module")
def xray(trainer):
    return Xray.of(trainer)


def test_before_and_after_are_the_policys_of_then(trainer, xray):
    assert list(xray.log_probs) == ["before the step", "after the step"]
    assert xray.log_probs["before the step"] is trainer.rollouts.log_probs
    ratio = xray.update("before the step").ratio
    mask = trainer.rollouts.mask > 0
    assert (ratio[mask] == 1).all()
    after = xray.update("after the step").ratio
    with torch.no_grad():
        now = completion_log_probs(trainer.policy, trainer.rollouts)
    expected = (now.double() - trainer.rollouts.log_probs.double()).exp()
    assert torch.allclose(after[mask], expected[mask]) and (after[mask] != 1).any()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("when", ["before the step", "after the step"])
def test_the_pushes_add_up_to_the_policys_gradient(trainer, xray, name, when):
    """Chain rule: sum of push times the gradient of each log-prob is minus the loss's gradient,
    taken through the weights of a policy in float64."""
    row = replace(ALGORITHMS[name], beta=0.1) if name in ("grpo", "rloo") else ALGORITHMS[name]
    rollouts = trainer.rollouts
    rewards = row.shaped_rewards(xray.rewards, rollouts.mask.sum(1), xray.max_length)
    policy = trainer.policy.double()
    try:
        log_probs = completion_log_probs(policy, rollouts)
        # with the values of that time; any gradients will do to compare
        log_probs = log_probs - log_probs.detach() + xray.log_probs[when].double()
        old, ref = rollouts.log_probs.double(), xray.ref_log_probs.double()
        advantages = row.advantages(rewards.double(), rollouts.mask.double(),
                                    kl=kl_estimate(old, ref, row.kl))
        loss = row.loss(log_probs, old, advantages, row.loss_mask(
            rollouts.mask.double(), rollouts.finished), max_length=xray.max_length,
            ref_log_probs=ref).loss
        parameters = list(policy.parameters())
        wanted = torch.autograd.grad(loss, parameters, retain_graph=True)
        push = token_update(row, rollouts, xray.rewards, xray.log_probs[when],
                            ref_log_probs=xray.ref_log_probs, max_length=xray.max_length).push
        found = torch.autograd.grad((push * log_probs).sum(), parameters)
        length = torch.cat([g.flatten() for g in wanted]).norm()
        assert length > 0
        for one, other in zip(found, wanted):
            assert torch.allclose(one, -other, atol=1e-9 * float(length) + 1e-12, rtol=1e-7)
    finally:
        trainer.policy.float()


def test_grpos_states_are_those_of_the_clip(trainer, xray):
    update = xray.update("after the step", ALGORITHMS["grpo"])
    mask = trainer.rollouts.mask > 0
    low, high = clip_binds(update.ratio, update.advantages, 0.2)
    assert torch.equal(update.state == BLOCKED, (low | high) & mask)
    assert torch.equal(update.state == NOT_COUNTED, ~mask)
    assert torch.equal(update.state == SILENT, (update.advantages == 0) & mask)
    moving = mask & ~(low | high)
    assert torch.equal(update.state == UP, moving & (update.advantages > 0))
    assert torch.equal(update.state == DOWN, moving & (update.advantages < 0))
    assert all((update.state == state).any() for state in STATES)
    # the formula of DeepSeekMath, written out: A r / (length of the answer * answers)
    lengths = trainer.rollouts.mask.sum(1, keepdim=True)
    by_hand = update.advantages * update.ratio / (lengths * len(mask)) * moving
    assert torch.allclose(update.push, by_hand, atol=1e-12)


def test_the_push_is_the_losss_slope_by_finite_differences(xray):
    row, eps = replace(ALGORITHMS["grpo"], beta=0.2), 1e-6
    rollouts, now = xray.rollouts, xray.log_probs["after the step"].double()
    update = xray.update("after the step", row)
    advantages = row.advantages(xray.rewards.double(), rollouts.mask.double())

    def loss(at):
        return row.loss(at, rollouts.log_probs.double(), advantages, rollouts.mask.double(),
                        ref_log_probs=xray.ref_log_probs.double()).loss.item()

    for place in [(0, 0), (5, 1), (17, 2)]:
        up, down = now.clone(), now.clone()
        up[place] += eps
        down[place] -= eps
        assert -(loss(up) - loss(down)) / (2 * eps) == pytest.approx(
            update.push[place].item(), abs=1e-8)
    assert update.kl_push.abs().max() > 0


@pytest.mark.parametrize("name", ["grpo", "reinforce", "cispo"])
def test_up_and_down_are_what_the_whole_update_does_kl_term_included(xray, name):
    row = replace(ALGORITHMS[name], beta=20.0)
    update, without = (xray.update("after the step", a) for a in (row, ALGORITHMS[name]))
    assert (update.push[update.state == UP] > 0).all()
    assert (update.push[update.state == DOWN] < 0).all()
    for state in (BLOCKED, SILENT, NOT_COUNTED):  # what the reward's part does not reach
        assert torch.equal(update.state == state, without.state == state)
    turned = (update.state == UP) != (without.state == UP)
    assert turned.any() and (update.kl_push[turned] * without.push[turned] < 0).all()


def test_a_run_with_a_critic_shows_its_own_advantages():
    policy = load_base_model("chain")
    trainer = GRPOTrainer(policy, ChainTask(), GRPOConfig(
        steps=1, prompts_per_step=2, group_size=2, eval_every=0, algorithm="ppo"),
        value_model=ValueModel(policy))
    trainer.step()
    xray = Xray.of(trainer)
    update, mask = xray.update("before the step"), trainer.rollouts.mask
    assert torch.allclose(update.advantages, (trainer.advantages * mask).double())
    assert torch.equal(update.push > 0, (trainer.advantages > 0) & (mask > 0))
    other = xray.update("before the step", ALGORITHMS["rloo"]).advantages
    assert torch.equal(other, other[:, :1] * mask), "other rows make their own, of rewards"


def test_an_answer_cut_off_is_not_counted_by_dapo(trainer):
    rollouts = replace(trainer.rollouts, finished=torch.zeros_like(trainer.rollouts.finished))
    rewards = torch.eye(6)
    update = token_update(ALGORITHMS["dapo"], rollouts, rewards, rollouts.log_probs,
                          max_length=40)
    assert (update.state == NOT_COUNTED).all() and update.push.abs().max() == 0


def test_long_answers_lose_reward_in_dapo_first(trainer, xray):
    rollouts, row = trainer.rollouts, ALGORITHMS["dapo"]
    longest = int(rollouts.lengths.max())
    update = token_update(row, rollouts, xray.rewards, rollouts.log_probs, max_length=longest)
    shaped = row.shaped_rewards(xray.rewards.double(), rollouts.lengths.double(), longest)
    assert (shaped != xray.rewards).any()
    wanted = row.advantages(shaped, rollouts.mask.double()).flatten()[:, None] * rollouts.mask
    assert torch.allclose(update.advantages, wanted, rtol=0, atol=1e-12)


def test_agreement_is_a_cosine(xray):
    grpo, dr = (xray.update("before the step", ALGORITHMS[n]) for n in ("grpo", "dr_grpo"))
    assert agreement(grpo, grpo) == pytest.approx(1.0)
    assert agreement(grpo, grpo._replace(push=-grpo.push)) == pytest.approx(-1.0)
    assert 0 < agreement(grpo, dr) < 1
    assert agreement(grpo, grpo._replace(push=3 * grpo.push)) == pytest.approx(1.0)
    assert agreement(grpo, grpo._replace(push=0 * grpo.push)) != agreement(grpo, grpo)


class TestBadInput:
    @pytest.mark.parametrize("changes, message", [
        ({"rewards": torch.zeros(6)}, "rewards: got shape"),
        ({"rewards": torch.zeros(5, 6)}, "rewards: got shape"),
        ({"words": [["a"]]}, "words"), ({"prompts": ["one"]}, "prompts: got 1"),
        ({"log_probs": {}}, "log_probs: got none"),
        ({"log_probs": {"now": torch.zeros(2, 2)}}, "log_probs: got shape"),
        ({"algorithm": ALGORITHMS["ppo"]}, "advantages: got None"),
        ({"algorithm": replace(ALGORITHMS["grpo"], entropy_coef=0.1)}, "entropies of whole")])
    def test_it_is_said_what_does_not_fit(self, xray, changes, message):
        with pytest.raises(ValueError, match=message):
            replace(xray, **changes)

    def test_beta_needs_a_reference(self, xray):
        with pytest.raises(ValueError, match="ref_log_probs"):
            replace(xray, algorithm=replace(ALGORITHMS["grpo"], beta=0.1), ref_log_probs=None)

    def test_a_trainer_that_has_not_begun(self):
        fresh = GRPOTrainer(load_base_model("chain"), ChainTask(), GRPOConfig(steps=1))
        with pytest.raises(ValueError, match="no step yet"):
            Xray.of(fresh)
