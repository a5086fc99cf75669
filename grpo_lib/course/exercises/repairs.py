"""Broken functions to mend. None of them raises anything; each shows in what the run does."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lib.course.exercises.base import Faults, Mistake, Repair
from grpo_lib.course.exercises.comparing import Answer, as_tensor
from grpo_lib.course.exercises.policy import GUARD, numbers
from grpo_lib.course.exercises.training import Bigram


def scored(policy, tokens: Tensor) -> Tensor:
    """Log-probs (B, T - 1) of all tokens but each row's first."""
    log_probs = policy(tokens[:, :-1]).log_softmax(-1)
    return log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)


# --- lesson 00: the founding notebook's loss ------------------------------------------------------

def write_founding(faults: Faults):
    def founding_loss(logits, tokens, old_log_probs, advantages, mask, epsilon):
        logits = logits[:, 1:] if "not shifted" in faults else logits[:, :-1]
        log_probs = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
        ratio = (log_probs - old_log_probs).exp()
        gain = torch.minimum(ratio * advantages[:, None],
                             ratio.clamp(1 - epsilon, 1 + epsilon) * advantages[:, None])
        if "no mask" in faults:
            loss = -gain.mean()
        elif "padded divisor" in faults:
            loss = -(gain * mask).mean()
        elif "sequence mean" in faults:
            loss = -((gain * mask).sum(1) / mask.sum(1)).mean()
        elif "mask on the ratio" in faults:
            ratio = ratio * mask
            gain = torch.minimum(ratio * advantages[:, None],
                                 ratio.clamp(1 - epsilon, 1 + epsilon) * advantages[:, None])
            loss = -gain.sum() / mask.sum()
        else:
            loss = -(gain * mask).sum() / mask.sum()
        return -loss if "sign" in faults else loss

    return founding_loss


def founding_cases():
    for name, seed, rows, length, words, epsilon in (
            ("one prompt token, one answer token", 41, 1, 2, 3, 0.2),
            ("one row with padding", 42, 1, 5, 4, 0.2), ("three rows", 43, 3, 6, 4, 0.2),
            ("three rows, and a narrower clip", 44, 3, 6, 4, 0.05)):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(words, (rows, length), generator=generator)
        logits = numbers(seed, rows, length, words)
        old = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
        old = old + 0.2 * numbers(seed + 10, rows, length - 1)
        ends = torch.tensor([length - 1 - (length > 2) * (row + 1) for row in range(rows)])
        steps = torch.arange(length - 1)
        start = min(1, length - 2)
        mask = ((steps >= start) & (steps < ends[:, None])).double()
        yield name, (logits, tokens, old, torch.tensor([1.0, -0.5, -1.5])[:rows].double(), mask,
                     epsilon)


FOUNDING = Repair(
    "founding_loss", "00",
    "Repair founding_loss(logits (B, S, V), tokens (B, S), old_log_probs (B, S - 1), advantages "
    "(B,), mask (B, S - 1), epsilon) -> loss. It is the founding notebook's, with two of the "
    "mistakes of section 5. tokens hold prompt, answer and padding; mask is 1 where tokens[:, 1:] "
    "is of the answer. Wanted is the mean over all tokens that count.",
    write_founding, founding_cases, (
        Mistake("not shifted", "token t is still scored with the logits at t, which have seen it; "
                "those at t - 1 speak of it.", "lesson 01, section 3"),
        Mistake("no mask", "prompt and padding still count: the plain mean takes all cells.",
                "lesson 06, section 1"),
        Mistake("padded divisor", "prompt and padding add nothing to the sum now, but the mean "
                "still divides by their number.", "lesson 06, section 1"),
        Mistake("mask on the ratio", "a ratio of 0 is clipped to 1 - epsilon where the advantage "
                "is negative, and counts: mask the objective, not the ratio.",
                "lesson 04, section 2"),
        Mistake("sign", "the sign has been turned: the loss is to be minimised.",
                "lesson 00, section 5"),
        Mistake("sequence mean", "this takes the mean of each row first, as DeepSeekMath does.",
                "lesson 06, section 1", legitimate=True)),
    '''import torch


def founding_loss(logits, tokens, old_log_probs, advantages, mask, epsilon):
    log_probs = logits[:, :-1].log_softmax(-1)
    log_probs = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    ratio = (log_probs - old_log_probs).exp()
    unclipped = ratio * advantages[:, None]
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon) * advantages[:, None]
    return -(torch.minimum(unclipped, clipped) * mask).sum() / mask.sum()''',
    gradient_of=0, rtol=GUARD, faults=("not shifted", "no mask"), broken='''import torch


def founding_loss(logits, tokens, old_log_probs, advantages, mask, epsilon):
    log_probs = logits[:, 1:].log_softmax(-1)
    log_probs = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    ratio = (log_probs - old_log_probs).exp()
    unclipped = ratio * advantages[:, None]
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon) * advantages[:, None]
    return -torch.minimum(unclipped, clipped).mean()''')


