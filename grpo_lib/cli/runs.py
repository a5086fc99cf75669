"""What a run's folder says before and after; ``RunFolder`` itself is in ``support.run_folder``."""

from __future__ import annotations

from grpo_lib.config import StepMetrics
from grpo_lib.evaluation import evaluate
from grpo_lib.policy import Policy
from grpo_lib.support.run_folder import RunFolder, versions
from grpo_lib.tasks import Problem, Task

__all__ = ["RunFolder", "score", "summary", "versions"]


def score(policy: Policy, task: Task, problems: list[Problem], device="cpu",
          temperature: float = 1.0) -> dict:
    """Accuracy (sampled and greedy) and mean length on problems, as in run.json."""
    sampled = evaluate(policy, task, problems, temperature=temperature, device=device)
    greedy = evaluate(policy, task, problems, temperature=0, device=device)
    return {"problems": len(problems), "accuracy": round(sampled.accuracy, 4),
            "accuracy_interval": [round(x, 4) for x in sampled.accuracy_interval],
            "greedy_accuracy": round(greedy.accuracy, 4),
            "length": round(sampled.mean_length, 2)}


def summary(before: dict, after: dict, history: list[StepMetrics]) -> str:
    """The run in one line."""
    seconds = sum(m.seconds_rollout + m.seconds_scoring + m.seconds_update + m.seconds_evaluation
                  for m in history)
    return (f"held-out accuracy: {before['accuracy']:.1%} -> {after['accuracy']:.1%}   "
            f"completion length: {before['length']:.1f} -> {after['length']:.1f} tokens   "
            f"time: {seconds:.0f} s")
