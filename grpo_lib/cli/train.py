"""``python -m grpo_lib train``: a run in a folder, and how it goes on after an end of any kind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shlex import quote

import torch

from grpo_lib.cli import runs
from grpo_lib.config import GRPOConfig, StepMetrics, measured
from grpo_lib.critic import ValueModel
from grpo_lib.policy import Policy
from grpo_lib.support.checkpoint import base_model_path, load_policy, write_atomically
from grpo_lib.support.checks import check_number
from grpo_lib.support.locks import unlock
from grpo_lib.support.processes import OtherProcessLost, joined
from grpo_lib.support.run_folder import HELD_OUT, SAVE_EVERY, RunFolder
from grpo_lib.support.signals import signals_ignored
from grpo_lib.tasks import Task, get_task
from grpo_lib.training import GRPOTrainer

TASK = "chain"  # where none is asked for


def task_of(options) -> Task:
    return get_task(options.task or TASK)


def settings_in(options) -> dict:
    """The settings of a run that were given on the command line."""
    return {name: getattr(options, name) for name in GRPOConfig.__dataclass_fields__
            if hasattr(options, name)}


def as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


def starting_policy(path: Path | None, task: Task) -> Policy:
    """The policy at ``path`` (a file or a run's folder), or the task's base model."""
    if path is None:
        path = base_model_path(task.name)
        if not path.is_file():
            raise ValueError(
                f"--policy: the task {task.name!r} comes without a base model; make one with: "
                f"python -m grpo_lib pretrain --task {task.name} --out {task.name}.safetensors")
    path = path / "policy.safetensors" if path.is_dir() else path
    policy = load_policy(path, task.name)
    if policy.config.vocab_size != len(task.tokenizer):
        raise ValueError(f"{path}: speaks {policy.config.vocab_size} words, allowed are the "
                         f"{len(task.tokenizer)} of the task {task.name!r}")
    return policy


def run_train(options) -> int:
    """A new run, or an old one that goes on."""
    import tqdm  # noqa: F401  what is missing should be missed before anything is written

    from grpo_lib.course import plots  # noqa: F401

    given = settings_in(options)
    if options.resume is not None:
        return resume(options, given)
    config, task = GRPOConfig(**given), task_of(options)
    check_goal(options.stop_at_accuracy, config, done=0)
    policy = starting_policy(options.policy, task)
    with joined(config.device) as (processes, device):
        trainer = GRPOTrainer(policy, task, replace(config, device=device), processes=processes,
                              value_model=ValueModel(policy) if config.choices.critic else None)
        out = processes.agree(
            options.out or Path("runs") / f"{task.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        if processes.rank > 0:
            return follow(trainer, out, options.stop_at_accuracy)
        run = RunFolder.create(out, trainer, options.held_out or HELD_OUT,
                               options.save_every or SAVE_EVERY, options.save_total_limit,
                               policy=str(options.policy or "base model"),
                               processes=processes.size,
                               stop_at_accuracy=options.stop_at_accuracy)
        return train_in(run, trainer)


def resume(options, given: dict) -> int:
    """Go on with a run, with its own settings."""
    others = given.keys() - {"steps", "device"}
    others |= {name for name in ("out", "policy", "task", "held_out")
               if getattr(options, name) is not None}
    if others:
        raise ValueError(f"--resume: takes its settings from the run, allowed with it are --steps, "
                         f"--stop-at-accuracy, --device, --threads, --save-every, "
                         f"--save-total-limit; got {', '.join(sorted(map(as_option, others)))}")
    run = RunFolder.open(options.resume)
    if options.threads is None:
        torch.set_num_threads(run.about["threads"])
    with joined(given.get("device", run.config.device)) as (processes, device):
        trainer = run.new_trainer(processes, **given | {"device": device})
        goal = goal_from_here(run, trainer, options.stop_at_accuracy, "steps" in given)
        if processes.rank > 0:
            return follow(trainer, run.path, goal)
        run.reopen(config=trainer.config.to_dict(), threads=torch.get_num_threads(),
                   stop_at_accuracy=goal,
                   save_every=options.save_every or run.about["save_every"],
                   save_total_limit=options.save_total_limit or run.about.get("save_total_limit"),
                   processes=processes.size)
        return train_in(run, trainer)


def goal_from_here(run: RunFolder, trainer: GRPOTrainer, given: float | None,
                   more_steps: bool) -> float | None:
    """The held-out accuracy at which a resumed run will stop, if any. ValueError: there is nothing
    to do; ``given``: --stop-at-accuracy, ``more_steps``: whether --steps is given."""
    done, steps = trainer.step_count, trainer.config.steps
    if steps < done:
        raise ValueError(f"--steps: got {steps}, but the run in {run.path} has taken {done} "
                         f"already")
    goal = given or run.about.get("stop_at_accuracy")
    if goal is not None:
        check_number("stop_at_accuracy", goal, above=0, most=1)
    if run.is_complete() and reached(trainer.history, goal):
        if given is not None or not more_steps:
            raise ValueError(f"--resume: the run in {run.path} is complete: at step {done} its "
                             f"held-out accuracy was {accuracy_of(trainer.history):.1%}, of "
                             f"{goal:.1%} wanted; to go on, give a higher --stop-at-accuracy, "
                             f"or --steps alone")
        goal = None  # more steps are wanted than those that reach it
    if steps == done and run.is_complete():
        raise ValueError(f"--resume: the run in {run.path} is complete at step {done}; to go "
                         f"on, give more --steps")
    if not reached(trainer.history, goal):
        check_goal(goal, trainer.config, done)
    return goal


def check_goal(goal: float | None, config: GRPOConfig, done: int) -> None:
    """ValueError if held-out accuracy would not be measured in any step after ``done``."""
    every = config.eval_every
    if goal is not None and (not every or config.steps // every <= done // every):
        raise ValueError(f"--stop-at-accuracy: got {goal:g} with --eval-every {every} and --steps "
                         f"{config.steps}, so that held-out accuracy is not measured in any step "
                         f"to come; must be --eval-every from 1 up to the --steps that are left")


def accuracy_of(history: list[StepMetrics]) -> float | None:
    """Held-out accuracy after the last step; None where it was not measured."""
    return history[-1].held_out_accuracy if history else None


def reached(history: list[StepMetrics], goal: float | None) -> bool:
    """Whether the last step has reached the held-out accuracy that is wanted, if one is."""
    accuracy = accuracy_of(history)
    return goal is not None and accuracy is not None and accuracy >= goal


def steps_to(trainer: GRPOTrainer, goal: float | None) -> Iterator[StepMetrics]:
    """The steps of a run, up to the one that reaches the held-out accuracy that is wanted."""
    if not reached(trainer.history, goal):
        for metrics in trainer.run():
            yield metrics
            if reached(trainer.history, goal):
                return


def follow(trainer: GRPOTrainer, path: Path, goal: float | None) -> int:
    """What the other processes of a run do: the same steps. The first one measures and writes."""
    try:
        for _ in steps_to(trainer, goal):
            pass
    except (OtherProcessLost, KeyboardInterrupt):  # the first one may be gone, and say nothing
        print(f"\nprocess {trainer.processes.rank} has taken {trainer.step_count} steps. To go on "
              f"from the last checkpoint:\n  {resume_command(path)}", flush=True)
        raise
    return 0


def resume_command(path: Path) -> str:
    return f"python -m grpo_lib train --resume {quote(str(path))}"


def train_in(run: RunFolder, trainer: GRPOTrainer) -> int:
    """Measure, train to the last step, measure again; everything into the run's folder."""
    print(f"writing to {run.path}")
    try:
        measure_and_train(run, trainer)
    except KeyboardInterrupt:
        save_and_say(run, trainer, "stopped")
        return 130
    except Exception:
        save_and_say(run, trainer, "failed")
        raise
    finally:
        unlock(run.path)
    print(runs.summary(run.about["before"], run.about["after"], trainer.history))
    return 0


def save_and_say(run: RunFolder, trainer: GRPOTrainer, what: str) -> None:
    """Save what is whole, and say what is saved and how to go on, whatever signals come."""
    with signals_ignored():
        try:
            run.record_all(trainer.history)
            if trainer.half_updated:
                saved = f"step {trainer.step_count + 1} was broken off and will be taken again " \
                        f"from the last checkpoint"
            else:
                run.save(trainer)
                saved = "everything is saved"
        except OSError as error:
            saved = f"this could not be saved ({error.strerror or error}), so that it will go on " \
                    f"from the last checkpoint"
        print(f"\n{what} after step {trainer.step_count}; {saved}. To go on:\n"
              f"  {resume_command(run.path)}", flush=True)


def measure_and_train(run: RunFolder, trainer: GRPOTrainer) -> None:
    """The work of ``train_in``; whatever of it is done already is not done again."""
    from tqdm import tqdm

    from grpo_lib.course.plots import to_png, training_curves

    task, config, goal = trainer.task, trainer.config, run.about.get("stop_at_accuracy")
    held_out = (task, task.held_out(run.about["held_out"]), trainer.device, config.temperature)
    if "before" not in run.about:
        run.write(before=runs.score(trainer.ref_policy, *held_out))
    with tqdm(total=config.steps, initial=trainer.step_count, unit="step") as bar:
        accuracy = run.about["before"]["accuracy"]
        for metrics in steps_to(trainer, goal):
            run.record(metrics)
            if metrics.step % run.about["save_every"] == 0:
                run.save(trainer)
            if metrics.held_out_accuracy is not None:
                accuracy = metrics.held_out_accuracy
            bar.set_postfix_str(f"reward {measured(metrics.reward_mean, '.2f')}, "
                                f"length {metrics.length:.1f}, held-out {accuracy:.0%}",
                                refresh=False)
            bar.update()
    if reached(trainer.history, goal):
        print(f"stopped after step {trainer.step_count}: held-out accuracy "
              f"{accuracy_of(trainer.history):.1%} has reached the {goal:.1%} of "
              f"--stop-at-accuracy")
    run.finish(trainer)
    curves = training_curves([metrics.to_dict() for metrics in trainer.history])
    write_atomically(run.path / "curves.png", to_png(curves))
    run.write(after=runs.score(trainer.policy, *held_out))
