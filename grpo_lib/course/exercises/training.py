"""Lessons 00 and 07: the founding notebook's loss, one training step, a whole run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grpo_lib.course.exercises.base import Exercise, Mistake
from grpo_lib.course.exercises.comparing import Answer, as_tensor
from grpo_lib.course.exercises.policy import GUARD, SHIFTED_LOG_PROBS, numbers, table
from grpo_lib.course.exercises.repairs import Repair, RunRepair

shifted_log_probs = SHIFTED_LOG_PROBS.reference


# --- the founding notebook's loss -----------------------------------------------------------------

def founding_cases():
    for name, seed, rows, length, words, epsilon in (
            ("one prompt token, one answer token", 41, 1, 2, 3, 0.2),
            ("one row with padding", 42, 1, 5, 4, 0.2), ("three rows", 43, 3, 6, 4, 0.2),
            ("three rows, and a narrower clip", 44, 3, 6, 4, 0.05)):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(words, (rows, length), generator=generator)
        logits = numbers(seed, rows, length, words)
        old = shifted_log_probs(logits, tokens) + 0.2 * numbers(seed + 10, rows, length - 1)
        ends = torch.tensor([length - 1 - (length > 2) * (row + 1) for row in range(rows)])
        steps = torch.arange(length - 1)
        start = min(1, length - 2)
        mask = ((steps >= start) & (steps < ends[:, None])).double()
        yield name, (logits, tokens, old, table([1.0, -0.5, -1.5][:rows]), mask, epsilon)


FOUNDING = Repair(
    "founding_loss", "00", "lesson 06, section 1",
    "Repair founding_loss(logits (B, S, V), tokens (B, S), old_log_probs (B, S - 1), advantages "
    "(B,), mask (B, S - 1), epsilon) -> loss. It is the first draft of section 5, with two of "
    "its mistakes. tokens hold prompt, answer and padding; mask is 1 where tokens[:, 1:] "
    "belongs to the answer. It should return the mean over all tokens that count.",
    '''import torch


def founding_loss(logits, tokens, old_log_probs, advantages, mask, epsilon):
    log_probs = logits[:, :-1].log_softmax(-1)
    log_probs = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    ratio = (log_probs - old_log_probs).exp()
    unclipped = ratio * advantages[:, None]
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon) * advantages[:, None]
    return -(torch.minimum(unclipped, clipped) * mask).sum() / mask.sum()''',
    founding_cases, (
        Mistake("not shifted", "token t is still scored with the logits at t, which have seen it; "
                "those at t - 1 speak of it.", ("logits[:, :-1]", "logits[:, 1:]"),
                read="lesson 01, section 3"),
        Mistake("no mask", "prompt and padding still count: the plain mean takes all cells.",
                ("(torch.minimum(unclipped, clipped) * mask).sum() / mask.sum()",
                 "torch.minimum(unclipped, clipped).mean()")),
        Mistake("padded divisor", "prompt and padding add nothing to the sum now, but the mean "
                "still divides by their number.", (".sum() / mask.sum()", ".mean()")),
        Mistake("mask on the ratio", "a ratio of 0 is clipped to 1 - epsilon where the advantage "
                "is negative, and counts: mask the objective, not the ratio.",
                ((".exp()", ".exp() * mask"), ("clipped) * mask)", "clipped))")),
                read="lesson 04, section 2"),
        Mistake("sign", "the sign has been turned: the loss is to be minimised.",
                ("return -", "return "), read="lesson 00, section 5"),
        Mistake("sequence mean", "this takes the mean of each row first, as DeepSeekMath does.",
                (("return -", "return -("),
                 (".sum() / mask.sum()", ".sum(1) / mask.sum(1)).mean()")), legitimate=True)),
    gradient_of=0, rtol=GUARD, faults=("not shifted", "no mask"))


# --- one training step ----------------------------------------------------------------------------

class Bigram(nn.Module):
    """A policy whose next word depends on the last: tokens (B, T) -> logits (B, T, V)."""

    def __init__(self, words: int):
        super().__init__()
        self.table = nn.Parameter(0.5 * numbers(22, words, words))

    def forward(self, tokens):
        return self.table[tokens]


def step_cases():
    for name, rows, advantages in (("one row", [[0, 1, 2]], [1.0]),
                                   ("two rows", [[0, 1, 2, 1], [2, 0, 1, 1]], [1.0, -0.5])):
        policy = Bigram(3)
        yield name, (policy, torch.optim.SGD(policy.parameters(), lr=0.5), torch.tensor(rows),
                     table(advantages))


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
    "train_step", "07", "lesson 00, section 6",
    "Write train_step(policy, optimizer, tokens (B, T), advantages (B,)) -> loss: one gradient "
    "step that raises A log pi, averaged over all tokens except each row's first (here all of "
    "them count).",
    '''def train_step(policy, optimizer, tokens, advantages):
    log_probs = policy(tokens[:, :-1]).log_softmax(-1)
    log_probs = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    loss = -(advantages[:, None] * log_probs).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss''',
    step_cases, (
        Mistake("gradients pile up", "the gradients of the step before are still there: "
                "optimizer.zero_grad() is missing.", ("    optimizer.zero_grad()\n", "")),
        Mistake("nothing moves", "the policy is as it was: is there a loss.backward() before "
                "optimizer.step(), and are the gradients not zeroed in between?",
                ("backward()", "backward()\n    optimizer.zero_grad()")),
        Mistake("two steps", "the optimizer takes two steps with one gradient.",
                ("optimizer.step()", "optimizer.step()\n    optimizer.step()")),
        Mistake("uphill", "the sign is wrong: an optimizer goes downhill, so the loss is minus "
                "what is to rise.", ("loss = -", "loss = ")),
        Mistake("not shifted", "token t is scored by the logits at t, which have seen it.",
                ("tokens[:, :-1]", "tokens[:, 1:]"), read="lesson 01, section 3"),
        Mistake("advantage without sign", "the advantage has lost its sign: bad answers are made "
                "likelier too.", ("advantages[:, None]", "advantages[:, None].abs()"),
                read="lesson 03, section 1")))


# --- a whole run ----------------------------------------------------------------------------------

END = 0  # words: 0 ends an answer and pads it, 1 and 2 are prompts, 3 to 5 are answers
WORDS = 6


class Sampler:
    """sample(policy, prompts, group_size) -> tokens (N * G, 1 + T): the prompt, an answer of at
    most ``length`` words, then END. The answers to a prompt stand together."""

    def __init__(self, seed: int, length: int = 3):
        self.generator = torch.Generator().manual_seed(seed)
        self.length = length

    @torch.no_grad()
    def __call__(self, policy, prompts: Tensor, group_size: int) -> Tensor:
        tokens = prompts.repeat_interleave(group_size)[:, None]
        for _ in range(self.length):
            chances = policy(tokens)[:, -1].softmax(-1)
            word = torch.multinomial(chances, 1, generator=self.generator)
            ended = (tokens[:, 1:] == END).any(1, keepdim=True)
            tokens = torch.cat((tokens, word.masked_fill(ended, END)), 1)
        return tokens


def reward_of(tokens: Tensor) -> Tensor:
    """1 for prompt 1 answered by one word, 3, and prompt 2 by anything that holds a 4."""
    short = (tokens[:, 1] == 3) & (tokens[:, 2] == END)
    return torch.where(tokens[:, 0] == 1, short, (tokens[:, 1:] == 4).any(1)).double()


class Stepwise(Bigram):
    """A policy whose next word depends on the prompt and the last word."""

    def __init__(self):
        super().__init__(WORDS)
        with torch.no_grad():
            self.table.mul_(0)
        self.by_prompt = torch.nn.Parameter(torch.zeros(3, WORDS, WORDS, dtype=torch.float64))

    def forward(self, tokens):
        return self.table[tokens] + self.by_prompt[tokens[:, :1], tokens]


def run_cases():
    for name, prompts, group_size, steps, seed in (
            ("one prompt, one step", [1], 8, 1, 81), ("two prompts, one step", [1, 2], 8, 1, 82),
            ("two prompts, four steps", [1, 2], 16, 4, 83)):
        policy = Stepwise()
        yield name, (policy, torch.optim.SGD(policy.parameters(), lr=1.0), Sampler(seed),
                     reward_of, torch.tensor(prompts), group_size, steps)


def rewards_of_run(whole_run) -> str:
    """The mean reward in a run of 100 steps, every 20 of them."""
    policy = Stepwise()
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    history = as_tensor(whole_run(policy, optimizer, Sampler(0), reward_of, torch.tensor([1, 2]),
                                  16, 100))
    return ("Mean reward of five times 20 steps: "
            + ", ".join(f"{mean:.2f}" for mean in history.double().view(5, 20).mean(1)) + ".")


RUN = RunRepair(
    "whole_run", "07", "lesson 03, section 1",
    "Repair whole_run(policy, optimizer, sample, reward, prompts (N,), group_size, steps) -> the "
    "mean reward of each step. sample returns tokens (N * G, 1 + T): a prompt of one token, "
    "then its answer, ended and padded by token 0; the G answers to a prompt stand together. "
    "Three things are wrong: within 20 steps one of the two prompts is always answered right, "
    "and the other never again.",
    '''import torch


def whole_run(policy, optimizer, sample, reward, prompts, group_size, steps):
    history = []
    for _ in range(steps):
        tokens = sample(policy, prompts, group_size)
        rewards = reward(tokens)
        groups = rewards.view(-1, group_size)  # (N, G)
        spread = groups.std(1, keepdim=True) + 1e-4
        advantages = ((groups - groups.mean(1, keepdim=True)) / spread).flatten()
        is_end = tokens[:, 1:] == 0
        mask = is_end.cumsum(1) - is_end.long() == 0  # up to the first end
        log_probs = policy(tokens[:, :-1]).log_softmax(-1)
        log_probs = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        loss = -(advantages[:, None] * log_probs * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(rewards.mean())
    return torch.stack(history)''',
    run_cases, (
        Mistake("groups interleaved", "the groups still hold answers to different prompts: those "
                "to one prompt stand together.",
                (("view(-1, group_size)", "view(group_size, -1).T"),
                 (".flatten()", ".T.flatten()"))),
        Mistake("end left out", "the end of an answer is still masked out, so nothing teaches the "
                "policy to stop.",
                (("is_end = tokens[:, 1:] == 0\n        ", ""),
                 ("is_end.cumsum(1) - is_end.long() == 0  # up to the first end",
                  "tokens[:, 1:] != 0")), read="lesson 01, section 4"),
        Mistake("gradients pile up", "the gradients of all steps before are still added to this "
                "one.", ("        optimizer.zero_grad()\n", ""), read="lesson 00, section 6"),
        Mistake("one group of all", "all prompts are one group now: an easy prompt's right answers "
                "are set against a hard one's.", ("view(-1, group_size)", "view(1, -1)")),
        Mistake("padding counted", "all that follows the end counts now; only the first end is of "
                "the answer.", ("== 0  # up to", ">= 0  # up to"), read="lesson 01, section 4"),
        Mistake("sign", "the sign is wrong: an optimizer goes downhill.", ("loss = -", "loss = "),
                read="lesson 00, section 6"),
        Mistake("no std", "this is Dr. GRPO's advantage, without the std.", (" / spread", ""),
                read="lesson 03, section 5", legitimate=True)),
    second="policy", faults=("groups interleaved", "end left out", "gradients pile up"),
    shows=rewards_of_run)

EXERCISES = (FOUNDING, TRAIN_STEP, RUN)