# --- runs: what they report of every step, and the policy that they leave -------------------------

class RunRepair(Repair):
    """What counts is what the function returns, and the weights of the policy, its first
    argument, after it."""

    @torch.enable_grad()
    def answer(self, function, arguments):
        value = as_tensor(function(*arguments))
        weights = [p.detach().flatten().clone() for p in arguments[0].parameters()]
        return Answer(value.double(), torch.cat(weights))


# --- lesson 04: several updates on one batch ------------------------------------------------------

def write_updates(faults: Faults):
    def updates_of_a_batch(policy, optimizer, tokens, advantages, ref_log_probs, epsilon, updates):
        shares, old = [], None
        A = advantages[:, None]
        for _ in range(updates):
            log_probs = scored(policy, tokens)
            if old is None or "old is new" in faults:
                old = log_probs.detach()
            if "reference for old" in faults:
                old = ref_log_probs
            ratio = (log_probs - old).exp()
            clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
            blocked = ratio * A > clipped * A
            if "no minimum" in faults:
                loss = -(clipped * A).mean()
            else:
                loss = -torch.minimum(ratio * A, clipped * A).mean()
            if "gradients pile up" not in faults:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shares.append(blocked.double().mean())
            if "one step behind" in faults:
                old = log_probs.detach()
        return torch.stack(shares)

    return updates_of_a_batch


def update_cases():
    for name, seed, rows, updates, epsilon in (
            ("one row, two updates", 51, 1, 2, 0.1), ("four rows, a wider clip", 53, 4, 5, 0.25),
            ("four rows, five updates", 52, 4, 5, 0.1)):
        generator = torch.Generator().manual_seed(seed)
        policy = Bigram(4)
        tokens = torch.randint(4, (rows, 5), generator=generator)
        advantages = torch.tensor([1.0, -1.0, 1.5, -1.5][:rows], dtype=torch.float64)
        reference = Bigram(4)
        with torch.no_grad():
            reference.table += 0.3 * numbers(seed, 4, 4)
            ref_log_probs = scored(reference, tokens)
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
    "updates_of_a_batch", "04",
    "Repair updates_of_a_batch(policy, optimizer, tokens (B, T), advantages (B,), ref_log_probs "
    "(B, T - 1), epsilon, updates) -> the share of tokens blocked at each update. All tokens count "
    "but each row's first. It takes many updates on one batch, and nothing is ever blocked, "
    "whatever epsilon is.",
    write_updates, update_cases, (
        Mistake("old is new", "the old policy still moves along with the new one, so every ratio "
                "is 1: it is the policy before the first update.", "lesson 04, section 4"),
        Mistake("reference for old", "the ratio is taken to the reference now, which is there for "
                "the KL term: the policy that sampled is wanted, and then the first ratio is 1.",
                "lesson 04, section 1"),
        Mistake("one step behind", "the old policy is that of the update before; it is to stay "
                "where it was when the batch was sampled.", "lesson 04, section 4"),
        Mistake("gradients pile up", "the gradients of the updates before are added to this one.",
                "lesson 00, section 6"),
        Mistake("no minimum", "the minimum is gone: a token that moved the wrong way could not "
                "come back.", "lesson 04, section 2")),
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
    second="policy", faults=("old is new",), shows=blocked_shares, broken='''import torch


def updates_of_a_batch(policy, optimizer, tokens, advantages, ref_log_probs,
                       epsilon, updates):
    blocked, A = [], advantages[:, None]
    for _ in range(updates):
        log_probs = policy(tokens[:, :-1]).log_softmax(-1)
        log_probs = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        old_log_probs = log_probs.detach()
        ratio = (log_probs - old_log_probs).exp()
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        loss = -torch.minimum(ratio * A, clipped * A).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        blocked.append((ratio * A > clipped * A).float().mean())
    return torch.stack(blocked)''')


