"""Lesson 08: GAE, whitening, an algorithm as a row."""

from __future__ import annotations

import torch

from grpo_lib.algorithms import ALGORITHMS, Algorithm
from grpo_lib.course.exercises.base import Exercise, Mistake
from grpo_lib.course.exercises.comparing import NOTHING, Answer, Unanswered, WrongKind, named
from grpo_lib.course.exercises.policy import numbers, table


def gae_cases():
    yield "one token", (table([1.0]), table([0.25]), 0.9, 0.8)
    yield "reward at the end", (table([0.0, 0.0, 1.0]), table([0.5, 0.25, 0.75]), 1.0, 0.5)
    yield "discounted", (table([1.0, 2.0]), table([0.5, 0.25]), 0.5, 1.0)
    yield "many", (numbers(18, 6), numbers(19, 6), 0.9, 0.7)


GAE = Exercise(
    "gae", "08", "lesson 08, section 4",
    "Write gae(rewards (T,), values (T,), gamma, lam) -> (T,): A_t = delta_t + gamma lam A_(t+1), "
    "delta_t = r_t + gamma V_(t+1) - V_t, and the value after the end is 0.",
    '''import torch


def gae(rewards, values, gamma, lam):
    advantages, later, value_after = [], 0.0, 0.0
    for reward, value in zip(rewards.flip(0), values.flip(0)):
        later = reward + gamma * value_after - value + gamma * lam * later
        value_after = value
        advantages.append(later)
    return torch.stack(advantages[::-1])''',
    gae_cases, (
        Mistake("last value carried on", "the value after the last token is 0, not that of the "
                "last state.", ("[], 0.0, 0.0", "[], 0.0, values[-1]")),
        Mistake("value of the same state", "delta looks ahead: gamma times the value of the *next* "
                "state.", ("gamma * value_after", "gamma * value")),
        Mistake("next value undiscounted", "the next value is discounted by gamma.",
                ("gamma * value_after", "value_after")),
        Mistake("values added", "the value of the state is subtracted: it is what was expected.",
                ("- value +", "+ value +")),
        Mistake("lambda left out", "without lambda in the sum this is the return less the value, "
                "whatever lambda is.", ("gamma * lam", "gamma")),
        Mistake("gamma left out of the sum", "A_(t+1) is multiplied by gamma lam, not by lam "
                "alone.", ("gamma * lam", "lam")),
        Mistake("forwards", "the sum runs from the end to the beginning: A_t is made of what comes "
                "after t.",
                (("value in zip(rewards.flip(0), values.flip(0))",
                  "value, value_after in zip(rewards, values, [*values[1:], 0.0])"),
                 ("        value_after = value\n", ""), ("[::-1]", ""))),
        Mistake("returns", "this is A + V, what a critic is trained towards.",
                ("[::-1])", "[::-1]) + values"), legitimate=True)))

# How a row behaves, as numbers: its advantages, its loss and the loss's gradient on one batch.
REWARDS = table([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
LENGTHS = torch.tensor([[2], [4], [1], [3], [4], [2]])


def behaviour(row: Algorithm) -> torch.Tensor:
    mask = (torch.arange(4) < LENGTHS).double()
    log_probs = -numbers(20, 6, 4).abs().requires_grad_()
    old = log_probs.detach() + 0.4 * numbers(21, 6, 4)
    advantages = row.advantages(REWARDS, mask)
    loss = row.loss(log_probs, old, advantages, mask, max_length=8).loss
    gradient = torch.autograd.grad(loss, log_probs)[0]
    return torch.cat((advantages.flatten(), loss.detach()[None], gradient.flatten()))


PARTS = (("advantage", REWARDS.numel()), ("loss", 1), ("gradient", 4 * len(LENGTHS)))


class RowExercise(Exercise):
    """A learner's function gives an Algorithm; what counts is what it does."""

    def answer(self, function, arguments):
        given = function(*arguments)
        if any(given is nothing for nothing in NOTHING):
            raise Unanswered(repr(given))
        if not isinstance(given, Algorithm):
            raise WrongKind(f"it returned {named(given)}, allowed is an Algorithm")
        return Answer(behaviour(given), parts=PARTS)


def row_cases():
    yield "the row grpo", (ALGORITHMS["grpo"],)


DR_GRPO_ROW = RowExercise(
    "dr_grpo_row", "08", "lesson 08, section 1",
    "Write dr_grpo_row(start) -> Algorithm: turn the row of GRPO into Dr. GRPO's, with "
    "dataclasses.replace and without looking it up in the table.",
    '''from dataclasses import replace


def dr_grpo_row(start):
    return replace(start, scale="none", aggregation="constant")''',
    row_cases, (
        Mistake("std kept", "the std of the group is still there.", ('scale="none", ', "")),
        Mistake("divided by lengths", "each completion is still divided by its own length.",
                (', aggregation="constant"', "")),
        Mistake("token mean", "the divisor is the number of tokens of the batch; Dr. GRPO's is a "
                "constant.", ('"constant"', '"token_mean"'), read="lesson 06, section 1"),
        Mistake("nothing subtracted", "the group's mean stays in Dr. GRPO.",
                ("start, ", 'start, baseline="none", ')),
        Mistake("leave one out", "with the mean of the others this is RLOO with a constant "
                "divisor, G / (G - 1) times Dr. GRPO.",
                ("start, ", 'start, baseline="leave_one_out", '), read="lesson 03, section 2",
                legitimate=True)))

EXERCISES = (GAE, DR_GRPO_ROW)
