"""Lesson 04: the ratio, the clipped surrogate, the binding clip fraction."""

from __future__ import annotations

import torch

from grpo_lib.course.exercises.base import Exercise, Faults, Mistake
from grpo_lib.course.exercises.policy import GUARD, numbers


def write_ratio(faults: Faults):
    def importance_ratio(log_probs, old_log_probs):
        if "upside down" in faults:
            log_probs, old_log_probs = old_log_probs, log_probs
        if "quotient of logs" in faults:
            return log_probs / old_log_probs
        if "no exp" in faults:
            return log_probs - old_log_probs
        if {"of the row", "of the row, at every token"} & faults:
            row = (log_probs - old_log_probs).mean(-1, keepdim=True).exp()
            return row if "of the row" in faults else row.expand_as(log_probs)
        if "less itself" in faults:
            return (log_probs - log_probs).exp()
        if "old with gradient" in faults:
            return (log_probs - log_probs.detach() + old_log_probs - old_log_probs).exp()
        return (log_probs - old_log_probs).exp()

    return importance_ratio


def ratio_cases():
    yield "one token", (torch.tensor([[-1.0]], dtype=torch.float64),
                        torch.tensor([[-1.5]], dtype=torch.float64))
    yield "two rows", (-numbers(6, 2, 3).abs(), -numbers(7, 2, 3).abs())


IMPORTANCE_RATIO = Exercise(
    "importance_ratio", "04",
    "Write importance_ratio(log_probs (B, T), old_log_probs (B, T)) -> (B, T): how much likelier "
    "each token has become since it was sampled.",
    write_ratio, ratio_cases, (
        Mistake("upside down", "old over new: the ratio is the wrong way up.",
                "lesson 04, section 1"),
        Mistake("no exp", "this is the difference of the logs; the ratio is its exp.",
                "lesson 04, section 1"),
        Mistake("quotient of logs", "you divide log-probs by each other; the ratio of the "
                "probabilities is the exp of their difference.", "lesson 04, section 1"),
        Mistake("of the row", "this is GSPO's ratio, one for the whole row.",
                "lesson 08, section 1", legitimate=True, ways=("of the row, at every token",)),
        Mistake("old with gradient", "you compare the policy with itself, so that every ratio is "
                "1: the old log-probs are those of sampling.", "lesson 04, section 4",
                ways=("less itself",))),
    '''def importance_ratio(log_probs, old_log_probs):
    return (log_probs - old_log_probs).exp()''', gradient_of=0)


def write_surrogate(faults: Faults):
    def clipped_surrogate(ratio, advantages, epsilon):
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        if "clipped above only" in faults:
            clipped = ratio.clamp(max=1 + epsilon)
        if "clipped about 0" in faults:
            clipped = ratio.clamp(-epsilon, epsilon)
        if "advantage without sign" in faults:
            advantages = advantages.abs()
        free, held = ratio * advantages, clipped * advantages
        if "product clipped" in faults:
            held = free.clamp(1 - epsilon, 1 + epsilon)
        if "no minimum" in faults:
            result = held
        elif "never clipped" in faults:
            result = free
        elif "maximum" in faults:
            result = torch.maximum(free, held)
        elif "maximum where A < 0" in faults:
            result = torch.where(advantages < 0, torch.maximum(free, held),
                                 torch.minimum(free, held))
        else:
            result = torch.minimum(free, held)
        return -result if "a loss" in faults else result

    return clipped_surrogate


def surrogate_cases():
    for name, ratio, advantage in (("A > 0, ratio inside", 1.1, 1.0), ("A > 0, too high", 1.5, 1.0),
                                   ("A > 0, too low", 0.5, 1.0), ("A < 0, too high", 1.5, -1.0),
                                   ("A < 0, too low", 0.5, -1.0), ("A < 0, inside", 0.9, -1.0)):
        yield name, (torch.tensor([[ratio]], dtype=torch.float64),
                     torch.tensor([[advantage]], dtype=torch.float64), 0.2)
    yield "many", (numbers(8, 4, 5).exp(), numbers(9, 4, 1), 0.2)
    yield "many, and a narrower clip", (numbers(24, 3, 5).exp(), numbers(25, 3, 1), 0.05)