# --- lesson 05: a leash that does not hold --------------------------------------------------------

def write_leash(faults: Faults):
    def leash(logits, ref_logits, rewards, beta, learning_rate, steps):
        logits = logits.clone().requires_grad_()
        ref_log_probs, distances = ref_logits.log_softmax(-1), []
        for _ in range(steps):
            log_probs = logits.log_softmax(-1)
            weights = log_probs.detach().exp()
            advantages = rewards - (weights * rewards).sum()
            ratio = (log_probs - log_probs.detach()).exp()
            d = ref_log_probs - log_probs
            if "other direction" in faults:
                d = -d
            if "k1" in faults:
                penalty = -d
            elif "k2" in faults:
                penalty = d**2 / 2
            else:
                penalty = d.exp() - d - 1
            if "sign" in faults:
                penalty = -penalty
            gain = ratio * advantages - (1.0 if "beta left out" in faults else beta) * penalty
            loss = -(gain.mean() if "no weights" in faults else (weights * gain).sum())
            [gradient] = torch.autograd.grad(loss, logits)
            logits = (logits - learning_rate * gradient).detach().requires_grad_()
            log_probs = logits.detach().log_softmax(-1)
            distances.append((log_probs.exp() * (log_probs - ref_log_probs)).sum())
        return torch.stack(distances)

    return leash


def leash_cases():
    yield "two words, one step", (torch.tensor([1.0, 0.0]).double(), torch.zeros(2).double(),
                                  torch.tensor([1.0, 0.0]).double(), 2.0, 0.5, 1)
    yield "three words, two steps", (numbers(61, 3), numbers(62, 3),
                                     torch.tensor([0.0, 1.0, 1.0]).double(), 0.5, 0.5, 2)
    yield "five words, six steps", (numbers(63, 5), numbers(64, 5),
                                    torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]).double(), 1.5, 0.3, 6)


def lengths_of_leash(leash) -> str:
    """Where a run of 200 steps ends, at three betas."""
    logits, rewards = torch.zeros(4).double(), torch.tensor([1.0, 0.0, 0.0, 0.0]).double()
    ends = [as_tensor(leash(logits, logits, rewards, beta, 0.1, 200))[-1] for beta in (0, 0.1, 10)]
    return ("After 200 steps KL to the reference is "
            + ", ".join(f"{end:.3f} with beta = {beta}" for end, beta in zip(ends, (0, 0.1, 10)))
            + ".")


