"""On a CUDA device: pre-training and the flagship run beside the same on the CPU, and a model of
half a billion parameters with random weights: tokens a second, memory, and its loss and gradient
beside the CPU's.

Needs a CUDA device and the ``llm`` extra; left out where either is missing.
"""

from __future__ import annotations

import importlib.util
import time

import torch

from grpo_lib import (
    ChainTask,
    GRPOConfig,
    GRPOTrainer,
    PretrainConfig,
    completion_log_probs,
    grpo_loss,
    load_base_model,
    one_step_accuracy,
    pretrain,
    sample_groups,
)
from grpo_lib.cli.runs import versions

# The shape of Qwen2.5-0.5B: what a run on the real one costs, without its weights.
HALF_A_BILLION = {"vocab_size": 151_936, "hidden_size": 896, "num_hidden_layers": 24,
                  "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
                  "max_position_embeddings": 1024, "tie_word_embeddings": True}
PROMPTS, GROUP, PROMPT_LENGTH, LENGTH = 8, 8, 100, 160
AT_ONCE = 8  # completions that go through the policy together in an update


def why_not() -> str | None:
    """Why nothing can be measured here, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None if importlib.util.find_spec("transformers") else "transformers is not installed"


def pretraining(device: str, config: PretrainConfig | None = None) -> dict:
    """Seconds of the recipe, and the skill at its end."""
    start = time.perf_counter()
    for _, loss, policy in pretrain(ChainTask(), config or PretrainConfig(), device=device):  # noqa: B007
        pass
    return {"seconds": round(time.perf_counter() - start, 2), "loss": loss,
            "one_step_accuracy": one_step_accuracy(policy, ChainTask())}


def flagship(device: str) -> dict:
    """Seconds of the default run, and held-out accuracy at its end."""
    trainer = GRPOTrainer(load_base_model("chain"), ChainTask(), GRPOConfig(device=device))
    start = time.perf_counter()
    last = list(trainer.run())[-1]
    return {"seconds": round(time.perf_counter() - start, 2), "accuracy": last.held_out_accuracy}


def make_policy(shape: dict, device: str):
    """The same random weights on every device."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    from grpo_lib.bridges.huggingface import HuggingFacePolicy

    torch.manual_seed(0)
    return HuggingFacePolicy(AutoModelForCausalLM.from_config(Qwen2Config(**shape))).to(device)


def draw(policy, shape: dict, prompts: int, group: int, prompt_length: int, length: int):
    """Rollouts of random prompts; no token ends them early."""
    texts = torch.randint(2, shape["vocab_size"], (prompts, prompt_length),
                          generator=torch.Generator().manual_seed(0))
    return sample_groups(policy, texts.tolist(), group, max_new_tokens=length, eos_id=-1,
                         generator=torch.Generator().manual_seed(1),
                         device=next(policy.parameters()).device)


def take_gradient(policy, rollouts) -> tuple[float, float]:
    """Loss and gradient norm of one GRPO step on the rollouts, without the step."""
    policy.zero_grad(set_to_none=True)
    count, loss = len(rollouts.mask), 0.0
    advantages = torch.linspace(-1, 1, count, device=rollouts.mask.device)
    for rows in torch.arange(count, device=rollouts.mask.device).split(AT_ONCE):
        part = rollouts.select(rows)
        share = len(rows) / count  # all completions are of one length
        output = grpo_loss(completion_log_probs(policy, part), part.log_probs, advantages[rows],
                           part.mask).loss * share
        output.backward()
        loss += output.item()
    norms = [p.grad.double().norm() for p in policy.parameters() if p.grad is not None]
    return loss, torch.stack(norms).norm().item()


def agreement(shape: dict, device: str, **sizes) -> dict:
    """Loss and gradient norm of the same completions, sampled on the CPU, on both devices. Their
    old log-probs are moved, so that ratios are not 1 and the loss is not 0."""
    policy = make_policy(shape, "cpu")
    rollouts = draw(policy, shape, **sizes)
    noise = torch.randn(rollouts.mask.shape, generator=torch.Generator().manual_seed(2))
    rollouts.log_probs.add_(0.1 * noise)
    found = {"cpu": take_gradient(policy, rollouts)}
    found[device] = take_gradient(policy.to(device), rollouts.to(device))
    return {"tokens": int(rollouts.mask.sum()),
            "loss": {name: both[0] for name, both in found.items()},
            "grad_norm": {name: both[1] for name, both in found.items()}}