CLIPPED_SURROGATE = Exercise(
    "clipped_surrogate", "04",
    "Write clipped_surrogate(ratio (B, T), advantages (B, 1), epsilon) -> (B, T), to be maximised: "
    "min(r A, clip(r, 1 - epsilon, 1 + epsilon) A).",
    write_surrogate, surrogate_cases, (
        Mistake("maximum", "you take the larger of the two: then nothing ever holds it back.",
                "lesson 04, section 2"),
        Mistake("maximum where A < 0", "for A < 0 you take the maximum; it is the minimum for both "
                "signs, since A carries the sign. Yours blocks the way back.",
                "lesson 04, section 2"),
        Mistake("no minimum", "without the minimum a token that moved too far the *wrong* way can "
                "never come back.", "lesson 04, section 2"),
        Mistake("never clipped", "nothing is clipped here.", "lesson 04, section 2"),
        Mistake("product clipped", "you clip r A; the ratio is clipped, before the product.",
                "lesson 04, section 2"),
        Mistake("clipped above only", "1 - epsilon is missing: the ratio is held on both sides.",
                "lesson 04, section 2"),
        Mistake("clipped about 0", "the ratio is held about 1, not about 0.",
                "lesson 04, section 2"),
        Mistake("advantage without sign", "the sign of A is lost.", "lesson 04, section 2"),
        Mistake("a loss", "this is minus what is asked: the surrogate is to be maximised.",
                "lesson 04, section 2", legitimate=True)),
    '''import torch


def clipped_surrogate(ratio, advantages, epsilon):
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return torch.minimum(ratio * advantages, clipped * advantages)''', gradient_of=0)


def write_clip_fraction(faults: Faults):
    def clip_fraction(ratio, advantages, mask, epsilon):
        low, high = ratio < 1 - epsilon, ratio > 1 + epsilon
        if "edge counted" in faults:
            low, high = ratio <= 1 - epsilon, ratio >= 1 + epsilon
        if "whatever the sign" in faults:
            blocked = low | high
        elif "other sides" in faults:
            blocked = ((advantages > 0) & low) | ((advantages < 0) & high)
        elif "above only" in faults:
            blocked = (advantages > 0) & high
        else:
            blocked = ((advantages < 0) & low) | ((advantages > 0) & high)
        if "padding counted" in faults:
            return blocked.double().sum() / mask.sum()
        blocked = blocked & (mask > 0)
        if "of all cells" in faults:
            return blocked.double().mean()
        if "mean of the rows" in faults:
            return (blocked.sum(1) / mask.sum(1)).double().mean()
        return blocked.sum() / mask.sum()

    return clip_fraction


def clip_fraction_cases():
    one = torch.tensor([[1.0]], dtype=torch.float64)
    for name, ratio, advantage in (("A > 0, too low: it flows", 0.5, 1.0),
                                   ("A > 0, too high: blocked", 1.5, 1.0),
                                   ("A < 0, too low: blocked", 0.5, -1.0),
                                   ("on the edge: it flows", 1.25, 1.0)):
        yield name, (torch.tensor([[ratio]], dtype=torch.float64), advantage * one, one, 0.25)
    ratio = torch.tensor([[0.5, 1.5, 1.0, 1.5], [0.5, 0.5, 1.5, 1.5]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.float64)
    yield "two rows with padding", (ratio, torch.tensor([[1.0], [-1.0]], dtype=torch.float64), mask,
                                    0.25)
    signs = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    yield "and the other signs", (ratio, signs, mask, 0.25)
    yield "and a wider clip", (ratio + torch.tensor([0.125, -1.125, 0.75, 0.25]).double(), signs,
                               mask.clone(), 0.5)


CLIP_FRACTION = Exercise(
    "clip_fraction", "04",
    "Write clip_fraction(ratio (B, T), advantages (B, 1), mask (B, T), epsilon) -> scalar: the "
    "share of tokens whose gradient the clip blocks.",
    write_clip_fraction, clip_fraction_cases, (
        Mistake("whatever the sign", "you count |r - 1| > epsilon; where A > 0 and r is too low, "
                "or A < 0 and r too high, the gradient flows.", "lesson 04, section 4"),
        Mistake("other sides", "you count the two sides on which the gradient flows.",
                "lesson 04, section 4"),
        Mistake("above only", "A < 0 with r < 1 - epsilon is blocked too.", "lesson 04, section 4"),
        Mistake("padding counted", "padding is counted among the blocked.", "lesson 04, section 4"),
        Mistake("of all cells", "you divide by all cells of the table, padding too.",
                "lesson 04, section 4"),
        Mistake("mean of the rows", "you average the rows' shares; every token is to count once.",
                "lesson 04, section 4"),
        Mistake("edge counted", "on the edge itself the gradient flows.", "lesson 04, section 4")),
    '''def clip_fraction(ratio, advantages, mask, epsilon):
    low = (advantages < 0) & (ratio < 1 - epsilon)
    high = (advantages > 0) & (ratio > 1 + epsilon)
    return ((low | high) & (mask > 0)).sum() / mask.sum()''', rtol=GUARD)

EXERCISES = (IMPORTANCE_RATIO, CLIPPED_SURROGATE, CLIP_FRACTION)
