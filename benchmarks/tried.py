"""Other ways to do what takes most of a step's time, each beside the one that is used: what was
tried and given up, and what the used one gains. One thread, the flagship's size."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.beside import machine, ms, policy_of, ratio, side_by_side, told
from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, sample_groups
from grpo_lib.fast import packing

PROMPTS, GROUP, HEADS, WIDTH, COLUMNS, OWN = 32, 16, 4, 16, 20, 8


class Norm(torch.autograd.Function):
    """RMSNorm with a backward of its own, in fewer passes than autograd makes."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(x.shape[-1] ** -0.5)
        size = torch.hypot(size, size.new_tensor(eps**0.5))
        normed = x / size
        ctx.save_for_backward(normed, size, weight)
        return normed * weight

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, size, weight = ctx.saved_tensors
        along = slope * normed
        mean = (along @ weight / normed.shape[-1])[:, None]
        return torch.addcmul(slope * weight, normed, mean, value=-1).div_(size), along.sum(0), None


@contextlib.contextmanager
def put(module, name: str, value) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def attentions() -> dict[str, Callable]:
    """Attention of one query in each of 512 rows to 20 keys, 12 of which its prompt's group shares.
    """
    rows = PROMPTS * GROUP
    memory = torch.randn(2, rows, HEADS, COLUMNS + 11, WIDTH)
    memory.unflatten(1, (PROMPTS, GROUP))[..., : COLUMNS - OWN, :] = memory[
        :, ::GROUP, None, :, : COLUMNS - OWN]
    shared = memory[:, ::GROUP, :, : COLUMNS - OWN].contiguous()
    query = torch.randn(rows, HEADS, 1, WIDTH) * WIDTH**-0.5
    allowed = torch.zeros(rows, 1, 1, COLUMNS)
    wide = F.pad(allowed, (0, 5), value=-torch.inf)
    last = memory[..., :COLUMNS, :].permute(0, 2, 3, 4, 1).contiguous()  # rows last
    query_last = query.permute(1, 2, 3, 0).contiguous()

    def products(columns: int, allowed: Tensor) -> Tensor:
        keys, values = memory[..., :columns, :].flatten(1, 2)
        scores = torch.baddbmm(allowed.expand(-1, HEADS, -1, -1).flatten(0, 1),
                               query.flatten(0, 1), keys.mT)
        return torch.bmm(scores.softmax(-1), values)

    def prompt_once() -> Tensor:
        grouped = query.view(PROMPTS, GROUP, HEADS, WIDTH).transpose(1, 2)
        own = memory[..., COLUMNS - OWN : COLUMNS, :]
        scores = torch.cat((
            (grouped @ shared[0].mT).transpose(1, 2).reshape(rows, HEADS, 1, -1),
            query @ own[0].mT), -1).softmax(-1)
        there, here = scores.split((COLUMNS - OWN, OWN), -1)
        there = there.reshape(PROMPTS, GROUP, HEADS, -1).transpose(1, 2) @ shared[1]
        return there.transpose(1, 2).reshape(rows, HEADS, 1, -1) + here @ own[1]

    def rows_last() -> Tensor:
        scores = (last[0] * query_last).sum(2).softmax(1)
        return (last[1] * scores[:, :, None]).sum(1)

    return {
        "used": lambda: products(COLUMNS + 5, wide),
        "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(
            query, *memory[..., :COLUMNS, :], attn_mask=allowed, scale=1.0),
        "batched products of no more columns than there are": lambda: products(COLUMNS, allowed),
        "a prompt's keys once for its group": prompt_once,
        "products number by number, rows last in memory": rows_last}


def compared() -> dict[str, dict[str, Callable]]:
    """Work -> ways to do it, the first of them the used one."""
    task, policy = ChainTask(), policy_of("flagship")
    prompts = [task.encode(p) for p in task.problems(PROMPTS, random.Random(0))]

    def sample(share: float = sampling.DROP_SHARE):
        with put(sampling, "DROP_SHARE", share):
            return sample_groups(policy, prompts, GROUP, max_new_tokens=task.max_new_tokens,
                                 generator=torch.Generator().manual_seed(0),
                                 eos_id=task.tokenizer.eos_id)

    rollouts, advantages = sample(), torch.randn(PROMPTS, GROUP)
    trainers = {size: GRPOTrainer(policy_of("flagship"), task, GRPOConfig(micro_batch_size=size))
                for size in (None, 128, 64)}
    plain = GRPOTrainer(policy_of("flagship"), task, GRPOConfig())
    plain.optimizer = torch.optim.AdamW(plain.policy.parameters(), lr=5e-4, betas=(0.9, 0.95),
                                        weight_decay=0.0, fused=False)

    def update(trainer=trainers[None], size: int = packing.ROW):
        with put(packing, "ROW", size):
            trainer.update(rollouts, advantages, rollouts.log_probs)

    x, weight = torch.randn(1600, 64, requires_grad=True), torch.ones(64, requires_grad=True)
    return {
        "attention while sampling": attentions(),
        "an update": {
            "used": update,
            "rows of attention no longer than the longest completion": lambda: update(size=1),
            "rows of attention of 64 tokens": lambda: update(size=64),
            "in parts of 128 completions": lambda: update(trainers[128]),
            "in parts of 64, whose activations fit the second cache": lambda: update(trainers[64]),
            "AdamW parameter by parameter": lambda: update(plain)},
        "a norm, there and back": {
            "used": lambda: F.rms_norm(x, (64,), weight, 1e-5).sum().backward(),
            "with a backward of its own": lambda: Norm.apply(x, weight, 1e-5).sum().backward()},
        "a rollout": {
            "used": sample, "finished rows dropped at once": lambda: sample(0.0),
            "finished rows dropped when they are a third": lambda: sample(0.34),
            "finished rows never dropped": lambda: sample(2.0)}}


