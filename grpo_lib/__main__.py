"""The command line: python -m grpo_lib pretrain | train | evaluate | handover | lab | test."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import time
import warnings
from pathlib import Path

from grpo_lib import __version__

ROOT = Path(__file__).resolve().parent.parent


class Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message):
        if message.endswith("required: COMMAND"):
            message = f"COMMAND: got none, must be one of those that {self.prog} --help lists"
        self.exit(2, f"{self.prog}: error: {message}\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says a default where there is one to say."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def main(arguments=None) -> int:
    """Run a command. 0: done; 2: bad input, one line on stderr; 130: Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"grpo_lib {__version__}")
        return 0
    if arguments[:1] in (["lab"], ["notebooks"], ["test"], ["wheels"]):
        return setting_up(arguments[0], arguments[1:])
    from grpo_lib.support import threads

    try:
        threads.settle()  # before anything else imports torch
        options = parser().parse_args(arguments)
        if options.threads is not None:
            import torch

            torch.set_num_threads(options.threads)
        return options.run(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ArithmeticError, ImportError, RuntimeError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"grpo_lib: error: {message}", file=sys.stderr)
        return 2


def setting_up(name: str, arguments: list) -> int:
    from grpo_lib.cli import environment

    if arguments[:1] in (["-h"], ["--help"]):
        print(inspect.cleandoc(getattr(environment, name).__doc__))
        return 0
    try:
        return getattr(environment, name)(ROOT, arguments)
    except (environment.SetupError, OSError) as error:
        print(f"grpo_lib: error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    from dataclasses import fields

    from grpo_lib.algorithms import CHOICES
    from grpo_lib.config import GRPOConfig
    from grpo_lib.tasks import TASKS

    def settings(sub):
        for f in fields(GRPOConfig):
            default = "none" if f.default is None else f.default
            kinds = {"int": whole, "float": number, "str": str, "float | None": optional_number,
                     "int | None": optional_whole, "str | None": str,
                     "bool": true_or_false, "bool | None": true_or_false}
            kind = optional_name if f.name == "algorithm" else kinds[f.type]
            sub.add_argument(
                "--" + f.name.replace("_", "-"), type=kind, default=argparse.SUPPRESS,
                help=f.metadata["about"] + (" (default: the algorithm's)" if f.name in CHOICES
                                            else f" (default: {default})"))

    top = Parser(prog="python -m grpo_lib", description="Learn GRPO by running it.")
    top.add_argument("--version", action="version", version=f"grpo_lib {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, about):
        sub = commands.add_parser(name, help=about, description=about,
                                  formatter_class=HelpFormatter)
        sub.set_defaults(run=run)
        sub.add_argument("--task", choices=list(TASKS), help="what to learn (default: chain)")
        sub.add_argument("--threads", type=positive, help="CPU threads (at most 4 if not given)")
        return sub

    sub = command("pretrain", run_pretrain, "Train a base model from scratch.")
    sub.add_argument("--out", type=file_path, default=Path("base.safetensors"),
                     help="checkpoint to write; the recipe and scores go beside it, as .json")
    sub.add_argument("--seed", type=whole, default=0, help="of weights and examples")
    sub.add_argument("--skill-steps", type=whole, default=240, help="batches of worked examples")
    sub.add_argument("--habit-steps", type=whole, default=60, help="batches of the habit, after")
    sub.add_argument("--device", default="cpu", help="cpu or cuda")

    sub = command("train", run_train, "Train a policy by GRPO, and measure it before and after.")
    sub.add_argument("--policy", type=file_path,
                     help="checkpoint to start from (if not given: the "
                          "base model that comes with the package)")
    sub.add_argument("--out", type=file_path,
                     help="new folder for the run (if not given: under runs/)")
    sub.add_argument("--resume", type=file_path, metavar="OUT",
                     help="go on with the run in this folder")
    sub.add_argument("--save-every", type=positive,
                     help="steps between checkpoints (default: 10)")
    sub.add_argument("--save-total-limit", type=positive,
                     help="checkpoints to keep, the newest (if not given: all)")
    sub.add_argument("--held-out", type=positive,
                     help="held-out problems to measure on, before and after (default: 1000)")
    sub.add_argument("--stop-at-accuracy", type=accuracy, metavar="X",
                     help="stop before the last step, once the held-out accuracy that is measured "
                          "every --eval-every steps reaches X, from 0 to 1 (if not given: take "
                          "all steps); --resume with a higher X, or with --steps, goes on")
    settings(sub)

    sub = command("evaluate", run_evaluate, "Measure accuracy and pass@k on held-out problems.")
    sub.add_argument("--policy", type=file_path,
                     help="checkpoint or folder of a run (if not given: the "
                          "base model that comes with the package)")
    sub.add_argument("--problems", type=positive, default=1000, help="held-out problems")
    sub.add_argument("--samples", type=positive, default=16, help="completions of each")
    sub.add_argument("--k", type=positive, nargs="+", help="the k of pass@k (default: 1, and 8 if "
                                                           "there are so many samples)")
    sub.add_argument("--temperature", type=number, default=1.0, help="0: the likeliest token")
    sub.add_argument("--seed", type=whole, default=0, help="of the sampling")
    sub.add_argument("--device", default="cpu", help="cpu or cuda")

    sub = command("handover", run_handover, "Write a training script for TRL's GRPOTrainer, with "
                                            "accelerate's configurations.")
    sub.add_argument("--model", required=True, help="a model's name on the hub, or its folder")
    sub.add_argument("--out", type=file_path, required=True, help="new folder to write into")
    sub.add_argument("--max-new-tokens", type=positive, default=256, help="longest completion")
    sub.add_argument("--no-chat", action="store_true",
                     help="the task's own prompts, for a model without a chat template")
    sub.add_argument("--lora-rank", type=positive,
                     help="train adapters of this rank (if not given: all weights)")
    settings(sub)

    sub = commands.add_parser("project", help="Show a lesson without its code, or the cockpit "
                                              "alone, on a page for a projector (needs Voilà).")
    sub.set_defaults(run=run_project, threads=None)
    sub.add_argument("lesson", nargs="?", help="the beginning of its name, 04 for instance; if not "
                                               "given: the cockpit")
    sub.add_argument("--port", type=positive, help="of the page (if not given: Voilà's own)")
    sub.add_argument("--no-browser", action="store_true", help="do not open a browser")

    commands.add_parser("lab", help="Open the lessons in JupyterLab; in a checkout, make its "
                                    "environment first.")
    commands.add_parser("notebooks", help="Copy the lessons and their solutions into a folder.")
    commands.add_parser("test", help="Make an environment and run the tests in it.")
    commands.add_parser("wheels", help="Download all packages, for computers without a network.")
    return top


def settings_in(options) -> dict:
    """The settings of a run that were given on the command line."""
    from grpo_lib.config import GRPOConfig

    return {name: getattr(options, name) for name in GRPOConfig.__dataclass_fields__
            if hasattr(options, name)}


def run_handover(options) -> int:
    from shlex import join

    from grpo_lib.bridges.handover import cautions, write_handover
    from grpo_lib.config import GRPOConfig
    from grpo_lib.tasks import get_task

    task, given = get_task(options.task or "chain"), settings_in(options)
    command = join(["--task", task.name, "--model", options.model, "--out", str(options.out),
                    "--max-new-tokens", str(options.max_new_tokens),
                    *(["--no-chat"] if options.no_chat else []),
                    *(["--lora-rank", str(options.lora_rank)] if options.lora_rank else []),
                    *(word for name, value in given.items()
                      for word in ("--" + name.replace("_", "-"), str(value)))])
    config = GRPOConfig(**given)
    lines = write_handover(options.out, task, options.model, config, options.max_new_tokens,
                           chat=not options.no_chat, lora_rank=options.lora_rank,
                           command=command)
    for line in lines:
        if line.lost:
            print(f"{line.field} = {line.value}: lost, {line.note}")
    for line in cautions(config, options.max_new_tokens, options.lora_rank):
        print(line)
    print(f"wrote {options.out}: train.py, README.md with the commands, and configurations for "
          f"accelerate")
    return 0


def run_project(options) -> int:
    from grpo_lib.cli.projecting import project

    return project(ROOT, options.lesson, [
        *([f"--port={options.port}"] if options.port else []),
        *(["--no-browser"] if options.no_browser else [])])


def file_path(text: str) -> Path:
    """~ is the home folder, which a shell leaves as it is in --out=~/run."""
    return Path(text).expanduser()


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed is a whole number from 1")
    return int(text)


def accuracy(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a number above 0, up to 1")
    return value


def number(text: str, kind: type = float, allowed: str = "a number"):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be {allowed}") from None


def whole(text: str) -> int:
    return number(text, int, "a whole number")


def optional_name(text: str):
    return None if text == "none" else text


def optional_number(text: str):
    return None if text == "none" else number(text, float, "a number, or none")


def optional_whole(text: str):
    return None if text == "none" else number(text, int, "a whole number, or none")


def true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed are true and false")
    return text.lower() == "true"


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


def run_pretrain(options) -> int:
    from tqdm import tqdm

    from grpo_lib.cli.runs import score, versions
    from grpo_lib.pretraining import READY, PretrainConfig, one_step_accuracy, pretrain
    from grpo_lib.support.checkpoint import save_policy, write_json
    from grpo_lib.support.checks import usable_device
    from grpo_lib.tasks import get_task

    device = usable_device(options.device)
    task, out = get_task(options.task or "chain"), options.out
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


def run_train(options) -> int:
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
    from grpo_lib.cli.runs import summary, unlock
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


def run_evaluate(options) -> int:
    import torch

    from grpo_lib.evaluation import evaluate, wilson_interval
    from grpo_lib.support.checks import usable_device
    from grpo_lib.tasks import get_task

    task = get_task(options.task or "chain")
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


def one_line(message, *_) -> None:
    """A warning as a person on a command line wants it."""
    print(f"\ngrpo_lib: warning: {message}", file=sys.stderr, flush=True)


def start() -> None:
    """What ``python -m grpo_lib`` and the command ``grpo_lib`` do."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter shows a "?"
            stream.reconfigure(errors="replace")
    warnings.showwarning = one_line
    status = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from grpo_lib.support.processes import leave

        leave(status)
    sys.exit(status)


if __name__ == "__main__":
    start()
