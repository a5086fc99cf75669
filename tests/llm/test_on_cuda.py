"""Real language models on a CUDA device; left out where there is none (`pytest -m gpu tests`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from waiting import PATIENCE

from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, completion_log_probs, sample_groups
from grpo_lib.bridges.huggingface import (
    HuggingFacePolicy,
    HuggingFaceTokenizer,
    InstructionTask,
    computes_in_bf16,
    generate_groups,
    with_lora,
)

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(),
                                                  reason="no CUDA device")]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]


@pytest.fixture
def task(trained_tokenizer):
    return InstructionTask(ChainTask(2, 3), HuggingFaceTokenizer(trained_tokenizer()),
                           max_new_tokens=12)


def draw(policy, sampler=sample_groups, device=DEVICE):
    return sampler(policy, PROMPTS, 4, max_new_tokens=8, eos_id=1, device=device,
                   generator=torch.Generator().manual_seed(0))


# transformers takes the sine and cosine of rotary positions, and the RMS norms that go with them,
# in float32 whatever the model's type, and two devices round those differently. Such a difference,
# one part in 8 million, put into these models on the CPU moves a log-prob by up to 4e-6. GPT-2 has
# learned positions and nothing in float32.
@pytest.mark.parametrize("family, difference", [("llama", 1e-5), ("gpt2", 1e-9), ("qwen2", 1e-5),
                                                ("mistral", 1e-5)])
def test_the_same_completions_and_log_probs_as_on_the_cpu(tiny_model, family, difference):
    one = draw(HuggingFacePolicy(tiny_model(family)), device="cpu")
    other = draw(HuggingFacePolicy(tiny_model(family)).to(DEVICE))
    assert torch.equal(one.tokens, other.tokens.cpu())
    assert torch.allclose(one.log_probs, other.log_probs.cpu(), rtol=0, atol=difference)


@pytest.mark.parametrize("sampler", [sample_groups, generate_groups])
@pytest.mark.parametrize("lora", [None, 4])
def test_what_is_sampled_is_what_is_scored(tiny_model, sampler, lora):
    model = tiny_model()
    policy = HuggingFacePolicy(with_lora(model, lora) if lora else model).to(DEVICE)
    rollouts = draw(policy, sampler)
    with torch.no_grad():
        again = completion_log_probs(policy, rollouts)
    assert rollouts.mask.sum() > 12
    assert torch.allclose(rollouts.log_probs, again, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lora", [None, 4])
def test_a_run_has_the_metrics_that_it_has_on_the_cpu(tiny_model, task, lora):
    runs = []
    for device in ("cpu", DEVICE):
        model = tiny_model()
        torch.manual_seed(0)
        policy = HuggingFacePolicy(with_lora(model, lora) if lora else model)
        config = GRPOConfig(steps=3, prompts_per_step=4, group_size=4, eval_every=0, beta=0.1,
                            micro_batch_size=3, device=device)
        runs.append(list(GRPOTrainer(policy, task, config, policy.reference()).run()))
    for one, other in zip(*runs):
        for name in ("length", "loss", "entropy", "kl", "grad_norm", "ratio_max"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-5, abs=1e-7)


def test_bf16_is_near_float32_and_trains(tiny_model, task):
    if not computes_in_bf16(DEVICE):
        pytest.skip("this device does not compute in bfloat16")
    policy = HuggingFacePolicy(tiny_model(dtype=torch.float32)).to(DEVICE)
    rollouts = draw(policy)
    policy.autocast = torch.bfloat16
    with torch.no_grad():
        rounded = completion_log_probs(policy, rollouts)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, rollouts.log_probs)
    assert (rounded - rollouts.log_probs).abs().max() < 0.2
    trainer = GRPOTrainer(policy, task, GRPOConfig(
        steps=2, prompts_per_step=4, group_size=4, eval_every=0, device=DEVICE))
    first, _ = trainer.run()
    assert first.ratio_min > 0.7 and first.ratio_max < 1.4


def test_a_model_that_is_loaded_onto_it_lies_there(saved):
    policy = HuggingFacePolicy.from_pretrained(saved, device=DEVICE)
    assert {p.device.type for p in policy.parameters()} == {DEVICE}
    assert policy.autocast == (torch.bfloat16 if computes_in_bf16(DEVICE) else None)


def test_too_little_memory_is_one_line(tiny_model, task):
    trainer = GRPOTrainer(HuggingFacePolicy(tiny_model()), task, GRPOConfig(
        prompts_per_step=64, group_size=64, eval_every=0, device=DEVICE))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(torch.OutOfMemoryError, match=r"out of memory in .*micro_batch_size"):
            trainer.step()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_processes_share_a_run_by_nccl(tmp_path):
    """As many as there are devices, up to two; with one it is still nccl that answers."""
    count = min(2, torch.cuda.device_count())
    common = ["train", "--device", DEVICE, "--steps", "2", "--prompts-per-step", "4",
              "--group-size", "8", "--held-out", "20", "--eval-every", "0"]
    root = str(Path(__file__).parents[2])
    for name, launch in (("one", []), ("several", [
            "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"])):
        done = subprocess.run(
            [sys.executable, *launch, "-m", "grpo_lib", *common, "--out", str(tmp_path / name)],
            env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-2000:]
    one, several = ([json.loads(line) for line in (
        tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "several"))
    for a, b in zip(one, several):
        for name in ("reward_mean", "loss", "grad_norm", "length"):
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-4)