def compiled() -> dict:
    """What torch.compile would gain in an update, and what it takes first."""
    torch.compiler.config.force_disable_caches = True  # what an earlier time has compiled
    task = ChainTask()
    trainers = [GRPOTrainer(policy_of("flagship"), task, GRPOConfig()) for _ in range(2)]
    for block in trainers[1].policy.model.layers:
        block.mlp.compile(dynamic=True)
        block.input_layernorm.compile(dynamic=True)
        block.post_attention_layernorm.compile(dynamic=True)
    prompts = [task.encode(p) for p in task.problems(PROMPTS, random.Random(0))]
    rollouts = sample_groups(trainers[0].policy, prompts, GROUP, max_new_tokens=task.max_new_tokens,
                             generator=torch.Generator().manual_seed(0),
                             eos_id=task.tokenizer.eos_id)
    advantages = torch.randn(PROMPTS, GROUP)
    works = {name: lambda trainer=trainer: trainer.update(rollouts, advantages, rollouts.log_probs)
             for name, trainer in zip(("used", "compiled"), trainers)}
    start = time.perf_counter()
    works["compiled"]()
    first = time.perf_counter() - start
    return {"first": round(first, 2), "seconds": side_by_side(works)}


def measure() -> dict:
    about, threads, found = machine(), torch.get_num_threads(), {}
    torch.set_num_threads(1)
    ways = compared()
    same = [out.flatten() for name, way in ways["attention while sampling"].items()
            if name.split()[0] != "products" for out in (way(),)]
    if not all(torch.allclose(one, same[0], atol=1e-5) for one in same):
        raise SystemExit("benchmarks tried: the ways do not give the same numbers")
    for work, those in ways.items():
        times = 1 if work in ("an update", "a rollout") else 20
        taken = side_by_side({name: lambda way=way, times=times: [way() for _ in range(times)]
                              for name, way in those.items()})
        found[work] = {name: [s / times for s in seconds] for name, seconds in taken.items()}
        print(work, found[work], flush=True)
    try:
        compile_ = compiled()
    except Exception as error:
        compile_ = {"why": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}
    torch.set_num_threads(threads)
    return {"found": found, "compile": compile_, "machine": about}


def report(data: dict) -> str:
    lines = ["## Tried beside what is used", "",
             f"The flagship's size, one thread, {PROMPTS} prompts x {GROUP} completions of natural "
             f"length; attention of one query in each of {PROMPTS * GROUP} rows x {HEADS} heads to "
             f"{COLUMNS} keys. {told(data)} Times in ms; a ratio above 1: slower than what is "
             f"used.", "",
             "| work | way | ms | times as long as the used one |", "|---|---|---|---|"]
    for work, those in data["found"].items():
        for name, taken in those.items():
            lines.append(f"| {work} | {name} | {ms(taken) if min(taken) > 0.01 else small(taken)} "
                         f"| {'' if name == 'used' else ratio(taken, those['used'])} |")
    tried = data["compile"]
    lines += ["", "torch.compile on the blocks' norms and SwiGLU: " + (
        f"not measured ({tried['why']})." if "why" in tried else
        f"{tried['first']:.0f} s before the first update is done, then it takes "
        f"{ratio(tried['seconds']['compiled'], tried['seconds']['used'])} times as long.")]
    return "\n".join(lines) + "\n"


def small(seconds: list[float]) -> str:
    """Median, least and most, in milliseconds with two digits after the point."""
    low, middle, high = (f"{1e3 * s:.2f}" for s in (
        min(seconds), sorted(seconds)[len(seconds) // 2], max(seconds)))
    return f"{middle} ({low} to {high})"
