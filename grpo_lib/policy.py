"""Policies: anything that turns tokens into logits over the next token.

``TinyPolicy`` is the policy of the founding notebook; it has no context. The course's other one is
``transformer.TransformerPolicy``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grpo_lib.support.checks import check_device, check_floating

if TYPE_CHECKING:
    from grpo_lib.transformer import KVCache


class Policy(Protocol):
    """What sampling, scoring and evaluation need of a model (training: of an nn.Module).

    ``policy(tokens, mask, cache)`` takes tokens (B, T) and returns logits (B, T, V):
    logits[:, t] are for the token after tokens[:, t]. ``mask`` (B, T) is 1 on real tokens,
    0 on padding; None means no padding. With a cache, ``tokens`` continue what it holds.
    """

    def __call__(self, tokens: Tensor, mask: Tensor | None = None,
                 cache: KVCache | None = None) -> Tensor: ...

    def new_cache(self, batch: int, length: int) -> KVCache | None:
        """An empty cache for ``batch`` rows of up to ``length`` tokens, or None."""
        ...


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log pi(tokens[b, t]) under logits[b, t]: (B, T, V), (B, T) -> (B, T), in nats.

    logits[:, t] scores tokens[:, t]: the caller has made the shift by one
    (``rollout.completion_logits`` is the one place that does). ValueError: shapes that do not
    match, or ids outside 0 to V - 1.
    """
    check_floating("logits", logits)
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens: got a {type(tokens).__name__}, allowed is a tensor")
    check_device("tokens", tokens, "logits", logits)
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"tokens: shape {tuple(tokens.shape)} does not match logits "
                         f"{tuple(logits.shape)}; allowed is {tuple(logits.shape[:-1])}")
    log_probs = F.log_softmax(logits, dim=-1)
    try:
        return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    except (RuntimeError, IndexError):
        raise ValueError(f"tokens: got {tokens.dtype}, {tokens.min().item()} to "
                         f"{tokens.max().item()}; allowed are whole numbers from 0 to "
                         f"{logits.shape[-1] - 1}") from None


def token_entropy(logits: Tensor) -> Tensor:
    """H_t = -sum_v p_v log p_v of each next-token distribution: (B, T, V) -> (B, T), in nats.

    A token that cannot be sampled (logit -inf) contributes 0, its limit.
    """
    check_floating("logits", logits)
    if logits.dim() == 0:
        raise ValueError("logits: got one number, allowed is (..., V)")
    log_probs = F.log_softmax(logits, dim=-1)
    return torch.special.entr(log_probs.exp()).sum(-1)


class TinyPolicy(nn.Module):
    """The founding notebook's policy: embedding, one hidden layer, logits.

    Each token is looked at alone, so the policy cannot see its prompt: it can be sampled
    and trained like any other, and learns at most which token tends to follow which.
    """

    def __init__(self, vocab_size: int, d_model: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.net = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(),
                                 nn.Linear(d_model, vocab_size))

    def new_cache(self, batch: int, length: int) -> None:
        """None: without context there is nothing to keep."""
        return None

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache: None = None) -> Tensor:
        """tokens (B, T) -> logits (B, T, V); ``mask`` changes nothing, there is no context."""
        return self.net(self.embedding(tokens))
