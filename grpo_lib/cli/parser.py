"""What may be typed: the commands with their options, and what each option takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from grpo_lib import __version__
from grpo_lib.algorithms import CHOICES
from grpo_lib.cli.evaluate import run_evaluate
from grpo_lib.cli.handover import run_handover
from grpo_lib.cli.pretrain import run_pretrain
from grpo_lib.cli.projecting import run_project
from grpo_lib.cli.train import run_train
from grpo_lib.config import GRPOConfig
from grpo_lib.tasks import TASKS


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


def add_settings(sub: argparse.ArgumentParser) -> None:
    """An option for every field of ``GRPOConfig``."""
    kinds = {"int": whole, "float": number, "str": str, "float | None": optional_number,
             "int | None": optional_whole, "str | None": str,
             "bool": true_or_false, "bool | None": true_or_false}
    for f in fields(GRPOConfig):
        default = "none" if f.default is None else f.default
        sub.add_argument(
            "--" + f.name.replace("_", "-"), default=argparse.SUPPRESS,
            type=optional_name if f.name == "algorithm" else kinds[f.type],
            help=f.metadata["about"] + (" (default: the algorithm's)" if f.name in CHOICES
                                        else f" (default: {default})"))


def add_pretrain(sub: argparse.ArgumentParser) -> None:
    """The options of pretrain."""
    sub.add_argument("--out", type=file_path, default=Path("base.safetensors"),
                     help="checkpoint to write; the recipe and scores go beside it, as .json")
    sub.add_argument("--seed", type=whole, default=0, help="of weights and examples")
    sub.add_argument("--skill-steps", type=whole, default=240, help="batches of worked examples")
    sub.add_argument("--habit-steps", type=whole, default=60, help="batches of the habit, after")
    sub.add_argument("--device", default="cpu", help="cpu or cuda")


def add_train(sub: argparse.ArgumentParser) -> None:
    """The options of train."""
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
    add_settings(sub)


def add_evaluate(sub: argparse.ArgumentParser) -> None:
    """The options of evaluate."""
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


def add_handover(sub: argparse.ArgumentParser) -> None:
    """The options of handover."""
    sub.add_argument("--model", required=True, help="a model's name on the hub, or its folder")
    sub.add_argument("--out", type=file_path, required=True, help="new folder to write into")
    sub.add_argument("--max-new-tokens", type=positive, default=256, help="longest completion")
    sub.add_argument("--no-chat", action="store_true",
                     help="the task's own prompts, for a model without a chat template")
    sub.add_argument("--lora-rank", type=positive,
                     help="train adapters of this rank (if not given: all weights)")
    add_settings(sub)


def parser() -> argparse.ArgumentParser:
    """All commands. ``lab``, ``test``, ``wheels`` and ``notebooks`` are only listed: they run
    before anything is installed (``environment``)."""
    top = Parser(prog="python -m grpo_lib", description="Learn GRPO by running it.")
    top.add_argument("--version", action="version", version=f"grpo_lib {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, add: Callable, about: str) -> None:
        sub = commands.add_parser(name, help=about, description=about,
                                  formatter_class=HelpFormatter)
        sub.set_defaults(run=run)
        sub.add_argument("--task", choices=list(TASKS), help="what to learn (default: chain)")
        sub.add_argument("--threads", type=positive, help="CPU threads (at most 4 if not given)")
        add(sub)

    command("pretrain", run_pretrain, add_pretrain, "Train a base model from scratch.")
    command("train", run_train, add_train,
            "Train a policy by GRPO, and measure it before and after.")
    command("evaluate", run_evaluate, add_evaluate,
            "Measure accuracy and pass@k on held-out problems.")
    command("handover", run_handover, add_handover,
            "Write a training script for TRL's GRPOTrainer, with accelerate's configurations.")
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
