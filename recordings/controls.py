"""Controls for the comparison of algorithms: what rewards without content, and learning without a
gradient of advantages, reach with the same budget of sampled tokens."""

from __future__ import annotations

import random
import re
import statistics
import time
from collections import Counter
from functools import partial

import torch

from grpo_lib import ChainTask, evaluate, load_base_model, majority_at_k, sample_groups
from grpo_lib.cli.runs import versions
from grpo_lib.pretraining import example_loss
from recordings.algorithms import BUDGET
from recordings.record import in_processes, run_to_budget

SEEDS = range(5)
VOTES = (1, 4, 16, 64)
# Rejection-sampling fine-tuning: all samples from the base model, then passes over the right
# ones; expert iteration: the same in rounds, each sampled from the policy as it is by then.
# Rounds, rate and passes are the best of those tried on seed 0 ("sweep").
IMITATIONS = {"rejection-sampling fine-tuning": ((1,), (False, True)),  # rounds, distinct
              "expert iteration": ((10, 40), (False,)),
              "expert iteration, each answer once": ((10, 40), (True,))}
SWEEP = [(name, {"rounds": rounds, "distinct": distinct, "learning_rate": rate, "passes": passes})
         for name, (some, kinds) in IMITATIONS.items() for rounds in some for distinct in kinds
         for rate in (5e-4, 2e-3) for passes in (1, 4)]


def coin(seed: int):
    """A reward of 0 or 1 by the toss of a coin."""
    toss = random.Random(seed)
    return lambda problem, completion: float(toss.random() < 0.5)


def well_formed(problem, completion: str) -> float:
    """1 if exactly one digit follows the first arrow, whichever it is."""
    return float(re.fullmatch(" [0-9]", completion.partition("=>")[2]) is not None)


def rewarded(name: str, seed: int, budget: int) -> dict:
    """A run of GRPO's row with a reward that says nothing of the answer."""
    reward = coin(seed) if name == "random reward" else well_formed
    return run_to_budget(name, {"algorithm": "grpo"}, seed, budget, ChainTask().with_reward(reward))


