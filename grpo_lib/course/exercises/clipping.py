"""Lesson 04: the ratio, the clipped surrogate, the binding clip fraction."""

from __future__ import annotations

import torch

from grpo_lib.course.exercises.base import Exercise, Mistake
from grpo_lib.course.exercises.comparing import as_tensor
from grpo_lib.course.exercises.policy import GUARD, numbers, table
from grpo_lib.course.exercises.repairs import RunRepair
from grpo_lib.course.exercises.training import Bigram, shifted_log_probs


def ratio_cases():
    yield "one token", (table([[-1.0]]), table([[-1.5]]))
    yield "two rows", (-numbers(6, 2, 3).abs(), -numbers(7, 2, 3).abs())


IMPORTANCE_RATIO = Exercise(
    "importance_ratio", "04", "lesson 04, section 1",
    "Write importance_ratio(log_probs (B, T), old_log_probs (B, T)) -> (B, T): how many times "
    "as likely each token has become since it was sampled.",
    '''def importance_ratio(log_probs, old_log_probs):
    return (log_probs - old_log_probs).exp()''',
    ratio_cases, (
        Mistake("upside down", "old over new: the ratio is the wrong way up.",
                ("log_probs - old_log_probs", "old_log_probs - log_probs")),
        Mistake("no exp", "this is the difference of the logs; the ratio is its exp.",
                (".exp()", "")),
        Mistake("quotient of logs", "you divide log-probs by each other; the ratio of the "
                "probabilities is the exp of their difference.",
                (("- old", "/ old"), (".exp()", ""))),
        Mistake("of the row", "this is GSPO's ratio, one for the whole row.",
                (".exp()", ".mean(-1, keepdim=True).exp()"), read="lesson 08, section 1",
                legitimate=True,
                ways=((".exp()", ".mean(-1, keepdim=True).exp().expand_as(log_probs)"),)),
        Mistake("old with gradient", "you compare the policy with itself, so that every ratio is "
                "1: the old log-probs are those of sampling.",
                ("- old_log_probs", "- log_probs.detach()"), read="lesson 04, section 4",
                ways=(("- old_log_probs", "- log_probs"),))),
    gradient_of=0)


def surrogate_cases():
    for name, ratio, advantage in (("A > 0, ratio inside", 1.1, 1.0), ("A > 0, too high", 1.5, 1.0),
                                   ("A > 0, too low", 0.5, 1.0), ("A < 0, too high", 1.5, -1.0),
                                   ("A < 0, too low", 0.5, -1.0), ("A < 0, inside", 0.9, -1.0)):
        yield name, (table([[ratio]]), table([[advantage]]), 0.2)
    yield "many", (numbers(8, 4, 5).exp(), numbers(9, 4, 1), 0.2)
    yield "many, and a narrower clip", (numbers(24, 3, 5).exp(), numbers(25, 3, 1), 0.05)


CLIPPED_SURROGATE = Exercise(
    "clipped_surrogate", "04", "lesson 04, section 2",
    "Write clipped_surrogate(ratio (B, T), advantages (B, 1), epsilon) -> (B, T), to be maximised: "
    "min(r A, clip(r, 1 - epsilon, 1 + epsilon) A).",
    '''import torch


def clipped_surrogate(ratio, advantages, epsilon):
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return torch.minimum(ratio * advantages, clipped * advantages)''',
    surrogate_cases, (
        Mistake("maximum", "you take the larger of the two: then nothing ever holds it back.",
                ("minimum", "maximum")),
        Mistake("maximum where A < 0", "for A < 0 you take the maximum; it is the minimum for both "
                "signs, since A carries the sign. Yours blocks the way back.",
                ("ratio * advantages, clipped * advantages)",
                 "ratio * advantages.abs(), clipped * advantages.abs()) * advantages.sign()")),
        Mistake("no minimum", "without the minimum a token that moved too far the *wrong* way can "
                "never come back.",
                ("torch.minimum(ratio * advantages, clipped * advantages)",
                 "clipped * advantages")),
        Mistake("never clipped", "nothing is clipped here.",
                ("torch.minimum(ratio * advantages, clipped * advantages)", "ratio * advantages")),
        Mistake("product clipped", "you clip r A; the ratio is clipped, before the product.",
                ("clipped * advantages", "(ratio * advantages).clamp(1 - epsilon, 1 + epsilon)")),
        Mistake("clipped above only", "1 - epsilon is missing: the ratio is held on both sides.",
                ("1 - epsilon, ", "max=")),
        Mistake("clipped about 0", "the ratio is held about 1, not about 0.",
                ("1 - epsilon, 1 + epsilon", "-epsilon, epsilon")),
        Mistake("advantage without sign", "the sign of A is lost.",
                ("return ", "advantages = advantages.abs()\n    return ")),
        Mistake("a loss", "this is minus what is asked: the surrogate is to be maximised.",
                ("return ", "return -"), legitimate=True)),
    gradient_of=0)


def clip_fraction_cases():
    for name, ratio, advantage in (("A > 0, too low: it flows", 0.5, 1.0),
                                   ("A > 0, too high: blocked", 1.5, 1.0),
                                   ("A < 0, too low: blocked", 0.5, -1.0),
                                   ("on the edge: it flows", 1.25, 1.0)):
        yield name, (table([[ratio]]), table([[advantage]]), table([[1.0]]), 0.25)
    ratio = table([[0.5, 1.5, 1.0, 1.5], [0.5, 0.5, 1.5, 1.5]])
    mask = table([[1, 1, 1, 0], [1, 0, 0, 0]])
    yield "two rows with padding", (ratio, table([[1.0], [-1.0]]), mask, 0.25)
    signs = table([[-1.0], [1.0]])
    yield "and the other signs", (ratio, signs, mask, 0.25)
    yield "and a wider clip", (ratio + table([0.125, -1.125, 0.75, 0.25]), signs, mask.clone(), 0.5)


