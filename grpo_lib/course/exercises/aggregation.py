"""Lesson 06: three ways to divide, and the whole loss."""

from __future__ import annotations

import torch

from grpo_lib.course.exercises.base import Exercise, Faults, Mistake
from grpo_lib.course.exercises.policy import GUARD, numbers

RAGGED = (torch.arange(5) < torch.tensor([[5], [2], [1], [3]])).double()
WAYS = ("sequence_mean", "token_mean", "constant")
NAMES = {"sequence_mean": ("the mean over each completion's tokens, then over completions (GRPO)",
                           "GRPO's sequence mean"),
         "token_mean": ("the mean over all tokens of the batch (DAPO)", "DAPO's token mean"),
         "constant": ("the sum over all tokens / (B * max_length) (Dr. GRPO)",
                      "Dr. GRPO's constant divisor")}


def divide(values, mask, max_length, way, faults: Faults):
    if "mask ignored" in faults:
        mask = torch.ones_like(mask)
    values = values * mask
    if way == "sequence_mean":
        lengths = mask.sum(1)
        if "padded divisor" in faults:
            lengths = torch.full_like(lengths, mask.shape[1])
        if not {"empty rows not guarded", "nan gradient", "mean of what is no nan"} & faults:
            lengths = lengths.clamp(min=1)
        means = values.sum(1) / lengths
        if "empty rows left out" in faults:
            means = means[mask.sum(1) > 0]
        if "mean of what is no nan" in faults:
            return means.nansum() if "sum of the rows" in faults else means.nanmean()
        if "nan gradient" in faults:
            means = means.nan_to_num()
        return means.sum() if "sum of the rows" in faults else means.mean()
    if way == "token_mean":
        tokens = mask.numel() if "padded divisor" in faults else mask.sum()
        return values.sum() / tokens
    if "longest row for max_length" in faults:
        max_length = mask.shape[1]
    if "rows not counted" in faults:
        return values.sum() / max_length
    if "length not counted" in faults:
        return values.sum() / len(mask)
    return values.sum() / (len(mask) * max_length)


def writer(way: str):
    def write(faults: Faults):
        others = [other for other in WAYS if f"as {other}" in faults]
        chosen = others[0] if others else way

        def implementation(values, mask, max_length):
            return divide(values, mask, max_length, chosen, faults)

        implementation.__name__ = way
        return implementation

    return write