LEASH = Repair(
    "leash", "05",
    "Repair leash(logits (V,), ref_logits (V,), rewards (V,), beta, learning_rate, steps) -> KL to "
    "the reference after each step. The policy is one choice among V words, each weighted as often "
    "as it would be sampled, so nothing is noise. The run ends at the same distance with beta = 0 "
    "and beta = 10. Wanted is GRPO's penalty, k3.",
    write_leash, leash_cases, (
        Mistake("k1", "k1 is still in the loss: its value is right on average, but its gradient is "
                "0 on average.", "lesson 05, section 3"),
        Mistake("other direction", "d is the log-prob of the reference less the policy's.",
                "lesson 05, section 2"),
        Mistake("sign", "the sign of the penalty is wrong: distance is rewarded.",
                "lesson 05, section 4"),
        Mistake("beta left out", "beta has no part in it.", "lesson 05, section 4"),
        Mistake("no weights", "all words count alike now; each counts as often as it is sampled.",
                "lesson 05, section 2"),
        Mistake("k2", "this is the gradient of KL(policy || reference), which k2 has in the loss "
                "and k1 in the reward; k3's is that of KL(reference || policy).",
                "lesson 05, section 3", legitimate=True)),
    '''import torch


def leash(logits, ref_logits, rewards, beta, learning_rate, steps):
    distances, ref_log_probs = [], ref_logits.log_softmax(-1)
    for _ in range(steps):
        logits = logits.detach().requires_grad_()
        log_probs = logits.log_softmax(-1)
        weights = log_probs.detach().exp()  # how often each word is sampled
        advantages = rewards - (weights * rewards).sum()
        ratio = (log_probs - log_probs.detach()).exp()
        d = ref_log_probs - log_probs
        penalty = d.exp() - d - 1
        loss = -(weights * (ratio * advantages - beta * penalty)).sum()
        logits = logits - learning_rate * torch.autograd.grad(loss, logits)[0]
        now = logits.log_softmax(-1)
        distances.append((now.exp() * (now - ref_log_probs)).sum())
    return torch.stack(distances)''',
    faults=("k1",), shows=lengths_of_leash, broken='''import torch


def leash(logits, ref_logits, rewards, beta, learning_rate, steps):
    distances, ref_log_probs = [], ref_logits.log_softmax(-1)
    for _ in range(steps):
        logits = logits.detach().requires_grad_()
        log_probs = logits.log_softmax(-1)
        weights = log_probs.detach().exp()  # how often each word is sampled
        advantages = rewards - (weights * rewards).sum()
        ratio = (log_probs - log_probs.detach()).exp()
        penalty = log_probs - ref_log_probs
        loss = -(weights * (ratio * advantages - beta * penalty)).sum()
        logits = logits - learning_rate * torch.autograd.grad(loss, logits)[0]
        now = logits.log_softmax(-1)
        distances.append((now.exp() * (now - ref_log_probs)).sum())
    return torch.stack(distances)''')


# --- lesson 06: gradient accumulation -------------------------------------------------------------

def write_accumulation(faults: Faults):
    def accumulated_loss(values, mask, rows):
        loss = values.new_zeros(())
        batch = mask.numel() if "padded divisor" in faults else mask.sum()
        count = len(values.split(rows))
        for part, counts in zip(values.split(rows), mask.split(rows)):
            total = (part if "mask ignored" in faults else part * counts).sum()
            if "micro-batch divisor" in faults:
                total = total / counts.sum() / count
            elif "sum of the means" in faults:
                total = total / counts.sum()
            elif "rows for tokens" in faults:
                total = total / counts.sum() * len(part) / len(values)
            else:
                total = total / batch
                if "divided twice" in faults:
                    total = total / count
            loss = loss + total
        return loss

    return accumulated_loss


def accumulation_cases():
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
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
    "accumulated_loss", "06",
    "Repair accumulated_loss(values (B, T), mask (B, T), rows) -> token mean of a batch that is "
    "gone through in micro-batches of so many rows. Its gradient changes with the size of the "
    "micro-batches, which should make no difference.",
    write_accumulation, accumulation_cases, (
        Mistake("micro-batch divisor", "each micro-batch is still divided by its own number of "
                "tokens, so that a token counts more in company of short rows.",
                "lesson 06, section 6"),
        Mistake("sum of the means", "the means of the micro-batches are summed: the loss grows "
                "with their number.", "lesson 06, section 6"),
        Mistake("rows for tokens", "the micro-batches are weighted by their rows; they are to be "
                "weighted by their tokens.", "lesson 06, section 6"),
        Mistake("divided twice", "the divisor is that of the whole batch already: dividing by the "
                "number of micro-batches as well makes it too small.", "lesson 06, section 6"),
        Mistake("padded divisor", "you divide by all cells of the table, padding too.",
                "lesson 06, section 1"),
        Mistake("mask ignored", "padding counts.", "lesson 06, section 1")),
    '''def accumulated_loss(values, mask, rows):
    loss, tokens = 0.0, mask.sum()  # of the whole batch
    for part, counts in zip(values.split(rows), mask.split(rows)):
        loss = loss + (part * counts).sum() / tokens
    return loss''',
    gradient_of=0, rtol=GUARD, faults=("micro-batch divisor",), shows=lengths_of_gradient,
    broken='''def accumulated_loss(values, mask, rows):
    loss, parts = 0.0, list(zip(values.split(rows), mask.split(rows)))
    for part, counts in parts:
        loss = loss + (part * counts).sum() / counts.sum() / len(parts)
    return loss''')


