"""``python -m grpo_lib train``: a run in a folder, and how it goes on after an end of any kind."""

from __future__ import annotations

import time
from pathlib import Path


def settings_in(options) -> dict:
    """The settings of a run that were given on the command line."""
    from grpo_lib.config import GRPOConfig

    return {name: getattr(options, name) for name in GRPOConfig.__dataclass_fields__
            if hasattr(options, name)}


def starting_policy(path, task):
    """The policy at ``path`` (a file or a run's folder), or the task's base model."""
    from grpo_lib.support.checkpoint import base_model_path, load_policy

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
    from dataclasses import replace

    import tqdm  # noqa: F401  what is missing should be missed before anything is written

    from grpo_lib.cli.runs import RunFolder
    from grpo_lib.config import GRPOConfig
    from grpo_lib.course import plots  # noqa: F401
    from grpo_lib.critic import ValueModel
    from grpo_lib.support.processes import joined
    from grpo_lib.tasks import get_task
    from grpo_lib.training import GRPOTrainer

    given = settings_in(options)
    if options.resume is not None:
        return resume(options, given)
    config = GRPOConfig(**given)
    check_goal(options.stop_at_accuracy, config, done=0)
    task = get_task(options.task or "chain")
    policy = starting_policy(options.policy, task)
    with joined(config.device) as (processes, device):
        trainer = GRPOTrainer(policy, task, replace(config, device=device), processes=processes,
                              value_model=ValueModel(policy) if config.choices.critic else None)
        out = processes.agree(
            options.out or Path("runs") / f"{task.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        if processes.rank > 0:
            return follow(trainer, out, options.stop_at_accuracy)
        run = RunFolder.create(out, trainer, options.held_out or 1000,
                               policy=str(options.policy or "base model"),
                               save_every=options.save_every or 10, processes=processes.size,
                               save_total_limit=options.save_total_limit,
                               stop_at_accuracy=options.stop_at_accuracy)
        return train_in(run, trainer)


def resume(options, given: dict) -> int:
    """Go on with a run, with its own settings."""
    import torch

    from grpo_lib.cli.runs import RunFolder
    from grpo_lib.support.checks import check_number
    from grpo_lib.support.processes import joined

    others = sorted({"--" + name.replace("_", "-") for name in given.keys() - {"steps", "device"}}
                    | {"--" + name.replace("_", "-") for name in ("out", "policy", "task",
                       "held_out") if getattr(options, name) is not None})
    if others:
        raise ValueError(f"--resume: takes its settings from the run, allowed with it are --steps, "
                         f"--stop-at-accuracy, --device, --threads, --save-every, "
                         f"--save-total-limit; got "
                         f"{', '.join(others)}")
    run = RunFolder.open(options.resume)
    if options.threads is None:
        torch.set_num_threads(run.about["threads"])
    with joined(given.get("device", run.config.device)) as (processes, device):
        trainer = run.new_trainer(processes, **given | {"device": device})
        done = trainer.step_count
        if trainer.config.steps < done:
            raise ValueError(f"--steps: got {trainer.config.steps}, but the run in {run.path} has "
                             f"taken {done} already")
        goal = options.stop_at_accuracy or run.about.get("stop_at_accuracy")
        if goal is not None:
            check_number("stop_at_accuracy", goal, above=0, most=1)
        if run.is_complete() and reached(trainer.history, goal):
            if options.stop_at_accuracy is not None or "steps" not in given:
                raise ValueError(f"--resume: the run in {run.path} is complete: at step {done} its "
                                 f"held-out accuracy was {accuracy_of(trainer.history):.1%}, of "
                                 f"{goal:.1%} wanted; to go on, give a higher --stop-at-accuracy, "
                                 f"or --steps alone")
            goal = None  # more steps are wanted than those that reach it
        if trainer.config.steps == done and run.is_complete():
            raise ValueError(f"--resume: the run in {run.path} is complete at step {done}; to go "
                             f"on, give more --steps")
        if not reached(trainer.history, goal):
            check_goal(goal, trainer.config, done)
        if processes.rank > 0:
            return follow(trainer, run.path, goal)
        run.reopen(config=trainer.config.to_dict(), threads=torch.get_num_threads(),
                   stop_at_accuracy=goal,
                   save_every=options.save_every or run.about["save_every"],
                   save_total_limit=options.save_total_limit or run.about.get("save_total_limit"),
                   processes=processes.size)
        return train_in(run, trainer)


def check_goal(goal: float | None, config, done: int) -> None:
    """ValueError if held-out accuracy would not be measured in any step after ``done``."""
    every = config.eval_every
    if goal is not None and (not every or config.steps // every <= done // every):
        raise ValueError(f"--stop-at-accuracy: got {goal:g} with --eval-every {every} and --steps "
                         f"{config.steps}, so that held-out accuracy is not measured in any step "
                         f"to come; must be --eval-every from 1 up to the --steps that are left")


def accuracy_of(history: list) -> float | None:
    """Held-out accuracy after the last step; None where it was not measured."""
    return history[-1].held_out_accuracy if history else None


def reached(history: list, goal: float | None) -> bool:
    """Whether the last step has reached the held-out accuracy that is wanted, if one is."""
    accuracy = accuracy_of(history)
    return goal is not None and accuracy is not None and accuracy >= goal


def steps_to(trainer, goal: float | None):
    """The steps of a run, up to the one that reaches the held-out accuracy that is wanted."""
    if not reached(trainer.history, goal):
        for metrics in trainer.run():
            yield metrics
            if reached(trainer.history, goal):
                return


def follow(trainer, path: Path, goal: float | None) -> int:
    """What the other processes of a run do: the same steps. The first one measures and writes."""
    from grpo_lib.support.processes import OtherProcessLost

    try:
        for _ in steps_to(trainer, goal):
            pass
    except (OtherProcessLost, KeyboardInterrupt):  # the first one may be gone, and say nothing
        print(f"\nprocess {trainer.processes.rank} has taken {trainer.step_count} steps. To go on "
              f"from the last checkpoint:\n  {resume_command(path)}", flush=True)
        raise
    return 0


def resume_command(path: Path) -> str:
    from shlex import quote

    return f"python -m grpo_lib train --resume {quote(str(path))}"


def train_in(run, trainer) -> int:
    """Measure, train to the last step, measure again; everything into the run's folder."""
    from grpo_lib.cli.locks import unlock
    from grpo_lib.cli.runs import summary
    from grpo_lib.support.processes import signals_ignored

    def said(what: str) -> None:
        """Save what is whole, and say what is saved and how to go on, whatever signals come."""
        with signals_ignored():
            try:
                run.record_all(trainer.history)
                if trainer.half_updated:
                    saved = f"step {trainer.step_count + 1} was broken off and will be taken " \
                            f"again from the last checkpoint"
                else:
                    run.save(trainer)
                    saved = "everything is saved"
            except OSError as error:
                saved = f"this could not be saved ({error.strerror or error}), so that it will " \
                        f"go on from the last checkpoint"
            print(f"\n{what} after step {trainer.step_count}; {saved}. To go on:\n"
                  f"  {resume_command(run.path)}", flush=True)

    print(f"writing to {run.path}")
    try:
        measure_and_train(run, trainer)
    except KeyboardInterrupt:
        said("stopped")
        return 130
    except Exception:
        said("failed")
        raise
    finally:
        unlock(run.path)
    print(summary(run.about["before"], run.about["after"], trainer.history))
    return 0


def measure_and_train(run, trainer) -> None:
    """The work of ``train_in``; whatever of it is done already is not done again."""
    from tqdm import tqdm

    from grpo_lib.cli.runs import score
    from grpo_lib.config import measured
    from grpo_lib.course.plots import to_png, training_curves
    from grpo_lib.support.checkpoint import write_atomically

    task, config, device = trainer.task, trainer.config, trainer.device
    problems, goal = task.held_out(run.about["held_out"]), run.about.get("stop_at_accuracy")
    if "before" not in run.about:
        run.write(before=score(trainer.ref_policy, task, problems, device, config.temperature))
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
    run.write(after=score(trainer.policy, task, problems, device, config.temperature))