def aggregation_cases():
    def case(*tables, longest=8):
        return (*(torch.tensor(table, dtype=torch.float64) for table in tables), longest)

    yield "one token", case([[2.0]], [[1.0]])
    yield "one token, and longer texts allowed", case([[3.0]], [[1.0]], longest=20)
    yield "one row with padding", case([[1.0, 2.0, 9.0]], [[1.0, 1.0, 0.0]])
    yield "two rows", case([[1.0, 2.0, 3.0], [6.0, 9.0, 9.0]], [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    yield "a row of padding alone", case([[1.0, 2.0], [9.0, 9.0]], [[1.0, 1.0], [0.0, 0.0]])
    yield "many", (numbers(14, 4, 5), RAGGED.clone(), 8)


OWN = {"sequence_mean": (
    Mistake("padded divisor", "you divide by the padded width; a row counts its own tokens.",
            "lesson 06, section 1"),
    Mistake("sum of the rows", "the rows are summed; their mean is wanted.",
            "lesson 06, section 1"),
    Mistake("empty rows not guarded", "a row without tokens gives 0 / 0.", "lesson 06, section 1"),
    Mistake("nan gradient", "the value is right, but the gradient of a row without tokens is nan: "
            "what is divided by 0 and then replaced stays in the graph.", "lesson 06, section 1"),
    Mistake("empty rows left out", "a row without tokens stays in the mean here and in TRL (verl "
            "leaves it out).", "docs/algorithms.md", legitimate=True,
            ways=("mean of what is no nan",))),
    "token_mean": (
    Mistake("padded divisor", "you divide by all cells of the table, padding too.",
            "lesson 06, section 1"),),
    "constant": (
    Mistake("longest row for max_length", "you divide by the width of this batch; max_length is a "
            "constant, the same for all batches.", "lesson 06, section 1"),
    Mistake("rows not counted", "the rows are not counted: the loss grows with the batch.",
            "lesson 06, section 1"),
    Mistake("length not counted", "the divisor has no max_length: that is the sequence sum "
            "(REINFORCE's).", "docs/algorithms.md", legitimate=True))}
SOLUTIONS = {"sequence_mean": "((values * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()",
             "token_mean": "(values * mask).sum() / mask.sum()",
             "constant": "(values * mask).sum() / (len(mask) * max_length)"}


def aggregation_exercise(way: str) -> Exercise:
    others = tuple(Mistake(f"as {other}", f"this is {NAMES[other][1]}.", "lesson 06, section 1",
                           legitimate=True) for other in WAYS if other != way)
    return Exercise(
        way, "06",
        f"Write {way}(values (B, T), mask (B, T), max_length) -> scalar: {NAMES[way][0]}.",
        writer(way), aggregation_cases,
        (Mistake("mask ignored", "padding counts.", "lesson 06, section 1"), *OWN[way], *others),
        f"def {way}(values, mask, max_length):\n    return {SOLUTIONS[way]}", gradient_of=0,
        rtol=GUARD)


SEQUENCE_MEAN, TOKEN_MEAN, CONSTANT = map(aggregation_exercise, WAYS)


def write_loss(faults: Faults):
    def grpo_loss(log_probs, old_log_probs, advantages, mask, epsilon):
        old = old_log_probs
        if "old from the policy" in faults:
            old = log_probs.detach()
        if "old with gradient" in faults:
            old = log_probs
        if "ratio detached" in faults:
            log_probs = log_probs.detach()
        ratio = ((old - log_probs) if "ratio upside down" in faults else (log_probs - old)).exp()
        if "advantages along columns" in faults:
            spread = advantages[torch.arange(mask.shape[1]) % len(advantages)][None, :]
        else:
            spread = advantages[:, None]
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        gain = torch.minimum(ratio * spread, clipped * spread)
        if "maximum" in faults:
            gain = torch.maximum(ratio * spread, clipped * spread)
        elif "never clipped" in faults:
            gain = ratio * spread
        elif "no minimum" in faults:
            gain = clipped * spread
        if "mask ignored" in faults:
            loss = gain.mean(1).mean()
        elif "token mean" in faults:
            loss = (gain * mask).sum() / mask.sum()
        elif "padded divisor" in faults:
            loss = (gain * mask).mean()
        else:
            loss = ((gain * mask).sum(1) / mask.sum(1)).mean()
        return loss if "sign" in faults else -loss

    return grpo_loss


def loss_cases():
    def row(*values):
        return torch.tensor([values], dtype=torch.float64)

    one = torch.ones(1, dtype=torch.float64)
    yield "one token, on-policy", (row(-1.0), row(-1.0), one, row(1.0), 0.2)
    yield "one token, moved up", (row(-1.0), row(-1.5), one, row(1.0), 0.2)
    yield "one token, moved down, A < 0", (row(-1.5), row(-1.0), -one, row(1.0), 0.2)
    log_probs = -numbers(15, 4, 5).abs()
    yield "four rows", (log_probs, log_probs + 0.3 * numbers(16, 4, 5), numbers(17, 4),
                        RAGGED.clone(), 0.2)
    yield "four rows, and a wider clip", (log_probs.clone(), log_probs + 0.6 * numbers(26, 4, 5),
                                          numbers(27, 4), RAGGED.clone(), 0.35)


LOSS = Exercise(
    "grpo_loss", "06",
    "Write grpo_loss(log_probs (B, T), old_log_probs (B, T), advantages (B,), mask (B, T), "
    "epsilon) -> scalar, to be minimised: the clipped surrogate, sequence mean. Its gradient "
    "counts.",
    write_loss, loss_cases, (
        Mistake("sign", "the surrogate is maximised, so the loss is minus it.",
                "lesson 04, section 2"),
        Mistake("ratio upside down", "the ratio is old over new.", "lesson 04, section 1"),
        Mistake("old from the policy", "the old log-probs are taken from the policy as it is now: "
                "every ratio is 1 and the clip never acts.", "lesson 04, section 4"),
        Mistake("old with gradient", "new and old log-probs are one tensor: the gradient cancels.",
                "lesson 04, section 4"),
        Mistake("ratio detached", "no gradient reaches the policy.", "lesson 04, section 1"),
        Mistake("advantages along columns", "the advantages run along the tokens; each belongs to "
                "a row.", "lesson 06, section 1"),
        Mistake("maximum", "the larger of the two is taken.", "lesson 04, section 2"),
        Mistake("never clipped", "nothing is clipped here.", "lesson 04, section 2"),
        Mistake("no minimum", "without the minimum a token that moved too far the *wrong* way can "
                "never come back.", "lesson 04, section 2"),
        Mistake("mask ignored", "padding counts.", "lesson 06, section 1"),
        Mistake("padded divisor", "you divide by the padded width; a row counts its own tokens.",
                "lesson 06, section 1"),
        Mistake("token mean", "this is DAPO's token mean.", "lesson 06, section 1",
                legitimate=True)),
    '''import torch


def grpo_loss(log_probs, old_log_probs, advantages, mask, epsilon):
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    A = advantages[:, None]
    gain = torch.minimum(ratio * A, clipped * A)
    return -((gain * mask).sum(1) / mask.sum(1)).mean()''', gradient_of=0, gradient_asked=True,
    rtol=GUARD)

EXERCISES = (SEQUENCE_MEAN, TOKEN_MEAN, CONSTANT, LOSS)