CLIP_FRACTION = Exercise(
    "clip_fraction", "04", "lesson 04, section 4",
    "Write clip_fraction(ratio (B, T), advantages (B, 1), mask (B, T), epsilon) -> scalar: the "
    "share of tokens whose gradient the clip blocks.",
    '''def clip_fraction(ratio, advantages, mask, epsilon):
    low = (advantages < 0) & (ratio < 1 - epsilon)
    high = (advantages > 0) & (ratio > 1 + epsilon)
    return ((low | high) & (mask > 0)).sum() / mask.sum()''',
    clip_fraction_cases, (
        Mistake("whatever the sign", "you count |r - 1| > epsilon; where A > 0 and r is too low, "
                "or A < 0 and r too high, the gradient flows.",
                (("(advantages < 0) & ", ""), ("(advantages > 0) & ", ""))),
        Mistake("other sides", "you count the two sides on which the gradient flows.",
                (("low = (advantages <", "low = (advantages >"),
                 ("high = (advantages >", "high = (advantages <"))),
        Mistake("above only", "A < 0 with r < 1 - epsilon is blocked too.", ("low | high", "high")),
        Mistake("padding counted", "padding is counted among the blocked.", (" & (mask > 0)", "")),
        Mistake("of all cells", "you divide by all cells of the table, padding too.",
                (".sum() / mask.sum()", ".double().mean()")),
        Mistake("mean of the rows", "you average the rows' shares; every token is to count once.",
                (("return ", "return ("),
                 (".sum() / mask.sum()", ".sum(1) / mask.sum(1)).mean()"))),
        Mistake("edge counted", "on the edge itself the gradient flows.",
                (("ratio <", "ratio <="), ("ratio >", "ratio >=")))),
    rtol=GUARD)


# --- several updates on one batch -----------------------------------------------------------------

def update_cases():
    for name, seed, rows, updates, epsilon in (
            ("one row, two updates", 51, 1, 2, 0.1), ("four rows, a wider clip", 53, 4, 5, 0.25),
            ("four rows, five updates", 52, 4, 5, 0.1)):
        generator = torch.Generator().manual_seed(seed)
        policy = Bigram(4)
        tokens = torch.randint(4, (rows, 5), generator=generator)
        advantages = table([1.0, -1.0, 1.5, -1.5][:rows])
        reference = Bigram(4)
        with torch.no_grad():
            reference.table += 0.3 * numbers(seed, 4, 4)
            ref_log_probs = shifted_log_probs(reference(tokens), tokens)
        yield name, (policy, torch.optim.SGD(policy.parameters(), lr=1.0), tokens, advantages,
                     ref_log_probs, epsilon, updates)


def blocked_shares(updates_of_a_batch) -> str:
    """The shares blocked at eight updates, at two epsilons."""
    lines = []
    for epsilon in (0.05, 0.2):
        *_, (_, (*arguments, _, _)) = update_cases()
        shares = as_tensor(updates_of_a_batch(*arguments, epsilon, 8))
        lines.append(f"epsilon {epsilon}: {', '.join(f'{share:.0%}' for share in shares)}")
    return "Blocked at eight updates, " + "; ".join(lines) + "."


UPDATES = RunRepair(
    "updates_of_a_batch", "04", "lesson 04, section 4",
    "Repair updates_of_a_batch(policy, optimizer, tokens (B, T), advantages (B,), ref_log_probs "
    "(B, T - 1), epsilon, updates) -> the share of tokens blocked at each update. All tokens "
    "count except each row's first. It takes many updates on one batch, and yet nothing is ever "
    "blocked, whatever epsilon is.",
    '''import torch


def updates_of_a_batch(policy, optimizer, tokens, advantages, ref_log_probs,
                       epsilon, updates):
    blocked, A, old_log_probs = [], advantages[:, None], None
    for _ in range(updates):
        log_probs = policy(tokens[:, :-1]).log_softmax(-1)
        log_probs = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        if old_log_probs is None:  # before the first update alone
            old_log_probs = log_probs.detach()
        ratio = (log_probs - old_log_probs).exp()
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        loss = -torch.minimum(ratio * A, clipped * A).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        blocked.append((ratio * A > clipped * A).float().mean())
    return torch.stack(blocked)''',
    update_cases, (
        Mistake("old is new", "the old policy still moves along with the new one, so every ratio "
                "is 1: it is the policy before the first update.",
                ((", old_log_probs = [], advantages[:, None], None", " = [], advantages[:, None]"),
                 ("if old_log_probs is None:  # before the first update alone\n            old",
                  "old"))),
        Mistake("reference for old", "the ratio is taken to the reference now, which is there for "
                "the KL term: the policy that sampled is wanted, and then the first ratio is 1.",
                ("= log_probs.detach()", "= ref_log_probs"), read="lesson 04, section 1"),
        Mistake("one step behind", "the old policy is that of the update before; it is to stay "
                "where it was when the batch was sampled.",
                ("blocked.append", "old_log_probs = log_probs.detach()\n        blocked.append")),
        Mistake("gradients pile up", "the gradients of the updates before are added to this one.",
                ("        optimizer.zero_grad()\n", ""), read="lesson 00, section 6"),
        Mistake("no minimum", "the minimum is gone: a token that moved the wrong way could not "
                "come back.", ("torch.minimum(ratio * A, clipped * A)", "(clipped * A)"),
                read="lesson 04, section 2")),
    second="policy", faults=("old is new",), shows=blocked_shares)

EXERCISES = (IMPORTANCE_RATIO, CLIPPED_SURROGATE, CLIP_FRACTION, UPDATES)
