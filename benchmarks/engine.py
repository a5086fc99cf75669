"""A step's two works, rollout and update, each beside what does the same without this library.

Rollout: with the cache, by encoding everything again, and by transformers' generate on the same
weights. Update: the trainer's beside a loop of plain PyTorch with the same loss. Both as a share
of the best matrix product on the same threads. Needs the ``llm`` extra.
"""

from __future__ import annotations

import importlib.util
import random

import torch

from benchmarks.beside import (
    SIZES,
    flops,
    machine,
    matmul_peak,
    ms,
    policy_of,
    ratio,
    side_by_side,
    thread_counts,
    told,
)
from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, Rollouts, sample_groups

PROMPTS, GROUP = 32, 16
LOST = """\
What is lost to the peak (the shares are in "Where the time goes"). Rollout: attention of one query
a row is two products for each row and head, too small for any kernel, and bound by reading keys and
values; a token more for every row is about twenty operations a layer, most of them single passes
over little memory, and at natural lengths ever fewer rows share what starting them costs. Update:
beside the products there are single passes over activations (SwiGLU, norms, residuals, rotary
positions, and two or three for the gradient of each), which torch runs one by one, and taking
tokens into rows for attention and back. Leaving out padding takes away products, which ran near the
peak, and few passes: it makes the update faster and its share of the peak smaller. What was tried
against all this is in "Tried beside what is used".\
"""


def why_not() -> str | None:
    """Why it cannot be measured here, or None."""
    return None if importlib.util.find_spec("transformers") else "transformers is not installed"


def plain_update(policy, optimizer, rollouts: Rollouts, advantages, minibatches: int = 2):
    """GRPO's update as a textbook has it, with nothing of this library but the policy."""
    tokens = rollouts.tokens
    seen = torch.cat((rollouts.prompt_mask, rollouts.mask.long()), 1)
    for rows in torch.randperm(len(tokens)).chunk(minibatches):
        logits = policy(tokens[rows, :-1], seen[rows, :-1])[:, rollouts.prompt_length - 1 :]
        log_probs = torch.log_softmax(logits, -1).gather(
            -1, rollouts.completions[rows].unsqueeze(-1)).squeeze(-1)
        ratio = (log_probs - rollouts.log_probs[rows]).exp()
        a, mask = advantages.flatten()[rows, None], rollouts.mask[rows]
        loss = -(torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()


def generate(model, rollouts: Rollouts, max_new_tokens: int, eos_id: int | None):
    """transformers' sampling of the same prompts, with its cache."""
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=True, top_k=0, top_p=1.0,
                              eos_token_id=eos_id, pad_token_id=0)
    model.generation_config = config
    prompts = rollouts.tokens[:, : rollouts.prompt_length]
    with torch.no_grad():
        return model.generate(input_ids=prompts, attention_mask=rollouts.prompt_mask,
                              generation_config=config)


def measure_one(size: str, full: bool, peak: float) -> dict:
    """One policy, completions that end where they end or (full) all as long as allowed."""
    from grpo_lib.bridges.export import llama

    task, policy = ChainTask(), policy_of(size)
    prompts = [task.encode(p) for p in task.problems(PROMPTS, random.Random(0))]
    eos = None if full else task.tokenizer.eos_id

    def sample(use_cache: bool = True) -> Rollouts:
        return sample_groups(policy, prompts, GROUP, max_new_tokens=task.max_new_tokens,
                             generator=torch.Generator().manual_seed(0), use_cache=use_cache,
                             eos_id=-1 if full else eos)

    rollouts, model = sample(), llama(policy)
    generated = generate(model, rollouts, task.max_new_tokens, eos)[:, rollouts.prompt_length :]
    trainer = GRPOTrainer(policy_of(size), task, GRPOConfig())
    advantages, plain = torch.randn(PROMPTS, GROUP), policy_of(size)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.0)
    works = {"rollout": sample,
             "generate": lambda: generate(model, rollouts, task.max_new_tokens, eos),
             "update": lambda: trainer.update(rollouts, advantages, rollouts.log_probs),
             "plain": lambda: plain_update(plain, optimizer, rollouts, advantages)}
    if size == "flagship":
        works["again"] = lambda: sample(use_cache=False)
    return {"size": size, "full": full, "tokens": int(rollouts.mask.sum()),
            "generated": int((generated != 0).sum()),
            "parameters": sum(p.numel() for p in policy.parameters()),
            "seconds": side_by_side(works), "peak_gflops": round(peak / 1e9),
            "flops": {name: flops(works[name]) for name in ("rollout", "update", "plain")}}


def measure() -> dict:
    about, threads, rows = machine(), torch.get_num_threads(), []
    for count in thread_counts():
        torch.set_num_threads(count)
        peak = matmul_peak()
        for size in SIZES:
            for full in (False, True):
                rows.append({"threads": count, **measure_one(size, full, peak)})
                print(count, size, full, rows[-1]["seconds"], flush=True)
    torch.set_num_threads(threads)
    return {"rows": rows, "machine": about}


def share(row: dict, name: str) -> str:
    """Of the peak."""
    spent = sorted(row["seconds"][name])[len(row["seconds"][name]) // 2]
    return f"{row['flops'][name] / spent / row['peak_gflops'] / 1e9:.0%}"


def report(data: dict) -> str:
    lines = [
        "## The engine", "",
        f"{PROMPTS} prompts x {GROUP} completions; the shipped base model, and one of "
        f"{max(r['parameters'] for r in data['rows']):,} random parameters. \"Natural\": "
        f"completions that end where they end (the base model's after 6 tokens); \"full\": 19 "
        f"tokens each. {told(data)} Times in ms; FLOPs as counted by torch's FlopCounterMode. A "
        f"ratio is of turns, round by round; generate's is of tokens a second, since it draws "
        f"other completions.", "",
        "| threads | policy | completions | rollout | tokens/s | times generate's tokens/s | "
        "without the cache: times longer | share of peak | update | a plain loop: times longer | "
        "share of peak | the plain loop's share | peak GFLOP/s |",
        "|" + "---|" * 13]
    for row in data["rows"]:
        taken = row["seconds"]
        a_token = [s * row["tokens"] / row["generated"] for s in taken["generate"]]
        lines.append(
            f"| {row['threads']} | {row['size']} | {'full' if row['full'] else 'natural'}, "
            f"{row['tokens']:,} tokens | {ms(taken['rollout'])} "
            f"| {row['tokens'] / sorted(taken['rollout'])[len(taken['rollout']) // 2]:,.0f} "
            f"| {ratio(a_token, taken['rollout'])} "
            f"| {ratio(taken['again'], taken['rollout']) if 'again' in taken else '-'} "
            f"| {share(row, 'rollout')} | {ms(taken['update'])} "
            f"| {ratio(taken['plain'], taken['update'])} | {share(row, 'update')} "
            f"| {share(row, 'plain')} | {row['peak_gflops']} |")
    lines += ["", LOST]
    return "\n".join(lines) + "\n"
