"""``Rollouts``: prompts with their sampled completions, as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from grpo_lib.policy import Policy
from grpo_lib.support.checks import settle
from grpo_lib.tokenizer import PAD


@dataclass(frozen=True)
class Rollouts:
    """N prompts with G completions each; row n * G + g is completion g of prompt n.

    tokens          (N*G, P+T)  prompts, left-padded to P tokens, then completions
    prompt_mask     (N*G, P)    True on prompt tokens, False on padding
    mask            (N*G, T)    True on the tokens that count, those the policy chose; up to and
                                including end-of-sequence
    log_probs       (N*G, T)    of the sampled tokens, from sampling; 0 where mask is False
    finished        (N*G,)      whether end-of-sequence came before max_new_tokens
    attention_mask  (N*G, T)    True on the completion tokens that later ones attend to, not on
                                padding; None: all up to the last that counts

    **Several turns.** A tool's answer, or an environment's, stands inside the completion and the
    policy reads it, but did not choose it: ``mask`` is False there, ``attention_mask`` True. So it
    is attended to in scoring and left out of loss, advantages, KL, entropy and lengths, and the
    verifier is not shown it. Sample a turn, write the answer behind it, and sample the next:

    >>> import torch
    >>> from grpo_lib import TinyPolicy, completion_log_probs, sample_groups
    >>> policy, generator = TinyPolicy(12, 8), torch.Generator().manual_seed(0)
    >>> first = sample_groups(policy, [[3, 4]], 2, max_new_tokens=4, generator=generator)
    >>> answer = torch.tensor([[7, 8]] * 2)  # of the tool, one for each completion
    >>> read = torch.cat((first.tokens, answer), 1)
    >>> texts = [row[seen].tolist() for row, seen in zip(read, torch.cat(
    ...     (first.prompt_mask, first.attended, torch.ones_like(answer) > 0), 1))]
    >>> then = sample_groups(policy, texts, 1, max_new_tokens=4, generator=generator)
    >>> both = first.followed_by(answer, then)
    >>> both.mask.shape == both.attention_mask.shape == both.completions.shape
    True
    >>> bool((~both.mask[:, 4:6]).all() and both.attention_mask[:, 4:6].all())
    True
    >>> torch.allclose(completion_log_probs(policy, both), both.log_probs)
    True

    A sampler that does this is given to ``GRPOTrainer(sampler=)``.

    ValueError: an attention_mask of another shape than mask, or 0 on a token that counts.
    """

    tokens: Tensor
    prompt_mask: Tensor
    mask: Tensor
    log_probs: Tensor
    finished: Tensor
    group_size: int
    temperature: float
    attention_mask: Tensor | None = None

    def __post_init__(self):
        settle(self, mask=self.mask != 0, prompt_mask=self.prompt_mask != 0)  # numbers too
        if self.attention_mask is None:
            return
        settle(self, attention_mask=self.attention_mask != 0)
        if self.attention_mask.shape != self.mask.shape:
            raise ValueError(f"attention_mask: got shape {tuple(self.attention_mask.shape)}, must "
                             f"be that of mask, {tuple(self.mask.shape)}")
        if (self.mask & ~self.attention_mask).any():
            raise ValueError("attention_mask: got 0 on a token that counts, must be 1 on each of "
                             "them")

    @property
    def attended(self) -> Tensor:
        """Which completion tokens are there, for later ones to attend to: bool (N*G, T)."""
        return up_to_last(self.mask) if self.attention_mask is None else self.attention_mask

    @property
    def prompt_length(self) -> int:
        return self.prompt_mask.shape[1]

    @property
    def completions(self) -> Tensor:
        """The completion tokens (N*G, T)."""
        return self.tokens[:, self.prompt_length :]

    @property
    def lengths(self) -> Tensor:
        """Tokens that count in each completion, end-of-sequence counted: (N*G,), float32."""
        return self.mask.sum(1).float()

    def select(self, rows: Tensor) -> Rollouts:
        """Some rows, cut after the last column in which a token of theirs counts, for a
        minibatch; their groups may be incomplete."""
        used = int(up_to_last(self.mask[rows]).any(0).sum().clamp(min=1))
        seen = None if self.attention_mask is None else self.attention_mask[rows][:, :used]
        return replace(self, tokens=self.tokens[rows][:, : self.prompt_length + used],
                       prompt_mask=self.prompt_mask[rows], mask=self.mask[rows][:, :used],
                       log_probs=self.log_probs[rows][:, :used], finished=self.finished[rows],
                       attention_mask=seen)

    def to(self, device: torch.device | str) -> Rollouts:
        """The same on another device."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in held.items()
                                 if isinstance(value, Tensor)}
        return replace(self, **moved)

    def scored_by(self, policy: Policy, rows_at_once: int | None = None) -> Rollouts:
        """The same completions with the log-probs of another policy."""
        from grpo_lib.rollout.shift import completion_log_probs

        with torch.no_grad():
            return replace(self, log_probs=completion_log_probs(policy, self, rows_at_once))

    @staticmethod
    def join(parts: Sequence[Rollouts]) -> Rollouts:
        """Several batches of one group size and temperature as one, padded to the longest."""
        if len(parts) == 1:
            return parts[0]
        if len({(part.group_size, part.temperature) for part in parts}) != 1:
            raise ValueError("parts: got different group sizes or temperatures, allowed is one or "
                             "more rollouts of the same")
        width, used = (max(getattr(part, name).shape[1] for part in parts)
                       for name in ("prompt_mask", "mask"))

        def stack(pick, left=0, right=0, fill=0):
            return torch.cat([F.pad(pick(part), (left - part.prompt_length if left else 0,
                                                 right - part.mask.shape[1] if right else 0),
                                    value=fill) for part in parts])

        given = any(part.attention_mask is not None for part in parts)
        return replace(parts[0], tokens=stack(lambda p: p.tokens, width, used, PAD),
                       prompt_mask=stack(lambda p: p.prompt_mask, width),
                       mask=stack(lambda p: p.mask, 0, used),
                       log_probs=stack(lambda p: p.log_probs, 0, used),
                       finished=torch.cat([part.finished for part in parts]),
                       attention_mask=stack(lambda p: p.attended, 0, used) if given else None)

    def followed_by(self, answer: Tensor, then: Rollouts) -> Rollouts:
        """This turn, an answer to it that the policy reads (N*G, A), and its next turn: ``then``
        is sampled in groups of 1 from these rows' texts, in their order."""
        nothing = torch.zeros_like(answer, dtype=torch.bool)

        def beside(name: str, between: Tensor) -> Tensor:
            return torch.cat((getattr(self, name), between, getattr(then, name)), 1)

        return replace(self, tokens=torch.cat((self.tokens, answer, then.completions), 1),
                       mask=beside("mask", nothing), finished=then.finished,
                       log_probs=beside("log_probs", nothing.to(self.log_probs.dtype)),
                       attention_mask=beside("attended", ~nothing))


def up_to_last(mask: Tensor) -> Tensor:
    """The tokens of each row up to the last that counts, the gaps between included: bool (B, T)."""
    return mask.flip(1).cumsum(1).flip(1) > 0
