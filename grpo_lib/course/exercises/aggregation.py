"""Lesson 06: three ways to divide, and the whole loss."""

from __future__ import annotations

import torch

from grpo_lib.course.exercises.base import Exercise, Mistake
from grpo_lib.course.exercises.policy import GUARD, numbers, table
from grpo_lib.course.exercises.repairs import Repair

RAGGED = (torch.arange(5) < torch.tensor([[5], [2], [1], [3]])).double()
WAYS = ("sequence_mean", "token_mean", "constant")
NAMES = {"sequence_mean": ("the mean over each completion's tokens, then over completions (GRPO)",
                           "GRPO's sequence mean"),
         "token_mean": ("the mean over all tokens of the batch (DAPO)", "DAPO's token mean"),
         "constant": ("the sum over all tokens / (B * max_length) (Dr. GRPO)",
                      "Dr. GRPO's constant divisor")}


def aggregation_cases():
    yield "one token", (table([[2.0]]), table([[1.0]]), 8)
    yield "one token, and longer texts allowed", (table([[3.0]]), table([[1.0]]), 20)
    yield "one row with padding", (table([[1.0, 2.0, 9.0]]), table([[1, 1, 0]]), 8)
    yield "two rows", (table([[1.0, 2.0, 3.0], [6.0, 9.0, 9.0]]), table([[1, 1, 1], [1, 0, 0]]), 8)
    yield "a row of padding alone", (table([[1.0, 2.0], [9.0, 9.0]]), table([[1, 1], [0, 0]]), 8)
    yield "many", (numbers(14, 4, 5), RAGGED.clone(), 8)


SOLUTIONS = {"sequence_mean": "((values * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()",
             "token_mean": "(values * mask).sum() / mask.sum()",
             "constant": "(values * mask).sum() / (len(mask) * max_length)"}
OWN = {"sequence_mean": (
    Mistake("padded divisor", "you divide by the padded width; a row counts its own tokens.",
            ("mask.sum(1).clamp(min=1)", "mask.shape[1]")),
    Mistake("sum of the rows", "the rows are summed; their mean is wanted.", (".mean()", ".sum()")),
    Mistake("empty rows not guarded", "a row without tokens gives 0 / 0.", (".clamp(min=1)", "")),
    Mistake("nan gradient", "the value is right, but the gradient of a row without tokens is nan: "
            "what is divided by 0 and then replaced stays in the graph.",
            ((".clamp(min=1)", ""), (".mean()", ".nan_to_num().mean()"))),
    Mistake("empty rows left out", "a row without tokens stays in the mean here and in TRL (verl "
            "leaves it out).", (".mean()", "[mask.sum(1) > 0].mean()"), read="docs/algorithms.md",
            legitimate=True, ways=(((".clamp(min=1)", ""), (".mean()", ".nanmean()")),))),
    "token_mean": (
    Mistake("padded divisor", "you divide by all cells of the table, padding too.",
            ("/ mask.sum()", "/ mask.numel()")),),
    "constant": (
    Mistake("longest row for max_length", "you divide by the width of this batch; max_length is a "
            "constant, the same for all batches.", ("* max_length", "* mask.shape[1]")),
    Mistake("rows not counted", "the rows are not counted: the loss grows with the batch.",
            ("len(mask) * ", "")),
    Mistake("length not counted", "the divisor has no max_length: that is the sequence sum "
            "(REINFORCE's).", (" * max_length", ""), read="docs/algorithms.md", legitimate=True))}


def aggregation_exercise(way: str) -> Exercise:
    others = tuple(Mistake(f"as {other}", f"this is {NAMES[other][1]}.",
                           (SOLUTIONS[way], SOLUTIONS[other]), legitimate=True)
                   for other in WAYS if other != way)
    return Exercise(
        way, "06", "lesson 06, section 1",
        f"Write {way}(values (B, T), mask (B, T), max_length) -> scalar: {NAMES[way][0]}.",
        f"def {way}(values, mask, max_length):\n    return {SOLUTIONS[way]}",
        aggregation_cases,
        (Mistake("mask ignored", "padding counts.",
                 ("max_length):", "max_length):\n    mask = torch.ones_like(mask)")),
         *OWN[way], *others),
        gradient_of=0, rtol=GUARD)


SEQUENCE_MEAN, TOKEN_MEAN, CONSTANT = map(aggregation_exercise, WAYS)


def loss_cases():
    one = table([1.0])
    yield "one token, on-policy", (table([[-1.0]]), table([[-1.0]]), one, table([[1.0]]), 0.2)
    yield "one token, moved up", (table([[-1.0]]), table([[-1.5]]), one, table([[1.0]]), 0.2)
    yield "one token, moved down, A < 0", (table([[-1.5]]), table([[-1.0]]), -one, table([[1.0]]),
                                           0.2)
    log_probs = -numbers(15, 4, 5).abs()
    yield "four rows", (log_probs, log_probs + 0.3 * numbers(16, 4, 5), numbers(17, 4),
                        RAGGED.clone(), 0.2)
    yield "four rows, and a wider clip", (log_probs.clone(), log_probs + 0.6 * numbers(26, 4, 5),
                                          numbers(27, 4), RAGGED.clone(), 0.35)


