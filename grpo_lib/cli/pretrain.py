"""``python -m grpo_lib pretrain``: a base model from scratch."""

from __future__ import annotations

import time

from grpo_lib.cli.runs import score, versions
from grpo_lib.cli.train import task_of
from grpo_lib.pretraining import READY, PretrainConfig, one_step_accuracy, pretrain
from grpo_lib.support.checkpoint import save_policy, write_json
from grpo_lib.support.checks import usable_device


def run_pretrain(options) -> int:
    """Train it, measure it, write it with its recipe."""
    from tqdm import tqdm

    device = usable_device(options.device)
    task, out = task_of(options), options.out
    config = PretrainConfig(skill_steps=options.skill_steps, habit_steps=options.habit_steps,
                            seed=options.seed)
    if out.suffix != ".safetensors":
        raise ValueError(f"--out: got {str(out)!r}, allowed is a name that ends in .safetensors")
    for path in (out, out.with_suffix(".json")):
        if path.exists():
            raise FileExistsError(f"--out: {path} is there already; nothing was overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with tqdm(total=config.skill_steps + config.habit_steps, unit="batch") as bar:
        for step, loss, policy in pretrain(task, config, device=device):  # noqa: B007
            stage = "skill" if step <= config.skill_steps else "habit"
            bar.set_postfix_str(f"{stage}, loss {loss:.3f}", refresh=False)
            bar.update()
    seconds = time.perf_counter() - start
    one_step = one_step_accuracy(policy, task)
    scores = score(policy, task, task.held_out(), device)
    save_policy(out, policy, task.name)
    write_json(out.with_suffix(".json"), {
        "task": task.name, "recipe": config.to_dict(), "policy": policy.config.to_dict(),
        "parameters": sum(p.numel() for p in policy.parameters()),
        "one_step_accuracy": one_step, "held_out": scores, "seconds": round(seconds, 1),
        "versions": versions()})
    print(f"{out}: held-out accuracy {scores['accuracy']:.1%}, length {scores['length']:.1f} "
          f"tokens, {seconds:.0f} s")
    if one_step is not None:
        print(f"one-step accuracy {one_step:.1%}")
        if one_step < READY:
            print(f"below {READY:.0%}: the skill is not there, so RL will not take off from this "
                  f"base model (more --skill-steps may help)")
    return 0
