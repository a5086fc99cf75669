"""A run's folder: what it was told, what each step did, and how to go on with it.

    run.json                          settings, versions, scores before and after
    metrics.jsonl                     one object a step (``config.StepMetrics``)
    reference.safetensors             the reference policy, which no step changes
    checkpoints/step-00010.safetensors   everything else that is needed to go on, bit for bit
    policy.safetensors                the trained policy
    curves.png                        the picture of it
    lock                              held by the process that is writing here (``locks``)
"""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import torch

import grpo_lib
from grpo_lib.config import GRPOConfig, StepMetrics
from grpo_lib.critic import ValueModel
from grpo_lib.policy import Policy
from grpo_lib.support.checkpoint import (
    CheckpointError,
    DamagedError,
    as_path,
    class_of,
    describe,
    new_folder,
    read_json,
    save_policy,
    write_atomically,
    write_json,
)
from grpo_lib.support.checks import check_whole
from grpo_lib.support.locks import lock, unlock
from grpo_lib.support.modules import unwrapped
from grpo_lib.support.processes import Processes
from grpo_lib.support.run_files import read_step, wrong_in
from grpo_lib.support.trainer_state import OF_THE_TRAINER
from grpo_lib.tasks import Task, get_task
from grpo_lib.training import GRPOTrainer
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

REFERENCE = "reference.safetensors"
DTYPES = ("float32", "float64", "float16", "bfloat16")
HELD_OUT, SAVE_EVERY = 1000, 10  # where nothing else is asked for


