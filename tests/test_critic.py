"""The value model: the shift by one, its loss, and PPO's training loop around it."""

import copy
from dataclasses import replace

import pytest
import torch

from grpo_lib.config import GRPOConfig
from grpo_lib.critic import Critic, ValueModel, completion_values, state_numbers, value_loss
from grpo_lib.policy import TinyPolicy
from grpo_lib.support.checkpoint import CheckpointError
from grpo_lib.training import GRPOTrainer

PPO = GRPOConfig(algorithm="ppo", steps=6, prompts_per_step=4, group_size=4, eval_every=0,
                 learning_rate=0.01, value_learning_rate=0.01)


@pytest.fixture
def value_model(make_policy):
    model = ValueModel(make_policy())
    with torch.no_grad():
        model.transformer.lm_head.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def make_trainer(make_policy, sort_task):
    def make(config=PPO):
        task = sort_task.with_reward(lambda p, c: (sum(map(ord, c)) + len(c)) % 5 / 4)
        policy = make_policy(len(task.tokenizer))
        return GRPOTrainer(policy, task, config, value_model=ValueModel(policy))

    return make


def test_it_begins_as_the_policys_transformer_with_values_of_zero(make_policy):
    policy = make_policy()
    model = ValueModel(policy)
    assert model(torch.tensor([[3, 4, 5]])).tolist() == [[0.0, 0.0, 0.0]]
    own, copied = policy.state_dict(), model.transformer.state_dict()
    assert all(torch.equal(own[k], copied[k]) for k in own if k != "lm_head.weight")
    copied["model.norm.weight"].add_(1.0)
    assert not torch.equal(own["model.norm.weight"], copied["model.norm.weight"])
    frozen = copy.deepcopy(policy).requires_grad_(False)
    assert all(p.requires_grad for p in ValueModel(frozen).parameters())
    with pytest.raises(TypeError, match="policy: got a TinyPolicy, allowed is a Transformer"):
        ValueModel(TinyPolicy(5, 4))


def test_a_value_is_of_the_state_before_the_token(value_model, make_policy, sample):
    rollouts = sample(make_policy())
    values = completion_values(value_model, rollouts)
    assert values.shape == rollouts.mask.shape
    assert (values[rollouts.mask == 0] == 0).all()
    for row in range(len(values)):
        prompt = rollouts.tokens[row, : rollouts.prompt_length][rollouts.prompt_mask[row] == 1]
        length = int(rollouts.lengths[row])
        text = torch.cat((prompt, rollouts.completions[row, :length]))
        alone = value_model(text[None])[0, len(prompt) - 1: -1]
        assert torch.allclose(values[row, :length], alone, atol=1e-12)


