"""The run of lesson 00 to be played again: its numbers, and what it writes at every step."""

from __future__ import annotations

import torch

from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, load_base_model, sample_groups
from grpo_lib.cli.runs import versions
from grpo_lib.lab.xray import Xray

STEPS, ANSWERS, ROWS = 40, 8, 6
OPERATIONS = (5, 6, 8)  # of the held-out problems
FIELDS = ("accuracy", "held_out_accuracy", "length", "entropy", "zero_variance_groups", "tokens")


def measure() -> dict:
    task = ChainTask()
    trainer = GRPOTrainer(load_base_model("chain"), task, GRPOConfig(steps=STEPS, eval_every=1))
    problems = [next(p for p in task.held_out(500) if len(p.prompt.split()) == count + 2)
                for count in OPERATIONS]  # beside them stand the digit and the colon
    steps = [{"step": 0, "answers": answers(trainer.policy, task, problems, 0)}]
    for metrics in trainer.run():
        numbers = {name: getattr(metrics, name) for name in FIELDS}
        steps.append({"step": metrics.step, **{n: round(v, 4) for n, v in numbers.items()},
                      "seconds": round(metrics.seconds_rollout + metrics.seconds_scoring
                                       + metrics.seconds_update, 2),
                      "answers": answers(trainer.policy, task, problems, metrics.step),
                      "group": group(Xray.of(trainer))})
    return {"problems": [{"asked": task.describe(p), "answer": p.answer} for p in problems],
            "steps": steps, "threads": torch.get_num_threads(), "versions": versions()}


def answers(policy, task, problems, step: int) -> list[list]:
    """Fresh answers to the held-out problems: [text, right] each."""
    rollouts = sample_groups(policy, [task.encode(p) for p in problems], ANSWERS,
                             max_new_tokens=task.max_new_tokens,
                             generator=torch.Generator().manual_seed(1000 + step))
    texts = task.tokenizer.decode_rows(rollouts.completions, rollouts.mask)
    rewards = task.rewards(problems, texts, rollouts.finished.tolist())
    return [[[text, bool(reward)] for text, reward in zip(texts[i * ANSWERS:], row)]
            for i, row in enumerate(rewards.tolist())]


def group(xray: Xray) -> dict:
    """The first group that taught: each answer's tokens, and what the update does to each token,
    as its state and the share of the strongest push."""
    rewards = xray.rewards
    number = int((rewards.std(1) > 0).double().argmax())
    update, size = xray.update("before the step"), xray.rollouts.group_size
    rows = range(number * size, (number + 1) * size)
    best, rest = ([r for r in rows if (rewards.flatten()[r] > 0) == right]
                  for right in (True, False))
    half = min(len(best), ROWS // 2)
    rows = best[:half] + rest[: ROWS - half]
    strongest = max(update.push[r].abs().max().item() for r in rows) or 1.0
    return {"asked": xray.prompts[number], "rows": [
        {"reward": rewards.flatten()[r].item(), "advantage": round(
            update.advantages[r, 0].item(), 2), "tokens": list(words),
         "state": update.state[r, : len(words)].tolist(),
         "push": [round(abs(p) / strongest, 2) for p in update.push[r, : len(words)].tolist()]}
        for r, words in ((r, xray.words[r]) for r in rows)]}


def report(data: dict) -> str:
    first, last = data["steps"][1], data["steps"][-1]
    return (f"## The run that is played\n\nLesson 00's run: {STEPS} steps, held-out accuracy "
            f"{first['held_out_accuracy']:.1%} after the first and "
            f"{last['held_out_accuracy']:.1%} after the last, "
            f"{sum(step['tokens'] for step in data['steps'][1:]):,.0f} tokens sampled.\n")
