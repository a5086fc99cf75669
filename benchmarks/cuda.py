"""On a CUDA device: the flagship run beside the same on the CPU, and a model of half a billion
parameters with random weights: tokens a second, memory, and its loss beside the CPU's.

Needs a CUDA device and the ``llm`` extra; left out where either is missing.
"""

from __future__ import annotations

import importlib.util
import time

import torch

from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, load_base_model
from grpo_lib.runs import versions

# The shape of Qwen2.5-0.5B: what a run on the real one costs, without its weights.
HALF_A_BILLION = {"vocab_size": 151_936, "hidden_size": 896, "num_hidden_layers": 24,
                  "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
                  "max_position_embeddings": 1024, "tie_word_embeddings": True}
PROMPTS, GROUP, PROMPT_LENGTH, LENGTH = 8, 8, 100, 160


def why_not() -> str | None:
    """Why nothing can be measured here, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None if importlib.util.find_spec("transformers") else "transformers is not installed"


def flagship(device: str) -> dict:
    """Seconds of the default run, and held-out accuracy at its end."""
    trainer = GRPOTrainer(load_base_model("chain"), ChainTask(), GRPOConfig(device=device))
    start = time.perf_counter()
    last = list(trainer.run())[-1]
    return {"seconds": round(time.perf_counter() - start, 2), "accuracy": last.held_out_accuracy,
            "first_loss": trainer.history[0].loss, "first_reward": trainer.history[0].reward_mean}


def model_on(device: str, shape: dict, prompts: int = PROMPTS, group: int = GROUP,
             prompt_length: int = PROMPT_LENGTH, length: int = LENGTH) -> dict:
    """A step's work on a model with random weights, the same on every device: tokens sampled and
    updated a second, peak memory (of CUDA), and the loss of the first eight completions."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    from grpo_lib import completion_log_probs, grpo_loss, sample_groups
    from grpo_lib.huggingface import HuggingFacePolicy, computes_in_bf16

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**shape))
    policy = HuggingFacePolicy(model).to(device)
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(2, shape["vocab_size"], (prompts, prompt_length), generator=generator)
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
        return result, time.perf_counter() - start

    def sample(precision):
        policy.autocast = precision
        return sample_groups(policy, texts.tolist(), group, max_new_tokens=length,
                             generator=torch.Generator().manual_seed(1), eos_id=0, device=device)

    def update(precision):
        policy.autocast = precision
        policy.zero_grad(set_to_none=True)
        for rows in torch.arange(len(rollouts.mask), device=device).split(8):
            part = rollouts.select(rows)
            log_probs = completion_log_probs(policy, part)
            grpo_loss(log_probs, log_probs.detach(), part.mask[:, 0], part.mask).loss.backward()

    rollouts, _ = timed(lambda: sample(None))  # float32, and warms up
    few = rollouts.select(torch.arange(min(8, len(rollouts.mask)), device=device))
    with torch.no_grad():
        scored = completion_log_probs(policy, few)
    found["tokens"] = few.completions.flatten()[:8].tolist()
    found["loss"] = -(scored * few.mask).sum().item() / few.mask.sum().item()
    for name, precision in (("float32", None), ("bfloat16", torch.bfloat16)):
        if precision is not None and not computes_in_bf16(device):
            continue
        rollouts, sampling = timed(lambda precision=precision: sample(precision))
        _, updating = timed(lambda precision=precision: update(precision))
        tokens = rollouts.mask.sum().item()
        found[name] = {"sampled_tokens_a_second": round(tokens / sampling),
                       "updated_tokens_a_second": round(tokens / updating)}
        if on_cuda:
            found[name]["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return found


def measure() -> dict:
    if why_not() is not None:
        raise SystemExit(f"benchmarks cuda: {why_not()}")
    return {"device": torch.cuda.get_device_name(), "versions": versions(),
            "flagship": {device: flagship(device) for device in ("cpu", "cuda")},
            "model": {device: model_on(device, HALF_A_BILLION, **sizes) for device, sizes in (
                ("cuda", {}), ("cpu", {"prompts": 1, "length": 8}))},
            "model_as_on_the_cpu": model_on("cuda", HALF_A_BILLION, prompts=1, length=8)}


def report(data: dict) -> str:
    run, big = data["flagship"], data["model"]["cuda"]
    lines = ["## CUDA", "", f"On {data['device']}; torch {data['versions']['torch']}.", "",
             "| | CPU | CUDA |", "|---|---|---|",
             f"| seconds of the default run | {run['cpu']['seconds']} | {run['cuda']['seconds']} |",
             f"| held-out accuracy at its end | {run['cpu']['accuracy']:.1%} | "
             f"{run['cuda']['accuracy']:.1%} |",
             f"| loss of a model of {big['parameters'] / 1e6:.0f} million parameters on the same "
             f"tokens | {data['model']['cpu']['loss']:.6f} | "
             f"{data['model_as_on_the_cpu']['loss']:.6f} |"]
    for name in ("float32", "bfloat16"):
        if name in big:
            lines.append(f"| its tokens a second in {name}: sampled, updated; peak memory | | "
                         f"{big[name]['sampled_tokens_a_second']}, "
                         f"{big[name]['updated_tokens_a_second']}; {big[name]['peak_gb']} GB |")
    return "\n".join(lines) + "\n"
