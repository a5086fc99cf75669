"""What leaving end-of-sequence out of the completion mask does to a policy that must learn it."""

from __future__ import annotations

import random
import time

import torch
from torch import Tensor, nn

from grpo_lib import (
    ChainTask,
    completion_log_probs,
    group_advantages,
    grpo_loss,
    load_base_model,
    sample_groups,
)
from grpo_lib.cli.runs import versions
from grpo_lib.tokenizer import EOS

SEEDS, STEPS, PROMPTS, GROUP = range(5), 24, 8, 8
RELUCTANCE = 12.0  # taken off the logit of end-of-sequence: half of the completions then end


class Reluctant(nn.Module):
    """A policy that has a constant taken off its logit of end-of-sequence."""

    def __init__(self, policy: nn.Module, reluctance: float = RELUCTANCE):
        super().__init__()
        self.policy, self.reluctance = policy, reluctance

    def new_cache(self, batch: int, length: int):
        return self.policy.new_cache(batch, length)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache=None) -> Tensor:
        logits = self.policy(tokens, mask, cache)
        less = torch.zeros(logits.shape[-1])
        less[EOS] = self.reluctance
        return logits - less


def run(seed: int, with_eos: bool) -> list[float]:
    """Share of completions that end, a step; ending is all that the reward asks for."""
    task, policy = ChainTask(), Reluctant(load_base_model("chain"))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-4, betas=(0.9, 0.95),
                                  weight_decay=0.0)
    generator, rng, ended = torch.Generator().manual_seed(seed), random.Random(seed), []
    for _ in range(STEPS):
        prompts = [task.tokenizer.encode(p.prompt) for p in task.problems(PROMPTS, rng)]
        rollouts = sample_groups(policy, prompts, GROUP, max_new_tokens=task.max_new_tokens,
                                 generator=generator)
        rewards = rollouts.finished.float().view(PROMPTS, GROUP)
        ended.append(round(rewards.mean().item(), 4))
        mask = rollouts.mask if with_eos else rollouts.mask * (rollouts.completions != EOS)
        loss = grpo_loss(completion_log_probs(policy, rollouts), rollouts.log_probs,
                         group_advantages(rewards).flatten(), mask,
                         aggregation="token_mean").loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    return ended


def measure() -> dict:
    start = time.perf_counter()
    runs = [{"name": name, "seed": seed, "ended": run(seed, with_eos)}
            for name, with_eos in (("in the mask", True), ("left out", False)) for seed in SEEDS]
    return {"runs": runs, "completions": PROMPTS * GROUP, "reluctance": RELUCTANCE,
            "seconds": round(time.perf_counter() - start, 1),
            "threads": torch.get_num_threads(), "versions": versions()}


def report(data: dict) -> str:
    """Share of completions that end: mean (lowest to highest) over the seeds."""
    rows = ["", "| end-of-sequence | step 1 | step 8 | step 16 | step 24 |",
            "|---|---|---|---|---|"]
    for name in ("in the mask", "left out"):
        runs = [r["ended"] for r in data["runs"] if r["name"] == name]
        cells = []
        for step in (0, 7, 15, 23):
            values = [r[step] for r in runs]
            cells.append(f"{sum(values) / len(values):.0%} ({min(values):.0%} to "
                         f"{max(values):.0%})")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([
        "## End-of-sequence in the completion mask, and left out of it", "",
        f"Share of completions that end, mean (lowest to highest) of {len(data['runs']) // 2} "
        f"seeds, {data['completions']} completions a step. Ending is all that is rewarded; the "
        f"logit of end-of-sequence starts {data['reluctance']:.0f} too low. "
        f"{data['seconds']:.0f} s in all.", *rows, ""])
