"""What a trainer's checkpoint holds, and how a trainer comes back from it.

Weights and optimizer state by their plain names (``modules``), the generator, the step, and all
settings. The reference policy, which never changes, is in the checkpoint too, or in a file of its
own that many checkpoints refer to.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from grpo_lib.config import GRPOConfig
from grpo_lib.support.checkpoint import (
    CheckpointError,
    DamagedError,
    as_path,
    check_weights,
    describe,
    load_tensors,
    save_tensors,
)
from grpo_lib.support.modules import load_weights, named_weights, plain_name, weights_of

OF_THE_TRAINER = {"steps", "seed", "device", "eval_every", "eval_problems"}  # and not of a state


def save_reference(trainer, path: Path | str) -> None:
    """Write the reference policy's weights, for ``save_trainer(reference=path)``."""
    save_tensors(path, weights_of(trainer.ref_policy), {"kind": "reference"})


def save_trainer(trainer, path: Path | str,
                 reference: Path | str | None = None) -> None:
    """Everything needed to go on, bit for bit; ``reference`` is the file that has the reference
    policy (None: the checkpoint has it)."""
    path = as_path(path)
    about = {"kind": "trainer", "step": trainer.step_count, "task": trainer.task.name,
             "config": trainer.config.to_dict()}
    parts = {part: weights_of(module) for part, module in trainer.modules().items()}
    if reference is not None and parts["ref_policy"]:
        reference = as_path(reference)
        about["reference"] = {"file": Path(os.path.relpath(reference, path.parent)).as_posix(),
                              "checksum": describe(reference)["checksum"]}
        del parts["ref_policy"]
    tensors = {f"{part}.{name}": t for part, weights in parts.items()
               for name, t in weights.items()}
    for part, (module, optimizer) in trainer.optimizers().items():
        names = {p: name for name, p in named_weights(module).items()}
        tensors |= {f"{part}.{names[p]}.{key}": torch.as_tensor(value)
                    for p, state in optimizer.state.items() for key, value in state.items()}
    tensors["generator"] = trainer.generator.get_state()
    save_tensors(path, tensors, about)


def load_trainer(trainer, path: Path | str) -> None:
    """Bring a trainer to the state of a checkpoint, its settings included (``OF_THE_TRAINER``
    excepted). CheckpointError, and nothing has changed: damaged, or of another task, shape or
    precision."""
    path = as_path(path)
    tensors, about = load_tensors(path, "trainer")
    if about.get("task") != trainer.task.name:
        raise CheckpointError(f"{path}: is of a run on the task {about.get('task')!r}, allowed "
                              f"is {trainer.task.name!r}")
    modules, optimizers = trainer.modules(), trainer.optimizers()
    parts = in_parts(tensors, [*modules, *optimizers], path)
    if "reference" in about:
        parts["ref_policy"] = reference_of(path, about["reference"])
    for part, module in modules.items():
        check_weights(module, parts[part], path)
        check_precision(part, module, parts[part], path)
    try:
        step, generator = about["step"] + 0, torch.Generator()
        generator.set_state(tensors["generator"])
        states = {part: optimizer_state(part, named_weights(module), parts[part])
                  for part, (module, _) in optimizers.items()}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: is incomplete or damaged ({error})") from None
    try:
        trainer.change(settings_of(about, trainer.config))
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: its settings do not fit ({error})") from None
    for part, module in modules.items():
        load_weights(module, parts[part])
    for part, (_, optimizer) in optimizers.items():
        optimizer.state.clear()
        optimizer.state.update(states[part])
    trainer.generator, trainer.step_count, trainer.half_updated = generator, step, False


def check_precision(part: str, module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """CheckpointError where weights would be rounded on their way into a module."""
    for name, weight in named_weights(module).items():
        saved = weights[name].dtype if name in weights else weight.dtype  # adapters are saved alone
        if saved != weight.dtype:
            saved, own = (str(dtype).removeprefix("torch.") for dtype in (saved, weight.dtype))
            raise CheckpointError(f"{path}: its {part} is in {saved}, must be in {own} as the "
                                  f"trainer's is (make the trainer of policy.to(torch.{saved}))")


def in_parts(tensors: dict[str, Tensor], names: Iterable[str], path: Path) -> dict[str, dict]:
    """A checkpoint's tensors, part.name, by their parts."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][plain_name(rest)] = tensor
        elif part != "generator":
            raise CheckpointError(f"{path}: holds {name}, allowed are only {', '.join(parts)} "
                                  f"(with a value model it is of an algorithm with a critic)")
    return parts


def reference_of(path: Path, about: dict) -> dict[str, Tensor]:
    """The reference policy's weights from the file that a checkpoint refers to."""
    try:
        file = path.parent / about["file"]
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing; {path} needs it, since it holds the "
                                  f"reference policy, which is saved once for all checkpoints")
        tensors, _ = load_tensors(file, "reference")
        if describe(file)["checksum"] != about["checksum"]:
            raise CheckpointError(f"{file}: holds another reference policy than the one that "
                                  f"{path} was saved with")
    except DamagedError as error:  # no older checkpoint would do better
        raise CheckpointError(str(error)) from None
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is incomplete or damaged ({error})") from None
    return tensors


def settings_of(about: dict, config: GRPOConfig) -> GRPOConfig:
    """The settings that a checkpoint describes, in place of a trainer's."""
    return replace(config, **{name: value for name, value in about.get("config", {}).items()
                              if name not in OF_THE_TRAINER})


def tell_other_settings(made_with: GRPOConfig, now: GRPOConfig, path: Path | str) -> None:
    """A warning where a checkpoint has brought other settings than its new trainer was made
    with."""
    before, after = made_with.to_dict(), now.to_dict()
    others = [f"{name} {after[name]!r} (not {value!r})" for name, value in before.items()
              if after.get(name) != value]
    if others:
        warnings.warn(f"settings: going on with those that {as_path(path)} was saved with: "
                      f"{', '.join(others)}; trainer.change takes others", stacklevel=4)


def optimizer_state(part: str, parameters: dict[str, Tensor], saved: dict[str, Tensor]) -> dict:
    """AdamW's state of each parameter from a checkpoint's tensors, name.key -> value."""
    state: dict = {}
    for name, tensor in saved.items():
        parameter, key = name.rsplit(".", 1)
        values = state.setdefault(parameters[parameter], {})
        if key == "step":
            values[key] = tensor.to("cpu")
            continue
        if tensor.shape != parameters[parameter].shape:
            raise ValueError(f"{part}.{name} has shape {tuple(tensor.shape)}")
        # in memory as the parameter is: AdamW's fused kernel walks through both alike
        values[key] = torch.empty_like(parameters[parameter], dtype=tensor.dtype,
                                       requires_grad=False).copy_(tensor)
    if any(values.keys() != {"step", "exp_avg", "exp_avg_sq"} for values in state.values()):
        raise ValueError("the optimizer's state is incomplete")
    return state
