"""``python -m grpo_lib evaluate``: accuracy and pass@k on held-out problems."""

from __future__ import annotations

import torch

from grpo_lib.cli.train import starting_policy, task_of
from grpo_lib.evaluation import evaluate, wilson_interval
from grpo_lib.support.checks import usable_device


def run_evaluate(options) -> int:
    """Measure a policy, with confidence intervals."""
    task = task_of(options)
    ks = options.k or [k for k in (1, 8) if k <= options.samples]
    if max(ks) > options.samples:
        raise ValueError(f"--k: got {max(ks)}, allowed are at most --samples, "
                         f"{options.samples}")
    device = usable_device(options.device)
    policy = starting_policy(options.policy, task).to(device)
    problems = task.held_out(options.problems)
    generator = torch.Generator().manual_seed(options.seed)
    result = evaluate(policy, task, problems, samples=options.samples, generator=generator,
                      temperature=options.temperature, device=device)
    print(f"{len(problems)} held-out problems, {options.samples} completions each at temperature "
          f"{options.temperature:g}")
    for name, share in [("accuracy", result.accuracy),
                        *((f"pass@{k}", result.pass_at(k)) for k in ks)]:
        low, high = wilson_interval(share, len(problems))
        print(f"{name + ':':<10} {share:6.1%}   95% interval {low:.1%} to {high:.1%}")
    print(f"length:    {result.mean_length:.1f} tokens")
    return 0
