"""A steered run, written down and made again.

``steered`` makes a run again from the settings that it started with and its moves, number for
number; ``Export`` is a run as text: that very program, and the log.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, NamedTuple

from grpo_lib.config import GRPOConfig, StepMetrics, config_line
from grpo_lib.support.checkpoint import json_text
from grpo_lib.support.checks import check_whole
from grpo_lib.training import BUILT_WITH, GRPOTrainer

if TYPE_CHECKING:
    from grpo_lib.course.steering import SteeredRun


class Move(NamedTuple):
    """From ``step`` on, ``field`` of the settings is ``value``."""

    step: int
    field: str
    value: object


def steered(trainer: GRPOTrainer, moves: Sequence[tuple[int, str, object]],
            steps: int | None = None) -> Iterator[StepMetrics]:
    """``trainer.run(steps)`` with settings that change on the way.

    ``moves`` are (step, field, value): the first step that has the new value, from 1.
    ValueError: a field that GRPOConfig does not have or a trainer cannot change, a step that is
    behind the trainer, a value that GRPOConfig refuses.
    """
    moves = [Move(*move) for move in moves]
    allowed = [f.name for f in fields(GRPOConfig) if f.name not in BUILT_WITH]
    for move in moves:
        if move.field not in allowed:
            raise ValueError(f"moves: got field {move.field!r}, allowed are {', '.join(allowed)}")
        check_whole("moves: step", move.step, trainer.step_count + 1)
    return _steered(trainer, moves, steps)


def _steered(trainer, moves, steps):
    end = None if steps is None else trainer.step_count + steps
    while True:
        due = {m.field: m.value for m in moves if m.step == trainer.step_count + 1}
        if due:
            trainer.change(replace(trainer.config, **due))
        if trainer.step_count >= (trainer.config.steps if end is None else end):
            return
        yield from trainer.run(1)


class Export:
    """A run as text: ``config`` is Python, ``moves`` are (step, field, value), ``log`` metrics."""

    def __init__(self, run: SteeredRun):
        self.config, self.log = config_line(run.config), run.history
        self.moves = [tuple(move) for move in run.moves]

    @property
    def code(self) -> str:
        """Python that makes the run again."""
        return (f"from grpo_lib import ChainTask, GRPOConfig, GRPOTrainer, load_base_model\n"
                f"from grpo_lib.course.steering import steered\n\n"
                f"config = {self.config}\n"
                f"moves = {self.moves!r}\n"
                f"trainer = GRPOTrainer(load_base_model(\"chain\"), ChainTask(), config)\n"
                f"for metrics in steered(trainer, moves, {len(self.log)}):\n"
                f"    print(metrics.step, metrics.reward_mean)\n")

    @property
    def jsonl(self) -> str:
        """The log, an object a step, every digit kept."""
        return "".join(json_text(m.to_dict()) + "\n" for m in self.log)

    def as_html(self) -> str:
        data = base64.b64encode(self.jsonl.encode()).decode()
        return (f'<p><a download="metrics.jsonl" href="data:application/jsonl;base64,{data}">'
                f'metrics.jsonl</a> ({len(self.log)} steps). The same run again (with your own '
                f'policy and task, if you gave the cockpit others):</p>'
                f'<pre style="user-select:all">{html.escape(self.code)}</pre>')

    def __repr__(self) -> str:
        return f"{self.config}\nmoves = {self.moves!r}\n{len(self.log)} steps in the log"