LOSS = Exercise(
    "grpo_loss", "06", "lesson 04, section 2",
    "Write grpo_loss(log_probs (B, T), old_log_probs (B, T), advantages (B,), mask (B, T), "
    "epsilon) -> scalar, to be minimised: the clipped surrogate, sequence mean. Its gradient "
    "counts.",
    '''import torch


def grpo_loss(log_probs, old_log_probs, advantages, mask, epsilon):
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    A = advantages[:, None]
    gain = torch.minimum(ratio * A, clipped * A)
    return -((gain * mask).sum(1) / mask.sum(1)).mean()''',
    loss_cases, (
        Mistake("sign", "the surrogate is maximised, so the loss is minus it.",
                ("return -", "return ")),
        Mistake("ratio upside down", "the ratio is old over new.",
                ("log_probs - old_log_probs", "old_log_probs - log_probs"),
                read="lesson 04, section 1"),
        Mistake("old from the policy", "the old log-probs are taken from the policy as it is now: "
                "every ratio is 1 and the clip never acts.",
                ("- old_log_probs", "- log_probs.detach()"), read="lesson 04, section 4"),
        Mistake("old with gradient", "new and old log-probs are one tensor: the gradient cancels.",
                ("- old_log_probs", "- log_probs"), read="lesson 04, section 4"),
        Mistake("ratio detached", "no gradient reaches the policy.",
                ("(log_probs - ", "(log_probs.detach() - "), read="lesson 04, section 1"),
        Mistake("advantages along columns", "the advantages run along the tokens; each belongs to "
                "a row.", ("[:, None]", "[torch.arange(mask.shape[1]) % len(advantages)]"),
                read="lesson 06, section 1"),
        Mistake("maximum", "the larger of the two is taken.", ("minimum", "maximum")),
        Mistake("never clipped", "nothing is clipped here.",
                ("torch.minimum(ratio * A, clipped * A)", "ratio * A")),
        Mistake("no minimum", "without the minimum a token that moved too far the *wrong* way can "
                "never come back.", ("torch.minimum(ratio * A, clipped * A)", "clipped * A")),
        Mistake("mask ignored", "padding counts.", ("((gain * mask).sum(1) / mask.sum(1))", "gain"),
                read="lesson 06, section 1"),
        Mistake("padded divisor", "you divide by the padded width; a row counts its own tokens.",
                ("((gain * mask).sum(1) / mask.sum(1))", "(gain * mask)"),
                read="lesson 06, section 1"),
        Mistake("token mean", "this is DAPO's token mean.",
                ("((gain * mask).sum(1) / mask.sum(1)).mean()", "(gain * mask).sum() / mask.sum()"),
                read="lesson 06, section 1", legitimate=True)),
    gradient_of=0, gradient_asked=True, rtol=GUARD)


# --- gradient accumulation -----------------------------------------------------------------------

def accumulation_cases():
    values, mask = table([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]]), table([[1, 1, 1], [1, 0, 0]])
    yield "two rows, one by one", (values, mask, 1)
    yield "two rows at once", (values + 1, mask.clone(), 2)
    ragged = (torch.arange(6) < torch.tensor([[6], [1], [3], [2], [5]])).double()
    yield "five rows, two by two", (numbers(71, 5, 6), ragged, 2)


def lengths_of_gradient(accumulated_loss) -> str:
    """The length of one batch's gradient, at three sizes of its micro-batches."""
    *_, (_, (values, mask, _)) = accumulation_cases()
    leaf = values.clone().requires_grad_()
    found = [(torch.autograd.grad(accumulated_loss(leaf, mask, rows), leaf)[0].norm(), rows)
             for rows in (1, 2, 5)]
    return ("Length of the gradient: "
            + ", ".join(f"{norm:.3f} in micro-batches of {rows}" for norm, rows in found) + ".")


ACCUMULATION = Repair(
    "accumulated_loss", "06", "lesson 06, section 6",
    "Repair accumulated_loss(values (B, T), mask (B, T), rows) -> the token mean of a batch, "
    "computed in micro-batches of that many rows. Its gradient changes with the size of the "
    "micro-batches; it should not.",
    '''def accumulated_loss(values, mask, rows):
    loss, tokens = 0.0, mask.sum()  # of the whole batch
    for part, counts in zip(values.split(rows), mask.split(rows)):
        loss = loss + (part * counts).sum() / tokens
    return loss''',
    accumulation_cases, (
        Mistake("micro-batch divisor", "each micro-batch is still divided by its own number of "
                "tokens, so that a token counts more in company of short rows.",
                (("tokens = 0.0, mask.sum()  # of the whole batch",
                  "parts = 0.0, list(zip(values.split(rows), mask.split(rows)))"),
                 ("in zip(values.split(rows), mask.split(rows))", "in parts"),
                 ("/ tokens", "/ counts.sum() / len(parts)"))),
        Mistake("sum of the means", "the means of the micro-batches are summed: the loss grows "
                "with their number.", ("/ tokens", "/ counts.sum()")),
        Mistake("rows for tokens", "the micro-batches are weighted by their rows; they are to be "
                "weighted by their tokens.",
                ("/ tokens", "/ counts.sum() * len(part) / len(values)")),
        Mistake("divided twice", "the divisor is that of the whole batch already: dividing by the "
                "number of micro-batches as well makes it too small.",
                ("/ tokens", "/ tokens / len(values.split(rows))")),
        Mistake("padded divisor", "you divide by all cells of the table, padding too.",
                ("mask.sum()", "mask.numel()"), read="lesson 06, section 1"),
        Mistake("mask ignored", "padding counts.", ("part * counts", "part"),
                read="lesson 06, section 1")),
    gradient_of=0, rtol=GUARD, faults=("micro-batch divisor",), shows=lengths_of_gradient)

EXERCISES = (SEQUENCE_MEAN, TOKEN_MEAN, CONSTANT, LOSS, ACCUMULATION)