class RunFolder:
    """``RunFolder.create(path, ...)`` starts one, ``RunFolder.open(path)`` goes on with one."""

    def __init__(self, path: Path | str, about: dict):
        self.path, self.about = as_path(path), about
        self.saved: tuple | None = None  # the state in the checkpoint that was written last

    @classmethod
    def create(cls, path: Path | str, trainer: GRPOTrainer, held_out: int = HELD_OUT,
               save_every: int = SAVE_EVERY, save_total_limit: int | None = None,
               **about) -> RunFolder:
        """A new folder; FileExistsError if there is anything in it already.

        ``save_total_limit`` (TRL's name): keep so many checkpoints, the newest (None: all). A
        policy of your own class is saved by its state_dict; TypeError: one that cannot be.
        """
        held_out = check_whole("held_out", held_out, 1)
        save_every = check_whole("save_every", save_every, 1)
        if save_total_limit is not None:
            save_total_limit = check_whole("save_total_limit", save_total_limit, 1)
        path = new_folder(path, "checkpoints")
        lock(path)
        run = cls(path, {"task": trainer.task.name, "own_task": is_own(trainer.task),
                         "config": trainer.config.to_dict(),
                         "policy_class": class_of(trainer.policy),
                         "policy_config": shape_of(trainer.policy),
                         "dtype": dtype_of(trainer.policy), "held_out": held_out,
                         "save_every": save_every, "save_total_limit": save_total_limit, **about,
                         "versions": versions(), "threads": torch.get_num_threads()})
        try:
            trainer.save_reference(path / REFERENCE)
            run.save(trainer)
            run.write()  # last, so that a folder with a run.json has a checkpoint
        except BaseException:
            unlock(path)
            for name in ("lock", "run.json", REFERENCE):  # an empty folder, as before
                (path / name).unlink(missing_ok=True)
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
            raise
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run. CheckpointError: not a run's folder, or damaged."""
        run = cls(path, {})
        if not run.file.exists() and (run.path / "checkpoints").is_dir():
            raise CheckpointError(f"{run.path}: has no run.json, so it was stopped before its "
                                  f"first step and nothing is lost; remove the folder and start "
                                  f"again")
        if not run.file.exists():
            raise CheckpointError(f"{run.path}: is not the folder of a run: it has no run.json")
        run.about = read_json(run.file)
        if name := wrong_in(run.about):
            raise run.unusable(f"describes no run, its {name} is {run.about.get(name)!r}")
        return run

    @property
    def file(self) -> Path:
        """run.json"""
        return self.path / "run.json"

    def unusable(self, why: str) -> CheckpointError:
        """What to raise where run.json leads no further."""
        return CheckpointError(f"{self.file}: {why}")

    def new_trainer(self, processes: Processes | None = None, *, policy: Policy | None = None,
                    task: Task | None = None, **changes) -> GRPOTrainer:
        """A trainer at the newest checkpoint, with the settings of then; ``changes`` are settings
        to replace. ``policy``: one as the run began with, where its class is your own or
        transformers'; it gets the checkpoint's weights. ``task``: the one that the run began
        with, where it, its settings or its reward are your own."""
        if task is None and self.about.get("own_task"):
            raise self.unusable(f"the run's task {self.about['task']!r} is not the built-in one "
                                f"with its usual settings and reward; new_trainer(task=made) "
                                f"takes the one that it began with")
        task = get_task(self.about["task"]) if task is None else task
        policy = self.new_policy() if policy is None else policy
        at_once = {name: changes[name] for name in changes.keys() & OF_THE_TRAINER}
        config = replace(self.config, **at_once)
        value_model = ValueModel(policy) if config.choices.critic else None
        reference = getattr(unwrapped(policy), "reference", lambda: None)()
        trainer = GRPOTrainer(policy, task, config, reference, value_model=value_model,
                              processes=processes)
        self.restore(trainer)
        trainer.change(replace(trainer.config, **changes))
        return trainer

    def new_policy(self) -> TransformerPolicy:
        """A policy of the run's shape, with random weights. CheckpointError: of a class that is
        not this library's to make."""
        kind = self.about.get("policy_class")
        if kind not in (None, class_of(TransformerPolicy)):
            raise self.unusable(f"the run's policy is a {kind}, which is yours to make; "
                                f"new_trainer(policy=made) takes it, or make the trainer and "
                                f"``restore`` it")
        try:
            policy = TransformerPolicy(PolicyConfig(**self.about["policy_config"]))
        except (TypeError, ValueError) as error:
            raise self.unusable(f"its policy_config does not fit ({error})") from None
        dtype = self.about.get("dtype", "float32")  # which older runs do not say
        if dtype not in DTYPES:
            raise self.unusable(f"its dtype is {dtype!r}, must be one of {', '.join(DTYPES)}")
        return policy.to(getattr(torch, dtype))

    @property
    def config(self) -> GRPOConfig:
        """The settings that the run began, or was reopened, with."""
        try:
            return GRPOConfig(**self.about["config"])
        except (TypeError, ValueError) as error:
            raise self.unusable(f"its config does not fit ({error})") from None

    def write(self, **about) -> None:
        """Add to run.json."""
        self.about |= about
        write_json(self.file, self.about)

    def is_complete(self) -> bool:
        """Whether the run was measured after its last step, which is the last thing it does."""
        return "after" in self.about

    def reopen(self, **about) -> None:
        """Before more steps are taken: what described the end is no longer true."""
        self.about.pop("after", None)
        self.write(**about)
        for name in ("policy.safetensors", "curves.png"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "policy", ignore_errors=True)

    def record(self, metrics: StepMetrics) -> None:
        """Add a step to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(metrics.to_json() + "\n")

    def record_all(self, history: list[StepMetrics]) -> None:
        """Make metrics.jsonl hold exactly these steps."""
        lines = "".join(metrics.to_json() + "\n" for metrics in history)
        write_atomically(self.path / "metrics.jsonl", lines.encode())

    def save(self, trainer: GRPOTrainer) -> Path:
        """A checkpoint of the trainer as it is, unless that was written last; then older ones
        than the ``save_total_limit`` newest are removed."""
        path = self.checkpoint_at(trainer.step_count)
        state = (trainer.step_count, trainer.config, trainer.history[-1:])
        if state != self.saved:
            reference = self.path / REFERENCE  # older runs have none
            trainer.save(path, reference if reference.is_file() else None)
            self.saved = state
            self.remove_old(path)
        return path

    def checkpoint_at(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:05d}.safetensors"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, file) of this run's checkpoints, the newest last. The step is the one that the
        file itself describes, whatever its name says. What cannot be read is left out, with a
        warning, and so are files of something else."""
        found = []
        for path in (self.path / "checkpoints").glob("*.safetensors"):
            try:
                about = describe(path)
            except CheckpointError as error:
                warnings.warn(f"{error}; it is left out", stacklevel=3)
                continue
            if about.get("kind") == "trainer" and about.get("task") == self.about["task"] and (
                    isinstance(about.get("step"), int)):
                found.append((about["step"], path))
        return sorted(found, key=lambda pair: (pair[0], pair[1] == self.checkpoint_at(pair[0]),
                                               pair[1]))

    def remove_old(self, newest: Path) -> None:
        """Remove checkpoints that are beyond ``save_total_limit``, the oldest first, but neither
        ``newest`` nor a copy under another name."""
        limit = self.about.get("save_total_limit")
        if limit is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that cannot be read, told when resuming
            mine = [path for step, path in self.checkpoints() if path == self.checkpoint_at(step)]
        for path in [path for path in mine if path != newest][: max(0, len(mine) - limit)]:
            path.unlink(missing_ok=True)

    def finish(self, trainer: GRPOTrainer) -> None:
        """The last checkpoint and the trained policy (one from transformers: into policy/)."""
        self.save(trainer)
        policy = unwrapped(trainer.policy)
        if hasattr(policy, "save_pretrained"):
            policy.save_pretrained(self.path / "policy")
            return
        save_policy(self.path / "policy.safetensors", trainer.policy, trainer.task.name)

    def restore(self, trainer: GRPOTrainer) -> None:
        """Bring a trainer made with this run's config to the newest checkpoint, and
        metrics.jsonl with it: steps after the checkpoint will be taken again. The settings are
        the checkpoint's; a warning tells where the trainer was made with others. A checkpoint
        that is damaged is left out, with a warning, for the one before it.

        BlockingIOError: another process is writing into the folder."""
        if trainer.processes.rank == 0:
            lock(self.path)
            for part in [*self.path.glob(".*.part"), *self.path.glob("checkpoints/.*.part")]:
                part.unlink()  # what a killed process had begun to write
        path = self.load_newest(trainer)
        if len(trainer.history) != trainer.step_count:
            raise CheckpointError(f"{self.path / 'metrics.jsonl'}: has {len(trainer.history)} of "
                                  f"the {trainer.step_count} steps before {path.name}")
        if trainer.processes.rank == 0:
            self.record_all(trainer.history)

    def load_newest(self, trainer: GRPOTrainer) -> Path:
        """Bring a trainer to the newest checkpoint that is whole."""
        for _, path in reversed(self.checkpoints()):
            trainer.history = self.metrics()
            try:
                trainer.load(path)
            except DamagedError as error:
                warnings.warn(f"{error}; it is left out", stacklevel=4)
                continue
            return path
        raise CheckpointError(f"{self.path}: has no checkpoint to resume from")

    def metrics(self) -> list[StepMetrics]:
        """The steps in metrics.jsonl; a last line cut short by a crash is left out."""
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        except ValueError as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from None
        # a whole line ends in a newline
        return [read_step(line, number, path) for number, line in enumerate(lines[:-1], start=1)]


def shape_of(policy: Policy) -> dict:
    """The settings that a policy was made by, where the library, or transformers, knows them."""
    inner = unwrapped(policy)
    known = type(inner) is TransformerPolicy or hasattr(inner, "save_pretrained")
    return inner.config.to_dict() if known else {}


def is_own(task: Task) -> bool:
    """Whether a task differs from the built-in one of its name, in class, settings or reward."""
    try:
        usual = get_task(task.name)
        return type(task) is not type(usual) or bool(vars(task) != vars(usual))
    except (ValueError, RuntimeError):  # no such name, or tensors, for which != gives no bool
        return True


def dtype_of(policy: Policy) -> str:
    """The number type of a policy's weights, as torch calls it."""
    return str(next(p.dtype for p in unwrapped(policy).parameters())).removeprefix("torch.")


def versions() -> dict:
    return {"grpo_lib": grpo_lib.__version__, "torch": torch.__version__,
            "python": platform.python_version(), "cpus": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}"}

