"""A run that is steered while it goes on, in a thread of its own.

``SteeredRun`` starts, pauses, steps, goes back to a checkpoint, and takes other settings between
steps; what was moved, and when, is kept in ``moves``, of which ``replay`` makes the same run
again. No widgets here: those are ``explorers.cockpit``.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from grpo_lib.config import GRPOConfig, StepMetrics
from grpo_lib.course.replay import Move, steered  # noqa: F401
from grpo_lib.support.checks import check_whole
from grpo_lib.support.signals import finish_step_first
from grpo_lib.training import BUILT_WITH, GRPOTrainer

READY, RUNNING, PAUSED, FINISHED, FAILED, CLOSED = (
    "ready", "running", "paused", "finished", "failed", "closed")


class SteeredRun:
    """A training run with a start, a pause and other settings on the way.

    ``make_trainer(config)`` builds a trainer with a fresh policy, at once and at each ``reset``.
    A thread exists only while the run goes on. Every ``checkpoint_every`` steps, and at step 0, a
    checkpoint is kept until ``close``, in a temporary folder. ``on_change()`` is called after
    each step and when the state changes, in whichever thread that happens.

    ``state`` is ready, running, paused, finished, failed (``error`` says why: go ``back`` or
    ``reset``) or closed. ``moves`` and ``history`` are those of the run as it now is: going back
    cuts both.
    """

    def __init__(self, make_trainer: Callable[[GRPOConfig], GRPOTrainer], config: GRPOConfig, *,
                 checkpoint_every: int = 5, on_change: Callable[[], None] | None = None):
        checkpoint_every = check_whole("checkpoint_every", checkpoint_every, 1)
        self.make_trainer, self.config, self.checkpoint_every = (make_trainer, config,
                                                                 checkpoint_every)
        self.on_change = on_change or (lambda: None)
        self.folder = Path(tempfile.mkdtemp(prefix="grpo_run_"))
        self._clean_up = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._lock = threading.RLock()
        self._stop, self._done, self._thread = threading.Event(), threading.Event(), None
        self._done.set()
        self.state = READY
        self._fresh()

    def _fresh(self) -> None:
        self.trainer = self.make_trainer(self.config)
        self.trainer.tell = partial(note, weakref.ref(self))  # warnings of a thread get lost
        self.wanted = self.trainer.config
        self.moves: list[Move] = []
        self.checkpoints: list[int] = []
        self.error: BaseException | None = None
        self.note = ""
        self.state = READY
        self._checkpoint()

    @property
    def history(self) -> list[StepMetrics]:
        """The metrics of all steps so far."""
        return list(self.trainer.history)

    @property
    def running(self) -> bool:
        return not self._done.is_set()

    @property
    def pausing(self) -> bool:
        """Whether the run goes on until its step is done, and no longer."""
        return self.state == RUNNING and self._stop.is_set()

    # --- what may be asked for, from any thread -------------------------------------------------

    def start(self, steps: int | None = None) -> None:
        """Go on, for so many steps (None: to the end of the settings). No effect on a run that
        is going on."""
        with self._lock:
            self._open("start")
            if self.running:
                return
            if self.state == FAILED:
                raise RuntimeError(f"start: the run failed ({self.error}); go back to a checkpoint "
                                   f"or reset first")
            if self.trainer.step_count >= self.wanted.steps:
                self.state = FINISHED
            elif steps != 0:
                # Events of its own, so that nobody can call an earlier thread back to work. Not
                # Thread.join and is_alive: before Python 3.13 a Ctrl-C in join makes a living
                # thread count as ended.
                self._stop, self._done = threading.Event(), threading.Event()
                self._thread = threading.Thread(
                    target=work, args=(weakref.ref(self), steps, self._stop, self._done),
                    name="grpo-run", daemon=True)
                self.state = RUNNING
                self._thread.start()
        self._tell()

    def pause(self) -> None:
        """Stop after the step that is being taken; returns when it has."""
        self._stop.set()
        done = self._done
        if self.running:
            self._tell()  # a step may take long
        if self._thread is not threading.current_thread():
            while not done.wait(0.2):  # in pieces: a wait without a limit is not interrupted
                pass  # everywhere

    def run(self, steps: int | None = None) -> list[StepMetrics]:
        """Take steps and wait for them; their metrics. A notebook's stop button pauses the run
        after the step that is being taken, and KeyboardInterrupt comes then."""
        self.pause()
        before = self.trainer.step_count
        self._until_done(lambda: self.start(steps))
        if self.state == FAILED:
            raise self.error
        return [m for m in self.history if m.step > before]

    def wait(self) -> None:
        """Wait until the run pauses or ends. KeyboardInterrupt: it is paused first."""
        self._until_done(lambda: None)

    def _until_done(self, begin: Callable[[], None]) -> None:
        # An exception would be lost where Ctrl-C falls into a callback of the interpreter's own,
        # as drawing has many: so it is noted, and raised at the end.
        with finish_step_first() as interrupted:
            begin()
            while not self._done.wait(0.1):
                if interrupted:
                    self._stop.set()
        if interrupted:
            raise KeyboardInterrupt

    def set(self, **settings) -> None:
        """Other settings, from the next step on.

        ValueError: what GRPOConfig refuses, or a setting that cannot change any more; then none
        is taken. What GRPOConfig warns of is in ``note``.
        """
        with self._lock:
            self._open("set")
            unknown = settings.keys() - {f.name for f in fields(GRPOConfig)}
            if unknown:
                raise ValueError(f"{sorted(unknown)[0]}: no such setting of GRPOConfig")
            for name in BUILT_WITH:
                if name in settings and settings[name] != getattr(self.wanted, name):
                    raise ValueError(f"{name}: cannot change in a run, reset it with other "
                                     f"settings")
            wanted, self.note = with_warnings_captured(lambda: replace(self.wanted, **settings))
            if wanted.choices.critic != self.trainer.algorithm.critic:
                raise ValueError(f"algorithm: got {wanted.algorithm!r}, whose critic a run does "
                                 f"not gain or lose on the way")
            self.wanted = wanted
            if wanted.steps > self.trainer.step_count and self.state == FINISHED:
                self.state = PAUSED

    def back(self, step: int) -> None:
        """Go back to a checkpoint: weights, optimizer, generator and settings of that step."""
        self.pause()
        with self._lock:
            self._open("back")
            if step not in self.checkpoints:
                raise ValueError(f"step: got {step!r}, allowed are those with a checkpoint: "
                                 f"{', '.join(map(str, self.checkpoints))}")
            self.trainer.load(self._path(step))
            self.moves = [m for m in self.moves if m.step <= step]
            self.checkpoints = [s for s in self.checkpoints if s <= step]
            then, _ = with_warnings_captured(lambda: replace(self.config, **{m.field: m.value
                                                              for m in self.moves}))
            self.trainer.change(then)
            self.wanted, self.error, self.note = then, None, ""
            self.state = PAUSED if step else READY
        self._tell()

    def reset(self, config: GRPOConfig | None = None) -> None:
        """A fresh run, with the settings that it started with or others."""
        self.pause()
        with self._lock:
            self._open("reset")
            self.config = config or self.config
            self._fresh()
        self._tell()

    def close(self) -> None:
        """Pause, and give up the checkpoints; the history can still be read."""
        self.pause()
        with self._lock:
            if self.state != CLOSED:
                self.state = CLOSED
                self._clean_up()
        self._tell()

    # --- what the thread does ------------------------------------------------------------------

    def _one_step(self) -> bool:
        """Take a step with the settings that are wanted by now; False if it failed."""
        self._take_settings()
        trainer = self.trainer
        try:
            trainer.step()
        except BaseException as error:
            self.error = error
            return False
        if trainer.step_count % self.checkpoint_every == 0:
            self._checkpoint()
        return True

    def _take_settings(self) -> None:
        """What is wanted holds from the next step on, and is a move."""
        with self._lock:
            wanted, trainer = self.wanted, self.trainer
            changed = [f.name for f in fields(wanted)
                       if getattr(wanted, f.name) != getattr(trainer.config, f.name)]
            if changed:
                trainer.change(wanted)
                self.moves += [Move(trainer.step_count + 1, name, getattr(wanted, name))
                               for name in changed]

    def _checkpoint(self) -> None:
        """Keep a checkpoint; a full disk costs the checkpoint and not the run."""
        try:
            self.folder.mkdir(exist_ok=True)  # temporary folders get tidied away
            self.trainer.save(self._path(self.trainer.step_count))
            self.checkpoints.append(self.trainer.step_count)
        except OSError as error:
            self.note = f"no checkpoint of step {self.trainer.step_count}: {error}"

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:05d}.safetensors"

    def _tell(self) -> None:
        """Call ``on_change``; the run does not die of what that does wrong."""
        try:
            self.on_change()
        except Exception as error:
            self.note = f"on_change: {type(error).__name__}: {error}"

    def _open(self, what: str) -> None:
        if self.state == CLOSED:
            raise RuntimeError(f"{what}: this run was closed (its cell was run again, perhaps); "
                               f"make another one")


def note(reference: weakref.ref[SteeredRun], text: str) -> None:
    """Make ``text`` the run's note, if there still is a run."""
    run = reference()
    if run is not None:
        run.note = text


def work(reference: weakref.ref[SteeredRun], steps: int | None, stop: threading.Event,
         done: threading.Event) -> None:
    """What the thread runs: ``steps`` steps (None: to the end, wherever that is moved). It holds
    on to the run during a step only, so that one that nobody else holds ends."""
    try:
        taken = 0
        while not stop.is_set() and taken != steps:
            run = reference()
            if run is None or run.trainer.step_count >= run.wanted.steps or not run._one_step():
                break
            taken += 1
            if taken != steps and run.trainer.step_count < run.wanted.steps:
                run._tell()
            run = None
            time.sleep(0)  # others may want the interpreter
        run = reference()
        if run is not None:
            at_end = run.trainer.step_count >= run.wanted.steps
            if at_end and run.error is None:
                run._take_settings()  # the end itself may have been moved to here
            run.state = FAILED if run.error is not None else FINISHED if at_end else PAUSED
            run._tell()
    finally:
        done.set()


def with_warnings_captured(make: Callable[[], GRPOConfig]) -> tuple[GRPOConfig, str]:
    """A config, and what it warned of."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        config = make()
    return config, " ".join(str(warning.message) for warning in heard)