# --- lesson 07: a whole run -----------------------------------------------------------------------

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


def write_run(faults: Faults):
    def whole_run(policy, optimizer, sample, reward, prompts, group_size, steps):
        shares = []
        for _ in range(steps):
            tokens = sample(policy, prompts, group_size)
            rewards = reward(tokens)
            if "groups interleaved" in faults:
                groups = rewards.view(group_size, -1).T
            elif "one group of all" in faults:
                groups = rewards.view(1, -1)
            else:
                groups = rewards.view(-1, group_size)
            mean, std = groups.mean(1, keepdim=True), groups.std(1, keepdim=True)
            advantages = groups - mean
            if "no std" not in faults:
                advantages = advantages / (std + 1e-4)
            if "groups interleaved" in faults:
                advantages = advantages.T
            answer = tokens[:, 1:]
            before = (answer == END).cumsum(1) - (answer == END).long()
            mask = (before == 0).double()
            if "end left out" in faults:
                mask = (answer != END).double()
            elif "padding counted" in faults:
                mask = torch.ones_like(mask)
            gain = scored(policy, tokens) * advantages.reshape(-1, 1) * mask
            loss = -gain.sum() / mask.sum()
            if "sign" in faults:
                loss = -loss
            if "gradients pile up" not in faults:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shares.append(rewards.mean())
        return torch.stack(shares)

    return whole_run


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
    "whole_run", "07",
    "Repair whole_run(policy, optimizer, sample, reward, prompts (N,), group_size, steps) -> the "
    "mean reward of each step. sample gives tokens (N * G, 1 + T): a prompt of one token, its "
    "answer, ended and padded by token 0; the G answers to a prompt stand together. Three things "
    "are wrong: within 20 steps one of two prompts is answered right always and the other never "
    "again.",
    write_run, run_cases, (
        Mistake("groups interleaved", "the groups still hold answers to different prompts: those "
                "to one prompt stand together.", "lesson 03, section 1"),
        Mistake("end left out", "the end of an answer is still masked out, so nothing teaches the "
                "policy to stop.", "lesson 01, section 4"),
        Mistake("gradients pile up", "the gradients of all steps before are still added to this "
                "one.", "lesson 00, section 6"),
        Mistake("one group of all", "all prompts are one group now: an easy prompt's right answers "
                "are set against a hard one's.", "lesson 03, section 1"),
        Mistake("padding counted", "all that follows the end counts now; only the first end is of "
                "the answer.", "lesson 01, section 4"),
        Mistake("sign", "the sign is wrong: an optimizer goes downhill.", "lesson 00, section 6"),
        Mistake("no std", "this is Dr. GRPO's advantage, without the std.", "lesson 03, section 4",
                legitimate=True)),
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
    second="policy", faults=("groups interleaved", "end left out", "gradients pile up"),
    shows=rewards_of_run, broken='''import torch


def whole_run(policy, optimizer, sample, reward, prompts, group_size, steps):
    history = []
    for _ in range(steps):
        tokens = sample(policy, prompts, group_size)
        rewards = reward(tokens)
        groups = rewards.view(group_size, -1).T  # (N, G)
        spread = groups.std(1, keepdim=True) + 1e-4
        advantages = ((groups - groups.mean(1, keepdim=True)) / spread).T.flatten()
        mask = tokens[:, 1:] != 0
        log_probs = policy(tokens[:, :-1]).log_softmax(-1)
        log_probs = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        loss = -(advantages[:, None] * log_probs * mask).sum() / mask.sum()
        loss.backward()
        optimizer.step()
        history.append(rewards.mean())
    return torch.stack(history)''')

EXERCISES = (FOUNDING, UPDATES, LEASH, ACCUMULATION, RUN)
