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
from grpo_lib.cli.train import TASK, as_option, run_train
from grpo_lib.config import GRPOConfig
from grpo_lib.pretraining import PretrainConfig
from grpo_lib.support.checkpoint import as_path  # a shell leaves the ~ in --out=~/run
from grpo_lib.support.run_folder import HELD_OUT, SAVE_EVERY
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


def reader(read: Callable, allowed: str, right: Callable = lambda value: True) -> Callable:
    """What turns an option's text into its value; ``allowed`` ends the error where it cannot."""

    def value_of(text: str):
        try:
            value = read(text)
            if right(value):
                return value
        except (ValueError, KeyError):
            pass
        raise argparse.ArgumentTypeError(f"got {text!r}, {allowed}")

    return value_of


def or_none(read: Callable) -> Callable:
    return lambda text: None if text == "none" else read(text)


positive = reader(int, "allowed is a whole number from 1", lambda value: value >= 1)
accuracy = reader(float, "must be a number above 0, up to 1", lambda value: 0 < value <= 1)
whole = reader(int, "must be a whole number")
number = reader(float, "must be a number")
true_or_false = reader(lambda text: {"true": True, "false": False}[text.lower()],
                       "allowed are true and false")
KINDS = {  # of a setting, by the type of its field; all others are names
    "int": whole, "float": number,
    "int | None": or_none(reader(int, "must be a whole number, or none")),
    "float | None": or_none(reader(float, "must be a number, or none")),
    "bool": true_or_false, "bool | None": true_or_false}


def option(name: str, about: str, kind: Callable = str, **more) -> tuple[str, dict]:
    """The arguments of argparse's ``add_argument``."""
    return name, {"help": about, "type": kind, **more}


def switch(name: str, about: str) -> tuple[str, dict]:
    return name, {"help": about, "action": "store_true", "default": None}


SETTINGS = [option(  # one for every field of GRPOConfig
    as_option(f.name), f.metadata["about"] + (
        " (default: the algorithm's)" if f.name in CHOICES
        else f" (default: {'none' if f.default is None else f.default})"),
    or_none(str) if f.name == "algorithm" else KINDS.get(f.type, str), default=argparse.SUPPRESS)
    for f in fields(GRPOConfig)]
COMMON = [option("--task", f"what to learn (default: {TASK})", choices=list(TASKS)),
          option("--threads", "CPU threads (at most 4 if not given)", positive)]
DEVICE = option("--device", "cpu or cuda", default="cpu")
PRETRAIN = [
    option("--out", "checkpoint to write; the recipe and scores go beside it, as .json", as_path,
           default=Path("base.safetensors")),
    option("--seed", "of weights and examples", whole, default=PretrainConfig.seed),
    option("--skill-steps", "batches of worked examples", whole,
           default=PretrainConfig.skill_steps),
    option("--habit-steps", "batches of the habit, after", whole,
           default=PretrainConfig.habit_steps),
    DEVICE]
TRAIN = [
    option("--policy", "checkpoint to start from (if not given: the base model that comes with the "
                       "package)", as_path),
    option("--out", "new folder for the run (if not given: under runs/)", as_path),
    option("--resume", "go on with the run in this folder", as_path, metavar="OUT"),
    option("--save-every", f"steps between checkpoints (default: {SAVE_EVERY})", positive),
    option("--save-total-limit", "checkpoints to keep, the newest (if not given: all)", positive),
    option("--held-out", f"held-out problems to measure on, before and after (default: "
                         f"{HELD_OUT})", positive),
    option("--stop-at-accuracy", "stop before the last step, once the held-out accuracy that is "
                                 "measured every --eval-every steps reaches X, from 0 to 1 (if not "
                                 "given: take all steps); --resume with a higher X, or with "
                                 "--steps, goes on", accuracy, metavar="X"),
    *SETTINGS]
EVALUATE = [
    option("--policy", "checkpoint or folder of a run (if not given: the base model that comes "
                       "with the package)", as_path),
    option("--problems", "held-out problems", positive, default=HELD_OUT),
    option("--samples", "completions of each", positive, default=16),
    option("--k", "the k of pass@k (default: 1, and 8 if there are so many samples)", positive,
           nargs="+"),
    option("--temperature", "0: the likeliest token", number, default=1.0),
    option("--seed", "of the sampling", whole, default=0),
    DEVICE]
HANDOVER = [
    option("--model", "a model's name on the hub, or its folder", required=True),
    option("--out", "new folder to write into", as_path, required=True),
    option("--max-new-tokens", "longest completion", positive, default=256),
    switch("--no-chat", "the task's own prompts, for a model without a chat template"),
    option("--lora-rank", "train adapters of this rank (if not given: all weights)", positive),
    *SETTINGS]
PROJECT = [
    option("lesson", "the beginning of its name, 04 for instance; if not given: the cockpit",
           nargs="?"),
    option("--port", "of the page (if not given: Voilà's own)", positive),
    switch("--no-browser", "do not open a browser")]
COMMANDS = {
    "pretrain": (run_pretrain, COMMON + PRETRAIN, "Train a base model from scratch."),
    "train": (run_train, COMMON + TRAIN,
              "Train a policy by GRPO, and measure it before and after."),
    "evaluate": (run_evaluate, COMMON + EVALUATE,
                 "Measure accuracy and pass@k on held-out problems."),
    "handover": (run_handover, COMMON + HANDOVER, "Write a training script for TRL's GRPOTrainer, "
                                                  "with accelerate's configurations."),
    "project": (run_project, PROJECT, "Show a lesson without its code, or the cockpit alone, on a "
                                      "page for a projector (needs Voilà)."),
    # these run before anything is installed (``environment``), and are only listed
    "lab": (None, [], "Open the lessons in JupyterLab; in a checkout, make its environment first."),
    "notebooks": (None, [], "Copy the lessons and their solutions into a folder."),
    "test": (None, [], "Make an environment and run the tests in it."),
    "wheels": (None, [], "Download all packages, for computers without a network.")}


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = Parser(prog="python -m grpo_lib", description="Learn GRPO by running it.")
    top.add_argument("--version", action="version", version=f"grpo_lib {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, options, about) in COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=about,
                                  formatter_class=HelpFormatter)
        sub.set_defaults(run=run, threads=None)
        for flag, arguments in options:
            sub.add_argument(flag, **arguments)
    return top
