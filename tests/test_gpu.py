"""What has to hold on a CUDA device; left out where there is none (`pytest -m gpu` runs these)."""

from dataclasses import replace

import pytest
import torch

from grpo_lib import (
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    PretrainConfig,
    load_base_model,
    pretrain,
    sample_groups,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(),
                                                  reason="no CUDA device")]
CONFIG = GRPOConfig(steps=3, prompts_per_step=8, group_size=8, eval_every=0)
TASK = ChainTask()


def prompts():
    return [TASK.encode(p) for p in TASK.held_out(20)]


def test_the_same_completions_are_sampled_as_on_the_cpu():
    one, other = (sample_groups(load_base_model("chain").double().to(device), prompts(), 4,
                                max_new_tokens=19, generator=torch.Generator().manual_seed(0),
                                device=device) for device in ("cpu", "cuda"))
    assert torch.equal(one.tokens, other.tokens.cpu())
    assert torch.allclose(one.log_probs, other.log_probs.cpu(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("micro", [None, 12])
def test_a_run_has_the_metrics_that_it_has_on_the_cpu(micro):
    runs = [GRPOTrainer(load_base_model("chain").double(), TASK,
                        replace(CONFIG, device=device, micro_batch_size=micro))
            for device in ("cpu", "cuda")]
    for one, other in zip(*(list(trainer.run()) for trainer in runs)):
        for name in ("reward_mean", "length", "loss", "entropy", "kl", "grad_norm", "ratio_max"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-5, abs=1e-7)


def test_a_checkpoint_moves_between_devices(tmp_path):
    trainer = GRPOTrainer(load_base_model("chain"), TASK, replace(CONFIG, device="cuda"))
    trainer.step()
    trainer.save(tmp_path / "a.safetensors")
    again = GRPOTrainer(load_base_model("chain"), TASK, CONFIG)
    again.load(tmp_path / "a.safetensors")
    for a, b in zip(trainer.policy.parameters(), again.policy.parameters()):
        assert torch.equal(a.cpu(), b)
    again.step()


def test_pre_training_starts_from_the_same_weights_and_examples():
    config = PretrainConfig(skill_steps=3, habit_steps=1, batch_size=16)
    one, other = ([loss for _, loss, _ in pretrain(TASK, config, device=device)]
                  for device in ("cpu", "cuda"))
    assert other == pytest.approx(one, rel=1e-3)