def imitated(name: str, settings: dict, seed: int, budget: int) -> dict:
    """Sample, keep what the verifier calls right, learn it by heart; in ``rounds``.

    A round samples its share of the budget (16 completions of each problem), takes the right
    ones, each once if ``distinct``, and makes ``passes`` over them in batches of 128.
    """
    torch.set_num_threads(1)
    start, task, policy = time.perf_counter(), ChainTask(), load_base_model("chain")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings["learning_rate"],
                                  betas=(0.9, 0.95), weight_decay=0.0)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    sampled, curve = 0, []
    for round_ in range(settings["rounds"]):
        kept: list[tuple] = []
        drawn = right = 0
        while drawn == 0 or sampled < budget * (round_ + 1) / settings["rounds"]:
            problems = task.problems(32, rng)
            prompts = [task.tokenizer.encode(p.prompt) for p in problems]
            rollouts = sample_groups(policy, prompts, 16, max_new_tokens=task.max_new_tokens,
                                     generator=generator)
            texts = task.tokenizer.decode_rows(rollouts.completions, rollouts.mask)
            grades = task.grades(problems, texts, rollouts.finished.tolist()).flatten()
            sampled += int(rollouts.mask.sum())
            drawn, right = drawn + len(grades), right + int(grades.sum())
            for row in grades.nonzero().flatten().tolist():
                completion = rollouts.completions[row, : int(rollouts.lengths[row])].tolist()
                kept.append((tuple(prompts[row // 16]), tuple(completion)))
        examples = list(dict.fromkeys(kept) if settings["distinct"] else kept)
        for _ in range(settings["passes"]):
            rng.shuffle(examples)
            for at in range(0, len(examples), 128):
                optimizer.zero_grad(set_to_none=True)
                example_loss(policy, task, [(list(prompt), list(completion)) for prompt, completion
                                            in examples[at: at + 128]]).backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                optimizer.step()
        curve.append({"tokens": sampled, "accuracy": round(right / drawn, 4),
                      "examples": len(examples)})
    found = evaluate(policy, task, task.held_out(1000))
    print(f"{name} seed {seed}: held-out {found.accuracy:.1%}", flush=True)
    return {"name": name, "seed": seed, "settings": settings, "rounds": curve,
            "tokens": [r["tokens"] for r in curve], "accuracy": [r["accuracy"] for r in curve],
            "held_out_accuracy": round(found.accuracy, 4),
            "held_out_length": round(found.mean_length, 2),
            "seconds": round(time.perf_counter() - start, 1)}


def voted(seed: int) -> dict:
    """The base model's majority@k on 1,000 held-out problems: no training, k times the tokens."""
    torch.set_num_threads(1)
    task, problems = ChainTask(), ChainTask().held_out(1000)
    found = evaluate(load_base_model("chain"), task, problems, samples=max(VOTES),
                     generator=torch.Generator().manual_seed(seed))
    curve = dict.fromkeys(VOTES, 0.0)
    for n, problem in enumerate(problems):
        texts = found.completions[n * max(VOTES): (n + 1) * max(VOTES)]
        votes = Counter(text.partition("=>")[2] for text in texts)
        answer = f" {problem.answer}"
        votes[answer] += 0
        for k in VOTES:
            curve[k] += majority_at_k(list(votes.values()), list(votes).index(answer), k)
    return {"seed": seed, "majority_at": {k: round(v / len(problems), 4)
                                          for k, v in curve.items()},
            "tokens_a_sample": round(found.mean_length, 2)}


def measure() -> dict:
    runs = in_processes([partial(rewarded, name, seed, BUDGET)
                         for name in ("random reward", "format reward") for seed in SEEDS])
    sweep, imitations = imitate()
    return {"sweep": sweep, "runs": runs + imitations,
            "majority": in_processes([partial(voted, seed) for seed in SEEDS]),
            "budget": BUDGET, "threads": 1, "versions": versions()}


def imitate() -> tuple[list[dict], list[dict]]:
    """What was tried on seed 0, without its curves, and the runs with the best of it."""
    tried = in_processes([partial(imitated, name, settings, 0, BUDGET)
                          for name, settings in SWEEP])
    best = {name: max((r for r in tried if r["name"] == name),
                      key=lambda r: r["held_out_accuracy"])["settings"] for name in IMITATIONS}
    runs = in_processes([partial(imitated, name, best[name], seed, BUDGET)
                         for name in IMITATIONS for seed in SEEDS])
    return [{key: r[key] for key in ("name", "settings", "held_out_accuracy")}
            for r in tried], runs


def report(data: dict) -> str:
    lines = ["## Controls at the same budget", "",
             f"As above: {data['budget']:,} sampled tokens, {len(SEEDS)} seeds, held-out accuracy "
             f"(one sample of each of 1,000 problems), mean and worst to best. About 25 minutes.",
             "", "| control | held-out accuracy | length |", "|---|---|---|"]
    for name in dict.fromkeys(r["name"] for r in data["runs"]):
        runs = [r for r in data["runs"] if r["name"] == name]
        held = [r["held_out_accuracy"] for r in runs]
        lines.append(f"| {name} | {statistics.fmean(held):.1%} ({min(held):.1%} to "
                     f"{max(held):.1%}) | "
                     f"{statistics.fmean(r['held_out_length'] for r in runs):.1f} |")
    for k in map(str, VOTES):
        held = [r["majority_at"][k] for r in data["majority"]]
        tokens = statistics.fmean(r["tokens_a_sample"] for r in data["majority"]) * int(k)
        lines.append(f"| base model, majority@{k} | {statistics.fmean(held):.1%} "
                     f"({min(held):.1%} to {max(held):.1%}) | {tokens:.0f} |")
    lines += ["", "The length of a majority is what all its votes cost. Settings tried for "
              "learning from right samples, on seed 0:", "",
              "| setting | held-out accuracy |", "|---|---|"]
    lines += [f"| {r['name']}: " + ", ".join(f"{k} {v}" for k, v in r["settings"].items())
              + f" | {r['held_out_accuracy']:.1%} |" for r in data["sweep"]]
    return "\n".join([*lines, ""])
