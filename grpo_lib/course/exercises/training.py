"""Lesson 00 and 07: one training step."""

from __future__ import annotations

import torch
from torch import nn

from grpo_lib.course.exercises.base import Exercise, Faults, Mistake
from grpo_lib.course.exercises.comparing import Answer, as_tensor
from grpo_lib.course.exercises.policy import numbers


class Bigram(nn.Module):
    """A policy whose next word depends on the last: tokens (B, T) -> logits (B, T, V)."""

    def __init__(self, words: int):
        super().__init__()
        self.table = nn.Parameter(0.5 * numbers(22, words, words))

    def forward(self, tokens):
        return self.table[tokens]


def write_step(faults: Faults):
    def train_step(policy, optimizer, tokens, advantages):
        logits = policy(tokens)
        scores = logits.log_softmax(-1)
        if "not shifted" in faults:
            scores, chosen = scores[:, 1:], tokens[:, 1:]
        else:
            scores, chosen = scores[:, :-1], tokens[:, 1:]
        log_probs = scores.gather(-1, chosen[..., None]).squeeze(-1)
        weights = advantages.abs() if "advantage without sign" in faults else advantages
        loss = -(weights[:, None] * log_probs).mean()
        if "uphill" in faults:
            loss = -loss
        if "gradients pile up" not in faults:
            optimizer.zero_grad()
        loss.backward()
        if "nothing moves" in faults:
            optimizer.zero_grad()
        optimizer.step()
        if "two steps" in faults:
            optimizer.step()
        return loss

    return train_step


def step_cases():
    for name, rows, advantages in (("one row", [[0, 1, 2]], [1.0]),
                                   ("two rows", [[0, 1, 2, 1], [2, 0, 1, 1]], [1.0, -0.5])):
        policy = Bigram(3)
        yield name, (policy, torch.optim.SGD(policy.parameters(), lr=0.5), torch.tensor(rows),
                     torch.tensor(advantages, dtype=torch.float64))


class StepExercise(Exercise):
    """What counts is the policy after two steps, and the loss that the second returns."""

    @torch.enable_grad()
    def answer(self, function, arguments):
        function(*arguments)
        loss = as_tensor(function(*arguments))
        weights = [p.detach().flatten() for p in arguments[0].parameters()]
        return Answer(torch.cat([loss.double().reshape(1), *weights]),
                      parts=(("loss", 1), ("weight", sum(map(len, weights)))))


TRAIN_STEP = StepExercise(
    "train_step", "07",
    "Write train_step(policy, optimizer, tokens (B, T), advantages (B,)) -> loss: one gradient "
    "step up A log pi, the mean over all tokens but each row's first (here all of them count).",
    write_step, step_cases, (
        Mistake("gradients pile up", "the gradients of the step before are still there: "
                "optimizer.zero_grad() is missing.", "lesson 00, section 6"),
        Mistake("nothing moves", "the policy is as it was: is there a loss.backward() before "
                "optimizer.step(), and are the gradients not zeroed in between?",
                "lesson 00, section 6"),
        Mistake("two steps", "the optimizer takes two steps with one gradient.",
                "lesson 00, section 6"),
        Mistake("uphill", "the sign is wrong: an optimizer goes downhill, so the loss is minus "
                "what is to rise.", "lesson 00, section 6"),
        Mistake("not shifted", "token t is scored by the logits at t, which have seen it.",
                "lesson 01, section 3"),
        Mistake("advantage without sign", "the advantage has lost its sign: bad answers are made "
                "likelier too.", "lesson 03, section 1")),
    '''def train_step(policy, optimizer, tokens, advantages):
    log_probs = policy(tokens[:, :-1]).log_softmax(-1)
    log_probs = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    loss = -(advantages[:, None] * log_probs).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss''')

EXERCISES = (TRAIN_STEP,)
