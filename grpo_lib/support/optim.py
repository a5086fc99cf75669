"""The optimizer of policy and value model, the length of a gradient, and numbers that are no
numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from grpo_lib.training import GRPOTrainer


ADAMW = {"betas": (0.9, 0.95), "weight_decay": 0.0}


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    """The optimizer of policy and value model; on a CPU all weights in one operation."""
    parameters = list(parameters)
    return torch.optim.AdamW(parameters, lr=learning_rate, **ADAMW,
                             fused=all(p.is_cpu for p in parameters) or None)


def nonfinite_names(tensors: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Names of those that hold nan or inf."""
    named = [(name, tensor.detach()) for name, tensor in tensors
             if tensor is not None and (tensor.is_floating_point() or tensor.is_complex())]
    if nn.utils.get_total_norm([tensor for _, tensor in named]).isfinite():  # in one operation
        return []
    return [name for name, tensor in named if not tensor.isfinite().all()]


def clip_grad_norm(module: nn.Module, longest: float, what: str) -> Tensor:
    """Shorten the gradient of a module's parameters to ``longest``; its length before.

    FloatingPointError, and nothing is changed: nan or inf in it, with the parameters' names.
    """
    try:
        return nn.utils.clip_grad_norm_(module.parameters(), longest, error_if_nonfinite=True)
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        names = nonfinite_names((name, p.grad) for name, p in module.named_parameters())
        raise FloatingPointError(f"{what}: its length is non-finite, with nan or inf for "
                                 f"{', '.join(names) or 'no single parameter'}; that gradient step "
                                 f"was not taken") from None


@contextmanager
def locate_nonfinite(trainer: GRPOTrainer) -> Iterator[None]:
    """At which step a number went wrong, and which weights had."""
    try:
        yield
    except FloatingPointError as error:
        weights, step = trainer.nonfinite_weights(), f"at step {trainer.step_count + 1}"
        raise FloatingPointError(
            f"{error}{'' if step in str(error) else ', ' + step}"
            f"{'; nan or inf in ' + ', '.join(weights) if weights else ''}") from None


def check_finite(**tensors: Tensor | None) -> None:
    """FloatingPointError with the names of those that hold nan or inf."""
    found = nonfinite_names(tensors.items())
    if found:
        raise FloatingPointError(f"{', '.join(found)}: got nan or inf, allowed are finite numbers; "
                                 f"no update was made")
