"""What an update does to every token of a batch: pushed up or down, blocked, or not counted.

Nothing here is a formula of its own: the push of a token is the derivative of the algorithm's
loss by that token's log-prob, taken by autograd, so it holds for every row of ``ALGORITHMS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lib.algorithms import ALGORITHMS, Algorithm
from grpo_lib.objective import importance_ratio, kl_estimate
from grpo_lib.rollout import Rollouts, completion_log_probs, up_to_last
from grpo_lib.training import GRPOTrainer

NOT_COUNTED, SILENT, BLOCKED, DOWN, UP = range(5)
STATES = {NOT_COUNTED: "not counted", SILENT: "silent", BLOCKED: "blocked", DOWN: "pushed down",
          UP: "pushed up"}
STATE_MEANS = {
    NOT_COUNTED: "the mask leaves it out",
    SILENT: "its advantage is 0, so that at most the KL term pushes it",
    BLOCKED: "has moved past the bound: the clip takes its gradient away, but for the KL term's",
    DOWN: "the update, with its KL term, makes it less likely",
    UP: "the update, with its KL term, makes it more likely"}


class TokenUpdate(NamedTuple):
    """All (B, T), float64, on the CPU; what is masked is 0."""

    advantages: Tensor
    ratio: Tensor  # the algorithm's own: of the token, or of the whole completion
    push: Tensor  # - d loss / d log_prob: above 0 the update makes the token likelier
    kl_push: Tensor  # the part of it that comes from the KL term
    state: Tensor  # long, a key of STATES


def token_update(algorithm: Algorithm, rollouts: Rollouts, rewards: Tensor, log_probs: Tensor, *,
                 ref_log_probs: Tensor | None = None, max_length: int | None = None,
                 advantages: Tensor | None = None) -> TokenUpdate:
    """What the next gradient step on a whole batch would do to each token.

    rewards (N, G) as the task gives them, nan where they abstain: the row is not counted; log_probs
    (N * G, T) of the policy that is about to be updated (``rollouts.log_probs``: none has been made
    yet); ref_log_probs needed if beta > 0; max_length as ``grpo_loss`` has it; advantages (N * G,)
    or (N * G, T), None if the rewards make them, which they do not with a critic. A token is
    BLOCKED if the loss without KL has no derivative by its log-prob now and had one at ratio 1.

    ValueError: shapes, a critic without advantages, or a loss that needs entropies, which a
    log-prob does not tell.
    """
    if algorithm.critic and advantages is None:
        raise ValueError("advantages: got None; those of an algorithm with a critic cannot be made "
                         "from rewards, allowed are its own (N * G, T)")
    if algorithm.needs_entropies:
        raise ValueError("algorithm: its loss needs the entropies of whole distributions "
                         "(entropy_coef, top_entropy_quantile); allowed are rows that need the "
                         "tokens' log-probs alone")
    if rewards.numel() != len(rollouts.mask) or rewards.dim() != 2:
        raise ValueError(f"rewards: got shape {tuple(rewards.shape)}, allowed is (N, G) with "
                         f"N * G = {len(rollouts.mask)}")
    if log_probs.shape != rollouts.mask.shape:
        raise ValueError(f"log_probs: got shape {tuple(log_probs.shape)}, allowed is "
                         f"{tuple(rollouts.mask.shape)}")
    mask, old, new = (t.detach().cpu().double() for t in (rollouts.mask, rollouts.log_probs,
                                                           log_probs))
    ref = None if ref_log_probs is None else ref_log_probs.detach().cpu().double()
    kl = None if ref is None else kl_estimate(old, ref, algorithm.kl)
    rewards = algorithm.shaped_rewards(rewards.cpu().double(), mask.sum(1), max_length)
    scored = ~rewards.isnan()
    if advantages is None:
        advantages = algorithm.advantages(rewards, mask, kl=kl,
                                          counted=None if scored.all() else scored)
    advantages = advantages.detach().cpu().double()
    rows = scored.flatten()
    counted = algorithm.loss_mask(mask, rollouts.finished.cpu()) * rows[:, None]

    def push(row: Algorithm, at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_()
        if not rows.any():
            return torch.zeros_like(leaf)
        with torch.enable_grad():
            loss = row.loss(leaf[rows], old[rows], advantages[rows], counted[rows],
                            max_length=max_length,
                            ref_log_probs=None if ref is None else ref[rows]).loss
            return -torch.autograd.grad(loss, leaf, materialize_grads=True)[0]

    without_kl = replace(algorithm, beta=0.0)
    policy, whole = push(without_kl, new), push(algorithm, new)
    could = push(without_kl, old) != 0
    state = torch.full(mask.shape, NOT_COUNTED)
    state[(counted > 0) & ~could] = SILENT
    state[(counted > 0) & could & (policy == 0)] = BLOCKED
    state[(counted > 0) & could & (policy != 0)] = SILENT  # unless anything is left with KL
    state[(counted > 0) & could & (policy != 0) & (whole < 0)] = DOWN
    state[(counted > 0) & could & (policy != 0) & (whole > 0)] = UP
    by_token = advantages if advantages.dim() == 2 else advantages[:, None]
    ratio = importance_ratio(new, old, mask, algorithm.ratio)
    return TokenUpdate(by_token * mask, ratio * mask, whole * counted, (whole - policy) * counted,
                       state)


def agreement(one: TokenUpdate, other: TokenUpdate) -> float:
    """Cosine between the pushes of two updates on the same tokens; nan if one has none."""
    a, b = one.push.flatten(), other.push.flatten()
    return (a @ b / (a.norm() * b.norm())).item()


@dataclass(frozen=True)
class Xray:
    """A batch of rollouts with what is needed to look into it.

    words[row][t]: the text of each token up to the last that counts; prompts[n]; rewards (N, G)
    as the task gives them; log_probs: named times -> (N * G, T), the first of them that of
    sampling.
    """

    rollouts: Rollouts
    rewards: Tensor
    words: Sequence[Sequence[str]]
    prompts: Sequence[str]
    log_probs: Mapping[str, Tensor]
    ref_log_probs: Tensor | None = None
    max_length: int | None = None
    algorithm: Algorithm = ALGORITHMS["grpo"]
    advantages: Tensor | None = None  # those of the algorithm's own that no rewards make

    def __post_init__(self):
        lengths = up_to_last(self.rollouts.mask).sum(1).tolist()
        if [len(row) for row in self.words] != lengths:
            raise ValueError("words: allowed is a list for each completion, with a text for each "
                             "of its tokens up to the last that counts")
        groups = len(lengths) // self.rollouts.group_size
        if len(self.prompts) != groups:
            raise ValueError(f"prompts: got {len(self.prompts)}, allowed are {groups}, one for "
                             f"each group")
        if not self.log_probs:
            raise ValueError("log_probs: got none, allowed are one or more named times")
        for when in self.log_probs:
            self.update(when)  # says what does not fit

    @classmethod
    def of(cls, trainer: GRPOTrainer) -> Xray:
        """The last step of a run, before and after it."""
        if trainer.rollouts is None:
            raise ValueError("trainer: has taken no step yet, so there is nothing to look into")
        rewards, _, ref_log_probs = trainer.score(trainer.problems, trainer.rollouts)
        with torch.no_grad():
            after = completion_log_probs(trainer.policy, trainer.rollouts,
                                         trainer.config.micro_batch_size)
        words = trainer.task.tokenizer.words
        completions = trainer.rollouts.completions.tolist()
        lengths = up_to_last(trainer.rollouts.mask).sum(1).tolist()
        return cls(trainer.rollouts, rewards,
                   [[words[i] for i in row[:length]] for row, length in zip(completions, lengths)],
                   [problem.prompt for problem in trainer.problems],
                   {"before the step": trainer.rollouts.log_probs, "after the step": after},
                   ref_log_probs, trainer.task.max_new_tokens, trainer.algorithm,
                   trainer.advantages if trainer.algorithm.critic else None)

    def update(self, when: str, algorithm: Algorithm | None = None) -> TokenUpdate:
        """What an update made at that time does, by this run's algorithm or another."""
        own = algorithm is None or algorithm.critic
        return token_update(algorithm or self.algorithm, self.rollouts, self.rewards,
                            self.log_probs[when], ref_log_probs=self.ref_log_probs,
                            max_length=self.max_length,
                            advantages=self.advantages if own else None)