def speed(shape: dict, device: str, prompts: int = PROMPTS, group: int = GROUP,
          prompt_length: int = PROMPT_LENGTH, length: int = LENGTH) -> dict:
    """Tokens sampled and updated a second, and the peaks of CUDA's memory meanwhile: an update
    holds weights, gradients and AdamW's two averages."""
    from grpo_lib.bridges.huggingface import computes_in_bf16

    policy = make_policy(shape, device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    on_cuda = torch.device(device).type == "cuda"
    found = {"parameters": sum(p.numel() for p in policy.parameters())}

    def timed(work):
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = work()
        if on_cuda:
            torch.cuda.synchronize()
        peak = round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_cuda else None
        return result, time.perf_counter() - start, peak

    def update():
        take_gradient(policy, rollouts)
        optimizer.step()

    for name, precision in (("float32", None), ("bfloat16", torch.bfloat16)):
        if precision is not None and not computes_in_bf16(device):
            continue
        policy.autocast = precision
        draw(policy, shape, 1, group, prompt_length, 8)  # warms up
        optimizer.zero_grad(set_to_none=True)
        rollouts, sampling, sampling_peak = timed(
            lambda: draw(policy, shape, prompts, group, prompt_length, length))
        update()
        _, updating, update_peak = timed(update)
        tokens = rollouts.mask.sum().item()
        found[name] = {"sampled_tokens_a_second": round(tokens / sampling),
                       "updated_tokens_a_second": round(tokens / updating),
                       "sampling_peak_gb": sampling_peak, "update_peak_gb": update_peak}
    return found


def measure() -> dict:
    return {"device": torch.cuda.get_device_name(), "versions": versions(),
            "pretraining": {device: pretraining(device) for device in ("cpu", "cuda")},
            "flagship": {device: flagship(device) for device in ("cpu", "cuda")},
            "agreement": agreement(HALF_A_BILLION, "cuda", prompts=2, group=4, prompt_length=20,
                                   length=8),
            "speed": speed(HALF_A_BILLION, "cuda")}


def report(data: dict) -> str:
    base, run, same, big = (data[name] for name in ("pretraining", "flagship", "agreement",
                                                    "speed"))
    lines = ["## CUDA", "", f"On {data['device']}; torch {data['versions']['torch']}. The model "
             f"has the shape of Qwen2.5-0.5B and random weights, "
             f"{big['parameters'] / 1e6:.0f} million parameters; {PROMPTS * GROUP} completions of "
             f"{LENGTH} tokens after prompts of {PROMPT_LENGTH}, in parts of {AT_ONCE}.", "",
             "| | CPU | CUDA |", "|---|---|---|"]
    for title, rows, name, shown in (
            ("seconds of pre-training", base, "seconds", ".1f"),
            ("one-step accuracy after it", base, "one_step_accuracy", ".1%"),
            ("seconds of the default run", run, "seconds", ".1f"),
            ("held-out accuracy at its end", run, "accuracy", ".1%")):
        lines.append(f"| {title} | {rows['cpu'][name]:{shown}} | {rows['cuda'][name]:{shown}} |")
    for name in ("loss", "grad_norm"):
        lines.append(f"| {name} of the model on the same {same['tokens']} tokens | "
                     f"{same[name]['cpu']:.6f} | {same[name]['cuda']:.6f} |")
    for name in ("float32", "bfloat16"):
        if name in big:
            lines.append(f"| {name}: tokens a second sampled, and updated; peaks of memory | | "
                         f"{big[name]['sampled_tokens_a_second']:,} "
                         f"({big[name]['sampling_peak_gb']} GB), "
                         f"{big[name]['updated_tokens_a_second']:,} "
                         f"({big[name]['update_peak_gb']} GB) |")
    return "\n".join(lines) + "\n"
