"""What GRPO did away with: a value model, which PPO trains beside the policy.

What production codes have and this does not: value clipping, a critic of another size than the
policy, and warm-up of the critic alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from grpo_lib.objective import aggregate
from grpo_lib.rollout import Rollouts, completion_outputs
from grpo_lib.support.checks import check_shapes
from grpo_lib.support.modules import check_gradients_on, check_trainable, unwrapped
from grpo_lib.support.optim import adamw, clip_grad_norm
from grpo_lib.transformer import TransformerPolicy


class ValueModel(nn.Module):
    """The reward that is still to be expected, at every token: the policy's own transformer
    (copied, so as large again), with one number in place of the logits.

    It starts from the policy's weights, as is usual, and with a head of 0: every value 0.
    """

    def __init__(self, policy: TransformerPolicy):
        super().__init__()
        policy = unwrapped(policy)
        if not isinstance(policy, TransformerPolicy):
            raise TypeError(f"policy: got a {type(policy).__name__}, allowed is a "
                            f"TransformerPolicy, whose transformer the value model copies")
        self.config = policy.config
        self.transformer = copy.deepcopy(policy).requires_grad_(True)
        head = self.transformer.lm_head
        self.transformer.lm_head = nn.Linear(head.in_features, 1, bias=False).to(head.weight)
        nn.init.zeros_(self.transformer.lm_head.weight)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache: None = None) -> Tensor:
        """tokens (B, T), mask (B, T) -> values (B, T): of the state after each token."""
        return self.transformer(tokens, mask, cache).squeeze(-1)

    def outputs_at(self, tokens: Tensor, positions: Tensor, attend: Callable) -> Tensor:
        """Values (...); see ``TransformerPolicy.outputs_at``."""
        return self.transformer.outputs_at(tokens, positions, attend).squeeze(-1)


def completion_values(value_model: ValueModel, rollouts: Rollouts) -> Tensor:
    """V of the state before each completion token: (N*G, T), 0 where mask is 0."""
    return completion_outputs(value_model, rollouts).masked_fill(rollouts.mask == 0, 0.0)


def value_loss(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens of (V - return)^2 / 2: (B, T) each -> scalar."""
    check_shapes("B T", values=values, returns=returns, mask=mask)
    # before it is squared: 0 times the slope of a nan would be a nan gradient
    distance = (values - returns.detach()).masked_fill(mask == 0, 0.0)
    return aggregate(distance.square() / 2, mask, "token_mean")


class Critic:
    """A value model with its optimizer."""

    def __init__(self, value_model: ValueModel, learning_rate: float, max_grad_norm: float):
        check_trainable("value_model", value_model)
        self.value_model, self.max_grad_norm = value_model, max_grad_norm
        self.optimizer = adamw(value_model.parameters(), learning_rate)

    def change(self, learning_rate: float, max_grad_norm: float) -> None:
        """Use these settings from the next update on."""
        self.max_grad_norm = max_grad_norm
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    @torch.no_grad()
    def values(self, rollouts: Rollouts) -> Tensor:
        """V before each completion token, without gradient: (N*G, T)."""
        return completion_values(self.value_model, rollouts)

    def update(self, rollouts: Rollouts, returns: Tensor) -> float:
        """One gradient step towards ``returns`` (N*G, T); returns the value loss before it.
        FloatingPointError, and no step: a loss that is nan or inf."""
        check_gradients_on("update")
        loss = value_loss(completion_values(self.value_model, rollouts), returns, rollouts.mask)
        if not loss.isfinite():
            raise FloatingPointError(f"value loss: got {loss.item()}; that step was not taken")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_grad_norm(self.value_model, self.max_grad_norm, "value gradient")
        self.optimizer.step()
        return loss.item()


def state_numbers(parameters: int, critic: bool) -> dict[str, int]:
    """Numbers that training keeps, by what they are for, for a policy of that many parameters.

    Weights and gradients once, AdamW's two moments, for the policy and, with a critic, for a
    value model of the same size. Activations, and a reference policy, come on top.
    """
    models = 2 if critic else 1
    return {"weights": models * parameters, "gradients": models * parameters,
            "optimizer": 2 * models * parameters}