def test_the_value_loss_is_half_the_mean_square_over_tokens():
    values = torch.tensor([[1.0, 2.0], [3.0, 99.0]], requires_grad=True)
    returns = torch.tensor([[0.0, 2.0], [1.0, -99.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    loss = value_loss(values, returns, mask)
    assert loss.item() == pytest.approx((1 + 0 + 4) / 2 / 3)
    loss.backward()
    assert returns.grad is None
    assert torch.allclose(values.grad, torch.tensor([[1 / 3, 0], [2 / 3, 0]]))


def test_an_update_goes_towards_the_returns(value_model, make_policy, sample):
    rollouts = sample(make_policy())
    critic = Critic(value_model, 1e-2, 1.0)
    returns = torch.full_like(rollouts.log_probs, 0.7)
    losses = [critic.update(rollouts, returns) for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    left = (critic.values(rollouts) - 0.7)[rollouts.mask == 1].abs().mean()
    assert left < 0.3
    assert not critic.values(rollouts).requires_grad
    with pytest.raises(FloatingPointError, match="value loss: got nan"):
        critic.update(rollouts, returns * float("nan"))


def test_what_training_keeps_is_doubled_by_a_critic():
    assert state_numbers(10, critic=False) == {"weights": 10, "gradients": 10, "optimizer": 20}
    assert state_numbers(10, critic=True) == {"weights": 20, "gradients": 20, "optimizer": 40}


# --- in the training loop -----------------------------------------------------------------

def test_a_step_of_ppo_uses_and_trains_the_value_model(make_trainer):
    trainer = make_trainer()
    before = copy.deepcopy(trainer.critic.value_model.state_dict())
    for _ in trainer.run(2):
        pass
    assert trainer.advantages.shape == trainer.rollouts.mask.shape
    after = trainer.critic.value_model.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    mask, values = trainer.rollouts.mask, trainer.advantages
    assert abs((values * mask).sum().item()) < 1e-6  # whitened
    assert (values[mask == 0] == 0).all()


def test_the_value_model_learns_what_reward_to_expect(make_policy, sort_task):
    policy = make_policy(len(sort_task.tokenizer), torch.float32)
    trainer = GRPOTrainer(policy, sort_task, replace(PPO, learning_rate=1e-6, steps=30),
                          value_model=ValueModel(policy))
    trainer.task.rewards = lambda problems, texts, finished: torch.full((4, 4), 0.8)
    for _ in trainer.run():
        pass
    values = trainer.critic.values(trainer.rollouts)[trainer.rollouts.mask == 1]
    assert (values - 0.8).abs().mean() < 0.15


def test_the_returns_are_those_of_the_algorithm(make_trainer):
    trainer = make_trainer()
    seen = {}
    update = trainer.critic.update

    def spy(rollouts, returns):
        seen.setdefault("returns", []).append((rollouts, returns))
        return update(rollouts, returns)

    trainer.critic.update = spy
    trainer.step()
    assert len(seen["returns"]) == 2  # minibatches
    for rollouts, returns in seen["returns"]:
        assert returns.shape == rollouts.mask.shape
        for row in range(len(returns)):  # values were 0: lambda-returns decay from the last token
            n = int(rollouts.lengths[row])
            assert torch.allclose(returns[row, : n - 1], 0.95 * returns[row, 1:n], atol=1e-6)


@pytest.mark.parametrize(("algorithm", "with_model", "named"), [
    ("ppo", False, "value_model: got NoneType with algorithm='ppo', allowed is ValueModel"),
    ("grpo", True, "value_model: got ValueModel with algorithm='grpo', allowed is None"),
])
def test_a_value_model_where_it_belongs(make_policy, sort_task, algorithm, with_model, named):
    policy = make_policy(len(sort_task.tokenizer))
    with pytest.raises(ValueError, match=named.replace("(", r"\(")):
        GRPOTrainer(policy, sort_task, replace(PPO, algorithm=algorithm),
                    value_model=ValueModel(policy) if with_model else None)


def test_resuming_with_a_critic_is_never_having_stopped(make_trainer, tmp_path):
    straight = make_trainer()
    list(straight.run(4))
    first = make_trainer()
    list(first.run(2))
    first.save(tmp_path / "at2")
    resumed = make_trainer()
    with torch.no_grad():
        for parameter in resumed.critic.value_model.parameters():
            parameter.add_(1.0)
    resumed.load(tmp_path / "at2")
    list(resumed.run(2))
    for part in ("policy", "critic"):
        one, other = ((t.policy if part == "policy" else t.critic.value_model).state_dict()
                      for t in (straight, resumed))
        assert all(torch.equal(one[k], other[k]) for k in one), part
    one, other = (t.critic.optimizer.state_dict()["state"] for t in (straight, resumed))
    assert all(torch.equal(one[i][k], other[i][k]) for i in one for k in one[i])


def test_checkpoints_with_and_without_a_critic_are_not_mixed_up(make_trainer, make_policy,
                                                                sort_task, tmp_path):
    with_critic = make_trainer()
    plain = GRPOTrainer(make_policy(len(sort_task.tokenizer)), sort_task,
                        replace(PPO, algorithm="grpo"))
    plain.step()
    plain.save(tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is nothing"):
        with_critic.load(tmp_path / "plain")
    with_critic.step()
    with_critic.save(tmp_path / "ppo")
    with pytest.raises(CheckpointError, match="value_model"):
        plain.load(tmp_path / "ppo")
